"""The words of the pages: units, rounding and what unknown looks like."""

import pytest

from dashboards import words

NOON = 1_789_997_600.0  # 2026-09-21 13:33:20 UTC, a Monday


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (2.2, "2.2 s"),
        (9.97, "10 s"),
        (41.0, "41 s"),
        (59.7, "1 m"),
        (172.0, "2 m 52 s"),
        (3599.8, "1 h"),
        (4920.0, "1 h 22 m"),
        (200_000.0, "2 d 8 h"),
        (-5.0, "−5.0 s"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (680.0, "11 m"), (8100.0, "2 h 15 m"), (260_000.0, "3 d"), (-3.0, "0 s"), (None, "–")],
)
def test_ages_are_one_word(seconds: float | None, text: str) -> None:
    assert words.age(seconds) == text


def test_offsets_carry_their_sign() -> None:
    assert words.offset(1.1) == "+1.1 s"
    assert words.offset(-2.0) == "−2.0 s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0281, "2.03"), (0.7123, "0.712"), (26395.4, "26,395"), (0.0, "0"), (12.34, "12.3"), (None, "–")],
)
def test_figures_keep_three_places(value: float | None, text: str) -> None:
    assert words.figure(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (2_400_000, "2.4 MB"), (148e9, "148 GB"), (3.2e12, "3.2 TB"), (None, "–")],
)
def test_sizes_are_decimal(count: float | None, text: str) -> None:
    assert words.size(count) == text


def test_times_of_day() -> None:
    assert words.clock(NOON) == "13:33:20"
    assert words.clock(NOON + 0.25, tenths=True) == "13:33:20.2"
    assert words.clock(None) == words.short_clock(None) == words.day_and_clock(None, NOON) == "–"
    assert words.day_and_clock(NOON, NOON + 60) == "13:33:20"
    assert words.day_and_clock(NOON, NOON + 86400) == "Mon 21 Sep 13:33"


def test_an_eta_is_a_range_and_names_the_day_when_it_is_not_today() -> None:
    assert words.eta_range(60, 90, NOON) == "13:34:20–13:34:50"
    assert words.eta_range(3600, 7200, NOON) == "14:33–15:33"
    assert words.eta_range(86400, 90000, NOON) == "Tue 22 Sep 13:33–14:33"
    assert words.eta_range(30000, 50000, NOON) == "21:53–Tue 22 Sep 03:26"
    assert words.eta_range(7200, 7201, NOON) == "15:33"


def test_counts_and_nouns() -> None:
    assert words.plural(1, "node") == "1 node"
    assert words.plural(1200, "node") == "1,200 nodes"
    assert words.plural(2, "retry", "retries") == "2 retries"
    assert words.number(36957) == "36,957"
    assert words.number(None) == "–"


def test_a_number_and_its_unit_stay_together() -> None:
    assert words.tied("back in 2 m 52 s; 9 steps, 16 GPUs, 3 apples") == (
        "back in 2\u00a0m 52\u00a0s; 9\u00a0steps, 16\u00a0GPUs, 3 apples"
    )

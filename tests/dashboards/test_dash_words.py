"""The words of the pages: units, rounding and what unknown looks like."""

import base64
import json
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from controlplane.cli.output import length
from controlplane.services.durations import duration
from dashboards import words

NOON = 1_789_997_600.0  # 2026-09-21 13:33:20 UTC, a Monday
PAINT = Path(words.__file__).parent / "components" / "canvas" / "paint.js"

# Every writer of durations says these so: the server's sentences, the command line, the pages, the canvases.
DURATIONS: list[tuple[float, str]] = [
    (0.0, "0.0 s"),
    (0.04, "0.0 s"),
    (2.2, "2.2 s"),
    (9.94, "9.9 s"),
    (9.97, "10 s"),
    (41.0, "41 s"),
    (59.4, "59 s"),
    (59.7, "1 m 00 s"),
    (65.0, "1 m 05 s"),
    (172.0, "2 m 52 s"),
    (3599.4, "59 m 59 s"),
    (3599.8, "1 h 00 m"),
    (4920.0, "1 h 22 m"),
    (7200.0, "2 h 00 m"),
    (11_100.0, "3 h 05 m"),
    (86_399.4, "23 h 59 m"),
    (86_399.8, "1 d 0 h"),
    (100_000.0, "1 d 3 h"),
    (200_000.0, "2 d 7 h"),
]


def on_a_canvas(seconds: list[float]) -> list[str]:
    """What paint.js makes of them, run by the node that Playwright brings."""
    source = base64.b64encode(PAINT.read_bytes()).decode()
    program = (
        f'import {{ duration }} from "data:text/javascript;base64,{source}"\n'
        f"console.log(JSON.stringify({json.dumps(seconds)}.map(duration)))"
    )
    node = compute_driver_executable()[0]
    done = subprocess.run([node, "--input-type=module", "-"], input=program, capture_output=True, text=True, check=True)
    told: list[str] = json.loads(done.stdout)
    return told


def test_every_writer_of_durations_says_the_same() -> None:
    seconds, told = [list(part) for part in zip(*DURATIONS, strict=True)]
    for writer in (duration, length, words.duration):
        assert [writer(one) for one in seconds] == told, writer.__module__
    assert on_a_canvas(seconds) == told


@pytest.mark.parametrize(("seconds", "text"), [(-5.0, "−5.0 s"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")])
def test_a_duration_that_is_none_is_a_dash(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(900.0, "15 m"), (7200.0, "2 h"), (86_400.0, "1 d"), (100.0, "1 m 40 s")]
)
def test_a_round_span_has_no_zeros(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


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

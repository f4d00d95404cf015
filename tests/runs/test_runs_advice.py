"""How often to checkpoint, how many spares: the closed forms against what they minimise, and the data of the mix."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rules import book
from controlplane.runs import advice, causes
from controlplane.runs.causes import MIX, Costs, Restart, restart_from

BOOK = {rule["id"]: rule for rule in book.listed(book.load())}
UNKNOWN_RULES = {"silent-corruption"}
"""Found by whoever looks at the loss; the rule book has no rule for it yet."""


def test_the_mix_is_llama_threes() -> None:
    assert sum(cause.stops for cause in MIX) == 419
    assert round(causes.GPU_HOURS_PER_STOP) == 50_677
    assert len({cause.name for cause in MIX}) == len(MIX)


@pytest.mark.parametrize(
    "cause", [one for one in MIX if one.rule and one.rule not in UNKNOWN_RULES], ids=lambda c: c.name
)
def test_a_cause_is_seen_by_a_rule_of_the_book_after_that_rules_own_time(cause: causes.Cause) -> None:
    rule = BOOK[cause.rule]
    if cause.window_s is not None and cause.window_s > 0:
        assert rule["window"] == f"{cause.window_s:g} s"
    assert book.load().corrupts(cause.rule) == (cause.effect == "corrupts")


@given(st.floats(0.01, 600), st.floats(600, 1e8))
def test_no_other_interval_loses_less(blocking_s: float, mtbf_s: float) -> None:
    best = advice.best_interval_s(blocking_s, mtbf_s)
    useful = advice.useful_share(best, blocking_s, mtbf_s)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert advice.useful_share(best * factor, blocking_s, mtbf_s) <= useful * (1 + 1e-12)


def test_youngs_interval_is_the_best_one_while_blocking_is_short() -> None:
    assert advice.young_daly_s(2.0, 178_161.0) == pytest.approx(844.2, abs=0.1)
    assert advice.best_interval_s(2.0, 178_161.0) == pytest.approx(advice.young_daly_s(2.0, 178_161.0), rel=0.002)
    # where it is not, Young's is too long
    assert advice.best_interval_s(300.0, 3_600.0) < 0.9 * advice.young_daly_s(300.0, 3_600.0)


@given(st.integers(0, 12), st.floats(0.001, 20))
def test_waiting_for_a_node_is_erlangs_formula(spares: int, away: float) -> None:
    terms = [away**places / math.factorial(places) for places in range(spares + 2)]
    assert advice.waits_share(spares, away) == pytest.approx(terms[-1] / sum(terms), rel=1e-9)


@pytest.mark.parametrize(("gpus", "steps", "spares"), [(1_024, 421, 2), (8_192, 149, 10)])
def test_the_advice_at_the_two_sizes(gpus: int, steps: int, spares: int) -> None:
    told = advice.advise(gpus, Costs(), step_s=2.0)
    assert (told.interval_steps, told.interval_s, told.spares) == (steps, 2.0 * steps, spares)
    assert told.young_daly_s == pytest.approx(told.interval_s, rel=0.01)


@given(st.integers(1, 20_000), st.floats(0.01, 100), st.floats(0.1, 60))
def test_what_is_expected_sums_to_all_of_the_time(gpus: int, blocking_s: float, step_s: float) -> None:
    told = advice.advise(gpus, Costs(blocking_s=blocking_s), step_s=step_s)
    assert told.interval_steps is not None and told.interval_steps >= 1
    assert told.outlook.ettr_percent + sum(one.percent for one in told.outlook.lost) == pytest.approx(100.0)
    assert all(one.percent >= 0 for one in told.outlook.lost)


def test_without_a_steps_time_the_interval_is_in_seconds_only() -> None:
    told = advice.advise(1_024, Costs())
    assert told.interval_steps is None and told.interval_s == pytest.approx(842.8, abs=0.5)
    assert advice.advise(1_024, Costs(), restart_s=10.0).restart_s == 10.0


def test_restart_times_come_from_a_file_for_the_gang_that_is_asked_about() -> None:
    told = {"source": "bench", "detect_s": 1, "gangs": {"128": {"place_s": 4.5}, "1024": {"place_s": 9.5}}}
    assert restart_from(told, 16) == Restart(1, place_s=4.5, source="bench")
    assert restart_from(told, 129).place_s == restart_from(told, 5_000).place_s == 9.5
    assert restart_from({}, 128) == Restart()


def line(size: int, what: str, value: float) -> str:
    return json.dumps({"name": f"gang of {size}: fault to {what}, p95", "value": value, "unit": "s"})


def test_restart_times_come_from_the_lines_of_the_bench() -> None:
    marks = (("incident", 1.5), ("cordon", 2.0), ("old attempt fenced", 3.5), ("all new pods running", 9.5))
    lines = ['{"name": "controller CPU, idle", "value": 1}', "bench: not a figure"]
    told = causes.measured_from("\n".join([*lines, *(line(128, *mark) for mark in marks)]))
    assert restart_from(told, 128) == Restart(1.5, 0.5, 1.5, 6.0, "bench kube, p95")
    assert causes.measured_from('{"place_s": 3}') == {"place_s": 3}
    with pytest.raises(ValueError, match="gang of 128"):
        causes.measured_from("\n".join([*lines, line(128, "incident", 1.0)]))
    with pytest.raises(ValueError, match="no figures"):
        causes.measured_from("\n".join(lines))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"detect": 1}, "detect: not a restart time"),
        ({"place_s": -1}, "place_s: must be"),
        ({"fence_s": "2"}, "fence_s"),
    ],
)
def test_a_file_that_says_something_else_is_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        restart_from(told, 128)

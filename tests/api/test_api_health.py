"""Health and metrics of the loops: a loop that never had a good round is seen, and what is unknown has no sample."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane import metrics
from controlplane.api.app import STALE_LOOP_S, _not_ready, server_state
from controlplane.clock import ManualClock
from controlplane.loops import Loop


def loop(name: str, clock: ManualClock, run_once: Any = lambda: None) -> Loop:
    """A loop that has begun, whose rounds the test makes itself."""
    made = Loop(name, 0.5, run_once, clock)
    made.state.started_s = clock.monotonic()
    return made


def broken() -> None:
    raise ValueError("no rule can be read")


@pytest.fixture
def leading(api: Any) -> tuple[Any, ManualClock]:
    """The parts of a leading server at a clock that the test moves."""
    clock = ManualClock()
    clock.advance(5.0)
    return replace(api.context, leadership=SimpleNamespace(epoch=1), clock=clock), clock


def test_a_loop_that_fails_from_the_start_makes_a_server_not_ready(leading: tuple[Any, ManualClock]) -> None:
    context, clock = leading
    rules = loop("rules", clock, broken)
    context = replace(context, loops={"rules": rules, "runs": loop("runs", clock)})
    rules.once()
    clock.advance(STALE_LOOP_S)
    assert _not_ready(context) == []
    clock.advance(1.0)
    context.loops["runs"].once()
    assert _not_ready(context) == ["loop rules: no good round in 61 s"]
    assert _not_ready(replace(context, leadership=SimpleNamespace(epoch=None))) == []


def test_a_loop_that_fails_later_is_stale_after_a_minute_whatever_the_wall_clock_does(
    leading: tuple[Any, ManualClock],
) -> None:
    context, clock = leading
    runs = loop("runs", clock)
    context = replace(context, loops={"runs": runs})
    runs.once()
    clock.jump(7200.0)
    assert _not_ready(context) == []
    clock.advance(61.0)
    assert _not_ready(context) == ["loop runs: last good round 61 s ago"]


def test_a_loop_without_a_good_round_has_no_age(leading: tuple[Any, ManualClock]) -> None:
    context, clock = leading
    context = replace(context, loops={"rules": loop("rules", clock, broken), "runs": loop("runs", clock)})
    for one in context.loops.values():
        one.once()
    clock.advance(3.0)
    text = metrics.exposition(lambda: server_state(context)).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def by_loop(name: str) -> dict[str, float]:
        return {sample.labels["loop"]: sample.value for sample in samples if sample.name == name}

    assert by_loop("trimtab_loop_failures_total") == {"rules": 1, "runs": 0}
    assert by_loop("trimtab_loop_age_seconds") == {"runs": 3.0}
    assert by_loop("trimtab_loop_duration_seconds") == {"runs": 0.0}

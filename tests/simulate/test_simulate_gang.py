"""The gang's arithmetic against a gang that is stepped through one step at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.simulate.gang import NEVER, Gang, Pace, Written

READY = 10.0


def gang(resume: int = 3, stopped_s: float = NEVER, **pace: float) -> Gang:
    values = {"step_s": 2.0, "interval": 5, "blocking_s": 1.0, "write_s": 0.5, **pace}
    return Gang(1, ("a",), resume, Pace(**values), 0.0, 0.0, READY, stopped_s)  # type: ignore[arg-type]  # interval is whole


def walked(one: Gang, until_s: float) -> tuple[int, float, list[Written]]:
    """(steps done, seconds blocked, checkpoints usable) by then, step by step."""
    at, step, blocked, found = one.ready_s, one.resume_step, 0.0, []
    end = min(until_s, one.stopped_s) + 1e-6
    while at + one.pace.step_s <= end:
        at, step = at + one.pace.step_s, step + 1
        if step % one.pace.interval == 0:
            state_at = at
            blocked += max(0.0, min(one.pace.blocking_s, end - at))
            at += one.pace.blocking_s
            usable = at + one.pace.write_s
            if at <= one.stopped_s + 1e-6 and usable <= until_s + 1e-6:
                found.append(Written(step, state_at, usable))
    return step, blocked, found


@given(
    resume=st.integers(0, 23),
    interval=st.integers(1, 7),
    blocking=st.floats(0.0, 5.0),
    write=st.floats(0.0, 5.0),
    until=st.floats(0.0, 300.0),
    stopped=st.one_of(st.just(NEVER), st.floats(10.0, 300.0)),
)
def test_steps_blocking_and_checkpoints_are_those_of_a_walk(
    resume: int, interval: int, blocking: float, write: float, until: float, stopped: float
) -> None:
    one = gang(resume, stopped, interval=interval, blocking_s=round(blocking, 1), write_s=round(write, 1))
    until, one.stopped_s = round(until, 1) + 0.03, stopped if stopped == NEVER else round(stopped, 1) + 0.03
    steps, blocked, found = walked(one, until)
    assert one.done(until) == steps
    assert one.blocked_s(until) == pytest.approx(blocked, abs=1e-4)
    mine = list(one.written(0.0, until))
    assert [row.step for row in mine] == [row.step for row in found]
    assert [row.usable_s for row in mine] == pytest.approx([row.usable_s for row in found])


@given(st.lists(st.floats(10.0, 200.0), min_size=1, max_size=6))
def test_looking_often_finds_each_checkpoint_once(times: list[float]) -> None:
    one, at, found = gang(), 0.0, []
    for moment in sorted(round(time, 1) + 0.03 for time in times):
        found += one.written(at, moment)
        at = moment
    assert found == list(one.written(0.0, at))


def test_the_step_under_way_ends_after_the_checkpoint_that_blocks() -> None:
    one = gang()
    assert [one.step_ends_s(at) for at in (10.0, 12.0, 14.5, 15.0, 25.0)] == [12.0, 14.0, 17.0, 17.0, 28.0]

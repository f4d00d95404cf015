"""Data that was given up stays so, in whatever order attempts roll back and are begun from older checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.runs.skips import left_out
from controlplane.store.engine import Store
from jobs.contract import data_index
from tests.runs.piloting import Pilot
from tests.runs.situations import attempt, failed, saved

NUMERICS = {"class": "numerics", "message": "the loss is not finite", "fingerprint": "n"}


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def skipped(pilot: Pilot, run_id: str) -> str:
    attempt = pilot.last(run_id)
    return pilot.backend.attempts[attempt.name].plan.environment["TRIMTAB_SKIP_STEPS"]


def fall(pilot: Pilot, run_id: str) -> None:
    """The attempt's loss is no number any more; the next one begins."""
    number = pilot.last(run_id).no
    pilot.end(run_id, "failed", **{**NUMERICS, "fingerprint": str(number)})
    for _ in range(40):
        pilot.round(5)
        if pilot.last(run_id).no > number:
            return


def test_what_was_left_out_is_left_out_after_the_next_restart_too(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    pilot.save(run_id, 10, at=-60)
    fall(pilot, run_id)
    assert (pilot.last(run_id).resume_step, skipped(pilot, run_id)) == (10, "11-21")
    pilot.train(run_id, 11, 14)
    pilot.hit("node-0")
    pilot.round(1)
    pilot.round(1)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (3, 10)
    assert skipped(pilot, run_id) == "11-21"


def test_a_second_rollback_adds_to_the_first_in_data_indices(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    pilot.save(run_id, 10)
    fall(pilot, run_id)
    pilot.train(run_id, 11, 30)
    pilot.save(run_id, 25)
    fall(pilot, run_id)
    # step 25 has read index 36 = 25 + the 11 that were left out; step 31 was not completed
    assert (pilot.last(run_id).resume_step, skipped(pilot, run_id)) == (25, "11-21,37-42")


def test_a_checkpoint_that_has_read_what_was_given_up_later_goes_on_where_it_stopped() -> None:
    attempts = (failed("numerics", 1, last_step=30), attempt(2, "stopped", resume_step=10, skips=((11, 31),)))
    assert left_out(attempts, saved(20)) == ((21, 31),), "20 was computed from 11 to 20: that cannot be undone"
    assert left_out(attempts, saved(10)) == left_out(attempts, None) == ((11, 31),)


def test_a_checkpoint_of_the_run_before_keeps_what_that_left_out() -> None:
    before, kept = ((3, 4), (8, 9)), replace(saved(5, 0), skips=((3, 4),))
    assert left_out((), kept, before=before) == ((3, 4), (8, 9))
    assert left_out((), replace(kept, skips=()), before=before) == ((8, 9),), "it has read 3 and 4"
    assert left_out((), None, before=before) == before


HISTORY = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 99), st.booleans()), max_size=6)


@given(HISTORY)
def test_along_every_path_each_index_is_read_once_or_was_given_up(history: list[tuple[int, int, int, bool]]) -> None:
    """Attempts train, save, fail, and the next one begins anywhere, rolling back or not."""
    attempts, kept = [attempt(1, "failed", last_step=10)], [saved(4, 1)]
    read = {1: list(range(1, 11))}
    for number, (back, steps, place, rolls_back) in enumerate(history, start=2):
        resume = kept[place % len(kept)] if back else None
        before = attempts[-1]
        # a decision to roll back takes a checkpoint of the path that failed
        rolls_back = rolls_back and (resume is None or resume.attempt_no == before.no)
        skips = left_out(attempts, resume, before if rolls_back else None)
        first = resume.step if resume else 0
        past = read[resume.attempt_no][: resume.step] if resume else []
        read[number] = past + [data_index(step, skips) for step in range(first + 1, first + steps + 1)]
        new = attempt(number, "failed", resume_step=resume and resume.step, last_step=first + steps, skips=skips)
        attempts.append(new)
        kept.append(saved(first + (steps + 1) // 2, number))
        assert read[number] == sorted(set(read[number])), "nothing is read twice"
        given_up = {index for one in attempts for low, high in one.skips for index in range(low, high + 1)}
        assert set(range(1, read[number][-1])) - set(read[number]) <= given_up, "nothing is lost"
        assert not set(read[number][len(past) :]) & given_up, "nothing given up is read again"

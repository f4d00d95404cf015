"""A command that returned 0: whether it is done, as far as anybody can tell."""

from __future__ import annotations

import pytest

from controlplane.runs.view import EndAttempt, SetRun, Wait
from tests.runs.situations import NOW, Case, answers, attempt, beats, look, saved, view

CASES: dict[str, Case] = {
    "a whole gang's success is the end": (
        view(attempt(), look=look("succeeded", True), beats=beats(1, 100)),
        EndAttempt,
        {"state": "succeeded", "sentence": "Attempt 1 completed all 100 steps."},
    ),
    "its last checkpoint says it too": (
        view(attempt(), look=look("succeeded", True), saved=(saved(100),)),
        EndAttempt,
        {"state": "succeeded"},
    ),
    "who goes on from the last step has nothing left to do": (
        view(attempt(state="starting", resume_step=100), look=look("succeeded", True), beats=()),
        EndAttempt,
        {"state": "succeeded", "sentence": "Attempt 1 completed all 100 steps."},
    ),
    "its last words may be on their way": (view(attempt(), look=look("succeeded", True)), Wait, {}),
    "whose node is not heard has not said less": (
        view(attempt(), look=look("succeeded", True), beats=(*beats(1, 100)[:1], *beats(1, 95, silent=29.0)[1:])),
        Wait,
        {},
    ),
    "who says that it leaves has said all": (
        view(attempt(), look=look("succeeded", True), beats=beats(1, 12, "exit")),
        EndAttempt,
        {"state": "failed", "end_class": "ended_early", "message": "it returned 0 after step 12 of 100"},
    ),
    "a success that is silent too long ended early": (
        view(attempt(), look=look("succeeded", True), beats=beats(1, 12, silent=31.0)),
        EndAttempt,
        {"state": "failed", "sentence": "Attempt 1 ended early: it returned 0 after step 12 of 100."},
    ),
    "a success that never said a step did none": (
        view(attempt(state="starting", state_since_s=NOW - 31), look=look("succeeded", True), beats=()),
        EndAttempt,
        {"state": "failed", "message": "it returned 0 and no step of 100 was seen"},
    ),
    "who counts no steps is believed": (
        view(attempt(), look=look("succeeded", True), contract_level=1),
        EndAttempt,
        {"state": "succeeded", "sentence": "Attempt 1 is done: its command returned 0."},
    ),
    "the run is done with its attempt": (
        view(attempt(state="succeeded")),
        SetRun,
        {"status": "succeeded", "reason": "all 100 steps done"},
    ),
    "nobody counted the steps of a command": (
        view(attempt(state="succeeded"), contract_level=0),
        SetRun,
        {"status": "succeeded", "reason": "its command returned 0"},
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_a_return_of_0_is_held_against_what_was_heard(situation: str) -> None:
    answers(*CASES[situation])

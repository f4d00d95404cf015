"""What people read of the controller's moves, and whose word is believed on how an attempt ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.runs.decide import decide
from controlplane.runs.view import Decide, EndAttempt, Look, MemberView, View, Wish
from tests.runs.situations import SECOND, attempt, beats, decision, failed, look, saved, trouble, view

OUT_OF_MEMORY = Look(
    "failed",
    (MemberView("a", False, 137, None), MemberView("b", False, 137, None, reason="OOMKilled", index=1)),
    True,
)


def told(end_class: str, at_s: float, rank: int | None = 0, message: str = "boom") -> dict[str, Any]:
    return {"code": 1, "class": end_class, "at_s": at_s, "first_rank": rank, "message": message, "fingerprint": "f"}


@pytest.mark.parametrize(
    ("first", "second", "node", "end_class"),
    [
        (told("error", 5.0), told("error", 6.0), "a", "error"),
        (told("error", 6.0), told("error", 5.0), "b", "error"),
        (told("peer_lost", 1.0), told("killed", 5.0), "b", "killed"),
        (told("killed", 1.0), told("numerics", 5.0), "b", "numerics"),
        (told("done", 1.0), told("error", 5.0), "b", "error"),
        (None, told("peer_lost", 5.0), "b", "peer_lost"),
        (None, None, "", "killed"),
    ],
)
def test_who_knows_the_cause_is_believed(
    first: dict[str, Any] | None, second: dict[str, Any] | None, node: str, end_class: str
) -> None:
    members = tuple(MemberView(name, False, 1, word) for name, word in zip("ab", (first, second), strict=True))
    move = decide(view(attempt(), look=Look("failed", members, True)))
    assert isinstance(move, EndAttempt) and (move.node, move.end_class) == (node, end_class)


SENTENCES: dict[str, tuple[View, str]] = {
    "trains": (
        view(attempt(state="init", resume_step=10, first_step=None), beats=beats(11, 12)),
        "Attempt 1 trains: its first step is 11, the one after checkpoint 10.",
    ),
    "suspect": (
        view(attempt(), beats=(replace(beats()[0], silent_s=30.0), replace(beats()[1], silent_s=41.0))),
        "Attempt 1 is suspect: rank 1 on b and 1 more have said nothing for 41 s.",
    ),
    "placed": (view(saved=()), "Attempt 1 is placed on a and b and starts from step 0."),
    "fault": (
        view(attempt(), troubles=(trouble(),)),
        (
            "GPU 3 of b erred, so trial restarts without b from its newest verified checkpoint; "
            "what was saved since the last clean sample is not used."
        ),
    ),
    "error": (
        view(failed()),
        "Attempt 1 of trial ended: it said error. It is restarted from its newest verified checkpoint.",
    ),
    "strikes twice": (
        view(*(failed(no=no, last_step=no, end={"node": "b", "message": "no NIC"}) for no in (1, 2))),
        "Attempt 2 of trial ended on b as one did before: no NIC. It is restarted without that node.",
    ),
    "budget": (
        view(failed(no=1), failed(no=2), failed(no=3)),
        (
            "trial failed again (it said error) and the same failure came 3 times without progress past step 20. "
            "A person must look."
        ),
    ),
    "killed": (
        view(attempt(), look=look("failed", True)),
        "Attempt 1 ended: the launcher on a was killed from outside.",
    ),
    "killed by the kernel": (
        view(attempt(), look=OUT_OF_MEMORY),
        "Attempt 1 ended: the launcher on b was killed from outside (OOMKilled).",
    ),
    "paused": (view(attempt(), desired="pause"), "Attempt 1 is asked to save and stop: paused by a person."),
    "hours used": (
        view(attempt(), desired="cancel", because="Stage a has used 5.00 of 4 GPU-hours"),
        "Attempt 1 is asked to save and stop: cancelled: Stage a has used 5.00 of 4 GPU-hours.",
    ),
    "saved": (
        view(attempt(state="stopping"), look=look("failed", True, 75, 75), desired="pause"),
        "Attempt 1 was stopped; it saved first.",
    ),
    "not saved": (
        view(attempt(state="stopping"), look=look("failed", True, 137, 137), desired="pause"),
        "Attempt 1 was stopped; it did not save.",
    ),
    "proved": (
        view(*SECOND, decision=decision(), beats=beats(11, 12)),
        "Attempt 2 completed step 11, as planned, on a and c.",
    ),
    "from scratch": (
        view(*SECOND, decision=decision(), beats=beats(1, 2)),
        "Attempt 2 began with step 1; it had to begin with 11.",
    ),
    "wish": (
        view(attempt(), wish=Wish("ada", "c1-10", ("a",)), saved=(saved(10),)),
        "ada asked to restart trial from checkpoint 10 without a.",
    ),
}


@pytest.mark.parametrize("situation", SENTENCES)
def test_what_people_read(situation: str) -> None:
    given, sentence = SENTENCES[situation]
    move = decide(given)
    assert (move.choice.reason if isinstance(move, Decide) else getattr(move, "sentence", None)) == sentence

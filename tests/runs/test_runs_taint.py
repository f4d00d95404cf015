"""What a data-corrupting fault spoils, as a table: whenever it is told, whatever the policy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controlplane.runs.decide import decide
from controlplane.runs.taint import spoils, suspects
from controlplane.runs.view import Conclude, Decide, EndAttempt, PlanAttempt, SetRun, Submit, Taint, Wait
from tests.runs.piloting import BOOK
from tests.runs.situations import (
    FREE,
    NOW,
    Case,
    answers,
    attempt,
    beats,
    corruption,
    decision,
    failed,
    look,
    saved,
    trouble,
    view,
)

CLEAN, SPOILT = saved(10), saved(15, at=NOW - 3)
TAINTED = replace(SPOILT, state="tainted")
KILLED = failed("killed", 1)
HEIR = attempt(2, nodes=("a", "c"), resume_step=15, resume_id="c1-15", first_step=None, last_step=None)
LOADS = beats(None, None, "load")

CASES: dict[str, Case] = {
    # --- what is spoilt is marked first, whatever else there is to do ---
    "before the death": (
        view(attempt(), saved=(CLEAN, SPOILT), troubles=(trouble(),), corruptions=(corruption(),)),
        Taint,
        {"spoilt": suspects((CLEAN, SPOILT), spoils((attempt(),), (), (corruption(),))).spoilt},  # type: ignore[union-attr]  # there is one
    ),
    "after the death": (view(KILLED, saved=(CLEAN, SPOILT), corruptions=(corruption(),)), Taint, {}),
    "where nothing is restarted": (
        view(attempt(), saved=(SPOILT,), mode="observe", corruptions=(corruption(decided=True),)),
        Taint,
        {},
    ),
    "of a run that is over": (
        view(attempt(state="succeeded"), status="succeeded", saved=(SPOILT,), corruptions=(corruption(),)),
        Taint,
        {},
    ),
    "when the fault is over": (
        view(attempt(), saved=(SPOILT,), corruptions=(corruption(end_s=NOW - 1),)),
        Taint,
        {},
    ),
    "of an attempt that went on from what is": (
        view(
            attempt(1, "failed"),
            replace(HEIR, last_step=20),
            saved=(TAINTED, saved(20, 2, at=NOW)),
            corruptions=(corruption(decided=True),),
        ),
        Taint,
        {},
    ),
    # --- the attempt is over already ---
    "the fault is the reason of the death": (
        view(KILLED, saved=(CLEAN, TAINTED), corruptions=(corruption(),)),
        Decide,
        {"stop": "none", "choice.action": "restart_exclude", "choice.excluded": ("b",), "choice.incidents": ("i1",)},
    ),
    "it belongs to the decision that is not carried out yet": (
        view(
            KILLED,
            saved=(CLEAN, TAINTED),
            decision=decision(action="restart", excluded=(), fingerprint="killed"),
            corruptions=(corruption(),),
        ),
        Decide,
        {"choice.action": "restart_exclude", "choice.excluded": ("b",)},
    ),
    "a persons choice of a checkpoint is kept": (
        view(
            KILLED,
            saved=(CLEAN,),
            decision=decision(by_person=True, checkpoint_id="c1-10"),
            corruptions=(corruption(),),
        ),
        Decide,
        {"choice.checkpoint_id": "c1-10", "choice.excluded": ("b",)},
    ),
    "nobody plans past a fault that has no incident yet": (
        view(KILLED, decision=decision(excluded=()), corruptions=(corruption(number=0, incident_id=""),)),
        Wait,
        {"reason": "GPU 3 of b erred; the incident is being opened"},
    ),
    "but not for ever": (
        view(
            KILLED,
            saved=(CLEAN,),
            decision=decision(excluded=("b",)),
            corruptions=(corruption(number=0, incident_id="", told_s=NOW - 11),),
        ),
        PlanAttempt,
        {"resume": CLEAN},
    ),
    "a fault after the death is another's": (
        view(attempt(1, "failed", end_class="killed", ended_s=NOW - 5), corruptions=(corruption(),)),
        Decide,
        {"choice.rule": "exit:killed"},
    ),
    "a lost GPU is the reason of a death too": (
        view(KILLED, troubles=(trouble(corrupting=False),)),
        Decide,
        {"choice.rule": "hang", "choice.excluded": ("b",)},
    ),
    "a configuration has its own reason": (
        view(failed("configuration"), troubles=(trouble(corrupting=False),)),
        Decide,
        {"choice.action": "pause_for_human"},
    ),
    "where the policy only advises a person hears the reason": (
        view(KILLED, saved=(TAINTED,), mode="advise", corruptions=(corruption(),)),
        Decide,
        {
            "choice.action": "pause_for_human",
            "choice.incidents": ("i1",),
            "choice.excluded": (),
            "choice.reason": "GPU 3 of b erred, and attempt 1 ended; its policy is advise: a person restarts it.",
        },
    ),
    "after a pause too": (
        view(attempt(1, "stopped"), saved=(TAINTED,), corruptions=(corruption(),)),
        Decide,
        {"choice.action": "restart_exclude"},
    ),
    "a success on it is none": (
        view(attempt(state="succeeded"), saved=(TAINTED,), corruptions=(corruption(),)),
        Decide,
        {"choice.action": "restart_exclude"},
    ),
    "unless the policy only looks on": (
        view(attempt(state="succeeded"), saved=(TAINTED,), mode="observe", corruptions=(corruption(),)),
        SetRun,
        {"status": "succeeded"},
    ),
    "a node that was mended since is not to blame": (
        view(KILLED, saved=(TAINTED,), corruptions=(corruption(end_s=NOW - 1),)),
        Decide,
        {"choice.action": "restart", "choice.excluded": ()},
    ),
    # --- the next attempt is planned ---
    "a plan on spoilt ground is made anew": (
        view(KILLED, replace(HEIR, state="planned"), saved=(TAINTED,), corruptions=(corruption(),)),
        EndAttempt,
        {
            "state": "superseded",
            "end_class": "replanned",
            "sentence": "Attempt 2 was never started: checkpoint 15, from which it was to go on, is tainted.",
        },
    ),
    "a plan on a bad node too": (
        view(KILLED, attempt(2, "planned", resume_step=10, resume_id="c1-10"), corruptions=(corruption(),)),
        EndAttempt,
        {"end_class": "replanned"},
    ),
    "a plan on a node whose fault is over is good": (
        view(KILLED, attempt(2, "planned"), corruptions=(corruption(end_s=NOW - 1),)),
        Submit,
        {},
    ),
    "what was never started proves and fails nothing": (
        view(
            KILLED,
            attempt(2, "superseded", end_class="replanned", resume_step=15, resume_id="c1-15"),
            saved=(CLEAN, TAINTED),
            decision=decision(),
            corruptions=(corruption(decided=True),),
        ),
        PlanAttempt,
        {"resume": CLEAN, "sentence": "Attempt 3 is placed on a and c and resumes from checkpoint 10."},
    ),
    # --- the next attempt runs ---
    "who went on from it is restarted": (
        view(attempt(1, "failed"), HEIR, beats=LOADS, saved=(CLEAN, TAINTED), corruptions=(corruption(),)),
        Decide,
        {
            "stop": "kill",
            "choice.action": "restart_exclude",
            "choice.excluded": ("b",),
            "choice.corrupting_since_s": NOW - 4,
        },
    ),
    "with its reason": (
        view(attempt(1, "failed"), HEIR, beats=LOADS, saved=(CLEAN, TAINTED), corruptions=(corruption(),)),
        Decide,
        {
            "choice.reason": "GPU 3 of b erred; attempt 2 had gone on from checkpoint 15, which that spoilt, so trial "
            "restarts without b from its newest verified checkpoint; what was saved since the last clean sample is not "
            "used."
        },
    ),
    "what it was to prove has come to nothing": (
        view(
            attempt(1, "failed"),
            replace(HEIR, decision_id="d1"),
            beats=LOADS,
            saved=(CLEAN, TAINTED),
            decision=decision(action="restart", excluded=()),
            corruptions=(corruption(),),
        ),
        Conclude,
        {"ok": False, "stop": False},
    ),
    "who leaves to save is killed": (
        view(attempt(1, "failed"), replace(HEIR, state="stopping"), saved=(TAINTED,), corruptions=(corruption(),)),
        Decide,
        {"stop": "kill"},
    ),
    "where nothing is restarted it is advised": (
        view(attempt(1, "failed"), HEIR, beats=LOADS, saved=(TAINTED,), mode="advise", corruptions=(corruption(),)),
        Decide,
        {"stop": "none", "choice.mode": "advise", "choice.action": "restart_exclude"},
    ),
    "once": (
        view(
            attempt(1, "failed"),
            HEIR,
            beats=LOADS,
            saved=(TAINTED,),
            mode="advise",
            corruptions=(corruption(decided=True),),
        ),
        Wait,
        {},
    ),
    "who went on from before it is left alone": (
        view(
            attempt(1, "failed"),
            replace(HEIR, resume_step=10, resume_id="c1-10"),
            beats=LOADS,
            saved=(CLEAN, TAINTED),
            corruptions=(corruption(),),
        ),
        Wait,
        {},
    ),
    "a success that stands on it is none": (
        view(
            attempt(1, "failed"),
            HEIR,
            beats=beats(16, 100),
            look=look("succeeded", True),
            saved=(TAINTED,),
            corruptions=(corruption(),),
        ),
        Decide,
        {"choice.action": "restart_exclude"},
    ),
    "what lies on a path that was left is not come back to": (
        view(
            attempt(1, "superseded"),
            attempt(2, "superseded", resume_step=10, resume_id="c1-10", end_class="hardware"),
            saved=(CLEAN, saved(18), saved(14, 2), saved(19, 2, "tainted", NOW - 3)),
            decision=decision(attempt_no=2, checkpoint_id="c2-19"),
            candidates=FREE,
        ),
        PlanAttempt,
        {"resume": saved(14, 2)},
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_one_view_one_move(situation: str) -> None:
    answers(*CASES[situation])


@pytest.mark.parametrize(
    ("at", "state", "spoilt"),
    [
        (NOW - 4.1, "validated", False),
        (NOW - 4, "validated", True),
        (NOW + 99, "validated", True),
        (None, "validated", True),
        (NOW - 3, "complete", True),
        (None, "complete", False),
        (NOW - 3, "tainted", False),
    ],
)
def test_what_was_computed_since_the_last_clean_sample(at: float | None, state: str, spoilt: bool) -> None:
    one = saved(15, state=state, at=at)
    other = saved(15, 2, at=NOW - 3)
    found = suspects((one, other), spoils((KILLED, attempt(2, nodes=("c",))), (one, other), (corruption(),)))
    assert [each.checkpoint_id for each in found.spoilt] == [one.id] if spoilt else found is None  # type: ignore[union-attr]  # it is there


def test_what_was_spoilt_once_stays_so_though_the_fault_is_forgotten() -> None:
    later = saved(30, at=NOW + 60)
    (found,) = suspects((TAINTED, later), spoils((attempt(),), (TAINTED, later), ())).spoilt  # type: ignore[union-attr]  # there is one
    assert found.checkpoint_id == later.id
    stale = replace(TAINTED, epoch=7)
    assert suspects((stale, later), spoils((attempt(),), (stale, later), ())) is None, "that was never this attempt's"


def test_all_who_descend_from_it_are_spoilt() -> None:
    third = attempt(3, nodes=("c", "d"), resume_step=20, resume_id="c2-20")
    kept = (TAINTED, saved(20, 2, at=NOW - 1), saved(25, 3, at=NOW))
    found = spoils((KILLED, HEIR, third), kept, (corruption(),))
    assert [one.since_s for one in found[2]] == [one.since_s for one in found[3]] == [-math.inf]
    marked = suspects(kept, found)
    assert [one.reason for one in marked.spoilt] == [  # type: ignore[union-attr]  # there are two
        "it goes back to checkpoint 15 of attempt 1, which is tainted",
        "it goes back to checkpoint 20 of attempt 2, which is tainted",
    ]


def test_the_rules_that_corrupt_are_the_rule_books() -> None:
    of_gpus = {"hbm-uncorrectable", "hbm-poison", "hbm-failed", "xgmi-uncorrectable", "xgmi-told"}
    of_gpus |= {"other-uncorrectable", "other-told", "other-again"}
    assert BOOK.corrupting == {*of_gpus, "host-mce", "host-memory"}
    assert isinstance(decide(view(attempt(), corruptions=(corruption(action="alert"),))), Wait), "who only alerts"

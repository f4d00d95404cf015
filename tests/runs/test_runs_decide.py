"""The policy, as a table: one view of a run, one move. Each line is a situation that a controller must get right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.runs.decide import decide
from controlplane.runs.states import LIVE
from controlplane.runs.view import (
    Advance,
    Conclude,
    Decide,
    EndAttempt,
    PlanAttempt,
    Press,
    SetRun,
    Submit,
    Wait,
    Wish,
)
from tests.runs.situations import (
    FREE,
    NOW,
    SECOND,
    Case,
    answers,
    attempt,
    beats,
    decision,
    failed,
    look,
    saved,
    trouble,
    view,
)

CASES: dict[str, Case] = {
    # --- nothing runs yet ---
    "a new run is placed on the first free nodes": (view(), PlanAttempt, {"nodes": ("a", "b"), "resume": None}),
    "too few nodes wait": (view(nodes=4), Wait, {"reason": "1 more node of 4 needed: no other node is known"}),
    "a backend that cannot be asked places nobody": (view(candidates=None), Wait, {}),
    "a planned attempt is submitted": (view(attempt(state="planned")), Submit, {}),
    "a submission without an answer is repeated": (view(attempt(state="submitting"), look=None), Submit, {}),
    "a planned attempt of a cancelled run never starts": (
        view(attempt(state="planned"), desired="cancel"),
        EndAttempt,
        {"state": "stopped", "end_class": "person"},
    ),
    "a planned attempt of a paused run never starts": (
        view(attempt(state="planned"), desired="pause"),
        EndAttempt,
        {"state": "stopped"},
    ),
    # --- it runs ---
    "nothing new is nothing to do": (view(attempt()), Wait, {}),
    "it has started": (view(attempt(state="pending"), beats=()), Advance, {"state": "starting"}),
    "it loads": (view(attempt(state="starting"), beats=beats(None, None, "load")), Advance, {"state": "init"}),
    "it trains": (view(attempt(state="init", first_step=None)), Advance, {"state": "training", "first_step": 1}),
    "it trains on": (view(attempt(), beats=beats(1, 25)), Advance, {"state": "training", "last_step": 25}),
    "a slower rank is where the run is": (
        view(attempt(), beats=(*beats(1, 30)[:1], *beats(1, 25)[1:])),
        Advance,
        {"last_step": 25},
    ),
    "silence is suspicion": (view(attempt(), beats=beats(silent=21.0)), Advance, {"state": "suspect"}),
    "saving takes its time": (view(attempt(), beats=beats(phase="checkpoint", silent=90.0)), Wait, {}),
    "a slow step takes its time": (
        view(attempt(), beats=tuple(replace(beat, silent_s=60.0, step_s=13.0) for beat in beats())),
        Wait,
        {},
    ),
    "suspicion ends when it is heard": (view(attempt(state="suspect")), Advance, {"state": "training"}),
    "suspicion alone does nothing": (view(attempt(state="suspect"), beats=beats(silent=500.0)), Wait, {}),
    # --- not being able to look ---
    "who cannot look does nothing": (view(attempt(), look=None, beats=beats(silent=900.0)), Wait, {}),
    "an unknown state is no state": (view(attempt(), look=look("unknown")), Wait, {}),
    "who cannot look ends nobody's leaving": (view(attempt(state="stopping"), look=None), Wait, {}),
    # --- it ended by itself ---
    "a success with something left is cleared first": (
        view(attempt(), look=look("succeeded")),
        Press,
        {"mode": "kill"},
    ),
    "a failed gang is cleared before it is judged": (view(attempt(), look=look("failed")), Press, {"mode": "kill"}),
    "a gang that is gone is lost": (view(attempt(), look=look("absent", True)), EndAttempt, {"end_class": "lost"}),
    "no record means killed from outside": (
        view(attempt(), look=look("failed", True)),
        EndAttempt,
        {"end_class": "killed"},
    ),
    "the launcher's word is believed": (
        view(attempt(), look=look("failed", True, None, 75)),
        EndAttempt,
        {"end_class": "saved", "node": "b"},
    ),
    "a start that takes its time": (view(attempt(state="pending"), look=look("pending"), beats=()), Wait, {}),
    "a gang that never came whole is cleared": (
        view(attempt(state="pending", submitted_s=NOW - 601), look=look("pending"), beats=()),
        Press,
        {"mode": "kill"},
    ),
    # --- what follows a failure ---
    "a failure of its own is tried again": (view(failed()), Decide, {"choice.action": "restart"}),
    "a configuration is a person's": (view(failed("configuration")), Decide, {"choice.action": "pause_for_human"}),
    "a taken name is a person's": (view(failed("submit_conflict")), Decide, {"choice.action": "pause_for_human"}),
    "numerics go back and skip": (view(failed("numerics")), Decide, {"choice.action": "restart_rollback"}),
    "who advises does not restart": (view(failed(), mode="advise"), Decide, {"choice.action": "pause_for_human"}),
    "an unasked save goes on": (view(failed("saved")), Decide, {"choice.action": "restart"}),
    "a node that computes wrongly is left": (
        view(failed("bad_node", end={"node": "b", "message": "m"})),
        Decide,
        {"choice.action": "restart_exclude", "choice.excluded": ("b",)},
    ),
    "an error blames no node the first time": (
        view(failed(end={"node": "b", "message": "boom", "fingerprint": "RuntimeError: boom"})),
        Decide,
        {"choice.action": "restart", "choice.excluded": (), "choice.fingerprint": "RuntimeError: boom"},
    ),
    "the second time, on one node, it does": (
        view(*(failed(no=no, last_step=no * 10, end={"node": "b", "fingerprint": "x"}) for no in (1, 2))),
        Decide,
        {"choice.action": "restart_exclude", "choice.excluded": ("b",), "choice.entity": "b"},
    ),
    "unless there is no other": (
        view(
            *(failed(no=no, last_step=no * 10, end={"node": "b", "fingerprint": "x"}) for no in (1, 2)),
            candidates=FREE[:2],
        ),
        Decide,
        {"choice.action": "restart", "choice.excluded": ()},
    ),
    "three times the same without progress is a person's": (
        view(failed(no=1), failed(no=2), failed(no=3)),
        Decide,
        {"choice.action": "pause_for_human"},
    ),
    "three times the same with progress is not": (
        view(failed(no=1, last_step=10), failed(no=2, last_step=20), failed(no=3, last_step=30)),
        Decide,
        {"choice.action": "restart"},
    ),
    "unknown progress uses up nothing": (
        view(*(failed(no=no, last_step=None) for no in (1, 2, 3))),
        Decide,
        {"choice.action": "restart"},
    ),
    "a repetition waits": (
        view(failed(no=1), failed(no=2), decision=decision(action="restart", attempt_no=2, excluded=())),
        Wait,
        {},
    ),
    "after a person's pause nothing is decided": (view(attempt(state="stopped")), PlanAttempt, {}),
    # --- hardware ---
    "corrupted memory kills at once": (
        view(attempt(), troubles=(trouble(),)),
        Decide,
        {"stop": "kill", "choice.excluded": ("b",), "choice.corrupting_since_s": NOW - 4},
    ),
    "other hardware may save first": (
        view(attempt(), troubles=(trouble(corrupting=False),)),
        Decide,
        {"stop": "terminate", "choice.corrupting_since_s": None},
    ),
    "a hang without a culprit restarts where it is": (
        view(attempt(), troubles=(trouble("", corrupting=False),)),
        Decide,
        {"choice.action": "restart", "choice.excluded": ()},
    ),
    "a hang of another run is another's": (
        view(attempt(), troubles=(trouble("", corrupting=False, run_id="second-1"),)),
        Wait,
        {},
    ),
    "a fault on another run's node is another's": (view(attempt(), troubles=(trouble("c"),)), Wait, {}),
    "a fault of an earlier attempt is history": (
        view(attempt(1, "failed"), attempt(2), troubles=(trouble("", corrupting=False),)),
        Wait,
        {},
    ),
    "who advises ends nobody": (
        view(attempt(), troubles=(trouble(),), mode="advise"),
        Decide,
        {"stop": "none", "choice.mode": "advise"},
    ),
    "a fault is seen though the backend is not": (
        view(attempt(), troubles=(trouble(),), look=None),
        Decide,
        {"stop": "kill"},
    ),
    "a fault that corrupts overtakes a drain": (
        view(attempt(state="draining"), troubles=(trouble(),), decision=decision(corrupting_since_s=None)),
        Decide,
        {"stop": "kill"},
    ),
    # --- leaving ---
    "it is leaving": (view(attempt(state="draining"), decision=decision(corrupting_since_s=None)), Wait, {}),
    "grace is over": (
        view(attempt(state="draining", state_since_s=NOW - 36), decision=decision(corrupting_since_s=None)),
        Press,
        {"mode": "kill"},
    ),
    **{
        f"{what}: {'it' if move is Press else 'nobody'} is killed before the grace is over": (
            view(
                attempt(state="draining", state_since_s=NOW - 6),
                decision=decision(corrupting_since_s=None),
                beats=told,
                unheard=unheard,
            ),
            move,
            {"mode": "kill"} if move is Press else {},
        )
        for what, told, unheard, move in (
            ("all stand in a step", beats(silent=11.0), frozenset(), Press),
            ("one of them is not heard", (beats(silent=11.0)[0], beats(silent=1.0)[1]), frozenset("b"), Press),
            ("they have just stepped", beats(silent=9.0), frozenset(), Wait),
            ("their steps are long", tuple(replace(one, step_s=5.0) for one in beats(silent=14.0)), frozenset(), Wait),
            (
                "one of them saves",
                (beats(silent=11.0)[0], beats(phase="checkpoint", silent=11.0)[1]),
                frozenset(),
                Wait,
            ),
            ("they count no steps", beats(None, None, silent=11.0), frozenset(), Wait),
            ("nobody has said anything", (), frozenset(), Wait),
        )
    },
    "who must not save has no grace": (
        view(attempt(state="stopping", state_since_s=NOW - 6), decision=decision()),
        Press,
        {"mode": "kill"},
    ),
    "what was not heard is said again": (
        view(attempt(state="draining"), decision=decision(corrupting_since_s=None), told=False),
        Press,
        {"mode": "terminate"},
    ),
    "who must not save is never asked to": (
        view(attempt(state="stopping"), decision=decision(), told=False),
        Press,
        {"mode": "kill"},
    ),
    "not fenced is not over": (view(attempt(state="stopping"), look=look("failed"), decision=decision()), Wait, {}),
    "fenced is over": (
        view(attempt(state="stopping"), look=look("failed", True), decision=decision()),
        EndAttempt,
        {"state": "superseded", "end_class": "hardware"},
    ),
    "a person's stop is a person's": (
        view(attempt(state="stopping"), look=look("failed", True), desired="cancel"),
        EndAttempt,
        {"state": "stopped", "end_class": "person"},
    ),
    # --- the next attempt ---
    "the next one avoids the node": (
        view(attempt(state="superseded", end_class="hardware"), decision=decision(), saved=(saved(10),)),
        PlanAttempt,
        {"nodes": ("a", "c"), "excluded": ("b",), "resume": saved(10)},
    ),
    "what is tainted or torn is passed over": (
        view(
            attempt(state="superseded", end_class="hardware"),
            decision=decision(),
            saved=(saved(10), saved(15, state="complete"), saved(20, state="tainted")),
        ),
        PlanAttempt,
        {"resume": saved(10)},
    ),
    "what is still being read is waited for": (
        view(attempt(state="superseded", end_class="hardware"), decision=decision(), verifying=True),
        Wait,
        {"reason": "a checkpoint is being verified"},
    ),
    "a chosen checkpoint that was tainted since is not used": (
        view(
            attempt(state="superseded"),
            decision=decision(checkpoint_id="c1-15", by_person=True),
            saved=(saved(10), saved(15, state="tainted")),
        ),
        PlanAttempt,
        {"resume": saved(10)},
    ),
    "no spare: it queues and says what is missing": (
        view(attempt(state="superseded", end_class="hardware"), decision=decision(), candidates=FREE[:2]),
        SetRun,
        {"status": "queued", "reason": "1 more node of 2 needed: b excluded by a decision"},
    ),
    # --- proof ---
    "the first step is the one after the manifest's": (
        view(*SECOND, decision=decision(), beats=beats(11, 12)),
        Conclude,
        {"ok": True, "first_step": 11},
    ),
    "a restart from scratch is stopped": (
        view(*SECOND, decision=decision(), beats=beats(1, 2)),
        Conclude,
        {"ok": False, "stop": True},
    ),
    "a step too far is stopped": (
        view(*SECOND, decision=decision(), beats=beats(12, 12)),
        Conclude,
        {"ok": False, "stop": True},
    ),
    "no step yet is no proof": (view(*SECOND, decision=decision(), beats=beats(None, None, "load")), Wait, {}),
    "an attempt of another decision proves nothing": (
        view(SECOND[0], replace(SECOND[1], decision_id="d0", first_step=11), decision=decision(), beats=beats(11, 20)),
        Wait,
        {},
    ),
    "after a pause too a restart from scratch is stopped": (
        view(attempt(1, "stopped"), attempt(2, resume_step=20), beats=beats(1, 2)),
        Conclude,
        {"ok": False, "stop": True, "sentence": "Attempt 2 began with step 1; it had to begin with 21."},
    ),
    "even if it has ended meanwhile": (
        view(attempt(1, "stopped"), attempt(2, resume_step=20), beats=beats(1, 100), look=look("succeeded", True)),
        Conclude,
        {"ok": False, "stop": True},
    ),
    "who goes on where it should needs no proof": (
        view(attempt(1, "stopped"), attempt(2, resume_step=20, first_step=21), beats=beats(21, 20)),
        Wait,
        {},
    ),
    "an excluded node is no proof": (
        view(SECOND[0], replace(SECOND[1], nodes=("a", "b")), decision=decision(), beats=beats(11, 12)),
        Conclude,
        {"ok": False, "stop": True},
    ),
    "hit again before the proof": (
        view(*SECOND, decision=decision(), beats=beats(None, None, "load"), troubles=(trouble("c"),)),
        Conclude,
        {"ok": False, "stop": False},
    ),
    "ended before the proof": (
        view(
            SECOND[0],
            replace(failed(no=2), decision_id="d1", resume_step=10, first_step=None),
            decision=decision(),
            beats=(),
        ),
        Conclude,
        {"ok": False, "stop": False},
    ),
    # --- people ---
    "a wish comes before the ledger": (
        view(failed(no=1), failed(no=2), failed(no=3), status="needs_human", wish=Wish("ada", None, ())),
        Decide,
        {"choice.rule": "person", "choice.action": "restart"},
    ),
    "a wish ends what runs": (
        view(attempt(), wish=Wish("ada", "c1-10", ("a",))),
        Decide,
        {"stop": "terminate", "choice.excluded": ("a",)},
    ),
    "who waits for a person waits": (view(failed(), status="needs_human"), Wait, {}),
    "paused stays paused": (view(attempt(state="stopped"), desired="pause", status="paused"), Wait, {}),
    "resumed is queued again": (view(attempt(state="stopped"), status="paused"), SetRun, {"status": "queued"}),
    "what has ended stays so": (view(attempt(state="succeeded"), status="cancelled"), Wait, {}),
    "an ended run's last attempt is still seen off": (
        view(attempt(state="stopping"), look=look("failed", True), status="cancelled", desired="cancel"),
        EndAttempt,
        {"state": "stopped"},
    ),
}


@pytest.mark.parametrize("situation", CASES)
def test_one_view_one_move(situation: str) -> None:
    answers(*CASES[situation])


@pytest.mark.parametrize("state", sorted(set(LIVE) - {"submitting"}))
@pytest.mark.parametrize("desired", ["cancel", "pause"])
def test_a_person_may_end_it_in_every_state(state: str, desired: str) -> None:
    move = decide(view(attempt(state=state), desired=desired))
    if state in ("draining", "stopping"):
        assert isinstance(move, Wait), "it is leaving already"
    else:
        assert move == Press("terminate", "stopping", move.sentence) and "by a person" in move.sentence  # type: ignore[union-attr]  # it is a Press


@pytest.mark.parametrize("state", sorted(LIVE))
def test_not_being_able_to_look_never_ends_anything(state: str) -> None:
    for unseen in (None, look("unknown")):
        move = decide(view(attempt(state=state), look=unseen, beats=beats(silent=10_000.0), candidates=None))
        assert isinstance(move, Wait | Submit)

"""What each move of the controller writes: states, decisions, checkpoints, and the sentence of the timeline.

Called inside the controller's guarded transaction only; it calls no backend and reads no clock. Every event says which
lane of the timeline it belongs to (hardware, rule, run) and how grave it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from controlplane.ids import uuid7
from controlplane.runs.choices import POLICY_VERSION
from controlplane.runs.ledger import QUARANTINE_SHARE
from controlplane.runs.states import RUN_ENDED
from controlplane.runs.taint import spoils, suspects
from controlplane.runs.view import (
    Advance,
    Choice,
    Conclude,
    Corruption,
    Decide,
    EndAttempt,
    PlanAttempt,
    Press,
    SetRun,
    Taint,
)
from controlplane.services import breaker, observe
from controlplane.store import events, heartbeats, incidents, lifecycles, runs, tokens
from controlplane.store.engine import Session
from controlplane.store.tables import Attempt, Checkpoint, Decision, Run

WINDOW = "window"
_LATE = "its attempt had been given up before it was found"


def tell(
    session: Session,
    run: Run,
    sentence: str,
    *,
    kind: str,
    now: float,
    attempt_no: int | None = None,
    lane: str = "run",
    level: str = "info",
    decision: Decision | None = None,
    node: str | None = None,
    **data: Any,
) -> None:
    """A line of the run's timeline; an empty sentence is a state change that only the phases are made from."""
    events.add(
        session,
        at_s=now,
        kind=kind,
        sentence=sentence,
        run_id=run.id,
        attempt_no=attempt_no,
        node=node,
        decision_id=decision.id if decision else None,
        incident_id=decision.incident_id if decision else None,
        data={"lane": lane, "level": level, **({"hidden": True} if not sentence else {}), **data},
    )


def set_run(session: Session, run: Run, move: SetRun, *, now: float) -> None:
    """The run's own status."""
    runs.move_run(run, move.status, reason=move.reason, now=now)
    if move.status in RUN_ENDED:
        _supersede(session, run, now)
    words = "waits for a person" if move.status == "needs_human" else f"is {move.status}"
    sentence = f"{run.name} {words}: {move.reason}."
    tell(session, run, sentence, kind=f"run_{move.status}", now=now, level=move.level)


def _supersede(session: Session, run: Run, now: float) -> None:
    """What was decided before does not hold any more."""
    for old in runs.decisions(session, run.id):
        if old.state in ("proposed", "approved", "executing"):
            runs.move_decision(old, "superseded", now=now)
    session.flush()  # before another one is added: at most one is open


def plan_attempt(session: Session, run: Run, move: PlanAttempt, *, last: Attempt | None, now: float) -> None:
    """The whole intent of an attempt, before the backend hears of it; the write epoch grows with it."""
    number = (last.no if last is not None else 0) + 1
    run.write_epoch += 1
    tokens.revoke_trainers(session, run.id, below_epoch=run.write_epoch, now=now)
    decision = runs.open_decision(session, run.id)
    spec = {**run.spec, "resume_from": move.resume.path if move.resume else "", "skip_steps": move.skip_steps}
    work = lifecycles.work_of(session, run.id)
    if work is not None:
        spec |= {"role": work.role, "init_from": work.init_path, "init_hash": work.init_hash}
    canonical = json.dumps({"spec": spec, "nodes": move.nodes, "epoch": run.write_epoch}, sort_keys=True)
    runs.add_attempt(
        session,
        id=uuid7(now),
        run_id=run.id,
        no=number,
        name=f"{run.id}-{number}",
        state_since_s=now,
        spec=spec,
        spec_hash=hashlib.sha256(canonical.encode()).hexdigest(),
        epoch=run.write_epoch,
        nodes=list(move.nodes),
        excluded_nodes=list(move.excluded),
        resume_checkpoint_id=move.resume.id if move.resume else None,
        resume_step=move.resume.step if move.resume else None,
        decision_id=decision.id if decision else None,
        created_s=now,
    )
    if run.status in ("needs_human", "paused"):
        runs.move_run(run, "queued", reason="", now=now)
    if decision is not None and decision.checkpoint_id is None and move.resume is not None:
        decision.checkpoint_id = move.resume.id
    step = move.resume.step if move.resume else None
    tell(session, run, move.sentence, kind="attempt_planned", now=now, attempt_no=number, decision=decision, step=step)


def submitted(session: Session, run_id: str, no: int, *, uid: str, adopted: bool, now: float) -> None:
    """The backend has the attempt."""
    run, attempt = runs.locked(session, run_id), runs.attempt_of(session, run_id, no)
    if run is None:
        return
    attempt.backend_uid, attempt.submitted_s = uid, now
    if attempt.state == "submitting":
        runs.move_attempt(attempt, "pending", now=now)
    sentence = f"Attempt {no} was found running and is followed on." if adopted else ""
    tell(session, run, sentence, kind="attempt_pending", now=now, attempt_no=no)


def advance(session: Session, run: Run, attempt: Attempt, move: Advance, *, now: float) -> None:
    """The attempt came further."""
    before = attempt.state
    runs.move_attempt(attempt, move.state, now=now)
    if move.nodes:
        attempt.nodes = list(move.nodes)
        tell(session, run, move.sentence, kind="attempt_placed", now=now, attempt_no=attempt.no)
    if move.state in ("starting", "init", "training") and attempt.running_s is None:
        attempt.running_s = now
    if move.first_step is not None and attempt.first_step is None:
        attempt.first_step, attempt.first_step_s = move.first_step, now
    if move.last_step is not None:
        attempt.last_step = move.last_step
    if before != move.state:
        level = {"training": "ok", "suspect": "warn"}.get(move.state, "info")
        tell(session, run, move.sentence, kind=f"attempt_{move.state}", now=now, attempt_no=attempt.no, level=level)


def _take_wish(session: Session, run: Run, now: float) -> None:
    """The wish is done with: written after it, though it may be younger than this round's `now` and another's clock."""
    wish = runs.latest_wish(session, run.id)
    taken_s = now if wish is None else max(now, wish.at_s + 0.001)
    events.add(session, at_s=taken_s, kind=runs.WISH_DONE, sentence="", run_id=run.id, data={"hidden": True})


def decide(
    session: Session, run: Run, attempt: Attempt | None, move: Decide, *, now: float, share: float = QUARANTINE_SHARE
) -> None:
    """A decision with its evidence; in mode act its execution begins in the same transaction.

    `share` of the fleet may leave service by itself within the breaker's window.
    """
    choice = move.choice
    _supersede(session, run, now)
    decision = _write_decision(session, run, attempt, choice, now)
    number = attempt.no if attempt else None
    tell(session, run, choice.reason, kind="decided", now=now, attempt_no=number, lane="rule", decision=decision)
    if choice.person:
        _take_wish(session, run, now)
    if choice.mode != "act":
        return
    runs.move_decision(decision, "executing", now=now)
    if choice.action == "pause_for_human":
        runs.move_decision(decision, "verified", now=now, verification={"sentence": "the run waits for a person"})
        runs.move_run(run, "needs_human", reason=choice.reason, now=now)
        return
    if choice.failure_class == "hardware":
        _quarantine(session, run, decision, share, now)
    if move.stop != "none" and attempt is not None:
        state = "stopping" if move.stop == "kill" else "draining"
        runs.move_attempt(attempt, state, now=now)
        tell(session, run, "", kind=f"attempt_{state}", now=now, attempt_no=attempt.no)


def _write_decision(session: Session, run: Run, attempt: Attempt | None, choice: Choice, now: float) -> Decision:
    """The row of a decision, tied to the incidents that it answers."""
    evidence = [*choice.evidence]
    if choice.corrupting_since_s is not None:
        sentence = "what was computed since the last clean sample is not trusted"
        evidence.append(
            {
                "kind": WINDOW,
                "id": "",
                "label": "suspicion window",
                "sentence": sentence,
                "begin_s": choice.corrupting_since_s,
            }
        )
    decision = runs.add_decision(
        session,
        id=uuid7(now),
        run_id=run.id,
        attempt_no=attempt.no if attempt else None,
        action=choice.action,
        mode=choice.mode,
        reason=choice.reason,
        excluded_nodes=list(choice.excluded),
        checkpoint_id=choice.checkpoint_id,
        evidence=evidence,
        failure_class=choice.failure_class,
        fingerprint=choice.fingerprint,
        entity=choice.entity,
        progress=choice.progress,
        rule=choice.rule,
        policy_version=POLICY_VERSION,
        budgets_before=choice.budgets_before,
        budgets_after=choice.budgets_after,
        created_s=now,
    )
    faults = [str(one["id"]) for one in choice.evidence if one.get("kind") == "fault"]
    for incident_id in choice.incidents:
        # its other faults are another run's matter
        incidents.attach_decision(session, incident_id, decision.id, now=now, fault_ids=faults)
    session.flush()
    return decision


def _quarantine(session: Session, run: Run, decision: Decision, share: float, now: float) -> None:
    """The blamed nodes take no more ranks until a person returns them; too many at once are left to a person."""
    blamed, but = dict.fromkeys(decision.excluded_nodes, decision.reason), "though this run leaves it out"
    for one in breaker.take_out(session, blamed, but=but, share=share, now=now):
        tell(
            session,
            run,
            one.sentence,
            kind=one.kind,
            now=now,
            node=one.node,
            lane="rule",
            decision=decision,
            level=one.level,
        )


def press(session: Session, run: Run, attempt: Attempt, move: Press, *, now: float) -> None:
    """The attempt is told to end."""
    before = attempt.state
    runs.move_attempt(attempt, move.state, now=now)
    if move.sentence or before != attempt.state:
        tell(session, run, move.sentence, kind=f"attempt_{attempt.state}", now=now, attempt_no=attempt.no)


def end_attempt(session: Session, run: Run, attempt: Attempt, move: EndAttempt, *, now: float) -> None:
    """The attempt is over."""
    runs.move_attempt(attempt, move.state, now=now)
    attempt.end_class = move.end_class
    attempt.end = {
        "class": move.end_class,
        "fingerprint": move.fingerprint,
        "message": move.message,
        "node": move.node,
    }
    _last_words(session, attempt, now)
    kind = f"attempt_{move.state}"
    tell(session, run, move.sentence, kind=kind, now=now, attempt_no=attempt.no, level=move.level)


def taint(session: Session, run: Run, move: Taint, *, now: float) -> None:
    """Checkpoints that nothing may go on from; they are kept."""
    for spoilt in move.spoilt:
        row = runs.checkpoint(session, spoilt.checkpoint_id)
        if row is None or row.state == "tainted":
            continue
        known = not row.hash or bool(lifecycles.tainted(session, [row.hash]))
        row.state, row.reason = "tainted", spoilt.reason
        if not known:
            _tell_lifecycles(session, row, now)
        sentence = f"Checkpoint {row.step} of attempt {row.attempt_no} is tainted and will not be used: {row.reason}."
        tell(
            session,
            run,
            sentence,
            kind="checkpoint_tainted",
            now=now,
            attempt_no=row.attempt_no,
            level="warn",
            step=row.step,
            checkpoint_id=row.id,
        )


def _tell_lifecycles(session: Session, row: Checkpoint, now: float) -> None:
    """A line wherever a checkpoint that is tainted now counts as a stage's, or an alias points at it."""
    for lifecycle_id, (stage, aliases) in lifecycles.bearing(session, row.hash or "").items():
        what = f"Checkpoint {(row.hash or '')[:12]}{f' of stage {stage}' if stage else ''} is tainted: {row.reason}."
        names = f" A person has to move what points at it: {', '.join(aliases)}." if aliases else ""
        data = {"lane": "lifecycle", "level": "fault", "stage": stage, "checkpoint_hash": row.hash}
        kind = "lifecycle_checkpoint_tainted"
        events.add(session, at_s=now, kind=kind, sentence=what + names, lifecycle_id=lifecycle_id, data=data)


def taint_ended(session: Session, run_id: str, corruptions: Sequence[Corruption], *, now: float) -> None:
    """The same for a run that is over: what it left behind may be gone on from elsewhere."""
    run, spoilt = runs.locked(session, run_id), _suspects(session, run_id, corruptions)
    if run is not None and spoilt is not None:
        taint(session, run, spoilt, now=now)


def _last_words(session: Session, attempt: Attempt, now: float) -> None:
    """What the ranks said last, between the last look and the end."""
    beats = heartbeats.of_attempt(session, attempt.run_id, attempt.no)
    first = min((beat.first_step for beat in beats if beat.first_step is not None), default=None)
    if first is not None and attempt.first_step is None:
        attempt.first_step, attempt.first_step_s = first, now
    attempt.last_step = min((beat.last_step for beat in beats if beat.last_step is not None), default=attempt.last_step)


def conclude(session: Session, run: Run, attempt: Attempt | None, move: Conclude, *, now: float) -> None:
    """Whether a decision came true; an attempt that is not what was planned is stopped without one as well."""
    decision = runs.open_decision(session, run.id)
    verification = {"sentence": move.sentence, "at_s": now, "attempt_no": attempt.no if attempt else None}
    if attempt is not None and move.first_step is not None and attempt.first_step is None:
        attempt.first_step, attempt.first_step_s = move.first_step, now
    kind = "attempt_astray"
    if decision is not None:
        runs.move_decision(decision, "verified" if move.ok else "failed", now=now, verification=verification)
        kind = "decision_verified" if move.ok else "decision_failed"
    level = "ok" if move.ok else "warn"
    number = attempt.no if attempt else None
    tell(
        session, run, move.sentence, kind=kind, now=now, attempt_no=number, lane="rule", decision=decision, level=level
    )
    if move.stop and attempt is not None:
        runs.move_attempt(attempt, "stopping", now=now)
        runs.move_run(run, "needs_human", reason=move.sentence, now=now)


def saw_checkpoint(
    session: Session, run_id: str, values: dict[str, Any], *, corruptions: Sequence[Corruption], now: float
) -> None:
    """A step directory was seen, or is further than it was. What is spoilt is refused at sight."""
    row = runs.put_checkpoint(session, {**values, "run_id": run_id}, now=now)
    session.flush()
    run = runs.get(session, run_id)
    reason = _spoilt(session, row, corruptions) if row.state == "validated" else ""
    if reason:
        row.state, row.reason = "tainted", reason
    elif row.state == "validated" and runs.attempt_of(session, run_id, row.attempt_no).state == "abandoned":
        row.state, row.reason = "tainted", _LATE
    if run is None or row.state not in ("validated", "tainted", "complete"):
        return
    words = {
        "validated": f"Checkpoint {row.step} is complete and verified.",
        "tainted": f"Checkpoint {row.step} is tainted and will not be used: {row.reason}.",
        "complete": f"Checkpoint {row.step} cannot be used: {row.reason}.",
    }
    level = "info" if row.state == "validated" else "warn"
    tell(
        session,
        run,
        words[row.state],
        kind="checkpoint",
        now=now,
        attempt_no=row.attempt_no,
        level=level,
        step=row.step,
        state=row.state,
        checkpoint_id=row.id,
    )


def _suspects(session: Session, run_id: str, corruptions: Sequence[Corruption]) -> Taint | None:
    saved = [observe.saved_of(one) for one in runs.checkpoints(session, run_id)]
    attempts = [observe.attempt_of(one) for one in runs.attempts(session, run_id)]
    return suspects(saved, spoils(attempts, saved, corruptions))


def _spoilt(session: Session, row: Checkpoint, corruptions: Sequence[Corruption]) -> str:
    """Why a checkpoint must not be used though its files are whole; "" when it may."""
    found = _suspects(session, row.run_id, corruptions)
    return next((one.reason for one in found.spoilt if one.checkpoint_id == row.id), "") if found is not None else ""

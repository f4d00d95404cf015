"""What each move of a lifecycle writes: states, runs, aliases, and the sentence of its timeline.

Called inside the conductor's guarded transaction only; it calls no backend, reads no disk and no clock. Every move is
held against the rows as they are now: what was decided on a state that is past writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.runs.lifecycle_view import (
    Begin,
    Kept,
    MoveStage,
    Pass,
    PlanMove,
    PlanView,
    SetLifecycle,
    StartRun,
    StopRuns,
)
from controlplane.runs.states import RUN_ENDED
from controlplane.services import lifecycles_cost, outcomes
from controlplane.services import runs as run_service
from controlplane.store import events, lifecycles, runs
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from controlplane.store.tables import LifecycleStage, Run
from jobs.lifecycle import Lifecycle
from jobs.spec import JobSpec

CONTROLLER = "controller"
WhereTo = Callable[[JobSpec], str]


def tell(
    session: Session,
    found: Executed,
    sentence: str,
    *,
    kind: str,
    now: float,
    stage: str = "",
    level: str = "info",
    **data: Any,
) -> None:
    """A line of the lifecycle's timeline."""
    told = {"lane": "lifecycle", "level": level, "stage": stage, **data}
    events.add(session, at_s=now, kind=kind, sentence=sentence, lifecycle_id=found.id, data=told)


def write(session: Session, found: Executed, plan: Lifecycle, view: PlanView, move: PlanMove, where: WhereTo) -> bool:
    """Writes a move; False if the rows are not what it was decided on any more."""
    if (found.state.desired, found.state.status) != (view.desired, view.status):
        return False
    match move:
        case StopRuns():
            _stop(session, move.runs, "its lifecycle is cancelled", view.now)
        case SetLifecycle():
            lifecycles.move_lifecycle(found.state, move.status, reason=move.sentence, now=view.now)
            tell(session, found, move.sentence, kind=f"lifecycle_{move.status}", now=view.now, level=move.level)
        case Begin() | StartRun() | MoveStage() | Pass():
            row, seen = found.stage(move.stage), view.stage(move.stage)
            if row is None or (row.state, row.hold, row.round) != (seen.state, seen.hold, seen.round):
                return False
            return _of_stage(session, found, plan, row, move, view.now, where)
        case _:
            raise AssertionError(f"{move} writes nothing")
    return True


def _of_stage(
    session: Session,
    found: Executed,
    plan: Lifecycle,
    row: LifecycleStage,
    move: Begin | StartRun | MoveStage | Pass,
    now: float,
    where: WhereTo,
) -> bool:
    match move:
        case Begin():
            _set_init(row, move.init)
            lifecycles.move_stage(row, move.state, reason="", now=now)
            tell(session, found, move.sentence, kind="stage_begun", now=now, stage=row.name)
        case StartRun():
            _start(session, found, plan, row, move, now, where)
        case MoveStage():
            _move(session, found, row, move, now)
        case Pass():
            return _pass(session, found, plan, row, move, now)
    return True


def _set_init(row: LifecycleStage, init: Kept | None) -> None:
    if init is not None:
        row.init_hash, row.init_path = init.hash, init.path


def _set_candidate(row: LifecycleStage, candidate: Kept | None) -> None:
    if candidate is not None:
        row.candidate_hash, row.candidate_path = candidate.hash, candidate.path
        row.candidate_step, row.candidate_run_id = candidate.step, candidate.run_id


def _move(session: Session, found: Executed, row: LifecycleStage, move: MoveStage, now: float) -> None:
    _set_init(row, move.init)
    _set_candidate(row, move.candidate)
    if move.verdict is not None:
        row.verdict = move.verdict.as_dict()
    row.wish = None  # it was of the state that is left
    lifecycles.move_stage(row, move.state, reason=move.sentence, now=now, hold=move.hold)
    _stop(session, move.stop, move.sentence.rstrip("."), now)
    kind = f"stage_{move.state}_{move.hold}" if move.hold else f"stage_{move.state}"
    tell(session, found, move.sentence, kind=kind, now=now, stage=row.name, level=move.level)


def _pass(session: Session, found: Executed, plan: Lifecycle, row: LifecycleStage, move: Pass, now: float) -> bool:
    """A stage passes, unless its checkpoint was tainted meanwhile: the next look sees that."""
    if move.candidate is not None and lifecycles.tainted(session, [move.candidate.hash]):
        return False
    if move.word is not None:
        lifecycles.use_approval(session, move.word, now=now)
    _set_candidate(row, move.candidate)
    if move.verdict is not None:
        row.verdict = move.verdict.as_dict()
    lifecycles.move_stage(row, "passed", reason=move.sentence, now=now)
    tell(session, found, move.sentence, kind="stage_passed", now=now, stage=row.name, level="ok")
    alias = plan.stage(row.name).promote
    if alias and move.candidate is not None:
        promote(session, found, alias, move.candidate.hash, stage=row.name, actor=CONTROLLER, now=now)
    return True


def promote(
    session: Session, found: Executed, alias: str, checkpoint_hash: str, *, stage: str, actor: str, now: float
) -> str:
    """Points an alias at a checkpoint that was found fit, and tells it; returns where it pointed before."""
    owner = found.state.name
    before = lifecycles.point(
        session,
        owner=owner,
        alias=alias,
        checkpoint_hash=checkpoint_hash,
        lifecycle_id=found.id,
        stage=stage,
        actor=actor,
        now=now,
    )
    moved = f", before at {before[:12]}" if before and before != checkpoint_hash else ""
    words = f"Alias {alias} of {owner} points at checkpoint {checkpoint_hash[:12]}{moved}: set by {actor}."
    tell(session, found, words, kind="alias_moved", now=now, stage=stage, alias=alias, checkpoint_hash=checkpoint_hash)
    return before


# --- runs ---


def _stop(session: Session, run_ids: tuple[str, ...], why: str, now: float) -> None:
    for run_id in run_ids:
        run = runs.locked(session, run_id)
        if run is not None and run.status not in RUN_ENDED and run.desired != "cancel":
            run.desired = "cancel"
            outcomes.tell(session, run, f"{run.id} is to save and end: {why}.", kind="run_wish_cancel", now=now)


def _start(
    session: Session,
    found: Executed,
    plan: Lifecycle,
    row: LifecycleStage,
    move: StartRun,
    now: float,
    where: WhereTo,
) -> None:
    """A new run of the stage, with what it is for, in one transaction with all that follows from it."""
    if move.closes is not None:
        _close(session, move.closes, now)
    spec = reseeded(plan.job(row.name, move.role, move.item), move.seed_shift)
    run = run_service.make(session, spec, lifecycle_id=found.id, backend=where(spec), actor=CONTROLLER, now=now)
    mine = [one for one in lifecycles.runs_of(session, found.id) if one.work.stage == row.name]
    lifecycles.add_work(
        session,
        run_id=run.id,
        lifecycle_id=found.id,
        stage=row.name,
        role=move.role,
        item=move.item,
        no=1 + sum((one.work.role, one.work.item) == (move.role, move.item) for one in mine),
        round=move.round,
        init_path=move.init.path if move.init is not None else "",
        init_hash=move.init.hash if move.init is not None else "",
        continues_id=move.continues,
    )
    row.round = move.round
    row.retries += int(move.charged)
    if move.asked:
        row.wish, row.verdict = None, None
        lifecycles.void_approvals(session, found.id, row.name, now=now)  # they were of what was found before
        row.gpu_h_before = sum(lifecycles_cost.used(session, one.run, now) for one in mine)
        if move.role == "train":
            row.candidate_hash, row.candidate_path = "", ""
            row.candidate_step, row.candidate_run_id = None, None
    lifecycles.move_stage(row, move.state, reason="", now=now)
    level = "warn" if move.charged else "info"
    tell(session, found, move.sentence, kind="stage_run", now=now, stage=row.name, level=level, run=run.id)


def _close(session: Session, run_id: str, now: float) -> None:
    """A run that waited for a person is over: another one follows it."""
    run = runs.locked(session, run_id)
    if run is not None and run.status == "needs_human":
        reason = f"{run.reason.rstrip('.')}; its stage begins another run"
        runs.move_run(run, "failed", reason=reason, now=now)
        _supersede(session, run, now)
        outcomes.tell(session, run, f"{run.id} is failed: {reason}.", kind="run_failed", now=now, level="warn")


def _supersede(session: Session, run: Run, now: float) -> None:
    for old in runs.decisions(session, run.id):
        if old.state in ("proposed", "approved", "executing"):
            runs.move_decision(old, "superseded", now=now)


def reseeded(spec: JobSpec, shift: int) -> JobSpec:
    """The job with a seed that is `shift` further; the same one for 0."""
    if not shift:
        return spec
    train = spec.spec.train.model_copy(update={"seed": spec.spec.train.seed + shift})
    return spec.model_copy(update={"spec": spec.spec.model_copy(update={"train": train})})

"""What each move of a lifecycle writes: states, runs, aliases, and the sentence of its timeline.

Called inside the conductor's guarded transaction only; it calls no backend, reads no disk and no clock. Every move is
held against the rows as they are now: what was decided on a state that is past writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.runs.lifecycle_states import STAGE_ENDED
from controlplane.runs.lifecycle_view import (
    Begin,
    Kept,
    MoveStage,
    Pass,
    PlanMove,
    PlanView,
    SetLifecycle,
    StageView,
    StartRun,
    StopRuns,
)
from controlplane.runs.states import RUN_ENDED
from controlplane.services import lifecycles_cost, lifecycles_look, lifecycles_messages, outcomes
from controlplane.services import runs as run_service
from controlplane.services.lifecycles_messages import Pages
from controlplane.store import events, lifecycles, runs
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed, OfStage
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


def write(
    session: Session,
    found: Executed,
    plan: Lifecycle,
    view: PlanView,
    move: PlanMove,
    where: WhereTo,
    pages: Pages = lifecycles_messages.no_pages,
) -> bool:
    """Writes a move, and what channels are told of it; False if the rows are not what it was decided on any more."""
    if (found.state.desired, found.state.status) != (view.desired, view.status):
        return False
    match move:
        case StopRuns():
            _stop(session, move.runs, "its lifecycle is cancelled", view.now)
        case SetLifecycle():
            lifecycles.move_lifecycle(found.state, move.status, reason=move.sentence, now=view.now)
            tell(session, found, move.sentence, kind=f"lifecycle_{move.status}", now=view.now, level=move.level)
            lifecycles_messages.tell_end(session, found, pages, now=view.now)
        case Begin() | StartRun() | MoveStage() | Pass():
            row, seen = found.stage(move.stage), view.stage(move.stage)
            if row is None or _as_kept(row) != _as_seen(seen):
                return False
            before = row.state, row.hold
            if not _of_stage(session, found, plan, row, move, view.now, where):
                return False
            _tell_channels(session, found, row, before, pages, view.now)
        case _:
            raise AssertionError(f"{move} writes nothing")
    return True


def _tell_channels(
    session: Session, found: Executed, row: LifecycleStage, before: tuple[str, str], pages: Pages, now: float
) -> None:
    """A hold is told once: not when only its reason changes, nor when it ends."""
    after = row.state, row.hold
    if before == after:
        return
    if before[0] == "held":
        lifecycles_messages.withdraw(session, found, row)
    if after[0] == "held":
        lifecycles_messages.tell_held(session, found, row, pages, now=now)


def _as_kept(row: LifecycleStage) -> tuple[object, ...]:
    return row.state, row.hold, row.round, row.candidate_hash, lifecycles_look.again_of(row.wish)


def _as_seen(stage: StageView) -> tuple[object, ...]:
    candidate = stage.candidate.hash if stage.candidate is not None else ""
    return stage.state, stage.hold, stage.round, candidate, stage.wish


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
            return _start(session, found, plan, row, move, now, where)
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
    if move.asked:
        _count_anew(session, row, [one.run for one in _of(session, found, row)], now)
    if move.word is not None:
        lifecycles.use_approval(session, move.word, now=now)
    if move.state in STAGE_ENDED:
        lifecycles.void_approvals(session, found.id, row.name, now=now)
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
    lifecycles.void_approvals(session, found.id, row.name, now=now)
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
            words = f"{run.id} is to save and end: {why}."
            outcomes.tell(session, run, words, kind="run_wish_cancel", now=now, why=why)


def _start(
    session: Session,
    found: Executed,
    plan: Lifecycle,
    row: LifecycleStage,
    move: StartRun,
    now: float,
    where: WhereTo,
) -> bool:
    """A new run of the stage, with what it is for, in one transaction with all that follows from it.

    False if the run that it is to follow was taken up again meanwhile.
    """
    if move.closes is not None and not _close(session, move.closes, now):
        return False
    spec = _seeded(session, plan.job(row.name, move.role, move.item), move)
    mine = _of(session, found, row)
    run = run_service.make(session, spec, lifecycle_id=found.id, backend=where(spec), actor=CONTROLLER, now=now)
    if mine:  # the newest one stays the newest, though the clock was set back
        run.created_s = max(run.created_s, mine[-1].run.created_s + 1e-3)
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
        _count_anew(session, row, [one.run for one in mine], now)
        if move.role == "train":
            row.candidate_hash, row.candidate_path = "", ""
            row.candidate_step, row.candidate_run_id = None, None
    lifecycles.move_stage(row, move.state, reason="", now=now)
    level = "warn" if move.charged else "info"
    tell(session, found, move.sentence, kind="stage_run", now=now, stage=row.name, level=level, run=run.id)
    return True


def _of(session: Session, found: Executed, row: LifecycleStage) -> list[OfStage]:
    return [one for one in lifecycles.runs_of(session, found.id) if one.work.stage == row.name]


def _count_anew(session: Session, row: LifecycleStage, before: list[Run], now: float) -> None:
    """A person has the stage go on: it has all of its budget again."""
    row.retries = 0
    row.gpu_h_before = sum(lifecycles_cost.used(session, run, now) for run in before)


def _close(session: Session, run_id: str, now: float) -> bool:
    """A run that waited for a person is over, another one follows it; False if it does not wait any more."""
    run = runs.locked(session, run_id)
    if run is None or (run.status == "needs_human" and lifecycles_look.taken_up(session, run_id)):
        return False
    if run.status != "needs_human" and (run.status, run.desired) != ("paused", "pause"):
        return False
    status = "failed" if run.status == "needs_human" else "cancelled"
    reason = f"{run.reason.rstrip('.')}; its stage begins another run"
    runs.move_run(run, status, reason=reason, now=now)
    _supersede(session, run, now)
    outcomes.tell(session, run, f"{run.id} is {status}: {reason}.", kind=f"run_{status}", now=now, level="warn")
    return True


def _supersede(session: Session, run: Run, now: float) -> None:
    for old in runs.decisions(session, run.id):
        if old.state in ("proposed", "approved", "executing"):
            runs.move_decision(old, "superseded", now=now)


def _seeded(session: Session, spec: JobSpec, move: StartRun) -> JobSpec:
    """The job with the seed of the run that it continues, or with one that is `seed_shift` further than its own."""
    before = runs.get(session, move.continues) if move.continues is not None else None
    seed = spec.spec.train.seed + move.seed_shift
    if before is not None:
        seed = int(before.spec["spec"]["train"].get("seed", seed))
    if seed == spec.spec.train.seed:
        return spec
    train = spec.spec.train.model_copy(update={"seed": seed})
    return spec.model_copy(update={"spec": spec.spec.model_copy(update={"train": train})})

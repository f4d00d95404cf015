"""Lifecycles that are executed: the one place that writes their states and those of their stages, over their tables.

Reading gives the rows; writing takes a session that the caller has tied to its lease, or a person's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from controlplane.ids import uuid7
from controlplane.runs import lifecycle_states, states
from controlplane.store.base import ATTEMPT_LIVE
from controlplane.store.engine import UnknownCursor
from controlplane.store.tables import (
    Alias,
    AliasMove,
    Approval,
    Attempt,
    Checkpoint,
    Lifecycle,
    LifecycleStage,
    LifecycleState,
    Run,
    StageRun,
)


@dataclass(frozen=True, slots=True)
class Executed:
    """A lifecycle with its state and its stages, in the plan's order."""

    plan: Lifecycle
    state: LifecycleState
    stages: list[LifecycleStage]

    @property
    def id(self) -> str:
        return self.plan.id

    def stage(self, name: str) -> LifecycleStage | None:
        return next((one for one in self.stages if one.name == name), None)


def unfinished(session: Session) -> list[str]:
    """The ids of the lifecycles that may still move, oldest first."""
    query = select(LifecycleState.lifecycle_id).where(LifecycleState.status.not_in(lifecycle_states.LIFECYCLE_ENDED))
    return list(session.scalars(query.order_by(LifecycleState.created_s, LifecycleState.lifecycle_id)))


def listed(
    session: Session,
    statuses: Collection[str] | None = None,
    *,
    waits: bool | None = None,
    limit: int = 100,
    before: str | None = None,
) -> list[Executed]:
    """The newest lifecycles, of some statuses or all; `waits`: only those that wait for a person, or that do not.

    `before` is the id of the last one already seen; UnknownCursor if there is none of this id.
    """
    state = LifecycleState
    query = select(state).options(defer(state.source))
    query = query.order_by(state.created_s.desc(), state.lifecycle_id.desc()).limit(limit)
    if statuses is not None:
        query = query.where(state.status.in_(statuses))
    if waits is not None:
        held = select(LifecycleStage.lifecycle_id).where(LifecycleStage.state == "held")
        wait = state.lifecycle_id.in_(held) & state.status.not_in(lifecycle_states.LIFECYCLE_ENDED)
        query = query.where(wait if waits else ~wait)
    if before:
        seen = session.get(state, before)
        if seen is None:
            raise UnknownCursor(f"no lifecycle has the id {before}")
        same = (state.created_s == seen.created_s) & (state.lifecycle_id < seen.lifecycle_id)
        query = query.where((state.created_s < seen.created_s) | same)
    return _shown(session, session.scalars(query).all())


def _shown(session: Session, states_: Sequence[LifecycleState]) -> list[Executed]:
    """The same ones whole, in three questions; a plan's text, which no list shows, is fetched when it is asked for."""
    ids = [one.lifecycle_id for one in states_]
    plans = select(Lifecycle).where(Lifecycle.id.in_(ids)).options(defer(Lifecycle.spec))
    by_id = {one.id: one for one in session.scalars(plans)}
    rows = select(LifecycleStage).where(LifecycleStage.lifecycle_id.in_(ids)).order_by(LifecycleStage.position)
    stages: dict[str, list[LifecycleStage]] = {one: [] for one in ids}
    for row in session.scalars(rows):
        stages[row.lifecycle_id].append(row)
    return [Executed(by_id[one.lifecycle_id], one, stages[one.lifecycle_id]) for one in states_]


def held(session: Session) -> list[tuple[LifecycleStage, str]]:
    """Every stage that is held in a lifecycle that may still move, with that one's name; longest held first."""
    query = select(LifecycleStage, LifecycleState.name).join(
        LifecycleState, LifecycleState.lifecycle_id == LifecycleStage.lifecycle_id
    )
    query = query.where(LifecycleStage.state == "held")
    query = query.where(LifecycleState.status.not_in(lifecycle_states.LIFECYCLE_ENDED))
    found = session.execute(query.order_by(LifecycleStage.state_since_s, LifecycleStage.lifecycle_id))
    return [(stage, name) for stage, name in found]


def stages_counted(session: Session) -> dict[str, int]:
    """How many stages of lifecycles that may still move are in each state."""
    query = select(LifecycleStage.state, func.count()).join(
        LifecycleState, LifecycleState.lifecycle_id == LifecycleStage.lifecycle_id
    )
    query = query.where(LifecycleState.status.not_in(lifecycle_states.LIFECYCLE_ENDED))
    found = session.execute(query.group_by(LifecycleStage.state))
    return {row[0]: row[1] for row in found}


def get(session: Session, named: str) -> Executed | None:
    """One lifecycle by its id, or the newest of that name."""
    found = session.get(LifecycleState, named) or newest(session, named)
    return _whole(session, found) if found is not None else None


def newest(session: Session, name: str, *, before_s: float | None = None) -> LifecycleState | None:
    """The newest lifecycle of a name, or the newest that was made before a moment."""
    query = select(LifecycleState).where(LifecycleState.name == name)
    if before_s is not None:
        query = query.where(LifecycleState.created_s < before_s)
    order = (LifecycleState.created_s.desc(), LifecycleState.lifecycle_id.desc())
    return session.scalars(query.order_by(*order).limit(1)).one_or_none()


def _whole(session: Session, state: LifecycleState, *, anew: bool = False) -> Executed:
    query = select(LifecycleStage).where(LifecycleStage.lifecycle_id == state.lifecycle_id)
    query = query.order_by(LifecycleStage.position).execution_options(populate_existing=anew)
    stages = list(session.scalars(query))
    return Executed(session.get_one(Lifecycle, state.lifecycle_id), state, stages)


def locked(session: Session, lifecycle_id: str) -> Executed | None:
    """One lifecycle, for writing, as it is once nobody else writes it: not as this session may have read it before."""
    query = select(LifecycleState).where(LifecycleState.lifecycle_id == lifecycle_id).with_for_update()
    state = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    return _whole(session, state, anew=True) if state is not None else None


@dataclass(frozen=True, slots=True)
class OfStage:
    """A run with what it is for."""

    run: Run
    work: StageRun


def runs_of(session: Session, lifecycle_id: str) -> list[OfStage]:
    """The runs of a lifecycle, oldest first."""
    query = select(Run, StageRun).join(StageRun, StageRun.run_id == Run.id)
    rows = session.execute(query.where(StageRun.lifecycle_id == lifecycle_id).order_by(Run.created_s, Run.uid))
    return [OfStage(run, work) for run, work in rows]


def work_of(session: Session, run_id: str) -> StageRun | None:
    """What a run is for; None for a job that was submitted by itself."""
    return session.get(StageRun, run_id)


def last_attempts(session: Session, run_ids: Collection[str]) -> dict[str, Attempt]:
    """The newest attempt of each run."""
    query = select(Attempt).where(Attempt.run_id.in_(run_ids)).order_by(Attempt.no)
    return {one.run_id: one for one in session.scalars(query)}


def busy(attempt: Attempt | None) -> bool:
    """Whether an attempt is planned or alive."""
    return attempt is not None and attempt.state in (states.PLANNED, *ATTEMPT_LIVE)


def checkpoint(session: Session, checkpoint_hash: str) -> Checkpoint | None:
    """A checkpoint by its hash; of several that bear it (a copied folder) the first that was seen."""
    if not checkpoint_hash:
        return None
    query = select(Checkpoint).where(Checkpoint.hash == checkpoint_hash).order_by(Checkpoint.seen_s).limit(1)
    return session.scalars(query).one_or_none()


def checkpoints_of(session: Session, lifecycle_id: str) -> list[Checkpoint]:
    """The checkpoints that the runs of a lifecycle saved and that have a hash."""
    query = select(Checkpoint).join(StageRun, StageRun.run_id == Checkpoint.run_id)
    query = query.where(StageRun.lifecycle_id == lifecycle_id, Checkpoint.hash.is_not(None))
    return list(session.scalars(query.order_by(Checkpoint.seen_s)))


def tainted(session: Session, hashes: Collection[str]) -> frozenset[str]:
    """Those of these hashes that must not be used."""
    query = select(Checkpoint.hash).where(Checkpoint.hash.in_(hashes), Checkpoint.state == "tainted")
    return frozenset(one for one in session.scalars(query) if one)


def bearing(session: Session, checkpoint_hash: str) -> dict[str, tuple[str, list[str]]]:
    """By lifecycle: the stage whose candidate a checkpoint is ("" for none), and the aliases set there onto it."""
    mine = select(LifecycleStage.lifecycle_id, LifecycleStage.name)
    mine = mine.where(LifecycleStage.candidate_hash == checkpoint_hash).order_by(LifecycleStage.position.desc())
    found: dict[str, tuple[str, list[str]]] = {id_: (stage, []) for id_, stage in session.execute(mine)}
    for one in session.scalars(select(Alias).where(Alias.checkpoint_hash == checkpoint_hash).order_by(Alias.alias)):
        found.setdefault(one.lifecycle_id, (one.stage, []))[1].append(one.alias)
    return found


def made_from_tainted(session: Session) -> list[tuple[Checkpoint, str]]:
    """Checkpoints that are not tainted yet and were made from one that is, in another run: each with the reason."""
    source = select(Checkpoint.hash).where(Checkpoint.state == "tainted", Checkpoint.hash.is_not(None))
    begun = (
        select(Checkpoint, StageRun.init_hash)
        .join(StageRun, StageRun.run_id == Checkpoint.run_id)
        .where(Checkpoint.state.in_(("validated", "complete")), StageRun.role == "train")
        .where(StageRun.init_hash.in_(source))
    )
    found = [
        (one, f"its stage began from checkpoint {init[:12]}, which is tainted") for one, init in session.execute(begun)
    ]
    spoilt = Checkpoint.__table__.alias("spoilt")
    continued = (
        select(Checkpoint, spoilt.c.step)
        .join(Attempt, (Attempt.run_id == Checkpoint.run_id) & (Attempt.no == Checkpoint.attempt_no))
        .join(spoilt, spoilt.c.id == Attempt.resume_checkpoint_id)
        .where(Checkpoint.state.in_(("validated", "complete")))
        .where(spoilt.c.state == "tainted", spoilt.c.run_id != Checkpoint.run_id)
    )
    known = {one.id for one, _ in found}
    for one, step in session.execute(continued):
        if one.id not in known:
            found.append((one, f"its run went on from checkpoint {step} of an earlier run, which is tainted"))
    return found


def evaluations(session: Session, checkpoint_hash: str) -> list[StageRun]:
    """The runs that evaluated a checkpoint and whose results were read, of all lifecycles, oldest first."""
    if not checkpoint_hash:
        return []
    query = select(StageRun).join(Run, Run.id == StageRun.run_id).where(StageRun.init_hash == checkpoint_hash)
    query = query.where(StageRun.role == "evaluate", StageRun.result.is_not(None))
    return list(session.scalars(query.order_by(Run.created_s, Run.uid)))


def approvals(session: Session, lifecycle_id: str, stage: str | None = None) -> list[Approval]:
    """What people said of a lifecycle's checkpoints, oldest first."""
    query = select(Approval).where(Approval.lifecycle_id == lifecycle_id).order_by(Approval.at_s, Approval.id)
    return list(session.scalars(query if stage is None else query.where(Approval.stage == stage)))


def aliases(session: Session, owner: str) -> list[Alias]:
    """The aliases of the lifecycles of a name."""
    return list(session.scalars(select(Alias).where(Alias.owner == owner).order_by(Alias.alias)))


def alias_moves(session: Session, owner: str) -> list[AliasMove]:
    """Where the aliases of a name have pointed, oldest first."""
    query = select(AliasMove).where(AliasMove.owner == owner).order_by(AliasMove.at_s, AliasMove.id)
    return list(session.scalars(query))


# --- writing ---


def add(
    session: Session,
    *,
    name: str,
    spec: dict[str, Any],
    source: str,
    stages: Sequence[dict[str, Any]],
    parent_id: str | None,
    now: float,
    by: str,
) -> Executed:
    """A new lifecycle, active, its stages waiting unless they bring a state of their own."""
    plan = Lifecycle(id=uuid7(now), name=name, spec=spec, created_s=now, created_by=by)
    state = LifecycleState(
        lifecycle_id=plan.id,
        name=name,
        status="active",
        desired="run",
        source=source,
        parent_id=parent_id,
        created_s=now,
    )
    rows = [
        LifecycleStage(lifecycle_id=plan.id, position=at, state_since_s=now, **{"state": "waiting", **values})
        for at, values in enumerate(stages)
    ]
    session.add_all([plan, state, *rows])
    session.flush()
    return Executed(plan, state, rows)


def move_lifecycle(state: LifecycleState, status: str, *, reason: str, now: float) -> None:
    """Sets a lifecycle's status over its table."""
    if state.status != status:
        lifecycle_states.check_lifecycle(state.status, status)
    state.status, state.reason = status, reason
    if status in lifecycle_states.LIFECYCLE_ENDED:
        state.ended_s = now


def move_stage(stage: LifecycleStage, state: str, *, reason: str, now: float, hold: str = "") -> None:
    """Sets a stage's state over its table; a held one may be held for another reason."""
    if stage.state != state:
        lifecycle_states.check_stage(stage.state, state)
        stage.state_since_s = now
    stage.state, stage.hold, stage.reason = state, hold, reason
    if stage.began_s is None and state not in ("waiting", *lifecycle_states.STAGE_ENDED):
        stage.began_s = now
    if state in lifecycle_states.STAGE_ENDED:
        stage.ended_s = now


def add_work(session: Session, **values: Any) -> StageRun:
    """What a new run is for."""
    work = StageRun(**values)
    session.add(work)
    return work


def add_approval(session: Session, *, now: float, **values: Any) -> Approval:
    """A person's word, not used yet."""
    word = Approval(id=uuid7(now), at_s=now, **values)
    session.add(word)
    session.flush()
    return word


def use_approval(session: Session, approval_id: str, *, now: float) -> None:
    """A person's word has had its effect. LookupError if there is none that is open."""
    word = session.get(Approval, approval_id)
    if word is None or not word.open:
        raise LookupError(f"there is no open approval {approval_id}")
    word.used_s = now


def void_approvals(session: Session, lifecycle_id: str, stage: str, *, now: float) -> None:
    """No word that was said of a stage so far and had no effect holds for anything more."""
    for word in approvals(session, lifecycle_id, stage):
        word.voided_s = now if word.open else word.voided_s


def point(
    session: Session,
    *,
    owner: str,
    alias: str,
    checkpoint_hash: str,
    lifecycle_id: str,
    stage: str,
    actor: str,
    now: float,
) -> str:
    """Moves an alias to a checkpoint and says where it pointed before ("" for nowhere)."""
    row = session.get(Alias, (owner, alias))
    before = row.checkpoint_hash if row is not None else ""
    if row is None:
        row = Alias(owner=owner, alias=alias)
        session.add(row)
    row.checkpoint_hash, row.lifecycle_id, row.stage = checkpoint_hash, lifecycle_id, stage
    row.moved_s, row.moved_by = now, actor
    session.add(
        AliasMove(
            id=uuid7(now),
            owner=owner,
            alias=alias,
            before_hash=before,
            checkpoint_hash=checkpoint_hash,
            lifecycle_id=lifecycle_id,
            stage=stage,
            actor=actor,
            at_s=now,
        )
    )
    session.flush()
    return before

"""What the costs and the progress of lifecycles are made of, read for many at once; and the costs kept of ended runs.

Each function asks the database once, however many lifecycles or runs are meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.runs.lifecycle_states import STAGE_ENDED
from controlplane.store.lifecycles import OfStage
from controlplane.store.tables import Attempt, Event, LifecycleStage, Run, StageRun


def kept(session: Session, ids: Collection[str]) -> dict[str, tuple[float, float, float]]:
    """By lifecycle, the GPU-hours used, productive and queued of its runs of which they are kept."""
    work = StageRun
    query = select(
        work.lifecycle_id, func.sum(work.used_gpu_h), func.sum(work.productive_gpu_h), func.sum(work.queued_gpu_h)
    )
    query = query.where(work.lifecycle_id.in_(ids), work.used_gpu_h.is_not(None)).group_by(work.lifecycle_id)
    return {
        id_: (used or 0.0, productive or 0.0, queued or 0.0) for id_, used, productive, queued in session.execute(query)
    }


def not_kept(session: Session, ids: Collection[str]) -> list[OfStage]:
    """The runs of these lifecycles whose costs are not kept: those that live, and those that ended just now."""
    query = select(Run, StageRun).join(StageRun, StageRun.run_id == Run.id)
    query = query.where(StageRun.lifecycle_id.in_(ids), StageRun.used_gpu_h.is_(None))
    return [OfStage(run, work) for run, work in session.execute(query.order_by(Run.created_s, Run.uid))]


def under_way(session: Session, ids: Collection[str]) -> dict[tuple[str, str], OfStage]:
    """By lifecycle and stage, the newest run of each stage that has begun and has not ended."""
    query = select(Run, StageRun).join(StageRun, StageRun.run_id == Run.id)
    query = query.join(
        LifecycleStage,
        (LifecycleStage.lifecycle_id == StageRun.lifecycle_id) & (LifecycleStage.name == StageRun.stage),
    )
    query = query.where(StageRun.lifecycle_id.in_(ids), LifecycleStage.state.not_in(("waiting", *STAGE_ENDED)))
    rows = session.execute(query.order_by(Run.created_s, Run.uid))
    return {(work.lifecycle_id, work.stage): OfStage(run, work) for run, work in rows}


def attempts(session: Session, run_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """The attempts of each of these runs, by number."""
    found: dict[str, list[Attempt]] = defaultdict(list)
    query = select(Attempt).where(Attempt.run_id.in_(run_ids)).order_by(Attempt.run_id, Attempt.no)
    for one in session.scalars(query):
        found[one.run_id].append(one)
    return found


def events_of_kind(session: Session, run_ids: Collection[str], kinds: Sequence[str]) -> dict[str, list[Any]]:
    """Attempt number, kind and time of these runs' events of some kinds, oldest first."""
    found: dict[str, list[Any]] = defaultdict(list)
    query = select(Event.run_id, Event.attempt_no, Event.kind, Event.at_s)
    query = query.where(Event.run_id.in_(run_ids), Event.kind.in_(kinds)).order_by(Event.at_s, Event.id)
    for one in session.execute(query):
        found[str(one.run_id)].append(one)
    return found


def settled(session: Session, *, ended_before_s: float, limit: int) -> list[OfStage]:
    """Runs that ended before a moment and whose costs are not kept yet, oldest first."""
    query = select(Run, StageRun).join(StageRun, StageRun.run_id == Run.id)
    query = query.where(StageRun.used_gpu_h.is_(None), Run.ended_s < ended_before_s)
    return [OfStage(run, work) for run, work in session.execute(query.order_by(Run.ended_s).limit(limit))]

"""What tells whether a lifecycle has to be looked at again: a sign of each, read for all in a few questions.

Two equal signs mean that nothing has changed which somebody else than the conductor writes and on which its next move
hangs: what a person wants, what runs do, what is tainted. A look costs a dozen questions, and most lifecycles wait.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session

from controlplane.runs import lifecycle_states, states
from controlplane.store.base import ATTEMPT_LIVE
from controlplane.store.tables import Approval, Attempt, Checkpoint, LifecycleStage, LifecycleState, Run, StageRun

Sign = tuple[str, ...]
Asked = Select[*tuple[Any, ...]]


def signs(session: Session) -> dict[str, Sign]:
    """The signs of the lifecycles that may still move, by id, oldest first."""
    status = select(LifecycleState.lifecycle_id, LifecycleState.status, LifecycleState.desired)
    status = status.where(LifecycleState.status.not_in(lifecycle_states.LIFECYCLE_ENDED))
    status = status.order_by(LifecycleState.created_s, LifecycleState.lifecycle_id)
    found: dict[str, list[str]] = {id_: [f"{is_} {wanted}"] for id_, is_, wanted in session.execute(status)}
    more: dict[str, list[str]] = defaultdict(list)
    for query in (_held(), _runs(), _attempts(), _words(), _tainted()):
        for id_, *what in session.execute(query):
            more[id_].append(repr(what))
    return {id_: (*first, *sorted(more[id_])) for id_, first in found.items()}


def _held() -> Asked:
    """Stages that a person may want something of, with that."""
    row = LifecycleStage
    query = select(row.lifecycle_id, row.name, row.hold, row.round, row.state_since_s, row.candidate_hash, row.wish)
    return query.where(row.state == "held")


def _runs() -> Asked:
    query = select(StageRun.lifecycle_id, Run.id, Run.status, Run.desired).join(Run, Run.id == StageRun.run_id)
    return query.where(Run.status.not_in(states.RUN_ENDED))


def _attempts() -> Asked:
    query = select(StageRun.lifecycle_id, Attempt.run_id, Attempt.no).join(Attempt, Attempt.run_id == StageRun.run_id)
    return query.where(Attempt.state.in_((states.PLANNED, *ATTEMPT_LIVE)))


def _words() -> Asked:
    return select(Approval.lifecycle_id, Approval.id).where(Approval.used_s.is_(None), Approval.voided_s.is_(None))


def _tainted() -> Asked:
    """Stages under way whose checkpoints must not be used."""
    row = LifecycleStage
    spoilt = exists().where(
        Checkpoint.hash.in_((row.init_hash, row.candidate_hash)), Checkpoint.hash != "", Checkpoint.state == "tainted"
    )
    return select(row.lifecycle_id, row.name, row.hold).where(row.state.not_in(lifecycle_states.STAGE_ENDED), spoilt)

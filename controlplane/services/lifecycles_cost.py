"""What the runs of a stage have cost, in GPU-hours, by the ledger of a run's own page (controlplane.runs.goodput).

Used is what attempts held GPUs for; productive and lost are its two parts; queued is the wait before the first attempt
and is no part of it, since nothing was held. What a run that has ended has cost is kept in the store, since its steps
are many; so a list of lifecycles is a sum and the few runs that live.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.runs.goodput import Span, Spent, ledger
from controlplane.services import views_runs
from controlplane.store import leases, lifecycle_costs, lifecycles, runs, steps
from controlplane.store.engine import Session, Store
from controlplane.store.lifecycles import OfStage
from controlplane.store.tables import Attempt, Run

logger = logging.getLogger(__name__)
HOUR_S = 3600.0
# the last batches of a run that has ended have surely come by then: its cost is kept
SETTLED_S = 60.0
KEPT_AT_ONCE, LOOKED_AT = 4, 64
LEASE = "control"
_BETWEEN = ("restart", "decide")


@dataclass(frozen=True, slots=True)
class Cost:
    """GPU-hours."""

    used: float = 0.0
    productive: float = 0.0
    queued: float = 0.0

    @property
    def lost(self) -> float:
        return max(0.0, self.used - self.productive)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.used + other.used, self.productive + other.productive, self.queued + other.queued)

    def as_dict(self) -> dict[str, float]:
        """As pages show it."""
        return {
            "used_gpu_h": self.used,
            "productive_gpu_h": self.productive,
            "lost_gpu_h": self.lost,
            "queued_gpu_h": self.queued,
        }


def gpus_of(run: Run) -> int:
    """GPUs that a run asks for."""
    resources = run.spec["spec"]["resources"]
    return int(resources["nodes"]) * int(resources.get("gpusPerNode", 8))


def used(session: Session, run: Run, now: float) -> float:
    """GPU-hours that a run's attempts have held; cheap enough for each look of the controller."""
    attempts = runs.attempts(session, run.id)
    spans = views_runs.phases(session, run.id, attempts)
    spent = [_spent(spans[one.no], one, now) for one in attempts]
    return _held_s(spent, now) * gpus_of(run) / HOUR_S


def _spent(spans: Sequence[dict[str, Any]], attempt: Attempt, now: float) -> Spent:
    end = attempt.ended_s if attempt.ended_s is not None else now
    parts = tuple(Span(one["phase"], one["from_s"], end if one["to_s"] is None else one["to_s"]) for one in spans)
    return Spent(parts, 0.0, 0.0)


def _held_s(spent: Sequence[Spent], now: float) -> float:
    """Seconds in which an attempt held the GPUs: the ledger's wall without what lies between two attempts."""
    book = ledger(spent, now=now)
    return book.wall_s - sum(one.seconds for one in book.lost if (one.cause, one.phase) == _BETWEEN)


@dataclass(frozen=True, slots=True)
class Known:
    """What the costs of runs were made of, for others to use too: attempts by run, those of runs with kept costs left
    out, and the costs by run."""

    attempts: Mapping[str, Sequence[Attempt]]
    costs: Mapping[str, Cost]


def known(session: Session, works: Sequence[OfStage], now: float, *, also: Collection[str] = ()) -> Known:
    """What runs have cost so far, in three questions for all of them. `also`: runs whose attempts are wanted too."""
    kept = {one.run.id: _kept(one) for one in works}
    open_ = [one.run for one in works if kept[one.run.id] is None]
    ids = [run.id for run in open_]
    attempts = lifecycle_costs.attempts(session, {*ids, *also})
    events = lifecycle_costs.events_of_kind(session, ids, views_runs.PHASES)
    records = steps.read_all(session, ids)
    costs = {run_id: cost for run_id, cost in kept.items() if cost is not None}
    for run in open_:
        mine = attempts.get(run.id, [])
        spans = views_runs.phases_of(events.get(run.id, ()), mine)
        costs[run.id] = _cost(run, mine, views_runs.spent(mine, spans, records.get(run.id, ()), now), now)
    return Known(attempts, costs)


def _kept(one: OfStage) -> Cost | None:
    work = one.work
    if work.used_gpu_h is None:
        return None
    return Cost(work.used_gpu_h, work.productive_gpu_h or 0.0, work.queued_gpu_h or 0.0)


def _cost(run: Run, attempts: Sequence[Attempt], spent: Sequence[Spent], now: float) -> Cost:
    begun = attempts[0].created_s if attempts else run.ended_s if run.ended_s is not None else now
    hours = gpus_of(run) / HOUR_S
    held = _held_s(spent, now)
    productive = min(sum(one.productive_s for one in spent), held)
    return Cost(held * hours, productive * hours, max(0.0, begun - run.created_s) * hours)


def _readable(session: Session, work: OfStage, now: float) -> Mapping[str, Cost]:
    """The cost of one run; none where its records do not decode, so that the others' are kept all the same."""
    try:
        return known(session, [work], now).costs
    except Exception as error:  # whatever a damaged blob makes of its decoder
        logger.debug("the cost of %s is not kept: its records cannot be read: %s", work.run.id, error)
        return {}


def keep_once(store: Store, lease_epoch: int, now: float) -> int:
    """Keeps what runs of lifecycles have cost once they have ended for good; returns of how many. LeaseLost."""
    costs: dict[str, Cost] = {}
    with store.read() as session:
        for ended in lifecycle_costs.settled(session, ended_before_s=now - SETTLED_S, limit=LOOKED_AT):
            if len(costs) < KEPT_AT_ONCE:
                costs |= _readable(session, ended, now)
    if not costs:
        return 0
    with store.write() as session:
        leases.guard(session, LEASE, lease_epoch)
        for run_id, cost in costs.items():
            work = lifecycles.work_of(session, run_id)
            if work is not None:
                work.used_gpu_h, work.productive_gpu_h, work.queued_gpu_h = cost.used, cost.productive, cost.queued
    return len(costs)

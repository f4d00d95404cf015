"""What the runs of a stage have cost, in GPU-hours, by the ledger of a run's own page (controlplane.runs.goodput).

Used is what attempts held GPUs for; productive and lost are its two parts; queued is the wait before the first attempt
and is no part of it, since nothing was held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.runs.goodput import Span, Spent, ledger
from controlplane.services import views_runs
from controlplane.store import runs, steps
from controlplane.store.engine import Session
from controlplane.store.tables import Attempt, Run

HOUR_S = 3600.0
# the last batches of a run that has ended have surely come by then: its cost is read once more and kept
SETTLED_S = 60.0
KEPT = 512
_BETWEEN = ("restart", "decide")
_kept: dict[str, Cost] = {}


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


def cost(session: Session, run: Run, now: float) -> Cost:
    """What a run has cost so far."""
    known = _kept.get(run.uid)
    if known is not None:
        return known
    attempts = runs.attempts(session, run.id)
    spans = views_runs.phases(session, run.id, attempts)
    spent = views_runs.spent(attempts, spans, steps.read(session, run.id), now)
    begun = attempts[0].created_s if attempts else run.ended_s if run.ended_s is not None else now
    hours = gpus_of(run) / HOUR_S
    productive = min(sum(one.productive_s for one in spent), _held_s(spent, now))
    found = Cost(_held_s(spent, now) * hours, productive * hours, max(0.0, begun - run.created_s) * hours)
    if run.ended_s is not None and run.ended_s < now - SETTLED_S:
        while len(_kept) >= KEPT:
            _kept.pop(next(iter(list(_kept)), ""), None)  # another thread may have taken it out
        _kept[run.uid] = found
    return found

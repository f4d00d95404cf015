"""Which checkpoint a run may go on from. Pure.

The newest complete, verified one that is not tainted, by a write epoch that was current when it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.contract import Ranges


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint as the store knows it; times by the server's clock."""

    id: str
    attempt_no: int
    epoch: int
    step: int
    path: str
    state: str
    state_at_s: float | None
    skips: Ranges = ()
    """of one that an earlier run saved: the data indices that its attempt left out"""


def lineage(saved: Iterable[Saved], resumed: Sequence[tuple[int, int]]) -> list[Saved]:
    """Those that lie on the path to the newest attempt; `resumed`: (attempt, step it went on from), by number.

    What an attempt had saved beyond the step at which a later one went on was given up with that restart.
    """
    limits: dict[int, float] = {}
    limit = float("inf")
    for number, step in reversed(resumed):
        limits[number] = limit
        limit = min(limit, step)
    return [one for one in saved if one.step <= limits.get(one.attempt_no, -1.0)]


def resumable(saved: Iterable[Saved], *, below_step: int | None = None) -> Saved | None:
    """The checkpoint to resume from: the highest step, of equal steps the later attempt's; None to start afresh."""
    usable = [one for one in saved if one.state == "validated" and (below_step is None or one.step < below_step)]
    return max(usable, key=lambda one: (one.step, one.attempt_no), default=None)


def refuses(epoch: int, attempt_epoch: int | None) -> str:
    """Why a manifest may not count: it bears another epoch than its attempt was given; "" when it may."""
    if attempt_epoch is None:
        return "it belongs to no attempt of this run"
    if epoch != attempt_epoch:
        return f"it was written under epoch {epoch}, its attempt holds {attempt_epoch}"
    return ""

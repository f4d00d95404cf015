"""What the last day's GPU-hours went to, over all runs: the same ledger as a run's own page, laid along the clock.

Why it exists: two pages that count the same loss by two rules tell two numbers. Here only where a loss lies in time is
decided; how much was lost is the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from controlplane.runs.goodput import CAUSES, Ledger, Loss, Span, Spent, ledger
from controlplane.services import views_runs
from controlplane.store import runs, steps
from controlplane.store.engine import Session
from jobs.spec import parse_job

Json = dict[str, Any]
DAY_S = 24 * 3600.0
RUNS = 50
# An ended run's day is kept once its last batches have surely come: Now is asked for every second and each run of a day
# would be read whole each time.
SETTLED_S = 60.0
KEPT = 256
_TRAINING = ("training", "suspect")
# how a ledger's phase is called in the picture of a day
WORDS: Mapping[str, str] = {
    "queue, place": "place, checkpoint",
    "checkpoint, between steps": "place, checkpoint",
    "start": "start, load, steps run twice",
    "load": "start, load, steps run twice",
    "steps again": "start, load, steps run twice",
    "decide": "decide, drain",
    "drain": "decide, drain",
    "teardown": "decide, drain",
    "suspect": "hang",
}


@dataclass(frozen=True, slots=True)
class Day:
    """One run's last day: what each attempt spent, the sum of it, and the GPUs that it held."""

    run_id: str
    spent: tuple[Spent, ...]
    ledger: Ledger
    gpus: int


_kept: dict[str, Day] = {}


def last_day(session: Session, now: float) -> list[Day]:
    """The newest runs that held nodes at some time in the last day; one that never did is left out."""
    found = []
    for run in runs.listed(session, limit=RUNS):
        if run.ended_s is not None and run.ended_s < now - DAY_S:
            continue
        if run.uid in _kept and run.created_s >= now - DAY_S:
            found.append(_kept[run.uid])
            continue
        attempts = runs.attempts(session, run.id)
        spans = views_runs.phases(session, run.id, attempts)
        spent = views_runs.spent(attempts, spans, steps.read(session, run.id), now, since=now - DAY_S)
        whole = ledger(spent, now=now)
        if whole.percent is None:
            continue
        found.append(Day(run.id, tuple(spent), whole, parse_job(run.spec).gpus))
        if run.ended_s is not None and run.ended_s < now - SETTLED_S and run.created_s >= now - DAY_S:
            _keep(run.uid, found[-1])
    return found


def _keep(uid: str, day: Day) -> None:
    _kept[uid] = day
    while len(_kept) > KEPT:
        _kept.pop(next(iter(_kept)), None)


def percent(days: Sequence[Day]) -> float | None:
    """The share of all GPU time that made steps which were kept; None when nothing was placed."""
    wall = sum(day.ledger.wall_s * day.gpus for day in days)
    return 100 * sum(day.ledger.productive_s * day.gpus for day in days) / wall if wall else None


def shares(days: Sequence[Day]) -> list[tuple[str, float]]:
    """(phase, percent of all GPU time), the largest loss first."""
    wall = sum(day.ledger.wall_s * day.gpus for day in days)
    found: dict[str, float] = {}
    for day in days:
        for loss in day.ledger.lost:
            found[loss.phase] = found.get(loss.phase, 0.0) + loss.seconds * day.gpus
    return sorted(((phase, 100 * lost / wall) for phase, lost in found.items()), key=lambda one: -one[1])


def rows(days: Sequence[Day], now: float) -> list[Json]:
    """Every loss as {from_s, to_s, cause, gpu_h}, along the clock; a run's rows sum up to its ledger's losses."""
    found = []
    for day in days:
        for phase, from_s, to_s, seconds in _along(day.spent, now):
            hours = seconds * day.gpus / 3600
            found.append({"from_s": from_s, "to_s": to_s, "cause": WORDS.get(phase, phase), "gpu_h": hours})
    return found


def _along(spent: Sequence[Spent], now: float) -> Iterator[tuple[str, float, float, float]]:
    placed = [one for one in spent if one.spans]
    for one in placed:
        for loss in ledger([one], now=now).lost:
            yield from _placed(loss, one)
    for before, after in pairwise(placed):
        begin, end = before.spans[-1].to_s, after.spans[0].from_s
        if end > begin:
            yield "decide", begin, end, end - begin


def _placed(loss: Loss, one: Spent) -> Iterator[tuple[str, float, float, float]]:
    """Where a loss lies: in the spans of its phase, and steps that were run again at the end of what trained."""
    names = [phase for phase, (_, words) in CAUSES.items() if words == loss.phase] or _TRAINING
    spans = [span for span in one.spans if span.phase in names and span.to_s > span.from_s]
    length = sum(span.to_s - span.from_s for span in spans)
    if loss.phase == "steps again":
        spans, length = [Span("", spans[-1].to_s - loss.seconds, spans[-1].to_s)], loss.seconds
    for span in spans:
        yield loss.phase, span.from_s, span.to_s, loss.seconds * (span.to_s - span.from_s) / length

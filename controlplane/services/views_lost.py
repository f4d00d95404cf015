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
from controlplane.store.tables import Attempt
from jobs.spec import parse_job

Json = dict[str, Any]
DAY_S = 24 * 3600.0
RUNS = 50
# An ended run's day is kept once its last batches have surely come: Now is asked for every second and each run of a day
# would be read whole each time.
SETTLED_S = 60.0
KEPT = 256
_TRAINING = ("training", "suspect")
# what an attempt loses because of the restart that brought it about, and because of the one that ends it
_BEFORE, _AFTER = ("queue, place", "start", "load"), ("drain", "teardown", "steps again", "suspect")
# how a ledger's phase is called in the picture of a day
WORDS: Mapping[str, str] = {
    "decide": "queue, drain, checkpoint",
    "drain": "queue, drain, checkpoint",
    "teardown": "queue, drain, checkpoint",
    "queue, place": "queue, drain, checkpoint",
    "checkpoint, between steps": "queue, drain, checkpoint",
    "start": "start, load, steps run twice",
    "load": "start, load, steps run twice",
    "steps again": "start, load, steps run twice",
    "suspect": "hang",
}


@dataclass(frozen=True, slots=True)
class Day:
    """One run's last day: what each attempt spent, the sum of it, and the GPUs that it held.

    `why`: for each attempt the numbers of the incidents that it answers and that ended it, as far as it was incidents.
    """

    run_id: str
    spent: tuple[Spent, ...]
    ledger: Ledger
    gpus: int
    why: tuple[tuple[int | None, int | None], ...]


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
        found.append(Day(run.id, tuple(spent), whole, parse_job(run.spec).gpus, _why(session, run.id, attempts)))
        if run.ended_s is not None and run.ended_s < now - SETTLED_S and run.created_s >= now - DAY_S:
            _keep(run.uid, found[-1])
    return found


def _why(session: Session, run_id: str, attempts: Sequence[Attempt]) -> tuple[tuple[int | None, int | None], ...]:
    decisions = [one for one in runs.decisions(session, run_id) if one.incident_id]
    numbers = views_runs.incident_numbers(session, decisions)
    answered = {one.id: numbers.get(one.incident_id or "") for one in decisions}
    ended = {one.attempt_no: number for one in decisions if (number := answered[one.id]) is not None}
    return tuple((answered.get(one.decision_id or ""), ended.get(one.no)) for one in attempts)


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
    """Every loss as {from_s, to_s, cause, gpu_h, incident}, along the clock: a run's rows sum up to its ledger's.

    `incident` is the number of the one that brought it about, if one did.
    """
    found = []
    for day in days:
        for phase, from_s, to_s, seconds, number in _along(day, now):
            hours = seconds * day.gpus / 3600
            cause = WORDS.get(phase, phase)
            found.append({"from_s": from_s, "to_s": to_s, "cause": cause, "gpu_h": hours, "incident": number})
    return found


def _along(day: Day, now: float) -> Iterator[tuple[str, float, float, float, int | None]]:
    placed = [(one, *why) for one, why in zip(day.spent, day.why, strict=True) if one.spans]
    for one, answers, ended_by in placed:
        for loss in ledger([one], now=now).lost:
            number = answers if loss.phase in _BEFORE else ended_by if loss.phase in _AFTER else None
            for phase, from_s, to_s, seconds in _placed(loss, one):
                yield phase, from_s, to_s, seconds, number
    for (before, _, _), (after, answers, _) in pairwise(placed):
        begin, end = before.spans[-1].to_s, after.spans[0].from_s
        if end > begin:
            yield "decide", begin, end, end - begin, answers


def _placed(loss: Loss, one: Spent) -> Iterator[tuple[str, float, float, float]]:
    """Where a loss lies: in the spans of its phase, and steps that were run again at the end of what trained."""
    names = [phase for phase, (_, words) in CAUSES.items() if words == loss.phase] or _TRAINING
    spans = [span for span in one.spans if span.phase in names and span.to_s > span.from_s]
    length = sum(span.to_s - span.from_s for span in spans)
    if loss.phase == "steps again":
        spans, length = [Span("", spans[-1].to_s - loss.seconds, spans[-1].to_s)], loss.seconds
    for span in spans:
        yield loss.phase, span.from_s, span.to_s, loss.seconds * (span.to_s - span.from_s) / length

"""Where a run's GPU-hours went: productive steps, steps run twice, and each phase of each attempt. Pure.

ETTR = seconds of steps that were never run again ÷ wall seconds since the first placement; queueing before the first
placement is not counted. What no phase explains is said as unattributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

CAUSES: Mapping[str, tuple[str, str]] = {
    "planned": ("restart", "queue, place"),
    "submitting": ("restart", "queue, place"),
    "pending": ("restart", "queue, place"),
    "starting": ("restart", "start"),
    "init": ("restart", "load"),
    "draining": ("restart", "drain"),
    "stopping": ("restart", "teardown"),
}


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of an attempt; an open one ends now."""

    phase: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Spent:
    """One attempt: its phases, the seconds in steps that count, and in steps that a later attempt ran again."""

    spans: tuple[Span, ...]
    productive_s: float
    redone_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """Seconds lost to a cause in a phase."""

    cause: str
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """The whole run. `percent` and `unattributed_percent` are None before anything was placed."""

    wall_s: float
    productive_s: float
    lost: tuple[Loss, ...]
    percent: float | None
    unattributed_percent: float | None


def ledger(attempts: Sequence[Spent], *, now: float) -> Ledger:
    """Sums attempts; the time between two of them is the decision's."""
    attempts = [
        Spent(
            tuple(Span(s.phase, min(s.from_s, now), min(s.to_s, now)) for s in one.spans),
            one.productive_s,
            one.redone_s,
        )
        for one in attempts
    ]
    spans = [span for spent in attempts for span in spent.spans]
    if not spans:
        return Ledger(0.0, 0.0, (), None, None)
    begin, end = min(span.from_s for span in spans), max(span.to_s for span in spans)
    wall = max(end - begin, 1e-9)
    lost: dict[tuple[str, str], float] = {}

    def lose(cause: str, phase: str, seconds: float) -> None:
        if seconds > 0:
            lost[cause, phase] = lost.get((cause, phase), 0.0) + seconds

    covered = 0.0
    before: float | None = None
    for spent in attempts:
        if not spent.spans:
            continue
        if before is not None:
            gap = spent.spans[0].from_s - before
            lose("restart", "decide", gap)
            covered += max(gap, 0.0)
        covered += _attempt(spent, lose)
        before = spent.spans[-1].to_s
    productive = sum(spent.productive_s for spent in attempts)
    unattributed = max(0.0, wall - covered)
    losses = tuple(Loss(cause, phase, seconds) for (cause, phase), seconds in lost.items())
    return Ledger(wall, productive, losses, 100 * productive / wall, 100 * unattributed / wall)


def _attempt(spent: Spent, book: Callable[[str, str, float], None]) -> float:
    """Books one attempt's phases; returns the seconds that they explain."""
    covered = training = suspect = 0.0
    for span in spent.spans:
        length = max(0.0, span.to_s - span.from_s)
        covered += length
        if span.phase in ("training", "suspect"):
            training += length
            suspect += length if span.phase == "suspect" else 0.0
        elif span.phase in CAUSES:
            book(*CAUSES[span.phase], length)
    book("redone", "steps again", min(spent.redone_s, training))
    # steps may be measured a little longer than the phase that holds them; who was silent may have trained all the same
    idle = max(0.0, training - spent.productive_s - spent.redone_s)
    book("hang", "suspect", min(suspect, idle))
    # between steps: saving, agreeing, logging
    book("checkpoint", "checkpoint, between steps", idle - min(suspect, idle))
    return covered

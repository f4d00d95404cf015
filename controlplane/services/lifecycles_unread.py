"""A stage that waits because the disk of its run cannot be read: since when, which file and why, for people to see.

Nothing follows from it: not being able to look is never evidence of failure, so no state changes. The stage says at
once that it waits; its timeline says so once it has lasted, and once that it is over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from controlplane.services.durations import duration
from controlplane.services.lifecycles_moves import tell
from controlplane.store import lifecycles
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from controlplane.store.tables import LifecycleStage

TOLD_S = 10.0
"""a disk that was away for less is not worth a line of the timeline"""
Marks = Mapping[str, dict[str, Any] | None]


def news(session: Session, found: Executed, blind: Mapping[str, str], now: float) -> bool:
    """Whether any stage waits for another reason than is kept of it."""
    marks = _marks(session, found, blind, now)
    return any(one.unread != marks[one.name] for one in found.stages)


def note(session: Session, found: Executed, blind: Mapping[str, str], settled: Collection[str], now: float) -> None:
    """Keeps it, and tells what has lasted or is over. `blind`: by run, what cannot be read and why; `settled`: runs
    whose disk has been read."""
    marks = _marks(session, found, blind, now)
    for row in found.stages:
        before, after = row.unread, marks[row.name]
        if after is not None and after["told"] and not (before or {}).get("told"):
            words = f"Stage {row.name} waits: {sentence(after, now)}"
            tell(session, found, words, kind="stage_unread", now=now, stage=row.name, level="warn", run=after["run"])
        if before is not None and before["told"] and after is None and before["run"] in settled:
            lasted = duration(now - before["since_s"])
            words = f"The disk of run {before['run']} can be read again after {lasted}; nothing was decided meanwhile."
            tell(session, found, words, kind="stage_read", now=now, stage=row.name, level="ok", run=before["run"])
        row.unread = after


def _marks(session: Session, found: Executed, blind: Mapping[str, str], now: float) -> Marks:
    """By stage, what is to be kept of it; None where it waits for no disk."""
    waiting: dict[str, tuple[str, str]] = {}
    if blind:
        for one in lifecycles.runs_of(session, found.id):
            if one.run.id in blind:
                waiting[one.work.stage] = (one.run.id, blind[one.run.id])
    return {row.name: _mark(row, waiting.get(row.name), now) for row in found.stages}


def _mark(row: LifecycleStage, waits: tuple[str, str] | None, now: float) -> dict[str, Any] | None:
    if waits is None:
        return None
    run_id, why = waits
    before = row.unread if row.unread is not None and row.unread["run"] == run_id else None
    since_s = before["since_s"] if before is not None else now
    told = (before is not None and before["told"]) or now - since_s >= TOLD_S
    return {"run": run_id, "why": why, "since_s": since_s, "told": told}


def sentence(mark: Mapping[str, Any], now: float) -> str:
    """cannot read /runs/x/attempt-0001: Stale file handle, for 3 m 02 s now. …"""
    lasted = duration(max(0.0, now - mark["since_s"]))
    return f"cannot read {mark['why']}, for {lasted} now. Nothing is decided by that; each round looks again."


def waits(row: LifecycleStage, now: float) -> str:
    """waits: cannot read …; of a stage that waits for a disk."""
    return f"waits: {sentence(row.unread or {}, now)}"


def shown(row: LifecycleStage, now: float) -> dict[str, Any] | None:
    """For pages: which run's disk the stage waits for, since when and why, as a sentence too; None if for none."""
    mark = row.unread
    if mark is None:
        return None
    words = f"It {waits(row, now)}"
    return {"run": mark["run"], "why": mark["why"], "since_s": mark["since_s"], "sentence": words}

"""What failed members of an attempt said last: written before the platform forgets them, read with the logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select

from controlplane.store import compression
from controlplane.store.engine import Session
from controlplane.store.tables import LastWord


@dataclass(frozen=True, slots=True)
class Said:
    """One failed member, its launcher's record and the end of its output."""

    member: int
    node: str
    exit_code: int | None
    said: dict[str, Any] | None
    log: bytes
    missing: str = ""
    """why its output could not be read; empty when it was"""


def keep(session: Session, run_id: str, attempt_no: int, words: Sequence[tuple[int, Said]], *, now: float) -> None:
    """Writes members with their places, 0 for the one that failed first; output that is kept is not lost to none."""
    for place, word in words:
        row = session.get(LastWord, (run_id, attempt_no, word.member))
        if row is None:
            row = LastWord(run_id=run_id, attempt_no=attempt_no, member=word.member, log=b"")
            session.add(row)
        row.place, row.node, row.exit_code, row.said, row.kept_s = place, word.node, word.exit_code, word.said, now
        if word.log or not row.log:
            row.log, row.missing = compression.compress(word.log, compression.SMALL), word.missing


def of_attempt(session: Session, run_id: str, attempt_no: int) -> list[Said]:
    """What is kept of an attempt, who failed first in front."""
    query = select(LastWord).where(LastWord.run_id == run_id, LastWord.attempt_no == attempt_no)
    return [
        Said(row.member, row.node, row.exit_code, row.said, compression.decompress(row.log), row.missing)
        for row in session.scalars(query.order_by(LastWord.place, LastWord.member))
    ]


def forget(session: Session, *, before_s: float) -> None:
    """What was kept before a time is gone."""
    session.execute(delete(LastWord).where(LastWord.kept_s < before_s))

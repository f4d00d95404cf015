"""What people and programs did, and the answers given to requests that carry an idempotency key."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.store.tables import AuditEntry, IdempotencyKey

UNANSWERED = 0
"""The status of a key that is taken while its request has no answer yet."""
_KEYS = cast(Table, IdempotencyKey.__table__)


def add(
    session: Session,
    *,
    now: float,
    actor: str,
    verb: str,
    object: str,
    outcome: str,
    request_id: str = "",
    detail: dict[str, Any] | None = None,
) -> AuditEntry:
    """A new line of the audit; secrets must not be in `detail`."""
    entry = AuditEntry(
        id=uuid7(now),
        at_s=now,
        actor=actor,
        verb=verb,
        object=object,
        request_id=request_id,
        outcome=outcome,
        detail=detail or {},
    )
    session.add(entry)
    session.flush()
    return entry


def listed(session: Session, *, limit: int = 200, before_s: float | None = None) -> list[AuditEntry]:
    """The newest lines, or those before a moment."""
    query = select(AuditEntry).order_by(AuditEntry.at_s.desc(), AuditEntry.id.desc()).limit(limit)
    if before_s is not None:
        query = query.where(AuditEntry.at_s < before_s)
    return list(session.scalars(query))


def take(session: Session, key: str, actor: str, *, now: float, asked: str) -> IdempotencyKey | None:
    """Takes a key in this transaction, for a request told apart by `asked`; None, or the row of who took it before.

    If another transaction is just taking it, this waits for its end: what was rolled back never took anything.
    """
    made: Any = (sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert)(_KEYS)
    row = {"key": key, "actor": actor, "at_s": now, "status": UNANSWERED, "body": {"asked": asked}}
    taken = made.on_conflict_do_nothing(index_elements=["key", "actor"]).returning(_KEYS.c.key)
    if session.connection().execute(taken, row).first() is not None:
        return None
    return session.get_one(IdempotencyKey, (key, actor))


def keep_answer(session: Session, key: str, actor: str, *, status: int, answer: dict[str, Any]) -> None:
    """Keeps what the request that took a key was answered."""
    row = session.get_one(IdempotencyKey, (key, actor))
    row.status, row.body = status, {**row.body, "answer": answer}
    session.flush()


def give_back(session: Session, key: str, actor: str) -> None:
    """Lets go of a key whose request did nothing."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.key == key, IdempotencyKey.actor == actor))


def forget(session: Session, *, before_s: float) -> None:
    """Drops kept answers older than a moment."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.at_s < before_s))

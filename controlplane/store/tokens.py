"""Bearer tokens as the database knows them: a hash and what it may do. Making and judging them is a service."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.store.tables import Token


def add(
    session: Session,
    *,
    kind: str,
    sha256: str,
    subject: str,
    now: float,
    created_by: str,
    expires_s: float | None = None,
    role: str | None = None,
    node: str | None = None,
    run_id: str | None = None,
    attempt_no: int | None = None,
    epoch: int | None = None,
) -> Token:
    """A new token. IntegrityError at the flush if the hash is known already."""
    token = Token(
        id=uuid7(now),
        kind=kind,
        role=role,
        sha256=sha256,
        subject=subject,
        node=node,
        run_id=run_id,
        attempt_no=attempt_no,
        epoch=epoch,
        created_s=now,
        created_by=created_by,
        expires_s=expires_s,
    )
    session.add(token)
    session.flush()
    return token


def by_hash(session: Session, sha256: str) -> Token | None:
    """The token with this hash, revoked and expired ones included."""
    return session.scalars(select(Token).where(Token.sha256 == sha256)).one_or_none()


def get(session: Session, identifier: str) -> Token | None:
    """The token with this id."""
    return session.get(Token, identifier)


def listed(session: Session, kinds: Sequence[str] | None = None, *, limit: int = 500) -> list[Token]:
    """The newest tokens, of some kinds or of all."""
    query = select(Token).order_by(Token.created_s.desc(), Token.id.desc()).limit(limit)
    if kinds is not None:
        query = query.where(Token.kind.in_(kinds))
    return list(session.scalars(query))


def spend(session: Session, identifier: str, *, now: float) -> bool:
    """Revokes a token that may be used once. False if another call was first: then nothing may be given for it."""
    spent = session.execute(
        update(Token).where(Token.id == identifier, Token.revoked_s.is_(None)).values(revoked_s=now, last_used_s=now)
    )
    return bool(spent.rowcount == 1)  # type: ignore[attr-defined]  # an UPDATE's result has a row count


def revoke(session: Session, identifier: str, *, now: float) -> bool:
    """Ends a token at once. False if there is none or it had ended."""
    return spend(session, identifier, now=now)


def revoke_trainers(session: Session, run_id: str, *, below_epoch: int, now: float) -> None:
    """Ends the trainer tokens of a run's former attempts."""
    session.execute(
        update(Token)
        .where(Token.kind == "trainer", Token.run_id == run_id, Token.epoch < below_epoch, Token.revoked_s.is_(None))
        .values(revoked_s=now)
    )


def touch(session: Session, used: dict[str, float]) -> None:
    """Notes when tokens were last used, by id; callers collect and write seldom."""
    for identifier, at_s in used.items():
        session.execute(update(Token).where(Token.id == identifier).values(last_used_s=at_s))

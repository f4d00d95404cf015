"""Opaque bearer tokens: made, looked up, ended. The store keeps their SHA-256 only, so a stolen database opens nothing.

A token reads `tt_<kind>_<43 base64url characters>_<crc>`: the kind for the eye and for secret scanners, 256 bits from
the operating system, and a checksum that lets a slip of the hand be refused without asking the database.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from dataclasses import dataclass

from controlplane.store import tokens
from controlplane.store.engine import Session
from controlplane.store.tables import Token

ROLES = ("viewer", "operator", "admin")
KINDS = ("personal", "agent", "trainer", "login", "link")
LOGIN_S, LINK_S = 12 * 3600.0, 900.0
AGENT_S, PERSONAL_S = 30 * 86_400.0, 90 * 86_400.0


class TokenRefused(Exception):
    """A token that opens nothing; the message says why in words that help its owner only."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a call comes from and what it may do. `role` is None for agents and trainers."""

    token_id: str
    kind: str
    actor: str
    role: str | None = None
    node: str | None = None
    run_id: str | None = None
    attempt_no: int | None = None
    epoch: int | None = None

    def may(self, role: str) -> bool:
        """Whether this is a person (or a session of one) with at least this role."""
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(role)


def _checksum(kind: str, secret: str) -> str:
    return f"{zlib.crc32(f'{kind}_{secret}'.encode()):08x}"


def make(kind: str) -> str:
    """A new secret of a kind."""
    secret = secrets.token_urlsafe(32)
    return f"tt_{kind}_{secret}_{_checksum(kind, secret)}"


def digest(token: str) -> str:
    """What the store keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def well_formed(token: str) -> bool:
    """Whether it could be one of ours: shape and checksum, without any look-up."""
    parts = token.split("_", 2)
    if len(parts) != 3 or parts[0] != "tt" or parts[1] not in KINDS or not token.isascii():
        return False
    secret, _, checksum = parts[2].rpartition("_")
    return len(secret) == 43 and secrets.compare_digest(checksum, _checksum(parts[1], secret))


def issue(
    session: Session,
    *,
    kind: str,
    subject: str,
    now: float,
    created_by: str,
    life_s: float | None,
    role: str | None = None,
    node: str | None = None,
    run_id: str | None = None,
    attempt_no: int | None = None,
    epoch: int | None = None,
) -> str:
    """Makes a token and keeps its hash; the token itself is returned once and never again."""
    if kind not in KINDS or (role is not None and role not in ROLES):
        raise ValueError(f"no token of kind {kind} with role {role}")
    token = make(kind)
    tokens.add(
        session,
        kind=kind,
        sha256=digest(token),
        subject=subject,
        now=now,
        created_by=created_by,
        expires_s=None if life_s is None else now + life_s,
        role=role,
        node=node,
        run_id=run_id,
        attempt_no=attempt_no,
        epoch=epoch,
    )
    return token


def _living(row: Token | None, now: float) -> Token:
    if row is None:
        raise TokenRefused("this token is not known here")
    if row.revoked_s is not None:
        raise TokenRefused("this token was revoked")
    if row.expires_s is not None and now >= row.expires_s:
        raise TokenRefused("this token has expired")
    return row


def identify(session: Session, token: str, now: float) -> Identity:
    """Who bears this token; raises TokenRefused. Links open sessions and nothing else."""
    if not well_formed(token):
        raise TokenRefused("this is not a Trimtab token")
    row = _living(tokens.by_hash(session, digest(token)), now)
    if row.kind == "link":
        raise TokenRefused("a one-time link opens a session; it is no token")
    return Identity(row.id, row.kind, row.subject, row.role, row.node, row.run_id, row.attempt_no, row.epoch)


def open_session(session: Session, code: str, now: float) -> tuple[str, str, float]:
    """Spends a one-time link or takes a personal token: (session token, role, when it ends). Raises TokenRefused."""
    if not well_formed(code):
        raise TokenRefused("this link is not one of ours")
    row = _living(tokens.by_hash(session, digest(code)), now)
    if row.kind not in ("link", "personal") or row.role is None:
        raise TokenRefused("this token opens no session")
    if row.kind == "link" and not tokens.spend(session, row.id, now=now):
        raise TokenRefused("this link has been used")
    token = issue(session, kind="login", subject=row.subject, now=now, created_by=row.id, life_s=LOGIN_S, role=row.role)
    return token, row.role, now + LOGIN_S

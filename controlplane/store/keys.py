"""Keys of the control plane's own: made once, of random bytes, and the same for every server on this database."""

from __future__ import annotations

import secrets

from sqlalchemy.dialects import postgresql, sqlite

from controlplane.store.engine import Session
from controlplane.store.tables import Key

BYTES = 32


def kept(session: Session, name: str, *, now: float) -> bytes:
    """The key of that name, made if there is none. Two servers that make it at once get the same one."""
    made = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Key)
    values = {"name": name, "secret": secrets.token_bytes(BYTES), "made_s": now}
    session.execute(made.values(values).on_conflict_do_nothing(index_elements=["name"]))
    return session.get_one(Key, name).secret

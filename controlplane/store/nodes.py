"""Machines: who they are, which of their batches have been taken, and their session with the controller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import Table, bindparam, func, select, tuple_, update
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.store.base import insert_many, upsert
from controlplane.store.tables import Boot, Node

OFFSET_DRIFT = 1e-3  # seconds a second that a clock offset may grow, so that one quick batch is not believed for ever
NEWEST_AGE_S = 2.0  # how old a batch may be behind which none waits: agents make one a second


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a batch says of its node, with the server's time of receipt.

    behind: how many batches wait at the sender behind this one. in_order: whether its number counts; a batch of faults
    alone overtakes others, and taking it twice changes nothing.
    """

    name: str
    boot_id: str
    sequence: int
    source: str
    simulated: bool
    agent_version: str
    sent_s: float
    sent_monotonic_s: float
    received_s: float
    facts: dict[str, Any] | None
    users: list[dict[str, Any]] | None = None
    behind: int = 0
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """The last batch taken in order from a node, when anything of it was heard, and how its clock stands to ours."""

    boot_id: str
    sequence: int
    received_s: float
    sent_s: float
    sent_monotonic_s: float
    clock_offset_s: float


@dataclass(frozen=True, slots=True)
class LastWord:
    """Up to when a node's word reaches: its last batch in order, by its own clocks and (`told_s`) by the server's.

    An agent that was cut off sends what it kept, oldest first: until it has caught up, `told_s` is long ago.
    """

    boot_id: str
    sent_s: float
    sent_monotonic_s: float
    told_s: float


_LOCK = (
    select(
        Node.name,
        Node.boot_id,
        Node.last_sequence,
        Node.last_seen_s,
        Node.sent_s,
        Node.sent_monotonic_s,
        Node.clock_offset_s,
    )
    .where(Node.name.in_(bindparam("names", expanding=True)))
    .order_by(Node.name)
    .with_for_update()
)
_GREETED = (
    *("boot_id", "last_sequence", "source", "simulated", "agent_version"),
    *("last_seen_s", "sent_s", "sent_monotonic_s", "clock_offset_s"),
)
_TABLE = cast(Table, Node.__table__)
_UPDATE = _TABLE.update().where(_TABLE.c.name == bindparam("key")).values({n: bindparam(n) for n in _GREETED})
_UPDATE_FACTS = _TABLE.update().where(_TABLE.c.name == bindparam("key")).values({"facts": bindparam("facts")})
_UPDATE_USERS = _TABLE.update().where(_TABLE.c.name == bindparam("key")).values({"users": bindparam("users")})


def lock(session: Session, names: Collection[str]) -> dict[str, Mark]:
    """The marks of the known ones of these nodes, locked until the transaction ends.

    The rows are locked in order of name, so that two writers never wait for each other.
    """
    rows = session.connection().execute(_LOCK, {"names": sorted(set(names))})
    return {row[0]: Mark(*row[1:]) for row in rows}


def last_words(session: Session, names: Collection[str]) -> dict[str, LastWord]:
    """Up to when the word of each of these nodes reaches; unknown ones are left out."""
    clock = (Node.boot_id, Node.sent_s, Node.sent_monotonic_s, Node.clock_offset_s, Node.last_seen_s)
    rows = session.execute(select(Node.name, *clock).where(Node.name.in_(sorted(set(names)))))
    return {
        name: LastWord(boot_id, sent_s, monotonic_s, min(seen_s, sent_s + offset_s))
        for name, boot_id, sent_s, monotonic_s, offset_s, seen_s in rows
    }


def left_marks(session: Session, boots: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The high-water marks of boots that their nodes have left, by (node, boot id)."""
    if not boots:
        return {}
    query = select(Boot.node, Boot.boot_id, Boot.last_sequence).where(tuple_(Boot.node, Boot.boot_id).in_(boots))
    return {(node, boot_id): mark for node, boot_id, mark in session.execute(query)}


def leave_boots(session: Session, left: Mapping[str, Mark], *, now: float) -> None:
    """Keeps the marks of boots that nodes have left."""
    upsert(
        session,
        Boot,
        [
            {"node": node, "boot_id": mark.boot_id, "last_sequence": mark.sequence, "left_s": now}
            for node, mark in left.items()
        ],
    )


def marked(mark: Mark | None, greeting: Greeting) -> Mark:
    """A node's mark after a batch of it was taken."""
    if mark is not None and not greeting.in_order:
        return replace(mark, received_s=greeting.received_s)
    return Mark(
        boot_id=greeting.boot_id,
        sequence=greeting.sequence if greeting.in_order else -1,
        received_s=greeting.received_s,
        sent_s=greeting.sent_s,
        sent_monotonic_s=greeting.sent_monotonic_s,
        clock_offset_s=_offset_s(mark, greeting),
    )


def _offset_s(mark: Mark | None, greeting: Greeting) -> float:
    """The server's clock minus the agent's, in seconds; the two clocks of a boot say when the agent's was set."""
    found = greeting.received_s - greeting.sent_s
    if mark is None:
        return found
    # a batch may wait on its way, but is never received before it is sent: the smallest difference is the truest
    known = mark.clock_offset_s + OFFSET_DRIFT * max(0.0, greeting.received_s - mark.received_s)
    if mark.boot_id == greeting.boot_id:
        known -= (greeting.sent_s - mark.sent_s) - (greeting.sent_monotonic_s - mark.sent_monotonic_s)
    offset_s = min(found, known)
    return offset_s if greeting.behind else max(offset_s, found - NEWEST_AGE_S)


def greet(session: Session, greetings: Mapping[str, tuple[Greeting, Mark]], *, known: Collection[str]) -> None:
    """Writes the nodes' newest greetings and marks, by name; those not in `known` are new."""
    new, changed, facts, users = [], [], [], []
    for name, (greeting, mark) in greetings.items():
        row = {
            "boot_id": mark.boot_id,
            "last_sequence": mark.sequence,
            "source": greeting.source,
            "simulated": greeting.simulated,
            "agent_version": greeting.agent_version,
            "last_seen_s": mark.received_s,
            "sent_s": mark.sent_s,
            "sent_monotonic_s": mark.sent_monotonic_s,
            "clock_offset_s": mark.clock_offset_s,
        }
        if name in known:
            changed.append({"key": name, **row})
            if greeting.facts is not None:
                facts.append({"key": name, "facts": greeting.facts})
            if greeting.users is not None:
                users.append({"key": name, "users": greeting.users})
            continue
        now = mark.received_s
        new.append(
            {
                "name": name,
                **row,
                "facts": greeting.facts or {},
                "users": greeting.users or [],
                "first_seen_s": now,
                "state_since_s": now,
                "session_id": uuid7(now),
            }
        )
    insert_many(session, Node, new)
    if changed:
        session.connection().execute(_UPDATE, changed)
    if facts:
        session.connection().execute(_UPDATE_FACTS, facts)
    if users:
        session.connection().execute(_UPDATE_USERS, users)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node as placement needs it: without what its agent told of its hardware but the number of GPUs."""

    name: str
    gpus: int
    cordoned: bool
    state: str
    last_seen_s: float


def machines(session: Session) -> list[Machine]:
    """Every node, by name."""
    gpus = func.coalesce(func.json_array_length(Node.facts["gpus"]), 0)
    query = select(Node.name, gpus, Node.cordoned, Node.state, Node.last_seen_s).order_by(Node.name)
    return [Machine(*row) for row in session.execute(query)]


def last_heard_s(session: Session, *, default: float) -> float:
    """When a batch of any node was taken last."""
    heard = session.execute(select(func.max(Node.last_seen_s))).scalar_one()
    return default if heard is None else heard


def listed(session: Session) -> list[Node]:
    """Every node, by name."""
    return list(session.scalars(select(Node).order_by(Node.name)))


def get(session: Session, name: str) -> Node | None:
    """One node."""
    return session.get(Node, name)


def cordon(session: Session, name: str, *, reason: str, now: float) -> bool:
    """Keeps new ranks off a node. False if there is no such node."""
    return _change(session, name, cordoned=True, state_reason=reason, state_since_s=now)


def quarantine(session: Session, name: str, *, reason: str, now: float) -> bool:
    """Takes a node out of service, to be returned by a person. False if there is no such node."""
    return _change(session, name, cordoned=True, state="quarantined", state_reason=reason, state_since_s=now)


def uncordon(session: Session, name: str, *, reason: str, now: float) -> bool:
    """Lets a node take ranks again: healthy, in a new session. False if there is no such node."""
    return _change(
        session,
        name,
        cordoned=False,
        state="healthy",
        state_reason=reason,
        state_since_s=now,
        session_id=uuid7(now),
    )


def set_state(session: Session, name: str, state: str, *, reason: str, now: float, before: str = "") -> bool:
    """Moves a node's session to a state, only from `before` where it is given.

    False if there is no such node in it; IntegrityError for a state that is none.
    """
    return _change(session, name, before, state=state, state_reason=reason, state_since_s=now)


def _change(session: Session, name: str, before: str = "", **values: Any) -> bool:
    which = update(Node).where(Node.name == name)
    if before:
        which = which.where(Node.state == before)
    changed = session.execute(which.values(**values).execution_options(synchronize_session="fetch"))
    return bool(changed.rowcount == 1)  # type: ignore[attr-defined]  # an UPDATE's result has a row count

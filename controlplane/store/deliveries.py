"""The outbox of messages and the channels they go to. It sends nothing: a service claims, sends and marks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session, aliased

from controlplane.ids import uuid7
from controlplane.store.tables import Channel, Delivery, Incident, LifecycleState

UNFINISHED = ("ready", "telling")


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that this caller may send until `claimed_s` is somebody else's.

    It is of an incident, which has a number, or of a lifecycle, which has a name.
    """

    id: str
    incident_id: str | None
    number: int | None
    lifecycle_id: str | None
    name: str
    seq: int
    channel: str
    kind: str
    config: Mapping[str, Any]
    body: Mapping[str, Any]
    tries: int
    claimed_s: float


def channels(session: Session, *, enabled: bool = False) -> list[Channel]:
    """Every channel by name, or those that are on. Their config holds secrets."""
    query = select(Channel).order_by(Channel.name)
    return list(session.scalars(query.where(Channel.enabled) if enabled else query))


def channel(session: Session, name: str) -> Channel | None:
    """One channel."""
    return session.get(Channel, name)


def put_channel(session: Session, name: str, *, kind: str, config: dict[str, Any], enabled: bool = True) -> Channel:
    """Makes or replaces a channel."""
    found: Channel = session.merge(Channel(name=name, kind=kind, config=config, enabled=enabled))
    session.flush()
    return found


def add(
    session: Session,
    *,
    seq: int,
    channel: str,
    body: dict[str, Any],
    due_s: float,
    now: float,
    incident_id: str | None = None,
    lifecycle_id: str | None = None,
) -> Delivery:
    """A message in the transaction of what it tells. IntegrityError at the flush if it is there already."""
    about = {"incident_id": incident_id, "lifecycle_id": lifecycle_id}
    delivery = Delivery(id=uuid7(now), seq=seq, channel=channel, body=body, due_s=due_s, **about)
    session.add(delivery)
    return delivery


def withdraw(session: Session, incident_ids: Collection[str]) -> None:
    """Drops the messages of incidents that nobody has tried to send yet."""
    session.execute(
        delete(Delivery).where(Delivery.incident_id.in_(incident_ids), Delivery.state == "ready", Delivery.tries == 0)
    )


def withdraw_of_stage(session: Session, lifecycle_id: str, stage: str) -> None:
    """Drops the messages of a lifecycle that are of one of its stages and that nobody has tried to send yet."""
    untold = (Delivery.state == "ready", Delivery.tries == 0)
    rows = session.execute(select(Delivery.id, Delivery.body).where(Delivery.lifecycle_id == lifecycle_id, *untold))
    ids = [id_ for id_, body in rows if body["data"]["stage"] == stage]
    if ids:
        session.execute(delete(Delivery).where(Delivery.id.in_(ids), *untold))


def untried(session: Session, incident_id: str) -> list[Delivery]:
    """An incident's messages that nobody has tried to send yet."""
    query = select(Delivery).where(Delivery.incident_id == incident_id, Delivery.state == "ready", Delivery.tries == 0)
    return list(session.scalars(query.with_for_update()))


def of_incident(session: Session, incident_id: str) -> list[Delivery]:
    """An incident's messages in order."""
    query = select(Delivery).where(Delivery.incident_id == incident_id)
    return list(session.scalars(query.order_by(Delivery.seq, Delivery.channel)))


def of_lifecycle(session: Session, lifecycle_id: str) -> list[Delivery]:
    """A lifecycle's messages in order."""
    query = select(Delivery).where(Delivery.lifecycle_id == lifecycle_id)
    return list(session.scalars(query.order_by(Delivery.seq, Delivery.channel)))


def told(session: Session, incident_id: str) -> bool:
    """Whether anybody was told of an incident, or may have been."""
    query = select(Delivery.id).where(
        Delivery.incident_id == incident_id, (Delivery.tries > 0) | Delivery.state.in_(("telling", "told"))
    )
    return session.execute(query.limit(1)).first() is not None


def is_due(session: Session, *, now: float, claim_s: float) -> bool:
    """Whether `claim` would find anything; reads only."""
    return session.execute(_due(now, claim_s).limit(1)).first() is not None


def _due(now: float, claim_s: float) -> Any:
    """Due deliveries of enabled channels, each only if what it is of has no earlier one open on the same channel."""
    earlier = aliased(Delivery)
    blocked = (
        select(earlier.id)
        .where(
            or_(earlier.incident_id == Delivery.incident_id, earlier.lifecycle_id == Delivery.lifecycle_id),
            earlier.channel == Delivery.channel,
            earlier.seq < Delivery.seq,
            earlier.state.in_(UNFINISHED),
        )
        .exists()
    )
    abandoned = and_(Delivery.state == "telling", Delivery.claimed_s <= now - claim_s)
    return (
        select(Delivery, Channel, Incident.number, LifecycleState.name)
        .join(Channel, Channel.name == Delivery.channel)
        .outerjoin(Incident, Incident.id == Delivery.incident_id)
        .outerjoin(LifecycleState, LifecycleState.lifecycle_id == Delivery.lifecycle_id)
        .where(Channel.enabled, (and_(Delivery.state == "ready", Delivery.due_s <= now)) | abandoned, ~blocked)
        .order_by(Delivery.due_s, Delivery.id)
    )


def claim(session: Session, *, now: float, claim_s: float, per_channel: int, limit: int = 200) -> list[Claim]:
    """Takes due deliveries, at most `per_channel` of each channel: telling, one try more, nobody else takes them.

    A claim older than `claim_s` is given up: its holder died between claim and mark, and the message is sent again
    under the same id.
    """
    taken: dict[str, list[Claim]] = {}
    rows = session.execute(_due(now, claim_s).limit(limit).with_for_update(of=Delivery, skip_locked=True)).all()
    for row, channel, number, name in rows:
        of_channel = taken.setdefault(channel.name, [])
        if len(of_channel) >= per_channel:
            continue
        row.state, row.claimed_s, row.tries = "telling", now, row.tries + 1
        of_channel.append(
            Claim(
                id=row.id,
                incident_id=row.incident_id,
                number=number,
                lifecycle_id=row.lifecycle_id,
                name=name or "",
                seq=row.seq,
                channel=channel.name,
                kind=channel.kind,
                config=dict(channel.config),
                body=dict(row.body),
                tries=row.tries,
                claimed_s=now,
            )
        )
    session.flush()
    return [one for group in taken.values() for one in group]


def _claimed(session: Session, claim: Claim) -> Delivery | None:
    """The row, locked, if the claim still holds; None if another sender has taken it over or marked it."""
    query = select(Delivery).where(
        Delivery.id == claim.id, Delivery.state == "telling", Delivery.claimed_s == claim.claimed_s
    )
    return session.scalars(query.with_for_update()).one_or_none()


def mark_told(session: Session, claim: Claim, *, now: float) -> bool:
    """The receiver took it. False if the claim no longer holds."""
    row = _claimed(session, claim)
    if row is None:
        return False
    row.state, row.told_s, row.last_error = "told", now, ""
    return True


def mark_failed(session: Session, claim: Claim, *, error: str, due_s: float | None) -> bool:
    """Not taken: ready again at `due_s`, or dead without one. False if the claim no longer holds."""
    row = _claimed(session, claim)
    if row is None:
        return False
    row.state, row.last_error = ("dead" if due_s is None else "ready"), error
    row.due_s = row.due_s if due_s is None else due_s
    return True


def give_back(session: Session, claim: Claim, *, due_s: float) -> bool:
    """Claimed but never sent: ready again, and the try does not count. False if the claim no longer holds."""
    row = _claimed(session, claim)
    if row is None:
        return False
    row.state, row.due_s, row.tries = "ready", due_s, row.tries - 1
    return True


def pause_channel(session: Session, name: str) -> None:
    """Switches a channel off: its receiver is gone. Its messages wait until a person switches it on."""
    found = session.get(Channel, name)
    if found is not None:
        found.enabled = False

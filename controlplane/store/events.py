"""Lines of the timeline: added, never changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.store.tables import Event


def add(
    session: Session,
    *,
    at_s: float,
    kind: str,
    sentence: str,
    run_id: str | None = None,
    attempt_no: int | None = None,
    node: str | None = None,
    incident_id: str | None = None,
    decision_id: str | None = None,
    data: dict[str, Any] | None = None,
    lifecycle_id: str | None = None,
) -> Event:
    """A new line."""
    event = Event(
        id=uuid7(at_s),
        at_s=at_s,
        kind=kind,
        run_id=run_id,
        attempt_no=attempt_no,
        node=node,
        incident_id=incident_id,
        decision_id=decision_id,
        sentence=sentence,
        data=data or {},
        lifecycle_id=lifecycle_id,
    )
    session.add(event)
    return event


def listed(
    session: Session,
    *,
    run_id: str | None = None,
    node: str | None = None,
    incident_id: str | None = None,
    lifecycle_id: str | None = None,
    since_s: float | None = None,
    limit: int = 500,
) -> list[Event]:
    """The newest lines that match, oldest first."""
    query = select(Event).order_by(Event.at_s.desc(), Event.id.desc()).limit(limit)
    asked = (
        (Event.run_id, run_id),
        (Event.node, node),
        (Event.incident_id, incident_id),
        (Event.lifecycle_id, lifecycle_id),
    )
    for column, value in asked:
        if value is not None:
            query = query.where(column == value)
    if since_s is not None:
        query = query.where(Event.at_s >= since_s)
    return list(reversed(session.scalars(query).all()))


def of_nodes(session: Session, kinds: Collection[str], *, since_s: float) -> list[tuple[str, str, float]]:
    """(node, kind, when) of the lines of these kinds since a moment, oldest first."""
    query = select(Event.node, Event.kind, Event.at_s).where(Event.kind.in_(kinds), Event.at_s >= since_s)
    rows = session.execute(query.order_by(Event.at_s, Event.id))
    return [(node, kind, at_s) for node, kind, at_s in rows if node]


def nodes_of_kind(session: Session, kind: str, *, since_s: float) -> frozenset[str]:
    """The nodes of which a kind of line was written since a moment."""
    query = select(Event.node).where(Event.kind == kind, Event.at_s >= since_s).distinct()
    return frozenset(node for node in session.scalars(query) if node)

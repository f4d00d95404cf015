"""Faults as the nodes told them: written once each, however often they are told."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from agents import readings
from controlplane.store.tables import Fault, Incident, Node


def record(session: Session, found: Sequence[readings.Fault], *, now: float) -> list[Fault]:
    """Inserts or updates faults by id; returns the rows that changed.

    A telling that is older than the one stored changes nothing, and a fault that has cleared stays so: firing again is
    a new onset and so a new id. `now` is the server's time of receipt. How the node's clock stands then is kept with a
    new fault: a clock that is set later moves nothing that has happened.
    """
    known = {
        row.id: row
        for row in session.scalars(select(Fault).where(Fault.id.in_([fault.id for fault in found])).with_for_update())
    }
    offsets = _offsets(session, {fault.node for fault in found if fault.id not in known})
    changed = []
    for fault in found:
        row = known.get(fault.id)
        if row is None:
            row = known[fault.id] = _row(fault, now, offsets.get(fault.node, 0.0))
            session.add(row)
        elif row.state == "clear" or fault.observed_s < row.observed_s:
            continue
        else:
            row.observed_s, row.value, row.sentence = fault.observed_s, _known(fault.value), fault.sentence
            row.severity, row.evidence = fault.severity, dict(fault.evidence)
            row.state = fault.state
        if row.state == "clear":
            row.cleared_s = now
        changed.append(row)
    session.flush()
    return changed


def _offsets(session: Session, names: Collection[str]) -> dict[str, float]:
    query = select(Node.name, Node.clock_offset_s).where(Node.name.in_(names))
    return {row.name: row.clock_offset_s for row in session.execute(query)} if names else {}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(fault: readings.Fault, now: float, offset_s: float) -> Fault:
    return Fault(
        id=fault.id,
        rule=fault.rule,
        severity=fault.severity,
        action=fault.action,
        node=fault.node,
        entity=fault.entity,
        state=fault.state,
        onset_s=fault.onset_s,
        last_clean_s=fault.last_clean_s,
        observed_s=fault.observed_s,
        received_s=now,
        clock_offset_s=offset_s,
        value=_known(fault.value),
        threshold=_known(fault.threshold),
        sentence=fault.sentence,
        evidence=dict(fault.evidence),
        run_id=fault.run_id,
        attempt_no=fault.attempt_no,
        rank=fault.rank,
    )


def firing(session: Session, nodes: Sequence[str] | None = None) -> list[Fault]:
    """The faults that fire, of some nodes or of all, by onset."""
    query = select(Fault).where(Fault.state == "firing").order_by(Fault.onset_s, Fault.id)
    if nodes is not None:
        query = query.where(Fault.node.in_(nodes))
    return list(session.scalars(query))


def of_attempt(session: Session, attempt: tuple[str, int], *, at_s: float | None = None) -> list[Fault]:
    """The faults of a run's attempt that fire, or that fired at a moment of their nodes' clocks, by onset."""
    query = select(Fault).where(Fault.run_id == attempt[0], Fault.attempt_no == attempt[1])
    found = session.scalars(query.order_by(Fault.onset_s, Fault.id))
    if at_s is None:
        return [fault for fault in found if fault.state == "firing"]
    return [
        fault
        for fault in found
        if fault.onset_s <= at_s and (fault.cleared_s is None or fault.cleared_s - fault.clock_offset_s > at_s)
    ]


def of_node(session: Session, node: str, *, since_s: float = 0.0, limit: int = 200) -> list[Fault]:
    """A node's newest faults, newest first; those that fire are always among them."""
    query = select(Fault).where(Fault.node == node, (Fault.onset_s >= since_s) | (Fault.state == "firing"))
    return list(session.scalars(query.order_by(Fault.state.desc(), Fault.onset_s.desc()).limit(limit)))


def of_incident(session: Session, incident_id: str) -> list[Fault]:
    """The faults grouped by an incident, by onset."""
    query = select(Fault).where(Fault.incident_id == incident_id).order_by(Fault.onset_s, Fault.id)
    return list(session.scalars(query))


def incident_numbers(session: Session, incident_ids: Collection[str]) -> dict[str, int]:
    """The numbers of incidents, by id, for rows that link to them."""
    if not incident_ids:
        return {}
    found = session.execute(select(Incident.id, Incident.number).where(Incident.id.in_(sorted(incident_ids))))
    return {row.id: row.number for row in found}

"""Incidents and the faults they group. What may happen to one stands in controlplane.rules.incident_machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.rules.book import RuleBook
from controlplane.rules.findings import gravest, strongest
from controlplane.rules.incident_machine import Members
from controlplane.store.base import INCIDENT_OPEN
from controlplane.store.tables import Decision, Event, Fault, Incident

DECIDED = "incident_decided"
"""The kind of the event that ties a decision to an incident: one decision may answer several."""
RESOLVED = "incident_resolved"
BY_ITSELF = "all signals clear"
"""How the resolution of an incident begins that no person resolved."""
_STANDS, _ASKS = ("open", "acked"), ("drain", "restart", "rma")


def unlinked_faults(session: Session, *, limit: int = 5000) -> list[Fault]:
    """Faults that belong to no incident yet, cleared ones included, in order of receipt."""
    query = select(Fault).where(Fault.incident_id.is_(None)).order_by(Fault.received_s, Fault.onset_s, Fault.id)
    return list(session.scalars(query.limit(limit)))


def unclosed(session: Session, *, lock: bool = False) -> list[Incident]:
    """Every incident that is open, acked or resolved, by number."""
    query = select(Incident).where(Incident.state.in_(INCIDENT_OPEN)).order_by(Incident.number)
    return list(session.scalars(query.with_for_update() if lock else query))


def by_number(session: Session, number: int, *, lock: bool = False) -> Incident | None:
    """One incident."""
    query = select(Incident).where(Incident.number == number)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def get(session: Session, incident_id: str) -> Incident | None:
    """One incident by its id."""
    return session.get(Incident, incident_id)


def listed(
    session: Session, states: Collection[str] | None = None, *, run_id: str | None = None, limit: int = 200
) -> list[Incident]:
    """The newest incidents, of some states or a run or all."""
    query = select(Incident).order_by(Incident.number.desc()).limit(limit)
    if states is not None:
        query = query.where(Incident.state.in_(states))
    if run_id is not None:
        query = query.where(Incident.run_id == run_id)
    return list(session.scalars(query))


def last_number(session: Session) -> int:
    """The highest number given so far."""
    return session.execute(select(func.coalesce(func.max(Incident.number), 0))).scalar_one()


def add(session: Session, **values: Any) -> Incident:
    """A new incident; its id follows `opened_s`."""
    incident = Incident(id=uuid7(values["opened_s"]), **values)
    session.add(incident)
    return incident


def cleared(session: Session, *, since_s: float) -> int:
    """How many were resolved since a moment because their signals had cleared, without a person."""
    by_itself = Incident.resolution.startswith(BY_ITSELF)
    query = select(func.count()).select_from(Incident).where(Incident.resolved_s >= since_s, by_itself)
    return int(session.execute(query).scalar_one())


def members(session: Session, incident_ids: Collection[str]) -> dict[str, Members]:
    """How many faults of each incident fire, and when the last of the others cleared."""
    firing = func.count().filter(Fault.state == "firing")
    query = (
        select(Fault.incident_id, firing, func.max(Fault.cleared_s))
        .where(Fault.incident_id.in_(incident_ids))
        .group_by(Fault.incident_id)
    )
    return {identifier: Members(count, cleared) for identifier, count, cleared in session.execute(query) if identifier}


def opened_since(session: Session, since_s: float) -> list[tuple[str, str, float]]:
    """(key, entity, opened_s) of the incidents opened after a moment, merged and closed ones included."""
    query = select(Incident.key, Incident.entity, Incident.opened_s).where(Incident.opened_s > since_s)
    return [(key, entity, opened_s) for key, entity, opened_s in session.execute(query)]


def silenced(session: Session, key: str, *, now: float) -> Incident | None:
    """The incident of this key whose silence holds longest, if one does: a silence outlives what it was set on."""
    query = select(Incident).where(Incident.key == key, Incident.quiet_until_s > now)
    return session.scalars(query.order_by(Incident.quiet_until_s.desc(), Incident.number.desc()).limit(1)).first()


def of_place(session: Session, node: str, entity: str, *, before_number: int) -> list[Incident]:
    """Earlier incidents on the same thing of a node, newest first, merged ones left out."""
    query = select(Incident).where(
        Incident.node == node,
        Incident.entity == entity,
        Incident.number < before_number,
        Incident.state != "merged",
    )
    return list(session.scalars(query.order_by(Incident.number.desc()).limit(50)))


def children(session: Session, incident_id: str) -> list[Incident]:
    """What was merged into an incident, by number."""
    query = select(Incident).where(Incident.parent_id == incident_id).order_by(Incident.number)
    return list(session.scalars(query))


def reopenings(session: Session, incident_id: str, *, since_s: float) -> int:
    """How often an incident was reopened after a moment."""
    query = select(func.count()).where(
        Event.incident_id == incident_id, Event.kind == "incident_reopened", Event.at_s > since_s
    )
    return session.execute(query).scalar_one()


# --- for the controller of runs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Actionable:
    """An open incident whose faults on one node (or run) ask for more than an alert and have no decision yet.

    Times by the server's clock. `data_corrupting`: memory cannot be trusted since `last_clean_s`. Of a fault on a run
    whose rule blames no node, `node` is "".
    """

    incident_id: str
    number: int
    rule: str
    severity: str
    action: str
    node: str
    entity: str
    gpu: int | None
    run_id: str
    attempt_no: int
    rank: int
    onset_s: float
    last_clean_s: float
    data_corrupting: bool
    sentence: str
    opened_s: float
    fault_ids: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The faults that fire in incidents that are open or acked and ask for drain, restart or rma; who has decided."""

    rows: tuple[tuple[Incident, Fault], ...]
    decided_by: Mapping[str, frozenset[str]]

    def actionable(self, book: RuleBook, run_id: str | None = None) -> list[Actionable]:
        """What waits for a decision of this run, or of any; oldest incident first.

        One entry an incident and node, or run if no node is blamed. A fault waits until a decision covers it that was
        attached to its incident. What one run decided is no answer for another that it touches as well.
        """
        groups: dict[tuple[int, str, str], list[tuple[Incident, Fault]]] = {}
        for incident, fault in self.rows:
            by = self.decided_by.get(fault.id, frozenset())
            if not (by if run_id is None else by & {run_id, ""}):
                about = (incident.number, fault.node, "" if fault.node else fault.run_id)
                groups.setdefault(about, []).append((incident, fault))
        return [_actionable(group, book) for group in groups.values()]


def waiting(session: Session) -> Waiting:
    """All that may ask for a decision, read once for all runs."""
    rows = session.execute(
        select(Incident, Fault)
        .join(Fault, Fault.incident_id == Incident.id)
        .where(Incident.state.in_(_STANDS), Fault.state == "firing", Fault.action.in_(_ASKS))
        .order_by(Incident.number, Fault.onset_s, Fault.id)
    ).all()
    found = tuple((incident, fault) for incident, fault in rows)
    return Waiting(found, decided_by(session, {incident.id for incident, _ in found}))


def actionable(session: Session, book: RuleBook) -> list[Actionable]:
    """What waits for anybody's decision (see Waiting.actionable)."""
    return waiting(session).actionable(book)


def afflicted(session: Session, refusing: Collection[str] = ()) -> dict[str, str]:
    """Nodes on which a fault fires that asks for more than an alert, or is of a `refusing` rule; decided or not.

    By name, with the rule.

    One that has no incident yet counts too; no longer those whose incident a person has resolved.
    """
    query = select(Fault.node, Fault.rule).outerjoin(Incident, Incident.id == Fault.incident_id)
    stands = query.where(
        Incident.state.in_(_STANDS) | Fault.incident_id.is_(None),
        Fault.state == "firing",
        Fault.action.in_(_ASKS) | Fault.rule.in_(sorted(refusing)),
        Fault.node != "",
    )
    return {row.node: row.rule for row in session.execute(stands.order_by(Fault.onset_s.desc()))}


def decided_by(session: Session, incident_ids: Collection[str]) -> dict[str, frozenset[str]]:
    """The runs that decided on the faults of these incidents, by fault; "" is a decision of no run."""
    if not incident_ids:
        return {}
    query = select(Event.data, Decision.run_id).join(Decision, Decision.id == Event.decision_id)
    found: dict[str, frozenset[str]] = {}
    for data, run_id in session.execute(query.where(Event.kind == DECIDED, Event.incident_id.in_(incident_ids))):
        for fault_id in data.get("faults", ()):
            found[fault_id] = found.get(fault_id, frozenset()) | {run_id or ""}
    return found


@dataclass(frozen=True, slots=True)
class Corrupting:
    """A fault after which the node's memory cannot be trusted, whatever became of it since. By the server's clock.

    `end_s`: when it cleared or a person resolved its incident; None while it stands. `number` is its incident's, 0
    until it has one.
    """

    fault: Fault
    number: int
    last_clean_s: float
    onset_s: float
    end_s: float | None
    decided_by: frozenset[str]


def corrupting(session: Session, book: RuleBook, *, since_s: float) -> list[Corrupting]:
    """The data-corrupting faults that fire or were received after `since_s`, by onset."""
    query = select(Fault, Incident.number).outerjoin(Incident, Incident.id == Fault.incident_id)
    wanted = Fault.rule.in_(sorted(book.corrupting)) & ((Fault.state == "firing") | (Fault.received_s >= since_s))
    rows = session.execute(query.where(wanted).order_by(Fault.onset_s, Fault.id)).all()
    ids = {fault.incident_id for fault, _ in rows if fault.incident_id is not None}
    decided, resolved = decided_by(session, ids), _resolutions(session, ids)
    found = []
    for fault, number in rows:
        ends = [at_s for at_s in resolved.get(fault.incident_id or "", ()) if at_s >= fault.received_s]
        ends += [fault.cleared_s] if fault.cleared_s is not None else []
        skew = _skew(fault, book)
        found.append(
            Corrupting(
                fault=fault,
                number=number or 0,
                last_clean_s=fault.last_clean_s + skew,
                onset_s=fault.onset_s + skew,
                end_s=min(ends, default=None),
                decided_by=decided.get(fault.id, frozenset()),
            )
        )
    return found


def _resolutions(session: Session, incident_ids: Collection[str]) -> dict[str, list[float]]:
    """When each of these incidents was resolved, by people or because all was clear."""
    query = select(Event.incident_id, Event.at_s).where(Event.kind == RESOLVED, Event.incident_id.in_(incident_ids))
    found: dict[str, list[float]] = {}
    for incident_id, at_s in session.execute(query) if incident_ids else ():
        found.setdefault(incident_id or "", []).append(at_s)
    return found


def _actionable(group: Sequence[tuple[Incident, Fault]], book: RuleBook) -> Actionable:
    incident = group[0][0]
    faults = [fault for _, fault in group]
    wanted = strongest(fault.action for fault in faults)
    leading = next(fault for fault in faults if fault.action == wanted)
    return Actionable(
        incident_id=incident.id,
        number=incident.number,
        rule=leading.rule,
        severity=gravest(fault.severity for fault in faults),
        action=wanted,
        node=leading.node,
        entity=leading.entity,
        gpu=gpu_of(leading.entity),
        run_id=leading.run_id or incident.run_id or "",
        attempt_no=leading.attempt_no,
        rank=leading.rank,
        onset_s=min(fault.onset_s + _skew(fault, book) for fault in faults),
        last_clean_s=min(fault.last_clean_s + _skew(fault, book) for fault in faults),
        data_corrupting=any(book.corrupts(fault.rule) for fault in faults),
        sentence=leading.sentence,
        opened_s=incident.opened_s,
        fault_ids=tuple(fault.id for fault in faults),
        evidence=dict(leading.evidence),
    )


def _skew(fault: Fault, book: RuleBook) -> float:
    """Seconds to add to a fault's times: what this server found is told by its own clock."""
    return 0.0 if book.is_own(fault.rule) else fault.clock_offset_s


def attach_decision(
    session: Session, incident_id: str, decision_id: str, *, now: float, fault_ids: Collection[str] | None = None
) -> None:
    """Ties a decision to an incident, in the caller's transaction: these faults of it (all, if not said) are decided.

    The event is a link only, in no run's timeline: the decision's own events tell the story. LookupError if there is no
    such incident or decision.
    """
    incident, decision = session.get(Incident, incident_id), session.get(Decision, decision_id)
    if incident is None or decision is None:
        raise LookupError(f"no incident {incident_id} or no decision {decision_id}")
    if decision.incident_id is None:
        decision.incident_id = incident_id
    covered = fault_ids
    if covered is None:
        covered = list(session.scalars(select(Fault.id).where(Fault.incident_id == incident_id)))
    session.add(
        Event(
            id=uuid7(now),
            at_s=now,
            kind=DECIDED,
            incident_id=incident_id,
            decision_id=decision_id,
            sentence="",
            data={"faults": sorted(covered)},
        )
    )


def hand_over(session: Session, child_id: str, parent_id: str, *, now: float) -> None:
    """Gives a merged incident's faults to its parent, with the decisions that cover them."""
    query = select(Event).where(Event.kind == DECIDED, Event.incident_id == child_id)
    for event in list(session.scalars(query)):
        if event.decision_id:
            attach_decision(session, parent_id, event.decision_id, now=now, fault_ids=event.data.get("faults", ()))
    session.execute(update(Fault).where(Fault.incident_id == child_id).values(incident_id=parent_id))


def decisions(session: Session, incident_id: str) -> list[Decision]:
    """The decisions that answer an incident, oldest first."""
    ids = select(Event.decision_id).where(Event.kind == DECIDED, Event.incident_id == incident_id)
    query = select(Decision).where((Decision.incident_id == incident_id) | Decision.id.in_(ids))
    return list(session.scalars(query.order_by(Decision.created_s, Decision.id)))


def gpu_of(entity: str) -> int | None:
    """The index in an entity like "gpu3"; None for anything else."""
    digits = entity.removeprefix("gpu")
    return int(digits) if entity.startswith("gpu") and digits.isdecimal() else None

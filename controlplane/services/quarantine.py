"""Nodes with faults leave service; what is out of service here is so on the platform too, and comes back with it.

Level-triggered, both. A node under a live attempt is that run's affair: its decision takes the node out (see
services/outcomes). What nobody trains on is taken out here, for a fault that it reported itself. Then each round says
what is wanted of every node, and the backend changes what differs.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from controlplane.backends.base import Backend, BackendUnavailable, NodeChange, Quarantine
from controlplane.rules.book import RuleBook
from controlplane.runs.ledger import QUARANTINE_WINDOW_S
from controlplane.services import breaker
from controlplane.services.breaker import HELD, Taken
from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.services.reconcile import LEASE
from controlplane.store import events, incidents, leases, nodes, runs
from controlplane.store.engine import Session, Store
from controlplane.store.tables import Fault

_log = structlog.get_logger()
_BUT = "though it has a fault"


def wanted(store: Store) -> dict[str, Quarantine | None]:
    """What is wanted of each node that agents report: out of service under its session, or free."""
    with store.read() as session:
        return {
            node.name: Quarantine(node.session_id, node.state_reason)
            if node.cordoned or node.state in OUT_OF_SERVICE
            else None
            for node in nodes.listed(session)
        }


def take_out_once(store: Store, book: RuleBook, share: float, lease_epoch: int, now: float) -> list[Taken]:
    """One round over the faults that ask for more than an alert; what became of their nodes, if it is news. LeaseLost.

    A node that a person returned after the fault was told stays: the person knew of it.
    """
    with store.read() as session:
        faults = _idle(session, book)
        said = events.nodes_of_kind(session, HELD, since_s=now - QUARANTINE_WINDOW_S) if faults else frozenset()
        held = bool(faults) and breaker.closed(nodes.listed(session), share, now)
    if not faults or (held and faults.keys() <= said):
        return []
    news: list[Taken] = []
    with store.write() as session:
        leases.guard(session, LEASE, lease_epoch)
        idle = _idle(session, book)
        reasons = {node: fault.sentence for node, fault in idle.items()}
        for one in breaker.take_out(session, reasons, but=_BUT, share=share, now=now):
            if one.kind == HELD and one.node in said:
                continue
            news.append(one)
            data, incident = {"lane": "rule", "level": one.level}, idle[one.node].incident_id
            events.add(
                session, at_s=now, kind=one.kind, sentence=one.sentence, node=one.node, incident_id=incident, data=data
            )
    return news


def _idle(session: Session, book: RuleBook) -> dict[str, Fault]:
    """Nodes in service on which no attempt is, each with the first fault that asks for it to leave."""
    rows = incidents.waiting(session).rows
    if not rows:
        return {}
    taken = frozenset[str]().union(*runs.taken_nodes(session).values())
    fleet = {one.name: one for one in nodes.listed(session)}
    found: dict[str, Fault] = {}
    for _, fault in rows:
        node = fleet.get(fault.node)
        if node is None or node.name in taken or node.cordoned or node.state in OUT_OF_SERVICE:
            continue
        if not book.is_own(fault.rule) and fault.received_s >= node.state_since_s:
            found.setdefault(node.name, fault)
    return found


def mark_once(store: Store, backends: Mapping[str, Backend], lease_epoch: int, now: float) -> list[NodeChange]:
    """One round over all backends; a backend that does not answer is asked again in the next. LeaseLost."""
    goal = wanted(store)
    changes: list[NodeChange] = []
    for backend in backends.values():
        try:
            changes += backend.mark_nodes(goal)
        except BackendUnavailable as error:
            _log.warning("nodes cannot be marked", backend=backend.name, error=str(error))
    if changes:
        with store.write() as session:
            leases.guard(session, LEASE, lease_epoch)
            for change in changes:
                data = {"lane": "rule", "level": "info"}
                events.add(session, at_s=now, kind="node_marked", sentence=change.sentence, node=change.node, data=data)
    return changes

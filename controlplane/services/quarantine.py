"""Nodes that are out of service here are out of service on the platform too, and come back with it.

Level-triggered: each round says what is wanted of every node, the backend changes what differs. Whether a node is out
of service is decided elsewhere (services/outcomes, people); here it is carried out and written to the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from controlplane.backends.base import Backend, BackendUnavailable, NodeChange, Quarantine
from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.services.reconcile import LEASE
from controlplane.store import events, leases, nodes
from controlplane.store.engine import Store

_log = structlog.get_logger()


def wanted(store: Store) -> dict[str, Quarantine | None]:
    """What is wanted of each node that agents report: out of service under its session, or free."""
    with store.read() as session:
        return {
            node.name: Quarantine(node.session_id, node.state_reason)
            if node.cordoned or node.state in OUT_OF_SERVICE
            else None
            for node in nodes.listed(session)
        }


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

"""Dead or blind: a silent node with evidence against it is suspect, until it is heard or a decision takes it out.

Suspicion is entered freely and takes nothing away: placement leaves silent nodes out anyway, and what runs there is its
run's affair. It is what a person sees of a node before anything is decided.
"""

from __future__ import annotations

from controlplane.services.reconcile import LEASE
from controlplane.store import events, incidents, leases, nodes
from controlplane.store.engine import Session, Store

_RULE = "no-telemetry"


def suspect_once(store: Store, lease_epoch: int, now: float) -> list[str]:
    """One round over silent nodes; the names of those that became suspect or are so no more. LeaseLost."""
    with store.read() as session:
        accused, suspects = _accused(session), _suspects(session)
    if accused.keys() == suspects:
        return []
    changed: list[str] = []
    with store.write() as session:
        leases.guard(session, LEASE, lease_epoch)
        accused, suspects = _accused(session), _suspects(session)
        for node in sorted(accused.keys() - suspects):
            sentence, incident_id = accused[node]
            if nodes.set_state(session, node, "suspect", reason=sentence, now=now, before="healthy"):
                _tell(session, node, f"{node} is suspect: it may be dead.", incident_id, "warn", now)
                changed.append(node)
        for node in sorted(suspects - accused.keys()):
            if nodes.set_state(session, node, "healthy", reason="is heard again", now=now, before="suspect"):
                _tell(session, node, f"{node} is no longer suspect.", None, "ok", now)
                changed.append(node)
    return changed


def _accused(session: Session) -> dict[str, tuple[str, str]]:
    """Silent nodes of which something else says that they stand still: the sentence and its incident."""
    rows = [(incident, fault) for incident, fault in incidents.waiting(session).rows if fault.rule == _RULE]
    if not rows:
        return {}
    open_to_it = {one.name for one in nodes.machines(session) if one.state in ("healthy", "suspect")}
    return {fault.node: (fault.sentence, incident.id) for incident, fault in rows if fault.node in open_to_it}


def _suspects(session: Session) -> set[str]:
    return {one.name for one in nodes.machines(session) if one.state == "suspect"}


def _tell(session: Session, node: str, sentence: str, incident_id: str | None, level: str, now: float) -> None:
    data = {"lane": "rule", "level": level}
    events.add(session, at_s=now, kind="node_suspect", sentence=sentence, node=node, incident_id=incident_id, data=data)

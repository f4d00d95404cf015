"""Faults and incidents put into a store as a check of incidents would have left them. Not a test of its own."""

from __future__ import annotations

from agents.readings import Fault, fault_id
from controlplane.store import faults, incidents
from controlplane.store.engine import Store
from controlplane.store.tables import Fault as FaultRow

ONSET_S = 1_795_480_633.0


def add_fault(store: Store, node: str = "node-a", *, action: str = "restart", state: str = "firing") -> Fault:
    """A fault of a node's GPU 3."""
    told = Fault(
        id=fault_id(node, "boot", "hbm-uncorrectable", "gpu3", ONSET_S),
        rule="hbm-uncorrectable",
        severity="critical",
        action=action,
        node=node,
        entity="gpu3",
        state=state,
        onset_s=ONSET_S,
        last_clean_s=ONSET_S - 1,
        observed_s=ONSET_S,
        value=11,
        threshold=1,
        sentence=f"GPU 3 of {node} reported 11 uncorrectable HBM errors",
    )
    with store.write() as session:
        faults.record(session, [told], now=ONSET_S)
    return told


def add_incident(store: Store, node: str = "node-a", *, action: str = "restart") -> int:
    """An open incident with one fault that fires; its number."""
    told = add_fault(store, node, action=action)
    with store.write() as session:
        number = incidents.last_number(session) + 1
        made = incidents.add(
            session,
            number=number,
            key=f"k{number}",
            rule=told.rule,
            severity=told.severity,
            action=action,
            entity="gpu3",
            node=node,
            title="Uncorrectable memory error",
            opened_s=ONSET_S,
            updated_s=ONSET_S,
        )
        session.get_one(FaultRow, told.id).incident_id = made.id
    return number

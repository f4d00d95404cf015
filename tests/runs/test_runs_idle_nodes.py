"""Nodes that nobody trains on leave service for a fault of their own, as fast as the breaker lets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.services import incidents as incident_service
from controlplane.services import nodes as people
from controlplane.services import quarantine
from controlplane.store import events, incidents
from controlplane.store.engine import Store
from controlplane.store.tables import Event
from tests.runs.piloting import BOOK, Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def look(pilot: Pilot, share: float = 0.05) -> list[str]:
    """A round of the nodes; what is news, by node."""
    found = quarantine.take_out_once(pilot.store, BOOK, share, pilot.epoch, pilot.clock.now())
    return [f"{one.node} {one.kind}" for one in found]


def told(pilot: Pilot, node: str, kind: str) -> list[Event]:
    with pilot.store.read() as session:
        return [one for one in events.listed(session, node=node) if one.kind == kind]


def open_rules(pilot: Pilot) -> dict[str, str]:
    incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())
    with pilot.store.read() as session:
        return {one.rule: one.severity for one in incidents.listed(session, ("open", "acked"))}


def test_an_idle_node_with_a_fault_leaves_service_at_once(pilot: Pilot) -> None:
    pilot.hit("node-2")
    assert look(pilot) == ["node-2 node_quarantined"]
    node = pilot.node("node-2")
    assert node.cordoned and node.state == "quarantined" and "uncorrectable" in node.state_reason
    (event,) = told(pilot, "node-2", "node_quarantined")
    assert event.incident_id is not None and event.sentence == "node-2 is out of service until a person returns it."
    assert look(pilot) == [], "it is said once"


def test_a_node_under_an_attempt_is_that_runs_affair(pilot: Pilot) -> None:
    run_id = pilot.started(mode="advise")
    pilot.hit(pilot.last(run_id).nodes[0])
    assert look(pilot) == []
    assert not pilot.node(pilot.last(run_id).nodes[0]).cordoned, "a person decides here"


@pytest.mark.parametrize("changes", [{"rule": "nic-down", "action": "alert"}, {"rule": "no-telemetry"}])
def test_an_alert_and_what_the_server_alone_believes_take_nothing_out(pilot: Pilot, changes: dict[str, str]) -> None:
    pilot.hit("node-2", **changes)
    assert look(pilot) == [] and not pilot.node("node-2").cordoned


def test_what_a_person_returned_although_it_fires_stays(pilot: Pilot) -> None:
    pilot.hit("node-2")
    look(pilot)
    pilot.clock.advance(5)
    with pilot.store.write() as session:
        people.give_back(session, "node-2", actor="ada", reason="reseated", now=pilot.clock.now(), force=True)
    assert look(pilot) == []
    pilot.clock.advance(5)
    pilot.hit("node-2", entity="gpu5")
    assert look(pilot) == ["node-2 node_quarantined"], "a fault that is told later is another matter"


def test_the_third_node_is_held_and_a_person_is_paged(pilot: Pilot) -> None:
    for name in ("node-0", "node-1", "node-2"):
        pilot.hit(name)
    assert look(pilot) == ["node-0 node_quarantined", "node-1 node_quarantined", "node-2 quarantine_held"]
    assert look(pilot) == [] and not pilot.node("node-2").cordoned
    assert open_rules(pilot)["quarantine-held"] == "critical"
    pilot.round(601)
    assert look(pilot) == ["node-2 node_quarantined"], "the window has passed"
    for _ in range(2):
        pilot.round(BOOK["quarantine-held"].hold_s + 1)
        rules = open_rules(pilot)
    assert "quarantine-held" not in rules


def test_an_operator_may_let_all_of_them_go(pilot: Pilot) -> None:
    for name in ("node-0", "node-1", "node-2"):
        pilot.hit(name)
    assert look(pilot, share=1.0) == [f"node-{index} node_quarantined" for index in range(3)]

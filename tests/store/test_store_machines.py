"""Nodes as placement reads them, and how a node's clock stood when a fault was told: on both databases."""

from __future__ import annotations

import pytest

from controlplane.store import faults, nodes
from controlplane.store.engine import Store
from controlplane.store.nodes import Machine
from controlplane.store.tables import Node
from tests.incidents.serving import Server, fault


def test_a_machine_is_a_node_without_its_facts(store: Store) -> None:
    with store.read() as session:
        assert nodes.machines(session) == [] and nodes.last_heard_s(session, default=7.0) == 7.0
    with store.write() as session:
        for name, facts, seen_s in (("b", {"gpus": [{"index": 0}, {"index": 1}]}, 5.0), ("a", {}, 9.0)):
            session.add(
                Node(
                    name=name,
                    facts=facts,
                    simulated=True,
                    first_seen_s=1.0,
                    last_seen_s=seen_s,
                    state_since_s=1.0,
                    cordoned=name == "a",
                )
            )
    with store.read() as session:
        assert nodes.machines(session) == [
            Machine("a", 0, True, "healthy", 9.0),
            Machine("b", 2, False, "healthy", 5.0),
        ]
        assert nodes.last_heard_s(session, default=7.0) == 9.0


def test_a_fault_keeps_how_the_clock_stood_when_it_was_told_first(store: Store) -> None:
    server = Server(store)
    server.greet(skew_s=90.0)
    one = fault(server)
    server.send(one, fault(server, node="node-unknown"))
    server.greet(skew_s=-5.0)
    server.send(one)
    with store.read() as session:
        found = {row.node: row.clock_offset_s for row in faults.firing(session)}
    assert found == {"node-1": pytest.approx(90.0), "node-unknown": 0.0}

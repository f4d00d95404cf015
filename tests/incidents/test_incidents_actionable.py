"""What the controller of runs is asked to decide: each fault once, through merges too."""

from __future__ import annotations

import pytest

from controlplane.services import incidents as service
from controlplane.store import incidents
from controlplane.store.engine import Store
from controlplane.store.incidents import Actionable
from tests.incidents.serving import BOOK, Server, beat, cleared, decide, fault, start_run


@pytest.fixture
def server(store: Store) -> Server:
    made = Server(store)
    start_run(made)
    for rank in (0, 1):
        beat(made, rank, f"node-{rank}")
    return made


def waiting(server: Server) -> list[Actionable]:
    with server.store.read() as session:
        return incidents.actionable(session, BOOK)


def test_a_fault_on_a_runs_node_touches_that_run(server: Server) -> None:
    server.send(fault(server))
    server.check()
    (one,) = waiting(server)
    assert (one.number, one.node, one.gpu, one.run_id, one.attempt_no) == (1, "node-1", 3, "run-1", 1)
    assert (one.action, one.severity, one.data_corrupting) == ("restart", "critical", True)
    assert one.last_clean_s < one.onset_s < one.opened_s
    assert server.only().run_id == "run-1"


def test_a_fault_on_a_free_node_touches_no_run(server: Server) -> None:
    server.send(fault(server, node="node-3"))
    server.check()
    (one,) = waiting(server)
    assert (one.run_id, server.only().run_id) == ("", None)


def test_alerts_and_what_is_over_wait_for_no_decision(server: Server) -> None:
    alert = fault(server, rule="thermal", severity="warning", action="alert")
    lost = fault(server, node="node-2", rule="gpu-lost")
    server.send(alert, lost)
    server.check()
    assert [one.rule for one in waiting(server)] == ["gpu-lost"]
    assert not waiting(server)[0].data_corrupting
    server.send(cleared(lost, server.clock.now()))
    assert waiting(server) == []


def test_a_resolved_incident_waits_for_no_decision(server: Server) -> None:
    server.send(fault(server))
    server.check()
    service.ack(server.store, 1, actor="ada", now=server.clock.now())
    assert len(waiting(server)) == 1, "an owner does not stop the machine"
    service.resolve(server.store, 1, actor="ada", reason="a drill", now=server.clock.now())
    assert waiting(server) == []


def test_a_decision_covers_the_faults_of_its_time_and_a_later_one_waits_anew(server: Server) -> None:
    server.send(fault(server))
    server.check()
    decide(server, 1)
    assert waiting(server) == []
    later = fault(server, onset_s=server.clock.now() + 5)
    server.clock.advance(6)
    server.send(later)
    server.check()
    (one,) = waiting(server)
    assert one.fault_ids == (later.id,)
    with server.store.read() as session:
        (decision,) = incidents.decisions(session, one.incident_id)
    assert decision.id == "decision-1" and decision.incident_id == one.incident_id


def test_a_fault_that_arrives_between_look_and_decision_is_not_covered(server: Server) -> None:
    server.send(fault(server))
    server.check()
    (looked_at,) = waiting(server)
    second = fault(server, onset_s=server.clock.now())
    server.send(second)
    server.check()
    decide(server, 1, looked_at.fault_ids)
    assert [one.fault_ids for one in waiting(server)] == [(second.id,)]


def test_one_decision_may_answer_several_incidents(server: Server) -> None:
    server.send(fault(server), fault(server, rule="gpu-reset"))
    server.check()
    decide(server, 1)
    assert [one.number for one in waiting(server)] == [2]
    with server.store.write() as session:
        second = incidents.by_number(session, 2)
        assert second is not None
        incidents.attach_decision(session, second.id, "decision-1", now=server.clock.now())
    assert waiting(server) == []
    with server.store.read() as session:
        assert [one.id for one in incidents.decisions(session, second.id)] == ["decision-1"]


def test_what_was_decided_stays_decided_in_the_parent(server: Server) -> None:
    server.send(fault(server))
    server.check()
    decide(server, 1)
    server.send(fault(server, rule="host-panic", entity="node"))
    assert server.check().merged == (1,)
    (one,) = waiting(server)
    assert (one.number, one.rule) == (2, "host-panic"), "the node's own fault only"
    with server.store.read() as session:
        assert [decision.id for decision in incidents.decisions(session, one.incident_id)] == ["decision-1"]


def test_the_strongest_of_several_actions_leads(server: Server) -> None:
    server.send(
        fault(server, rule="host-slow", entity="node", severity="warning", action="alert"),
        fault(server, rule="xgmi-degraded", severity="error", action="drain"),
        fault(server, rule="gpu-lost", entity="gpu5"),
    )
    server.check()
    (one,) = waiting(server)
    assert (one.rule, one.action, one.gpu, len(one.fault_ids)) == ("gpu-lost", "restart", 5, 2)


def test_attaching_to_nothing_is_an_error(server: Server) -> None:
    with server.store.write() as session, pytest.raises(LookupError):
        incidents.attach_decision(session, "no-such", "no-such", now=0.0)

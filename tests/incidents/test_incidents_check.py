"""A fault becomes an incident on the first check after its commit, and lives as the table says, on both databases."""

from __future__ import annotations

import pytest

from controlplane.services import incidents as service
from controlplane.services.incidents import IncidentNotFound, IncidentRefused, check_once
from controlplane.store import deliveries, events, faults, incidents, nodes
from controlplane.store.engine import Store
from controlplane.store.leases import LeaseLost
from tests.incidents.serving import BOOK, Server, cleared, fault


@pytest.fixture
def server(store: Store) -> Server:
    return Server(store)


def test_a_fault_opens_its_incident_on_the_first_check(server: Server) -> None:
    server.send(fault(server))
    assert server.check().opened == (1,)
    incident = server.only()
    assert (incident.rule, incident.node, incident.gpu, incident.entity) == ("hbm-uncorrectable", "node-1", 3, "gpu3")
    assert (incident.state, incident.severity, incident.action, incident.seq) == ("open", "critical", "restart", 1)
    assert incident.key == "hbm-uncorrectable/node-1/gpu3"
    assert incident.title == "Uncorrectable memory error on GPU 3 of node-1"
    assert incident.opened_s == server.clock.now()
    assert server.told(1) == [(1, "incident.opened", 2.0)], "told after the settle time"
    assert not server.check(), "a second check finds nothing to do"


def test_the_fault_the_incident_and_the_timeline_are_one_transaction(server: Server) -> None:
    server.send(fault(server))
    server.check()
    with server.store.read() as session:
        incident = incidents.by_number(session, 1)
        assert incident is not None
        (member,) = faults.of_incident(session, incident.id)
        lines = events.listed(session, incident_id=incident.id)
    assert member.incident_id == incident.id
    assert [(line.kind, line.data["lane"], line.data["level"]) for line in lines] == [
        ("fault", "hardware", "fault"),
        ("incident_opened", "rule", "info"),
    ]
    assert lines[0].data["detail"] == "ecc_hbm_uncorrectable_total: 0 before, 1893 at the fault"


def test_a_server_that_lost_its_lease_writes_nothing(server: Server) -> None:
    server.send(fault(server))
    with pytest.raises(LeaseLost):
        check_once(server.store, server.rules, server.epoch + 1, server.clock.now())
    assert server.incidents() == []
    assert server.check().opened == (1,)


def test_times_of_a_node_with_a_wrong_clock_are_the_servers(server: Server) -> None:
    server.greet(600.0)  # its clock is ten minutes behind
    now = server.clock.now()
    server.send(fault(server, onset_s=now - 601.0, observed_s=now - 601.0, last_clean_s=now - 602.0))
    server.check()
    with server.store.read() as session:
        (waiting,) = incidents.actionable(session, BOOK)
        line = events.listed(session, incident_id=waiting.incident_id)[0]
    assert waiting.onset_s == pytest.approx(now - 1.0)
    assert waiting.last_clean_s == pytest.approx(now - 2.0)
    assert line.at_s == pytest.approx(now - 1.0)


def test_an_incident_resolves_after_its_hold_and_closes_after_the_quiet(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    server.clock.advance(10)
    server.send(cleared(one, server.clock.now()))
    assert not server.later(119)
    assert server.later(2).moved == (1,)
    assert server.only().state == "resolved"
    assert server.only().resolution == "all signals clear for 120 s"
    assert not server.later(14 * 60)
    assert server.later(61).moved == (1,)
    assert server.only().state == "closed"
    assert [kind for _, kind, _ in server.told(1)] == ["incident.opened", "incident.resolved"], "closing is not told"


def test_the_same_key_within_the_quiet_reopens_and_after_it_is_a_new_incident(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    server.send(cleared(one, server.clock.now()))
    server.later(121)
    again = fault(server)
    server.send(again)
    assert server.check().opened == ()
    assert (server.only().state, server.only().reopened, server.only().seq) == ("open", 1, 3)
    assert server.told(1)[-1][1] == "incident.reopened"
    server.send(cleared(again, server.clock.now()))
    server.later(121)
    server.later(901)
    server.send(fault(server))
    assert server.check().opened == (2,)


def test_a_fault_joins_the_open_incident_of_its_key(server: Server) -> None:
    server.send(fault(server))
    server.check()
    server.clock.advance(5)
    server.send(fault(server))
    assert server.check() == service.Checked(faults=1)
    with server.store.read() as session:
        assert len(faults.of_incident(session, server.only().id)) == 2
    assert len(server.told(1)) == 1


def test_a_graver_form_of_a_rule_is_the_same_incident_and_is_told(server: Server) -> None:
    server.send(fault(server, rule="thermal", severity="warning", action="alert"))
    server.check()
    server.clock.advance(5)
    server.send(fault(server, rule="thermal-severe", severity="error", action="drain"))
    server.check()
    incident = server.only()
    assert (incident.rule, incident.severity, incident.action) == ("thermal-severe", "error", "drain")
    assert [kind for _, kind, _ in server.told(1)] == ["incident.opened", "incident.worsened"]


def test_a_fault_below_an_open_node_incident_joins_it_and_makes_it_graver(server: Server) -> None:
    server.send(fault(server, rule="drift", entity="node", severity="warning", action="alert"))
    server.check()
    server.send(fault(server))
    server.check()
    incident = server.only()
    assert (incident.entity, incident.severity, incident.action) == ("node", "critical", "restart")
    with server.store.read() as session:
        (waiting,) = incidents.actionable(session, BOOK)
    assert (waiting.rule, waiting.gpu, waiting.data_corrupting) == ("hbm-uncorrectable", 3, True)


def test_what_is_open_below_merges_into_a_parent_that_opens(server: Server) -> None:
    server.send(fault(server), fault(server, entity="nic2", rule="nic-down", severity="warning", action="alert"))
    server.send(fault(server, node="node-2"))
    server.check()
    server.send(fault(server, rule="drift", entity="node", severity="warning", action="alert"))
    checked = server.check()
    assert checked.merged == (1, 2)
    states = {incident.number: incident.state for incident in server.incidents()}
    assert states == {1: "merged", 2: "merged", 3: "open", 4: "open"}
    parent = server.incidents()[3]
    assert (parent.severity, parent.action) == ("critical", "restart")
    assert server.told(1) == [] == server.told(2), "told in the parent only"
    with server.store.read() as session:
        assert len(faults.of_incident(session, parent.id)) == 3
        assert [child.number for child in incidents.children(session, parent.id)] == [1, 2]
        assert {one.node for one in incidents.actionable(session, BOOK)} == {"node-1", "node-2"}


def test_a_storm_is_one_incident(store: Store) -> None:
    server = Server(store, 40)
    for start in (0, 5):
        server.send(*[fault(server, node=name) for name in server.names[start : start + 5]])
        server.check()
        server.clock.advance(1)
    found = server.incidents()
    parent = found[-1]
    assert (parent.entity, parent.key) == ("fleet", "hbm-uncorrectable/fleet")
    assert [one.state for one in found[:9]] == ["merged"] * 9
    assert {one.parent_id for one in found[:9]} == {parent.id}
    server.send(*[fault(server, node=name) for name in server.names[10:]])
    assert server.check().opened == (), "later faults of the root are the storm's"
    assert sum(len(server.told(one.number)) for one in found) == 1, "told once"
    assert server.incidents()[-1].title == "Uncorrectable memory error in 40 places"
    with store.read() as session:
        (message,) = deliveries.of_incident(session, parent.id)
        assert message.body["data"]["title"] == "Uncorrectable memory error in 40 places", "what waits is up to date"
        assert len(faults.of_incident(session, parent.id)) == 40
        assert len(incidents.actionable(session, BOOK)) == 40, "each node is still acted upon"


def test_an_ack_lasts_four_hours(server: Server) -> None:
    server.send(fault(server))
    server.check()
    service.ack(server.store, 1, actor="ada", now=server.clock.now())
    assert (server.only().state, server.only().owner) == ("acked", "ada")
    with pytest.raises(IncidentRefused):
        service.ack(server.store, 1, actor="bob", now=server.clock.now())
    assert not server.later(4 * 3600 - 1)
    assert server.later(1).moved == (1,)
    assert (server.only().state, server.only().owner) == ("open", None)
    assert [kind for _, kind, _ in server.told(1)] == [
        "incident.opened",
        "incident.acknowledged",
        "incident.unowned",
    ]


def test_a_graver_fault_takes_an_acked_incident_back_to_open(server: Server) -> None:
    server.send(fault(server, rule="thermal", severity="warning", action="alert"))
    server.check()
    service.ack(server.store, 1, actor="ada", now=server.clock.now())
    server.send(fault(server, rule="thermal-severe", severity="error", action="drain"))
    server.check()
    assert server.only().state == "open"


def test_what_a_person_resolves_while_it_fires_stays_quiet_until_it_clears(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    service.resolve(server.store, 1, actor="ada", reason="known bad card", now=server.clock.now())
    second = fault(server, onset_s=server.clock.now())
    server.send(second)
    server.check()
    assert server.only().state == "resolved", "a further fault of the same cause changes nothing"
    assert not server.later(3600), "and it does not close while it fires"
    server.send(cleared(one, server.clock.now()), cleared(second, server.clock.now()))
    server.later(899)
    assert server.only().state == "resolved"
    server.later(1)
    assert server.only().state == "closed"


def test_errors_after_the_ones_that_a_person_resolved_open_the_incident_again(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    service.resolve(server.store, 1, actor="ada", reason="run elsewhere", now=server.clock.now())
    server.later(3600)
    server.send(cleared(one, server.clock.now()), fault(server))  # as an agent tells of a counter that grew on
    server.check()
    assert (server.only().state, server.only().reopened) == ("open", 1)
    with server.store.read() as session:
        (waiting,) = incidents.actionable(session, BOOK)
    assert waiting.onset_s == server.clock.now() - 1.0


def test_a_silence_withdraws_what_waits_and_ends_with_one_message(server: Server) -> None:
    server.send(fault(server))
    server.check()
    service.silence(server.store, 1, actor="ada", minutes=60, reason="planned", now=server.clock.now())
    assert server.told(1) == []
    service.ack(server.store, 1, actor="ada", now=server.clock.now())
    assert server.told(1) == [], "nothing is told in a silence"
    server.later(3599)
    assert server.told(1) == []
    server.later(1)
    assert [kind for _, kind, _ in server.told(1)] == ["incident.still_open"]
    assert not server.later(1)


def test_a_silence_outlives_the_incident_it_was_set_on(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    service.silence(server.store, 1, actor="ada", minutes=120, reason="planned", now=server.clock.now())
    server.send(cleared(one, server.clock.now()))
    server.later(121)
    server.later(901)
    assert server.only().state == "closed"
    server.send(fault(server))
    server.check()
    assert server.told(2) == []
    server.later(7200)
    assert [kind for _, kind, _ in server.told(2)] == ["incident.still_open"]


def test_what_comes_back_too_often_is_told_once_in_half_an_hour(server: Server) -> None:
    for _ in range(6):
        one = fault(server)
        server.send(one)
        server.check()
        server.send(cleared(one, server.clock.now()))
        server.later(121)
    told = [kind for _, kind, _ in server.told(1)]
    assert told.count("incident.reopened") == 3
    assert server.only().reopened == 5


def test_verbs_refuse_what_is_not_there(server: Server) -> None:
    for call in (
        lambda: service.ack(server.store, 7, actor="ada", now=server.clock.now()),
        lambda: service.resolve(server.store, 7, actor="ada", reason="", now=server.clock.now()),
        lambda: service.silence(server.store, 7, actor="ada", minutes=5, reason="", now=server.clock.now()),
    ):
        with pytest.raises(IncidentNotFound):
            call()
    for minutes in (0, -1, 10081, float("nan")):
        with pytest.raises(ValueError, match="minutes"):
            service.silence(server.store, 7, actor="ada", minutes=minutes, reason="", now=server.clock.now())


def test_a_fault_that_came_and_went_between_checks_is_an_incident_all_the_same(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.send(cleared(one, server.clock.now()))
    assert server.check().opened == (1,)
    server.later(121)
    assert server.only().state == "resolved"


def test_a_silent_node_is_an_incident_and_its_return_ends_it(server: Server) -> None:
    server.clock.advance(16)
    server.greet(0.0, "node-2")
    assert server.check().opened == (1,)
    incident = server.only()
    assert (incident.rule, incident.node, incident.action) == ("no-telemetry", "node-2", "alert")
    with server.store.read() as session:
        assert incidents.actionable(session, BOOK) == [], "blind is not broken"
    server.later(1)
    with server.store.read() as session:
        assert faults.firing(session) == []
    server.later(121)
    assert server.only().state == "resolved"


def test_all_nodes_silent_is_one_incident_of_the_fleet(server: Server) -> None:
    server.clock.advance(16)
    server.check()
    incident = server.only()
    assert (incident.rule, incident.entity, incident.node) == ("no-telemetry-fleet", "fleet", None)
    server.later(1)
    server.later(31)
    assert server.only().state == "resolved"


def test_a_storm_that_comes_back_reopens_its_one_incident(store: Store) -> None:
    server = Server(store, 40)
    first = [fault(server, node=name) for name in server.names[:12]]
    server.send(*first)
    server.check()
    server.send(*[cleared(one, server.clock.now()) for one in first])
    server.later(121)
    fleet = server.incidents()[-1]
    assert (fleet.entity, fleet.state) == ("fleet", "resolved")
    server.send(*[fault(server, node=name) for name in server.names[:12]])
    server.check()
    reopened = next(one for one in server.incidents() if one.id == fleet.id)
    assert (reopened.state, reopened.reopened) == ("open", 1)
    assert {one.state for one in server.incidents() if one.id != fleet.id} == {"merged"}


def test_half_a_fleet_at_once_is_told_in_three_messages_at_most(sqlite_store: Store) -> None:
    server = Server(sqlite_store, 100)
    server.send(*[fault(server, node=name, entity=f"gpu{gpu}") for name in server.names[:50] for gpu in range(8)])
    server.check()
    assert sum(len(server.told(one.number)) for one in server.incidents()) <= 3
    assert not server.check()


def test_an_incident_whose_node_is_out_is_over_when_the_node_is_back(server: Server) -> None:
    told = fault(server)
    server.send(told)
    server.check()
    with server.store.write() as session:
        nodes.quarantine(session, "node-1", reason="test", now=server.clock.now())
    server.send(cleared(told, server.clock.now()))
    server.clock.advance(600.0)
    server.greet(0.0)
    assert not server.check(), "silence of the fault is not health of the node"
    assert server.only().state == "open"
    with server.store.write() as session:
        nodes.uncordon(session, "node-1", reason="mended", now=server.clock.now())
    assert server.check().moved == (1,) and server.only().state == "resolved"

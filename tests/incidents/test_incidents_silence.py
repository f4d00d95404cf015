"""A silence is for what was known when it was set: what is graver, or something else, is told in spite of it, once."""

from __future__ import annotations

import pytest

from controlplane.services import incidents as service
from controlplane.store import faults
from controlplane.store.engine import Store
from tests.incidents.serving import Server, cleared, fault

MILD = {"rule": "drift", "entity": "node", "severity": "warning", "action": "alert"}
GRAVE = {"rule": "drift", "entity": "node", "severity": "critical", "action": "alert"}
WARM = {"rule": "thermal", "severity": "warning", "action": "alert"}
HOT = {"rule": "thermal-severe", "severity": "error", "action": "drain"}


@pytest.fixture
def server(store: Store) -> Server:
    return Server(store)


def silence(server: Server, number: int = 1, minutes: float = 600) -> None:
    service.silence(server.store, number, actor="ada", minutes=minutes, reason="known", now=server.clock.now())


def told(server: Server, number: int = 1) -> list[str]:
    return [kind for _, kind, _ in server.told(number)]


def opened(server: Server, **changes: object) -> None:
    server.send(fault(server, **changes))
    server.check()
    server.clock.advance(5)


@pytest.mark.parametrize("first", [MILD, GRAVE])
def test_a_gpus_fault_in_a_silenced_nodes_incident_is_told_once(server: Server, first: dict[str, object]) -> None:
    opened(server, **first)
    silence(server)
    opened(server)
    assert told(server) == ["incident.worsened"]
    (message,) = server.messages(1)
    assert message["data"]["severity"] == "critical" and "uncorrectable HBM" in message["data"]["sentence"]
    opened(server, entity="gpu4")
    assert told(server) == ["incident.worsened"], "the same again is what the silence is for"
    server.later(600 * 60)
    assert told(server) == ["incident.worsened", "incident.still_open"]


def test_the_graver_form_of_a_silenced_rule_is_told_and_its_flapping_is_not(server: Server) -> None:
    opened(server, **WARM)
    silence(server)
    opened(server, **WARM)
    assert told(server) == []
    hot = fault(server, **HOT)
    server.send(hot)
    server.check()
    assert told(server) == ["incident.worsened"]
    with server.store.read() as session:
        firing = faults.firing(session)
    server.send(*[cleared(fault(server, **WARM, onset_s=one.onset_s), server.clock.now()) for one in firing[:2]])
    server.send(cleared(hot, server.clock.now()))
    server.later(121)
    opened(server, **WARM)
    opened(server, **HOT)
    assert told(server) == ["incident.worsened"]


def test_a_new_incident_of_a_silenced_key_is_told_if_it_is_graver(server: Server) -> None:
    for number, (changes, expected) in enumerate(((WARM, []), (WARM, []), (HOT, ["incident.opened"]), (HOT, [])), 1):
        one = fault(server, **changes)
        server.send(one)
        server.check()
        if number == 1:
            silence(server)
        assert told(server, number) == expected
        server.send(cleared(one, server.clock.now()))
        server.later(121)
        server.later(901)
        assert server.incidents()[-1].state == "closed"


def test_what_a_silenced_nodes_incident_takes_over_is_told_in_it(server: Server) -> None:
    one = fault(server, **GRAVE)
    server.send(one)
    server.check()
    silence(server)
    server.send(cleared(one, server.clock.now()))
    server.later(121)
    server.later(901)
    server.send(fault(server), fault(server, entity="gpu5", **WARM))
    server.check()
    silence(server, 3)
    server.send(fault(server, **GRAVE))
    assert server.check().merged == (2, 3)
    assert told(server, 2) == [] and told(server, 4) == ["incident.opened"]
    opened(server, entity="gpu5", **WARM)
    assert told(server, 4) == ["incident.opened"]


def test_a_silenced_parent_of_what_is_silenced_too_stays_silent(server: Server) -> None:
    one = fault(server, **MILD)
    server.send(one)
    server.check()
    silence(server)
    server.send(cleared(one, server.clock.now()))
    server.later(121)
    server.later(901)
    opened(server)
    silence(server, 2)
    opened(server, **MILD)
    assert told(server, 2) == [] and told(server, 3) == []


def test_what_a_person_resolved_until_clear_opens_again_if_it_grows_graver(server: Server) -> None:
    opened(server, **WARM)
    service.resolve(server.store, 1, actor="ada", reason="warm today", now=server.clock.now())
    opened(server, **WARM)
    assert server.only().state == "resolved"
    opened(server, **HOT)
    assert (server.only().state, server.only().action) == ("open", "drain")
    assert told(server)[-1] == "incident.reopened"

"""The server's own rules over a real store: from heartbeats, losses and expert records to incidents, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agents.readings import StepRecord
from controlplane.services.findings import RETOLD_S, Watch
from controlplane.store import expert_parts, faults, incidents, nodes, steps
from controlplane.store.engine import Store
from controlplane.store.expert_parts import Part
from controlplane.store.expert_records import ExpertStep, Shape
from tests.incidents.serving import BOOK, Server, beat, change_attempt, start_run


@pytest.fixture
def server(store: Store) -> Server:
    made = Server(store)
    start_run(made)
    for rank in (0, 1):
        beat(made, rank, f"node-{rank}")
    return made


def test_a_hang_is_one_incident_to_act_upon_and_ends_with_its_attempt(server: Server) -> None:
    assert not server.later(59)
    assert server.later(2).opened == (1,)
    incident = server.only()
    assert (incident.rule, incident.run_id, incident.key) == ("hang", "run-1", "hang/run-1/run")
    assert incident.title == "Training hangs in zaya-toy"
    with server.store.read() as session:
        (waiting,) = incidents.actionable(session, BOOK)
    assert (waiting.action, waiting.run_id, waiting.attempt_no, waiting.node) == ("restart", "run-1", 1, "")
    change_attempt(server, 1, state="draining")
    server.later(1)
    with server.store.read() as session:
        assert faults.firing(session) == [], "a rank that is being stopped is not hung"
    server.later(121)
    assert server.only().state == "resolved"


def test_a_hang_goes_on_while_its_node_cannot_be_seen(server: Server) -> None:
    server.later(61)
    server.clock.advance(20)
    server.greet(0.0, "node-1")
    server.check()
    with server.store.read() as session:
        firing = {fault.rule for fault in faults.firing(session)}
    assert firing == {"hang", "no-telemetry"}, "not seen is neither found nor clear"


def test_heartbeats_lost_with_their_agent_are_not_a_hang(server: Server) -> None:
    for _ in range(6):
        server.clock.advance(20)
        server.greet(0.0, "node-1")
        beat(server, 0, "node-0")
        server.check()
    assert {one.rule: one.action for one in server.incidents()} == {"no-telemetry": "alert"}


def test_a_blind_node_for_which_another_rank_waits_is_restarted_without(server: Server) -> None:
    server.clock.advance(20)
    server.greet(0.0, "node-1")
    beat(server, 0, "node-0")
    server.check()
    assert server.only().action == "alert"
    blind_since = server.clock.now() - 5.0
    with server.store.write() as session:
        node = nodes.get(session, "node-1")
        assert node is not None
        node.clock_offset_s = 600.0  # its clock is wrong, but this finding is by the server's
    server.clock.advance(65)
    server.greet(0.0, "node-1")
    server.check()
    incident = server.only()
    assert (incident.action, incident.severity) == ("restart", "critical")
    assert [kind for _, kind, _ in server.told(1)] == ["incident.opened", "incident.worsened"]
    with server.store.read() as session:
        (waiting,) = incidents.actionable(session, BOOK)
        members = faults.of_incident(session, incident.id)
    assert (waiting.node, waiting.run_id, waiting.data_corrupting) == ("node-1", "run-1", False)
    assert waiting.onset_s == pytest.approx(blind_since)
    assert [(one.action, one.state) for one in members] == [("alert", "clear"), ("restart", "firing")]


def test_a_finding_that_goes_on_is_written_seldom(server: Server) -> None:
    server.later(61)
    with server.store.read() as session:
        (first,) = faults.firing(session)
    server.later(RETOLD_S - 1)
    with server.store.read() as session:
        (second,) = faults.firing(session)
        assert second.observed_s == first.observed_s
    server.later(2)
    with server.store.read() as session:
        (third,) = faults.firing(session)
        assert third.id == first.id and third.observed_s > first.observed_s
        assert "72 s ago" in third.sentence


def test_a_restarted_server_takes_the_findings_over(server: Server) -> None:
    server.later(61)
    server.rules = Watch(BOOK, since_s=server.clock.now())
    server.later(1)
    assert server.only().state == "open"
    with server.store.read() as session:
        assert len(faults.firing(session)) == 1
    beat(server, 0, "node-0")
    beat(server, 1, "node-1")
    server.later(1)
    with server.store.read() as session:
        assert faults.firing(session) == []


def send_losses(server: Server, first: int, *losses: float, attempt_no: int = 1) -> None:
    now = server.clock.now()
    records = [
        StepRecord("run-1", attempt_no, 1, rank, first + index, now + index / 10, loss, 1.0, 0.1, 1024, 1e-3, 0)
        for index, loss in enumerate(losses)
        for rank in (0, 1)
    ]
    with server.store.write() as session:
        steps.add(session, records)


def test_a_loss_that_is_no_number_is_an_incident_for_a_person(server: Server) -> None:
    send_losses(server, 1, *[2.0] * 30)
    assert not server.check()
    send_losses(server, 31, 1.9, math.nan, math.nan)
    assert server.check().opened == (1,)
    incident = server.only()
    assert (incident.rule, incident.action, incident.severity) == ("loss-not-finite", "alert", "critical")
    with server.store.read() as session:
        assert incidents.actionable(session, BOOK) == []
        (member,) = faults.of_incident(session, incident.id)
    assert member.evidence["step"] == 32 and "the loss of step 32 is nan" in member.sentence
    assert not server.check(), "the same steps are not judged twice"


SHAPE = Shape(layers=2, slots=17, experts=16, top_k=1)


def send_experts(server: Server, first: int, count: int, weights: Any) -> None:
    rng = np.random.default_rng(first)
    probabilities = np.asarray(weights, float) / np.sum(weights)
    now = server.clock.now()
    parts = [
        Part(
            "node-0",
            ExpertStep(
                "run-1",
                1,
                step,
                now,
                1,
                2048,
                0,
                SHAPE,
                np.pad(rng.multinomial(2048, probabilities, size=2), ((0, 0), (0, 1))).astype(np.uint32),
                np.zeros((2, 17), np.float32),
            ),
        )
        for step in range(first, first + count)
    ]
    with server.store.write() as session:
        expert_parts.take(session, parts, expected=lambda *_: 1, now=now)


def test_dead_and_uneven_experts_of_a_warm_run_are_incidents_and_get_well(server: Server) -> None:
    sick = [40.0, *[1.0] * 14, 0.0]
    send_experts(server, 1, 64, sick)
    assert not server.check(), "a fresh run is uneven by nature"
    send_experts(server, 300, 64, sick)
    server.check()
    found = {one.rule: one for one in server.incidents()}
    assert found.keys() == {"expert-imbalance", "expert-dead"}
    assert {one.action for one in found.values()} == {"alert"}
    assert found["expert-imbalance"].severity == "error"
    send_experts(server, 364, 4, [1.0] * 16)
    server.later(1)
    with server.store.read() as session:
        assert len(faults.firing(session)) == 2, "judged again after eight steps only"
    send_experts(server, 368, 64, [1.0] * 16)
    server.later(1)
    with server.store.read() as session:
        assert faults.firing(session) == []


def test_the_alarms_of_a_run_end_with_its_attempt(server: Server) -> None:
    send_experts(server, 300, 64, [40.0, *[1.0] * 15])
    server.check()
    assert server.only().state == "open"
    change_attempt(server, 1, state="superseded")
    server.later(1)
    server.later(121)
    assert server.only().state == "resolved"

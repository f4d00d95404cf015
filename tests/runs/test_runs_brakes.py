"""What keeps the controller from making things worse: budgets, rates, nodes that strike twice, storms, false alarms."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.runs import choices
from controlplane.runs.ledger import ATTEMPTS_PER_HOUR, may_quarantine
from controlplane.services import incidents as incident_service
from controlplane.services import preflight
from controlplane.services import runs as service
from controlplane.services.reconcile import Controller
from controlplane.store import nodes
from controlplane.store.engine import Store
from jobs.spec import load_template
from tests.runs.piloting import BOOK, Pilot
from tests.runs.situations import NOW, attempt, view

SAVED = {"class": "saved", "message": "", "fingerprint": ""}
BOOM = {"class": "error", "message": "boom", "fingerprint": "boom"}


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def wait_for_next(pilot: Pilot, run_id: str) -> bool:
    """Whether another attempt begins within ten minutes."""
    number = pilot.last(run_id).no
    for _ in range(70):
        pilot.round(10)
        if pilot.last(run_id).no > number:
            return True
    return False


def test_who_saves_and_leaves_again_and_again_is_a_persons_matter_in_the_end(pilot: Pilot) -> None:
    run_id = pilot.started(last=7)
    for number in range(1, ATTEMPTS_PER_HOUR + 2):
        assert pilot.last(run_id).no == number and pilot.live(run_id)
        pilot.beat(run_id, 1, 7 + number)
        pilot.end(run_id, "failed", **SAVED)
        pilot.round(1)
    assert pilot.run(run_id).status == "needs_human" and pilot.live(run_id) == []
    assert "21 attempts ended within an hour" in pilot.run(run_id).reason
    assert len(pilot.submissions()) == ATTEMPTS_PER_HOUR + 1


def test_who_saves_and_leaves_without_a_step_more_waits(pilot: Pilot) -> None:
    run_id = pilot.started(last=7)
    for _ in range(2):
        pilot.beat(run_id, 1, 7)
        pilot.end(run_id, "failed", **SAVED)
        pilot.round(1)
    assert pilot.last(run_id).no == 2 and pilot.live(run_id) == [], "the first time at once, then not"
    assert wait_for_next(pilot, run_id)


@pytest.mark.parametrize(("spare", "nodes_after"), [(True, ["node-0", "node-2"]), (False, ["node-0", "node-1"])])
def test_a_node_that_strikes_twice_alike_is_left_out_if_there_is_another(
    pilot: Pilot, spare: bool, nodes_after: list[str]
) -> None:
    if not spare:
        with pilot.store.write() as session:
            for name in ("node-2", "node-3"):
                nodes.cordon(session, name, reason="in repair", now=pilot.clock.now())
    run_id = pilot.started(last=7)
    for _ in range(2):
        struck = {1: {"at_s": pilot.clock.now(), "first_rank": 1, **BOOM}}
        pilot.backend.end(pilot.last(run_id).name, "failed", struck)  # type: ignore[arg-type]  # as a launcher writes
        assert wait_for_next(pilot, run_id)
        pilot.train(run_id, 1, 9 + pilot.last(run_id).no)
    assert pilot.last(run_id).nodes == nodes_after
    first, second = pilot.decisions(run_id)
    assert (first.action, second.action) == ("restart", "restart_exclude" if spare else "restart")
    assert not pilot.node("node-1").cordoned, "one run's experience takes no node out of service"
    if spare:
        assert "on node-1 as one did before" in second.reason


def strike(pilot: Pilot, run_id: str) -> str:
    """A fault on the first node of a run, at another step each time; the node is mended after the run has left it."""
    number = pilot.last(run_id).no
    pilot.train(run_id, (pilot.last(run_id).resume_step or 0) + 1, number * 10 + 5)
    name = pilot.last(run_id).nodes[0]
    pilot.hit(name, rule="gpu-lost")
    for _ in range(3):
        pilot.round(1)
    return name


def mend(pilot: Pilot, name: str) -> None:
    now = pilot.clock.now()
    with pilot.store.read() as session:
        numbers = [one.number for one in incident_service.incidents.listed(session) if one.node == name]
    for number in numbers:
        incident_service.resolve(pilot.store, number, actor="ada", reason="mended", now=now)
    with pilot.store.write() as session:
        nodes.uncordon(session, name, reason="mended", now=now)


def test_machines_that_fail_all_the_time_are_a_persons_matter(sqlite_store: Store, tmp_path: Path) -> None:
    pilot = Pilot(sqlite_store, tmp_path, node_count=16)
    run_id = pilot.started(nodes=1, last=5)
    for _ in range(6):
        strike(pilot, run_id)
        pilot.clock.advance(300)
        assert pilot.live(run_id), pilot.run(run_id).reason
    strike(pilot, run_id)
    assert pilot.run(run_id).status == "needs_human" and "7 restarts for the machines' sake" in pilot.run(run_id).reason
    assert pilot.live(run_id) == []
    told = [event.sentence for event in pilot.events(run_id, "run_needs_human")]
    for _ in range(5):
        pilot.round(20)
    assert [event.sentence for event in pilot.events(run_id, "run_needs_human")] == told and len(told) == 1
    assert "waits for a person" in told[0]
    service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    assert pilot.run(run_id).status == "active" and pilot.last(run_id).no == 8
    assert [one.state for one in pilot.decisions(run_id)][-2:] == ["superseded", "executing"]


def test_the_hour_passes_and_the_machines_have_their_rate_again(sqlite_store: Store, tmp_path: Path) -> None:
    pilot = Pilot(sqlite_store, tmp_path, node_count=16)
    run_id = pilot.started(nodes=1, last=5)
    for _ in range(7):
        strike(pilot, run_id)
    assert pilot.run(run_id).status == "needs_human"
    pilot.round(3600)
    assert pilot.run(run_id).status == "active" and pilot.last(run_id).no == 8


def test_a_storm_takes_two_nodes_out_of_service_and_asks_for_the_third(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=3)
    for name in ("node-0", "node-1", "node-2"):
        pilot.hit(name)
    pilot.round(1)
    (decision,) = pilot.decisions(run_id)
    assert decision.excluded_nodes == ["node-0", "node-1", "node-2"]
    assert [pilot.node(name).cordoned for name in pilot.names] == [True, True, False, False]
    (held,) = pilot.events(run_id, "quarantine_held")
    assert "node-2 stays in service" in held.sentence and "2 nodes were taken out within 10 minutes" in held.sentence
    second = pilot.submit(name="second", nodes=2)
    pilot.round(1)
    assert pilot.attempts(second) == [] and "node-2 has a fault" in pilot.run(second).reason
    mend(pilot, "node-0")
    pilot.round(1)
    assert pilot.last(second).nodes == ["node-0", "node-3"], "a person's word is never held back"


def test_an_operator_may_let_a_storm_take_more_of_the_fleet(pilot: Pilot) -> None:
    pilot.controller = Controller(pilot.store, {"memory": pilot.backend}, BOOK, pilot.places, quarantine_share=0.75)
    run_id = pilot.started(nodes=3)
    for name in ("node-0", "node-1", "node-2"):
        pilot.hit(name)
    pilot.round(1)
    assert [pilot.node(name).cordoned for name in pilot.names] == [True, True, True, False]
    assert pilot.events(run_id, "quarantine_held") == []


@pytest.mark.parametrize(("state", "end_class"), [("abandoned", "node_lost"), ("preempted", "preempted")])
def test_what_the_machines_and_the_cluster_did_is_held_to_their_own_rate(state: str, end_class: str) -> None:
    """Neither the run's budget nor nothing at all: seven times in an hour is a person's matter."""
    ended = [
        attempt(no, state, end_class=end_class, ended_s=NOW - 100 * (8 - no), last_step=10 * no) for no in range(1, 8)
    ]
    seven = view(*ended, restarts=2)
    assert "7 restarts for the machines' sake" in choices.brake(seven)
    assert choices.brake(view(*ended[:6], restarts=2)) == ""


@pytest.mark.parametrize(
    ("recent", "fleet", "may"),
    [(0, 1, True), (1, 4, True), (2, 4, False), (2, 128, True), (5, 128, True), (6, 128, False)],
)
def test_the_breaker_is_two_nodes_or_a_twentieth_of_the_fleet(recent: int, fleet: int, may: bool) -> None:
    assert may_quarantine(recent, fleet) is may


def test_silence_is_suspicion_and_speech_ends_it(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.round(19)
    assert pilot.last(run_id).state == "training"
    pilot.round(3)
    assert pilot.last(run_id).state == "suspect"
    (event,) = pilot.events(run_id, "attempt_suspect")
    assert event.sentence == "Attempt 1 is suspect: rank 0 on node-0 and 1 more have said nothing for 23 s."
    for _ in range(3):
        pilot.round(60)
    assert pilot.last(run_id).state == "suspect" and pilot.decisions(run_id) == []
    pilot.beat(run_id, 1, 40)
    pilot.round(1)
    assert (pilot.last(run_id).state, pilot.last(run_id).last_step) == ("training", 40)
    assert [one[0] for one in pilot.backend.calls] == ["submit"]


def test_a_server_that_was_away_suspects_nobody(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.clock.advance(900)
    pilot.lead()
    for _ in range(4):
        pilot.round(4)
    assert pilot.last(run_id).state == "training"
    pilot.round(9)
    assert pilot.last(run_id).state == "suspect", "now it has listened long enough"


def test_when_nobody_is_heard_nobody_is_suspect(pilot: Pilot) -> None:
    run_id = pilot.started()
    for _ in range(20):
        pilot.clock.advance(10)
        pilot.controller.reconcile_once(pilot.epoch, pilot.clock.now())
    assert pilot.last(run_id).state == "training" and pilot.decisions(run_id) == []


def test_the_missing_part_of_a_gang_is_named(pilot: Pilot) -> None:
    run_id = pilot.submit()
    pilot.round()
    pilot.backend.attempts[f"{run_id}-1"].absent = frozenset({"node-1"})
    for _ in range(3):
        pilot.round(301)
    first = pilot.attempts(run_id)[0]
    assert (first.end_class, first.end["message"]) == ("never_started", "node-1 did not start within 600 s")
    assert ("kill", f"{run_id}-1") in pilot.backend.calls, "what did come up holds no node"


def test_a_policy_that_only_advises_leaves_the_node_to_nobody_else(pilot: Pilot) -> None:
    run_id = pilot.started(mode="advise")
    pilot.hit("node-1")
    pilot.round(1)
    assert pilot.last(run_id).state == "training" and not pilot.node("node-1").cordoned
    pilot.finish(run_id)
    pilot.round(1)
    second = pilot.submit(name="second", nodes=2)
    pilot.round(1)
    assert pilot.last(second).nodes == ["node-0", "node-2"]
    found = preflight.check(pilot.store, pilot.backend, pilot.places, load_template("toy").to_dict(), pilot.clock.now())
    assert {one["node"]: one["reason"] for one in found["candidates"]}["node-1"] == "has a fault (hbm-uncorrectable)"


def test_a_restarted_server_knows_how_many_ranks_to_wait_for(pilot: Pilot) -> None:
    run_id = pilot.started()
    told: list[tuple[str, int, int]] = []
    pilot.lead()
    pilot.controller._expect = lambda *what: told.append(what)
    pilot.round(1)
    assert (run_id, 1, 2) in told


def test_a_restart_that_was_not_proved_is_no_persons_stop(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10, at=-30.0)
    pilot.round(1)
    pilot.hit()
    pilot.round(1)
    pilot.round(1)
    pilot.train(run_id, 1, 1)
    pilot.round(1)
    assert (pilot.last(run_id).state, pilot.last(run_id).end_class) == ("stopped", "unverified")

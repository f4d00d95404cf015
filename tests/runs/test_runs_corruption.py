"""A data-corrupting fault, walked: told before or after the death, before or after the next attempt, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.services import incidents as incident_service
from controlplane.services import runs as service
from controlplane.store import faults, incidents
from controlplane.store.engine import Store
from controlplane.store.tables import Node
from tests.incidents.serving import cleared, fault
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def begun(pilot: Pilot, **policy: Any) -> str:
    """A run whose attempt 1 has saved step 10 well before, and step 20 within, the suspicion window of `pilot.hit`."""
    run_id = pilot.started(**policy)
    pilot.save(run_id, 10, at=-30)
    pilot.save(run_id, 20)
    pilot.round(0.5)
    return run_id


def states(pilot: Pilot, run_id: str) -> dict[tuple[int, int], str]:
    return {(one.attempt_no, one.step): one.state for one in pilot.checkpoints(run_id)}


def test_a_fault_told_after_the_death_before_the_next_look(pilot: Pilot) -> None:
    run_id = begun(pilot)
    pilot.end(run_id, "failed")
    pilot.hit()
    pilot.round(0.5)
    (decided,) = pilot.decisions(run_id)
    assert (decided.action, decided.excluded_nodes, decided.failure_class) == (
        "restart_exclude",
        ["node-1"],
        "hardware",
    )
    assert states(pilot, run_id) == {(1, 10): "validated", (1, 20): "tainted"}
    assert (pilot.last(run_id).resume_step, pilot.last(run_id).nodes) == (10, ["node-0", "node-2"])
    assert pilot.node("node-1").cordoned


def test_a_fault_told_while_the_next_attempt_waits_for_nodes(pilot: Pilot) -> None:
    run_id = begun(pilot, nodes=4)
    pilot.backend.reachable = False  # nobody can be placed
    pilot.round(0.1)
    pilot.backend.reachable = True
    pilot.end(run_id, "failed")
    pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())  # it has ended
    pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())  # a restart is decided
    assert [one.fingerprint for one in pilot.decisions(run_id)] == ["killed"]
    pilot.hit()
    pilot.round(0.5)
    first, second = pilot.decisions(run_id)
    assert (first.state, second.state, second.excluded_nodes) == ("superseded", "executing", ["node-1"])
    assert pilot.run(run_id).status == "queued" and "node-1 excluded" in pilot.run(run_id).reason
    assert states(pilot, run_id)[1, 20] == "tainted"


def test_a_fault_told_when_the_next_attempt_is_planned_but_not_started(pilot: Pilot) -> None:
    run_id = begun(pilot)
    pilot.end(run_id, "failed")
    for _ in range(3):
        pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
    assert (pilot.last(run_id).state, pilot.last(run_id).resume_step) == ("planned", 20)
    pilot.hit()
    pilot.round(0.5)
    _, second, third = pilot.attempts(run_id)
    assert (second.state, second.end_class, second.submitted_s) == ("superseded", "replanned", None)
    assert (third.state, third.resume_step, third.nodes) == ("pending", 10, ["node-0", "node-2"])
    assert pilot.submissions() == [f"{run_id}-1", f"{run_id}-3"]
    assert [one.state for one in pilot.decisions(run_id)] == ["superseded", "executing"]
    pilot.train(run_id, 11, 12)
    assert pilot.decisions(run_id)[-1].state == "verified"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_fault_told_when_the_next_attempt_trains_already(pilot: Pilot, elsewhere: bool) -> None:
    run_id = begun(pilot)
    pilot.end(run_id, "failed")
    if elsewhere:  # the bad node is not among the next one's
        with pilot.store.write() as session:
            session.get(Node, "node-1").cordoned = True  # type: ignore[union-attr]  # it is there
    last_clean = pilot.clock.now() - 1
    pilot.round(1)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, 20)
    pilot.train(run_id, 21, 29)
    pilot.save(run_id, 25)
    pilot.hit(onset_s=last_clean + 0.5, last_clean_s=last_clean)
    pilot.round(0.5)
    decided = pilot.decisions(run_id)[-1]
    assert (decided.attempt_no, decided.action, decided.excluded_nodes) == (2, "restart_exclude", ["node-1"])
    assert ("attempt 2 had gone on from checkpoint 20" in decided.reason) is elsewhere
    assert ("kill", f"{run_id}-2") in pilot.backend.calls and ("terminate", f"{run_id}-2") not in pilot.backend.calls
    pilot.round(1)
    assert states(pilot, run_id) == {(1, 10): "validated", (1, 20): "tainted", (2, 25): "tainted"}
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (3, 10)


@pytest.mark.parametrize("mode", ["observe", "advise"])
def test_where_nothing_is_restarted_nothing_spoilt_is_used_either(pilot: Pilot, mode: str) -> None:
    run_id = begun(pilot, mode=mode)
    pilot.hit()
    pilot.round(1)
    assert pilot.last(run_id).state == "training" and states(pilot, run_id)[1, 20] == "tainted"
    pilot.beat(run_id, 1, 30)
    pilot.save(run_id, 30)
    pilot.round(1)
    assert states(pilot, run_id)[1, 30] == "tainted"
    assert [(one.mode, one.state) for one in pilot.decisions(run_id)] == [(mode, "proposed")]
    assert [call for call, _ in pilot.backend.calls] == ["submit"]
    pilot.end(run_id, "failed")
    pilot.round(1)
    service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, 10)
    assert "node-1" not in pilot.last(run_id).nodes, "its fault fires"


def test_an_heir_is_advised_about_once_where_nothing_is_restarted(pilot: Pilot) -> None:
    run_id = begun(pilot, mode="advise")
    pilot.end(run_id, "failed")
    pilot.round(0.2)
    service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now(), exclude_nodes=("node-1",))
    pilot.round(0.2)
    pilot.train(run_id, 21, 22)
    pilot.hit(onset_s=pilot.clock.now() - 2, last_clean_s=pilot.clock.now() - 2)
    for _ in range(4):
        pilot.round(1)
    assert pilot.last(run_id).state == "training" and states(pilot, run_id)[1, 20] == "tainted"
    (advice,) = [one for one in pilot.decisions(run_id) if one.mode == "advise"]
    assert "attempt 2 had gone on from checkpoint 20" in advice.reason and advice.state == "proposed"


def test_the_last_checkpoint_of_a_finished_run_is_marked_when_the_fault_comes_late(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 100)
    pilot.finish(run_id)
    pilot.round(0.5)
    assert pilot.run(run_id).status == "succeeded" and states(pilot, run_id) == {(1, 100): "validated"}
    pilot.hit()
    pilot.round(0.5)
    assert states(pilot, run_id) == {(1, 100): "tainted"}
    assert len(pilot.events(run_id, "checkpoint_tainted")) == 1 and pilot.decisions(run_id) == []


def test_one_fault_is_answered_by_each_run_that_it_struck(pilot: Pilot) -> None:
    """The first run has just left the node when the fault is told, the second has just begun there."""
    first = begun(pilot)
    service.pause(pilot.store, first, actor="ada", now=pilot.clock.now())
    for _ in range(2):
        pilot.round(0.2)
    assert pilot.run(first).status == "paused"
    second = pilot.submit(name="second", nodes=1)
    pilot.round(0.2)
    pilot.train(second, 1, 2)
    assert pilot.last(second).nodes == ["node-0"]
    clean = pilot.clock.now() - 3
    pilot.hit("node-0", onset_s=clean, last_clean_s=clean)
    pilot.round(0.5)
    assert pilot.decisions(second)[-1].excluded_nodes == ["node-0"] and pilot.last(second).no == 2
    assert states(pilot, first) == {(1, 10): "validated", (1, 20): "tainted"} and pilot.decisions(first) == []
    service.resume(pilot.store, first, actor="ada", now=pilot.clock.now())
    pilot.round(0.5)
    (decided,) = pilot.decisions(first)
    assert (decided.excluded_nodes, pilot.last(first).resume_step) == (["node-0"], 10)
    with pilot.store.read() as session:
        answers_to = incidents.decisions(session, decided.incident_id or "")
    assert {one.run_id for one in answers_to} == {first, second}


def test_a_clock_that_is_set_later_moves_no_window(pilot: Pilot) -> None:
    run_id = begun(pilot, mode="observe")
    pilot.hit()
    pilot.round(1)
    pilot.behind_s = -90.0  # the node's clock is set forward: its older times now read as if they were earlier still
    pilot.round(1)
    assert states(pilot, run_id) == {(1, 10): "validated", (1, 20): "tainted"}


def test_what_is_computed_after_the_fault_has_cleared_is_spoilt_as_well(pilot: Pilot) -> None:
    run_id = begun(pilot, mode="observe")
    onset = pilot.clock.now() - 1
    pilot.hit(onset_s=onset, last_clean_s=onset - 1)
    pilot.round(1)
    with pilot.store.write() as session:
        told = fault(pilot, "node-1", onset_s=onset, last_clean_s=onset - 1)  # type: ignore[arg-type]  # it needs a clock only
        faults.record(session, [cleared(told, pilot.clock.now())], now=pilot.clock.now())
    incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())
    pilot.round(1)
    pilot.save(run_id, 30)
    pilot.round(1)
    assert states(pilot, run_id)[1, 30] == "tainted", "it was computed from what the fault spoilt"

"""The controller's walk over a scripted cluster: faults, ends, wishes, blindness, and what they lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.backends.base import AttemptPlan
from controlplane.services import runs as service
from controlplane.services.reconcile import LEASE
from controlplane.store import leases
from controlplane.store.engine import Store
from controlplane.store.leases import LeaseLost
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def test_a_run_is_placed_trains_and_succeeds(pilot: Pilot) -> None:
    run_id = pilot.submit()
    pilot.round()
    (attempt,) = pilot.attempts(run_id)
    assert (attempt.state, attempt.nodes, attempt.resume_step) == ("pending", ["node-0", "node-1"], None)
    assert pilot.run(run_id).status == "active"
    attempt = pilot.train(run_id, 1, 5)
    assert (attempt.state, attempt.first_step, attempt.last_step) == ("training", 1, 5)
    pilot.beat(run_id, 1, 100)
    pilot.finish(run_id)
    pilot.round(1)
    assert (pilot.last(run_id).state, pilot.run(run_id).status) == ("succeeded", "succeeded")
    assert pilot.last(run_id).last_step == 100, "what it said last counts, although it ended before the next look"
    assert pilot.decisions(run_id) == []
    assert pilot.round(1) == []


def test_a_memory_fault_restarts_without_the_node_from_before_the_suspicion(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10, at=-30.0)
    pilot.round(1)
    pilot.save(run_id, 20)  # after the last clean sample, which was two seconds before the report
    pilot.hit()
    pilot.round(0.1)
    (decision,) = pilot.decisions(run_id)
    assert (decision.action, decision.mode, decision.state) == ("restart_exclude", "act", "executing")
    assert decision.excluded_nodes == ["node-1"]
    assert {one["kind"] for one in decision.evidence} == {"incident", "fault", "window"}
    assert ("kill", f"{run_id}-1") in pilot.backend.calls and ("terminate", f"{run_id}-1") not in pilot.backend.calls
    node = pilot.node("node-1")
    assert (node.state, node.cordoned) == ("quarantined", True)
    pilot.round(2)
    states = {one.step: one.state for one in pilot.checkpoints(run_id)}
    assert states == {10: "validated", 20: "tainted"}
    first, second = pilot.attempts(run_id)
    assert (first.state, first.end_class) == ("superseded", "hardware")
    assert (second.nodes, second.resume_step, second.epoch) == (["node-0", "node-2"], 10, 2)
    pilot.train(run_id, 11, 12)
    (decision,) = pilot.decisions(run_id)
    assert decision.state == "verified" and "step 11" in (decision.verification or {})["sentence"]
    pilot.finish(run_id)
    pilot.round(1)
    assert pilot.run(run_id).status == "succeeded"
    assert pilot.submissions() == [f"{run_id}-1", f"{run_id}-2"]


def test_a_checkpoint_found_after_the_fence_is_tainted_too(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.hit()
    pilot.round(0.1)
    late = pilot.save(run_id, 30, no=1)
    pilot.round(2)
    assert {one.path: one.state for one in pilot.checkpoints(run_id)} == {str(late): "tainted"}


@pytest.mark.parametrize("skew_s", [-600.0, 600.0])
def test_the_suspicion_window_is_told_by_the_servers_clock(pilot: Pilot, skew_s: float) -> None:
    pilot.behind_s = skew_s
    run_id = pilot.started()
    pilot.save(run_id, 10, at=-30.0)
    pilot.save(run_id, 20)
    pilot.hit()
    pilot.round(1)
    pilot.round(1)
    assert {one.step: one.state for one in pilot.checkpoints(run_id)} == {10: "validated", 20: "tainted"}


def test_a_silent_restart_from_scratch_is_stopped_and_a_person_is_asked(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10, at=-30.0)
    pilot.round(1)
    pilot.hit()
    pilot.round(0.1)
    pilot.round(2)
    assert pilot.last(run_id).resume_step == 10
    pilot.train(run_id, 1, 1)
    (decision,) = pilot.decisions(run_id)
    assert decision.state == "failed" and "had to begin with 11" in (decision.verification or {})["sentence"]
    pilot.round(1)
    assert (pilot.last(run_id).state, pilot.run(run_id).status) == ("stopped", "needs_human")
    for _ in range(3):
        pilot.round(60)
    assert len(pilot.attempts(run_id)) == 2
    service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    assert (len(pilot.attempts(run_id)), pilot.last(run_id).resume_step, pilot.run(run_id).status) == (3, 10, "active")


def test_an_end_on_its_configuration_asks_for_a_person(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.end(run_id, "failed", **{"class": "configuration", "message": "no such file", "fingerprint": "f"})
    for _ in range(5):
        pilot.round(60)
    (decision,) = pilot.decisions(run_id)
    assert (decision.action, decision.state, pilot.run(run_id).status) == (
        "pause_for_human",
        "verified",
        "needs_human",
    )
    assert "no such file" in pilot.run(run_id).reason and decision.evidence


def test_the_same_failure_three_times_at_one_step_asks_for_a_person(pilot: Pilot) -> None:
    run_id = pilot.started(last=7)
    for number in range(1, 4):
        assert pilot.last(run_id).no == number
        pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "fingerprint": "boom"})
        for _ in range(4):
            pilot.round(5)
        if number < 3:
            pilot.train(run_id, 1, 7)
    assert (pilot.run(run_id).status, len(pilot.attempts(run_id))) == ("needs_human", 3)
    assert "3 times without progress" in pilot.run(run_id).reason


def test_a_killed_rank_leads_to_a_restart(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10)
    pilot.end(run_id, "failed")
    pilot.round(1)
    (decision,) = pilot.decisions(run_id)
    assert (decision.action, decision.failure_class) == ("restart", "killed")
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, 10)


def test_a_node_that_computes_wrongly_is_left_out(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.end(run_id, "failed", **{"class": "bad_node", "message": "checksums differ", "fingerprint": "c"})
    pilot.round(1)
    (decision,) = pilot.decisions(run_id)
    assert (decision.action, decision.excluded_nodes) == ("restart_exclude", ["node-0"])
    assert pilot.last(run_id).nodes == ["node-1", "node-2"]


def test_numerics_roll_back_before_the_failure_and_skip_the_data(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    for step in (10, 20):
        pilot.save(run_id, step)
    pilot.end(run_id, "failed", **{"class": "numerics", "message": "the loss is not finite", "fingerprint": "n"})
    pilot.round(1)
    attempt = pilot.last(run_id)
    assert (attempt.resume_step, attempt.spec["skip_steps"]) == (10, "11-21")
    assert pilot.backend.attempts[attempt.name].plan.environment["TRIMTAB_SKIP_STEPS"] == "11-21"


def test_a_backend_that_cannot_be_asked_for_a_quarter_of_an_hour_changes_nothing(pilot: Pilot) -> None:
    run_id = pilot.started()
    waiting = pilot.submit(name="second")
    pilot.backend.reachable = False
    for _ in range(180):
        pilot.round(5)
    assert (len(pilot.attempts(run_id)), pilot.last(run_id).state) == (1, "training")
    assert pilot.attempts(waiting) == [] and pilot.run(waiting).status == "queued"
    assert pilot.decisions(run_id) == [] and not any(pilot.node(name).cordoned for name in pilot.names)
    pilot.backend.reachable = True
    pilot.beat(run_id, 1, 900)
    pilot.round(1)
    assert pilot.last(run_id).state == "training" and pilot.last(waiting).state == "pending"
    assert pilot.submissions() == [f"{run_id}-1", f"{waiting}-1"]


def test_checkpoints_of_another_epoch_half_written_and_poisoned_are_passed_over(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10)
    pilot.save(run_id, 20, epoch=7)
    (pilot.save(run_id, 30) / "model.bin").write_bytes(b"x")
    half = pilot.save(run_id, 40)
    next(path for path in half.iterdir() if path.name != "model.bin").unlink()
    torn = pilot.save(run_id, 50)
    next(path for path in torn.iterdir() if path.name != "model.bin").write_text("{")
    pilot.end(run_id, "failed")
    pilot.round(1)
    states = {one.step: one.state for one in pilot.checkpoints(run_id)}
    assert states == {10: "validated", 20: "tainted", 30: "complete", 50: "complete"}
    assert all(one.reason for one in pilot.checkpoints(run_id) if one.state != "validated")
    assert pilot.last(run_id).resume_step == 10


def test_what_an_ended_attempt_says_afterwards_changes_nothing(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.end(run_id, "failed")
    pilot.round(1)
    before = pilot.attempts(run_id)[0]
    pilot.beat(run_id, 1, 99, no=1)
    pilot.save(run_id, 99, no=1)
    for _ in range(3):
        pilot.round(5)
    first, second = pilot.attempts(run_id)
    assert (first.state, first.last_step) == (before.state, before.last_step)
    assert (second.state, second.first_step) == ("pending", None)
    pilot.end(run_id, "failed")
    pilot.round(1)
    assert pilot.last(run_id).resume_step is None, "the late checkpoint was given up when attempt 2 began"


def test_a_lost_answer_is_followed_by_adoption(pilot: Pilot) -> None:
    run_id = pilot.submit()
    pilot.backend.lose_next_answer = True
    pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
    pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
    assert pilot.last(run_id).state == "submitting"
    pilot.round(1)
    assert pilot.last(run_id).state == "pending" and pilot.submissions() == [f"{run_id}-1"]
    assert any("was found running" in event.sentence for event in pilot.events(run_id, "attempt_pending"))


def test_a_name_that_is_taken_asks_for_a_person(pilot: Pilot) -> None:
    run_id = pilot.submit()
    pilot.backend.submit(AttemptPlan(f"{run_id}-1", "someone", 1, "h", ("node-3",), 1, ("true",)))
    for _ in range(3):
        pilot.round(5)
    assert (pilot.last(run_id).end_class, pilot.run(run_id).status) == ("submit_conflict", "needs_human")
    assert len(pilot.attempts(run_id)) == 1


def test_a_controller_past_its_lease_writes_nothing(pilot: Pilot) -> None:
    run_id = pilot.started()
    old, epoch = pilot.controller, pilot.epoch
    pilot.clock.advance(20)
    with pilot.store.write() as session:
        other = leases.acquire(session, LEASE, leases.Holder("b", "elsewhere", 1), now=pilot.clock.now(), ttl_s=9)
    assert other is not None and other > epoch
    pilot.end(run_id, "failed")
    calls = list(pilot.backend.calls)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            old.reconcile_once(epoch, pilot.clock.now())
    assert pilot.last(run_id).state == "training" and pilot.backend.calls == calls
    pilot.epoch, pilot.controller = other, pilot.new_controller()
    pilot.round(1)
    assert pilot.last(run_id).no == 2


@pytest.mark.parametrize("mode", ["advise", "observe"])
def test_a_policy_that_does_not_act_leaves_the_ranks_alone(pilot: Pilot, mode: str) -> None:
    run_id = pilot.started(mode=mode)
    pilot.hit()
    for _ in range(3):
        pilot.round(1)
    (decision,) = pilot.decisions(run_id)
    assert (decision.mode, decision.state) == (mode, "proposed")
    assert pilot.last(run_id).state == "training" and not pilot.node("node-1").cordoned
    assert [call for call, _ in pilot.backend.calls] == ["submit"]
    pilot.end(run_id, "failed")
    pilot.round(1)
    assert [one.state for one in pilot.decisions(run_id)] == ["superseded", "verified"]
    assert pilot.run(run_id).status == "needs_human"


def test_a_stop_that_was_not_heard_is_repeated(pilot: Pilot) -> None:
    run_id = pilot.started()
    service.pause(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.backend.reachable = False
    pilot.round(1)
    assert pilot.last(run_id).state in ("training", "stopping")
    pilot.backend.reachable = True
    pilot.round(1)
    assert ("terminate", f"{run_id}-1") in pilot.backend.calls
    pilot.round(1)
    assert pilot.run(run_id).status == "paused"


def test_a_fault_of_data_while_a_person_drains_kills_at_once(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10, at=-30)
    service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.backend.attempts[f"{run_id}-1"].stuck = True
    pilot.round(1)
    assert pilot.last(run_id).state == "draining"
    pilot.hit()
    pilot.save(run_id, 20)
    pilot.round(0.5)
    assert pilot.last(run_id).state == "stopping" and pilot.backend.calls[-1][0] == "kill"
    pilot.end(run_id, "failed")
    pilot.round(1)
    assert {one.step: one.state for one in pilot.checkpoints(run_id)} == {10: "validated", 20: "tainted"}
    assert (pilot.last(run_id).resume_step, pilot.last(run_id).nodes) == (10, ["node-0", "node-2"])


def test_nobody_is_placed_on_a_node_whose_fault_waits_for_a_decision(pilot: Pilot) -> None:
    pilot.hit("node-0")
    run_id = pilot.submit()
    pilot.round(1)
    assert pilot.last(run_id).nodes == ["node-1", "node-2"]
    assert pilot.decisions(run_id) == []


def test_too_few_nodes_wait_with_a_reason_and_go_on_when_one_returns(pilot: Pilot) -> None:
    first, second = pilot.started(), pilot.submit(name="second", nodes=3)
    pilot.round(1)
    assert pilot.run(second).status == "queued" and "1 more node of 3" in pilot.run(second).reason
    pilot.finish(first)
    pilot.round(1)
    pilot.round(1)
    assert pilot.run(second).status == "active"


def test_two_runs_hit_by_one_storm_both_restart(pilot: Pilot) -> None:
    first, second = pilot.started(nodes=1), pilot.started(nodes=1, name="second")
    for name in ("node-0", "node-1"):
        pilot.hit(name)
    pilot.round(1)
    pilot.round(1)
    assert pilot.decisions(first)[0].excluded_nodes == ["node-0"]
    assert pilot.decisions(second)[0].excluded_nodes == ["node-1"]


def test_a_run_that_cannot_be_read_holds_up_no_other(pilot: Pilot) -> None:
    broken = pilot.submit(name="broken")
    with pilot.store.write() as session:
        session.get(type(pilot.run(broken)), broken).spec = {"kind": "Nothing"}  # type: ignore[union-attr] # it exists
    run_id = pilot.submit()
    pilot.round(1)
    assert pilot.last(run_id).state == "pending"


def test_two_runs_are_never_planned_on_one_node(pilot: Pilot) -> None:
    first, second = pilot.submit(), pilot.submit(name="second")
    pilot.controller.step(first, pilot.epoch, pilot.clock.now())  # planned; the backend has not heard of it
    pilot.controller.step(second, pilot.epoch, pilot.clock.now())
    assert not set(pilot.last(first).nodes) & set(pilot.last(second).nodes)


@pytest.mark.parametrize("level", [0, 1])
def test_a_job_that_says_less_proves_its_restart_by_less(pilot: Pilot, level: int) -> None:
    run_id = pilot.started(level=level)
    pilot.end(run_id, "failed")
    pilot.round(1)
    pilot.backend.run(pilot.last(run_id).name)
    if level == 1:
        pilot.beat(run_id, None, None)
    pilot.round(1)
    if level == 0:
        assert pilot.decisions(run_id)[0].state == "executing"
        pilot.round(121)
    assert pilot.decisions(run_id)[0].state == "verified"


def test_a_gang_that_never_comes_whole_is_given_up_by_name(pilot: Pilot) -> None:
    run_id = pilot.submit()
    pilot.round()
    for _ in range(3):
        pilot.round(301)
    assert pilot.attempts(run_id)[0].end_class == "never_started" and len(pilot.attempts(run_id)) == 2


def test_a_command_that_returns_0_too_early_is_no_success(pilot: Pilot) -> None:
    run_id = pilot.started(last=12)
    pilot.save(run_id, 10)
    pilot.end(run_id, "succeeded")
    pilot.round(1)
    assert pilot.last(run_id).state == "training", "what it did last may be on its way"
    pilot.round(31)
    first, second = pilot.attempts(run_id)
    assert (first.state, first.end["message"]) == ("failed", "it returned 0 after step 12 of 100")
    assert second.resume_step == 10

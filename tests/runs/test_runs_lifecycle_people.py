"""What people and failures do to a lifecycle: retries, budgets, pause, cancel from every state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.runs.lifecycle_states import STAGE
from controlplane.services import runs as service
from controlplane.services import views_now
from controlplane.services.lifecycles import LifecycleRefused
from controlplane.services.live import Live
from controlplane.store import lifecycles, runs
from jobs.contract import Exit
from tests.runs.conducting import JOB, Conducting, gate
from tests.runs.piloting import BOOK

A, B = {"name": "a"}, {"name": "b"}
CHECKED = {"name": "a", "gate": gate("loss < 2.6")}
ALIVE = ("pending", "starting", "init", "training", "suspect")
APPROVED = {"name": "a", "gate": gate(approval=True)}


def broken(walk: Conducting, made: str, stage: str = "a", role: str = "train", **said: object) -> str:
    """The newest run of a stage fails until the controller gives it to a person; returns its id."""
    walk.tick()
    run_id = walk.newest(made, stage, role).run.id
    for _ in range(12):
        walk.tick(120)
        if walk.run(run_id).status in ("needs_human", "failed"):
            return run_id
        if walk.attempts(run_id) and walk.last(run_id).state in ALIVE:
            walk.backend.run(walk.last(run_id).name)
            walk.end(run_id, "failed", **{"class": "error", "message": "it broke", "fingerprint": "broke", **said})
    raise AssertionError(f"{run_id} is {walk.run(run_id).status}")


# --- retries and budgets ---


def test_a_failed_run_is_followed_by_another_that_goes_on_from_its_checkpoint(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"retries": 1}}, B, faults={"restarts": 0})
    walk.tick()
    first = walk.newest(made, "a").run.id
    walk.train(first, 1, 5)
    walk.save(first, 5)
    walk.tick()
    broken(walk, made)
    walk.tick()
    second = walk.newest(made, "a")
    assert (second.run.id != first, second.work.continues_id, walk.run(first).status) == (True, first, "failed")
    assert walk.stages(made)["a"].retries == 1
    walk.tick(120)
    attempt = walk.last(second.run.id)
    plan = walk.backend.attempts[attempt.name].plan
    assert attempt.resume_step == 5 and plan.environment["TRIMTAB_RESUME_FROM"].endswith(
        f"{first}/attempt-0001/step-00000005"
    )
    assert walk.walk(made) == "succeeded"
    assert walk.last(second.run.id).first_step == 6


def test_what_a_run_gave_up_the_run_that_continues_it_does_not_take_back(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"retries": 2}}, faults={"restarts": 0})
    walk.tick()
    first = walk.newest(made, "a").run.id
    with walk.store.write() as session:  # as after a roll-back that left out data, and a node
        attempt = runs.attempt_of(session, first, 1)
        attempt.spec = {**attempt.spec, "skip_steps": "3-4,8-9"}
        now, empty = walk.clock.now(), dict.fromkeys(("failure_class", "fingerprint", "entity", "progress"), "")
        values = {"run_id": first, "attempt_no": 1, "action": "restart_exclude", "mode": "act", "rule": "hang", **empty}
        values |= {"reason": "It hangs.", "evidence": [], "budgets_before": {}, "budgets_after": {}}
        times = {"created_s": now, "executed_s": now}
        decided = runs.add_decision(session, id="d", excluded_nodes=["node-3"], policy_version="1", **values, **times)
        decided.state = "verified"
    walk.train(first, 1, 5)
    walk.save(first, 5)
    walk.tick()
    for _ in range(2):
        broken(walk, made)
    walk.tick()
    walk.tick(120)
    last = walk.newest(made, "a").run.id
    given = walk.backend.attempts[walk.last(last).name].plan.environment
    assert len(walk.works(made)) == 3 and walk.last(last).resume_step == 5
    assert given["TRIMTAB_SKIP_STEPS"] == "3-4,8-9", "step 5 has read index 7"
    assert walk.last(last).excluded_nodes == ["node-3"]


def test_when_the_retries_are_used_a_person_is_asked(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"retries": 1}}, faults={"restarts": 0})
    broken(walk, made)
    broken(walk, made)
    walk.tick()
    held = walk.held(made)
    assert held.hold == "failed" and "its 1 retries are used" in held.reason and "waits for a person" in held.reason
    walk.retry(made, "a", fresh=True)
    assert walk.walk(made) == "succeeded"
    assert [one.work.no for one in walk.works(made)] == [1, 2, 3]


def test_a_wrong_configuration_is_a_persons_matter_at_once(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"retries": 5}})
    run_id = broken(walk, made, **{"class": "configuration", "exit_code": int(Exit.CONFIG)})
    walk.tick()
    assert walk.held(made).hold == "failed"
    assert [one.run.id for one in walk.works(made)] == [run_id]


def test_a_person_who_takes_the_run_up_again_himself_takes_the_stage_with_it(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"retries": 0}}, faults={"restarts": 0})
    run_id = broken(walk, made)
    walk.tick()
    assert walk.held(made).hold == "failed"
    service.resume(walk.store, run_id, actor="bob", now=walk.clock.now())
    walk.tick()
    walk.tick()
    assert walk.stages(made)["a"].state == "training"
    assert walk.walk(made) == "succeeded"


def test_a_failed_preparation_is_prepared_again(walk: Conducting) -> None:
    made = walk.begin(
        {**A, "prepare": [{"name": "text", "job": JOB}], "budget": {"retries": 0}}, faults={"restarts": 0}
    )
    broken(walk, made, role="prepare")
    walk.tick()
    walk.retry(made, "a")
    assert walk.walk(made) == "succeeded"
    assert [(one.work.role, one.work.item) for one in walk.works(made)] == [("prepare", "text")] * 2 + [("train", "")]


def test_no_retry_passes_over_a_preparation_that_is_not_done(walk: Conducting) -> None:
    made = walk.begin(
        {**A, "prepare": [{"name": "text", "job": JOB}, {"name": "more", "job": JOB}], "budget": {"retries": 0}},
        faults={"restarts": 0},
    )
    walk.tick()
    walk.work_all(made)
    walk.tick()
    walk.tick()
    service.stop(walk.store, walk.newest(made, "a", "prepare").run.id, actor="bob", now=walk.clock.now())
    for _ in range(4):
        walk.tick()
    assert "was stopped" in walk.held(made).reason
    walk.retry(made, "a", fresh=True)
    assert walk.walk(made) == "succeeded"
    done = [(one.work.item or one.work.role, one.run.status) for one in walk.works(made)]
    assert done == [("text", "succeeded"), ("more", "cancelled"), ("more", "succeeded"), ("train", "succeeded")]


def test_a_stage_that_used_its_gpu_hours_saves_and_waits(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"gpuHours": 4}})
    walk.tick()
    run_id = walk.newest(made, "a").run.id
    walk.train(run_id, 1, 5)
    walk.tick(1700)  # 8 GPUs: 3.8 GPU-hours
    assert walk.stages(made)["a"].state == "training"
    walk.beat(run_id, 1, 6)
    walk.tick(200)
    held = walk.held(made)
    assert held.hold == "budget" and held.reason.startswith("Stage a has used 4.2")
    assert walk.run(run_id).desired == "cancel"
    walk.tick()
    walk.tick()
    stopped = f"cancelled: {held.reason.rstrip('.')}"
    assert (walk.run(run_id).status, walk.run(run_id).reason) == ("cancelled", stopped), "no person stopped it"
    walk.retry(made, "a")
    walk.tick()
    assert (walk.stages(made)["a"].state, walk.newest(made, "a").work.continues_id) == ("training", run_id)
    assert walk.look(made).stages[0].used_gpu_h < 0.1
    assert walk.walk(made) == "succeeded"


def test_a_training_that_left_no_checkpoint_is_held_if_anybody_needs_it(walk: Conducting) -> None:
    made = walk.begin(A, B)
    walk.tick()
    run_id = walk.newest(made, "a").run.id
    walk.train(run_id, 1, 10)
    walk.finish(run_id)
    for _ in range(4):
        walk.tick()
    assert "left no verified checkpoint" in walk.held(made).reason
    walk.retry(made, "a")
    assert walk.walk(made) == "succeeded"


def test_a_stopped_run_holds_its_stage(walk: Conducting) -> None:
    made = walk.begin(A)
    walk.tick()
    service.stop(walk.store, walk.newest(made, "a").run.id, actor="bob", now=walk.clock.now())
    for _ in range(4):
        walk.tick()
    assert "was stopped: cancelled by a person" in walk.held(made).reason


def test_a_fresh_retry_trains_with_another_seed(walk: Conducting) -> None:
    made = walk.begin(APPROVED)
    walk.walk(made)
    walk.retry(made, "a", fresh=True)
    walk.tick()
    seeds = [one.run.spec["spec"]["train"]["seed"] for one in walk.works(made)]
    assert (seeds, walk.stages(made)["a"].candidate_hash) == ([0, 1], "")
    with pytest.raises(LifecycleRefused, match="stage a is training and waits for nobody"):
        walk.retry(made, "a")


def test_a_word_does_not_outlive_the_evaluation_of_which_it_was_said(walk: Conducting) -> None:
    made = walk.begin(CHECKED)
    walk.metrics["a"] = {"loss": 3.0}
    walk.walk(made)
    walk.say(made, "a", "approved", reason="good enough")
    with pytest.raises(LifecycleRefused, match=r"a person's word on checkpoint .* is being carried out"):
        walk.retry(made, "a", evaluation=True)
    walk.taint(walk.held(made).candidate_hash)  # before the word was carried out
    walk.tick()
    assert walk.held(made).hold == "tainted"
    walk.retry(made, "a")
    walk.tick()
    walk.tick()
    assert walk.look(made).stages[0].words == ()
    with walk.store.read() as session:
        (void,) = lifecycles.approvals(session, made)
    assert (void.used_s, void.voided_s is not None) == (None, True), "nobody carried it out"
    assert [(one["used_s"], one["voided_s"]) for one in walk.shown(made)["approvals"]] == [(None, void.voided_s)]


# --- pause and cancel ---


def _begun(walk: Conducting) -> str:
    return walk.begin(A, B)


def _training(walk: Conducting) -> str:
    made = walk.begin(A, B)
    walk.tick()
    walk.train(walk.newest(made, "a").run.id, 1, 5)
    return made


def _preparing(walk: Conducting) -> str:
    made = walk.begin({**A, "prepare": [{"name": "text", "job": JOB}]}, B)
    walk.tick()
    return made


def _evaluating(walk: Conducting) -> str:
    made = walk.begin(CHECKED, B)
    walk.walk(made, until="evaluating")
    walk.tick()
    return made


def _releasing(walk: Conducting) -> str:
    made = walk.begin(A, {"name": "b", "role": "release"})
    walk.walk(made, until="releasing")
    walk.tick()
    return made


def _held(walk: Conducting) -> str:
    made = walk.begin(APPROVED, B)
    walk.walk(made)
    return made


def _paused(walk: Conducting) -> str:
    made = _training(walk)
    walk.ask(made, "pause")
    for _ in range(3):
        walk.tick()
    assert walk.state(made).status == "paused"
    return made


def _broken(walk: Conducting) -> str:
    made = walk.begin({**A, "budget": {"retries": 0}}, B, faults={"restarts": 0})
    broken(walk, made)
    walk.tick()
    assert walk.held(made).hold == "failed"
    return made


STATES: dict[str, Callable[[Conducting], str]] = {
    "waiting": _begun,
    "preparing": _preparing,
    "training": _training,
    "evaluating": _evaluating,
    "releasing": _releasing,
    "held": _held,
    "held, failed": _broken,
    "paused": _paused,
}


@pytest.mark.parametrize("state", STATES)
def test_a_lifecycle_is_cancelled_from_every_state(walk: Conducting, state: str) -> None:
    made = STATES[state](walk)
    found = {one.state for one in walk.stages(made).values()}
    assert state in found or state in ("held, failed", "paused")
    walk.ask(made, "cancel")
    for _ in range(6):
        walk.tick()
    assert walk.state(made).status == "cancelled"
    assert {one.state for one in walk.stages(made).values()} <= {"cancelled", "passed"}
    assert all(one.run.status in ("cancelled", "succeeded", "failed") for one in walk.works(made))
    assert not [name for name, one in walk.backend.attempts.items() if one.state in ("pending", "running")]
    for verb in ("pause", "resume", "cancel"):
        with pytest.raises(LifecycleRefused, match="has cancelled"):
            walk.ask(made, verb)


def test_every_state_that_a_stage_may_be_in_can_be_cancelled() -> None:
    ended = {state for state, after in STAGE.items() if not after}
    assert ended == {"passed", "failed", "cancelled"}
    assert all("cancelled" in after for state, after in STAGE.items() if state not in ended)


def test_a_paused_lifecycle_begins_nothing_and_goes_on_where_it_was(walk: Conducting) -> None:
    made = _paused(walk)
    run_id = walk.newest(made, "a").run.id
    assert walk.run(run_id).status == "paused"
    walk.ask(made, "resume")
    walk.tick()
    assert walk.state(made).status == "active"
    assert walk.walk(made) == "succeeded"
    assert walk.works(made)[0].run.id == run_id


def test_a_pause_between_two_stages_holds_the_next_one_back(walk: Conducting) -> None:
    made = _held(walk)
    walk.ask(made, "pause")
    walk.say(made, "a", "approved")
    for _ in range(3):
        walk.tick()
    assert {name: one.state for name, one in walk.stages(made).items()} == {"a": "passed", "b": "waiting"}
    assert walk.state(made).status == "paused"
    walk.ask(made, "resume")
    assert walk.walk(made) == "succeeded"


def test_a_paused_lifecycle_may_come_to_its_end(walk: Conducting) -> None:
    made = walk.begin(APPROVED)
    walk.walk(made)
    walk.ask(made, "pause")
    walk.tick()
    assert walk.state(made).status == "paused"
    walk.say(made, "a", "approved")
    walk.tick()
    assert walk.state(made).status == "succeeded"


def test_a_held_stage_stands_among_what_needs_a_person(walk: Conducting) -> None:
    made = _held(walk)
    with walk.store.read() as session:
        (need,) = views_now.now_view(session, Live(walk.store, walk.clock), BOOK, walk.clock.now())["needs"]
    assert (need["lead"], need["level"]) == ("Decide on stage a of walk.", "warn")
    assert need["link"] == {"kind": "lifecycle", "id": made, "stage": "a"}
    for number in range(100):  # younger ones do not hide it
        walk.begin(A, name=f"young-{number}")
    with walk.store.read() as session:
        assert views_now.now_view(session, Live(walk.store, walk.clock), BOOK, walk.clock.now())["needs"] == [need]
    with walk.store.write() as session:
        for one in lifecycles.listed(session, limit=100):
            one.state.status = "cancelled"
    other = _broken(walk)
    with walk.store.read() as session:
        found = views_now.now_view(session, Live(walk.store, walk.clock), BOOK, walk.clock.now())["needs"]
    run_id = walk.newest(other, "a").run.id
    assert [one["link"] for one in found] == [{"kind": "run", "id": run_id}, need["link"]]

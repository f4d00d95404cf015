"""What a person and the conductor do to the same stage: whose word counts, and what a run takes over from the last."""

from __future__ import annotations

import pytest

from controlplane.runs.lifecycle import decide
from controlplane.runs.lifecycle_view import MoveStage, StartRun
from controlplane.services import lifecycles_moves
from controlplane.services import runs as service
from controlplane.services.lifecycles import LifecycleRefused
from controlplane.store import lifecycles
from jobs.lifecycle import parse_lifecycle
from tests.runs.conducting import Conducting, gate
from tests.runs.test_runs_lifecycle_people import broken

A = {"name": "a"}
NO_RETRIES, ONE_RETRY = {**A, "budget": {"retries": 0}}, {**A, "budget": {"retries": 1}}
STRICT = {"restarts": 0}


def written(walk: Conducting, made: str, seen: lifecycles_moves.PlanView) -> bool:
    """Whether the move that follows from an earlier look is still written."""
    with walk.store.write() as session:
        found = lifecycles.locked(session, made)
        assert found is not None
        plan = parse_lifecycle(found.plan.spec)
        return lifecycles_moves.write(session, found, plan, seen, decide(seen), lambda _spec: "memory")


def statuses(walk: Conducting, made: str) -> list[str]:
    return [one.run.status for one in walk.works(made)]


def test_what_continues_a_fresh_run_keeps_its_seed_and_has_its_retries(walk: Conducting) -> None:
    made = walk.begin(ONE_RETRY, faults=STRICT)
    for _ in range(2):
        broken(walk, made)
    walk.tick()
    assert (walk.held(made).hold, walk.held(made).retries) == ("failed", 1)
    walk.retry(made, "a", fresh=True)
    walk.tick()
    assert walk.stages(made)["a"].retries == 0
    fresh = broken(walk, made)
    walk.tick()
    walk.tick()
    charged = walk.newest(made, "a")
    assert (charged.work.continues_id, walk.stages(made)["a"].retries) == (fresh, 1)
    broken(walk, made)
    walk.tick()
    walk.retry(made, "a")
    walk.tick()
    assert walk.newest(made, "a").work.continues_id == charged.run.id
    assert [one.run.spec["spec"]["train"]["seed"] for one in walk.works(made)] == [0, 0, 1, 1, 1]


def test_a_retry_takes_the_place_of_a_run_that_is_paused(walk: Conducting) -> None:
    made = walk.begin(NO_RETRIES, faults=STRICT)
    run_id = broken(walk, made)
    walk.tick()
    service.pause(walk.store, run_id, actor="bob", now=walk.clock.now())
    walk.tick()
    assert (walk.run(run_id).status, walk.held(made).hold) == ("paused", "failed")
    walk.retry(made, "a")
    walk.tick()
    assert walk.run(run_id).status == "cancelled" and "begins another run" in walk.run(run_id).reason
    assert walk.walk(made) == "succeeded"


def test_a_clock_that_is_set_back_does_not_make_an_old_run_the_newest(walk: Conducting) -> None:
    made = walk.begin(ONE_RETRY, faults=STRICT)
    first = broken(walk, made)
    walk.clock.jump(-3600)
    for _ in range(3):
        walk.tick()
    assert [one.run.id == first for one in walk.works(made)] == [True, False]
    assert (walk.stages(made)["a"].state, walk.stages(made)["a"].retries) == ("training", 1)


def test_a_run_that_a_person_has_taken_up_is_not_replaced(walk: Conducting) -> None:
    made = walk.begin(ONE_RETRY, faults=STRICT)
    run_id = broken(walk, made)
    seen = walk.look(made)
    move = decide(seen)
    assert isinstance(move, StartRun) and move.closes == run_id
    service.resume(walk.store, run_id, actor="bob", now=walk.clock.now())
    assert not written(walk, made, seen), "it was decided before the person spoke"
    walk.tick()
    walk.tick()
    assert statuses(walk, made) == ["active"]
    assert walk.walk(made) == "succeeded"


def test_a_retry_is_dropped_if_the_run_is_taken_up_as_well(walk: Conducting) -> None:
    made = walk.begin(NO_RETRIES, faults=STRICT)
    run_id = broken(walk, made)
    walk.tick()
    service.resume(walk.store, run_id, actor="bob", now=walk.clock.now())
    walk.retry(made, "a")
    walk.tick()
    walk.tick()
    assert walk.walk(made) == "succeeded"
    assert statuses(walk, made) == ["succeeded"], "it was trained twice"
    assert any(one.endswith("and the retry that bob asked for is dropped.") for one in walk.story(made))


def test_a_retry_is_never_lost_without_a_word(walk: Conducting) -> None:
    made = walk.begin({**A, "gate": gate(approval=True)})
    walk.walk(made)
    walk.taint(walk.held(made).candidate_hash)
    seen = walk.look(made)
    move = decide(seen)
    assert isinstance(move, MoveStage) and move.hold == "tainted"
    walk.retry(made, "a", fresh=True)
    assert not written(walk, made, seen), "it was decided before the person spoke"
    assert walk.held(made).wish is not None
    walk.tick()
    assert (walk.held(made).hold, walk.held(made).wish) == ("tainted", None)
    assert any(one.endswith("The retry that bob asked for is dropped.") for one in walk.story(made))


@pytest.mark.parametrize(("asked", "loss"), [(gate(approval=True), 2.0), (gate("loss < 2.6"), 3.0)])
def test_where_nothing_failed_a_retry_says_what_is_to_be_done_again(
    walk: Conducting, asked: dict[str, object], loss: float
) -> None:
    made = walk.begin({**A, "gate": asked})
    walk.metrics["a"] = {"loss": loss}
    walk.walk(made)
    held = walk.held(made)
    with pytest.raises(LifecycleRefused, match="nothing of stage a failed: ask for --fresh or --evaluation"):
        walk.retry(made, "a")
    with walk.store.write() as session:  # as an older server took it
        found = lifecycles.locked(session, made)
        assert found is not None
        found.stages[0].wish = {"actor": "bob", "fresh": False, "evaluation": False}
    walk.tick()
    after = walk.held(made)
    assert (after.hold, after.candidate_hash, after.wish) == (held.hold, held.candidate_hash, None)
    assert after.candidate_hash and len(walk.works(made)) == (1 if asked == gate(approval=True) else 2)


def test_a_run_that_ended_well_as_its_stage_was_held_for_its_budget_is_not_run_again(walk: Conducting) -> None:
    made = walk.begin({**A, "budget": {"gpuHours": 4}, "gate": gate("loss < 2.6")}, {"name": "b"})
    walk.tick()
    run_id = walk.newest(made, "a").run.id
    walk.work(run_id)
    walk.round()
    assert walk.run(run_id).status == "succeeded"
    with walk.store.write() as session:  # as when it was found too dear at the very moment at which it ended
        found = lifecycles.locked(session, made)
        assert found is not None
        lifecycles.move_stage(found.stages[0], "held", reason="too dear", now=walk.clock.now(), hold="budget")
    walk.retry(made, "a")
    assert walk.walk(made) == "succeeded"
    assert [one.work.role for one in walk.works(made)] == ["train", "evaluate", "train"], "a was trained once"
    assert "bob has stage a go on: its run came to its end." in walk.story(made)


def test_what_a_person_paused_alone_stays_so_when_its_lifecycle_is_resumed(walk: Conducting) -> None:
    made = walk.begin(A)
    walk.tick()
    run_id = walk.newest(made, "a").run.id

    def alone(verb: str) -> None:
        getattr(service, verb)(walk.store, run_id, actor="ann", now=walk.clock.now())
        walk.tick()

    def whole(verb: str) -> str:
        walk.ask(made, verb)
        walk.tick()
        return walk.run(run_id).desired

    alone("pause")
    assert (whole("pause"), whole("resume")) == ("pause", "pause")
    alone("resume")
    assert (whole("pause"), whole("resume")) == ("pause", "run")
    assert whole("pause") == "pause"
    alone("pause")  # it stands already, and is to stay
    assert whole("resume") == "pause"
    alone("resume")
    assert walk.walk(made) == "succeeded"


def test_a_stage_whose_disk_is_away_keeps_no_other_one_waiting(walk: Conducting) -> None:
    made = walk.begin(A, {"name": "b", "from": "", "after": []})
    walk.tick()
    walk.work_all(made)
    folder = walk.places.run(walk.newest(made, "a").run.id)
    away = folder.rename(folder.with_name("away"))
    for _ in range(3):
        walk.tick()
    assert [one.state for one in walk.stages(made).values()] == ["training", "passed"]
    away.rename(folder)
    walk.tick()
    assert walk.state(made).status == "succeeded"

"""What people ask of a run: cancel, pause, resume, restart, from every state it may be in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.services import runs as service
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def bring(pilot: Pilot, state: str) -> str:
    """A run whose only attempt is in this state."""
    run_id = pilot.submit()
    if state == "none":
        return run_id
    if state in ("planned", "submitting"):
        pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
        if state == "submitting":
            pilot.backend.reachable = False
            pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
            pilot.backend.reachable = True
        return run_id
    pilot.round()
    name = pilot.last(run_id).name
    if state != "pending":
        pilot.backend.run(name)
        if state != "starting":
            pilot.beat(run_id, *((None, None) if state == "init" else (1, 3)))
        pilot.round(1)
    if state in ("draining", "stopping"):
        pilot.backend.attempts[name].stuck = True
        pilot.hit(rule="hang-silent" if state == "draining" else "hbm-uncorrectable")
        pilot.round(0.1)
    return run_id


STATES = ("none", "planned", "submitting", "pending", "starting", "init", "training", "draining", "stopping")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wish", [service.stop, service.pause])
def test_a_run_is_cancelled_and_paused_from_every_state(pilot: Pilot, state: str, wish: Callable[..., None]) -> None:
    run_id = bring(pilot, state)
    if state != "none":
        assert pilot.last(run_id).state == state
    wish(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    for one in pilot.backend.attempts.values():
        one.stuck, one.state = False, "failed" if one.stopped else one.state
    for _ in range(3):
        pilot.round(1)
    assert pilot.run(run_id).status == ("cancelled" if wish is service.stop else "paused")
    assert pilot.live(run_id) == [] and len(pilot.attempts(run_id)) <= 1
    if wish is service.stop:
        assert all(one.state not in ("proposed", "executing") for one in pilot.decisions(run_id))
        with pytest.raises(service.RunRefused):
            service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
        return
    service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(5)
    assert pilot.run(run_id).status == "active" and len(pilot.live(run_id)) == 1


def test_a_paused_run_saves_and_goes_on_from_there(pilot: Pilot) -> None:
    run_id = pilot.started()
    service.pause(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.backend.attempts[f"{run_id}-1"].stuck = True
    pilot.round(0.1)
    pilot.save(run_id, 20)  # in its last moment, right after a look at the disk
    pilot.end(run_id, "failed", **{"class": "saved", "code": 75})
    pilot.round(0.1)
    assert pilot.run(run_id).status == "paused"
    service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(0.1)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, 20)
    assert ("terminate", f"{run_id}-1") in pilot.backend.calls


def test_a_pause_that_comes_too_late_leaves_a_success(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.finish(run_id)
    pilot.controller.step(run_id, pilot.epoch, pilot.clock.now())
    service.pause(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    assert pilot.run(run_id).status == "succeeded"


def test_a_person_restarts_from_a_chosen_checkpoint_and_the_newer_ones_are_given_up(pilot: Pilot) -> None:
    run_id = pilot.started()
    for step in (10, 20):
        pilot.save(run_id, step)
    pilot.round(1)
    chosen = next(one for one in pilot.checkpoints(run_id) if one.step == 10)
    wanted = {"actor": "ada", "checkpoint_id": chosen.id, "exclude_nodes": ("node-0",)}
    service.restart(pilot.store, run_id, now=pilot.clock.now(), **wanted)
    with pytest.raises(service.RunRefused, match="already"):
        service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    pilot.round(1)
    assert (pilot.last(run_id).resume_step, pilot.last(run_id).nodes) == (10, ["node-1", "node-2"])
    pilot.train(run_id, 11, 12)
    assert [(one.rule, one.state) for one in pilot.decisions(run_id)] == [("person", "verified")]
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "fingerprint": "boom"})
    pilot.round(1)
    pilot.round(10)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (3, 10), "20 lies on the path that was left"


def test_a_restart_from_scratch_after_a_pause_is_stopped_and_a_person_is_asked(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 20)
    service.pause(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    for _ in range(2):
        pilot.round(1)
    service.resume(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1)
    assert pilot.last(run_id).resume_step == 20 and pilot.decisions(run_id) == []
    pilot.train(run_id, 1, 2)
    pilot.round(1)
    assert (pilot.last(run_id).end_class, pilot.run(run_id).status) == ("unverified", "needs_human")
    (event,) = pilot.events(run_id, "attempt_astray")
    assert event.sentence == "Attempt 2 began with step 1; it had to begin with 21."
    assert ("kill", f"{run_id}-2") in pilot.backend.calls


def test_a_wish_that_a_later_clock_wrote_is_taken_up_once(pilot: Pilot) -> None:
    run_id = pilot.started()
    # a person asks while a round is under way, whose moment is older; or by a server whose clock is ahead
    service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now() + 2.0)
    pilot.backend.attempts[f"{run_id}-1"].stuck = True
    pilot.round(0.1)
    pilot.round(0.1)
    pilot.backend.attempts[f"{run_id}-1"].stuck = False
    pilot.end(run_id, "failed", **{"class": "saved", "code": 75})
    for _ in range(3):
        pilot.round(0.1)
    assert len(pilot.decisions(run_id)) == 1
    assert [one.state == "superseded" for one in pilot.attempts(run_id)] == [True, False]

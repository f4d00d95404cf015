"""The controller killed at every commit and at every call of the real API server that leave something new; one Job an
attempt, each time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controlplane.backends.kube.api import KubeApi
from controlplane.store.engine import Store
from tests.kube.chaos import KubePilot, Points, tell, wait_for
from tests.kube.conftest import World
from tests.runs.history import wrongs

SHARDS = 4
KILLED = "the controller dies before or after a commit or a call that changes the cluster, once at each of them"
GOES_ON = "its successor makes each Job once, leaves the faulty node out, resumes at the step after the checkpoint"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, migrated once."""
    path = tmp_path_factory.mktemp("fresh") / "store.db"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    return path


def trainers(pilot: KubePilot, run_id: str, done: set[str]) -> None:
    """What nodes and trainers do by themselves: it sees the cluster, never the controller's rows."""
    jobs = pilot.jobs()
    if not jobs or jobs[-1]["spec"].get("suspend"):
        return
    name = jobs[-1]["metadata"]["name"]
    number = int(jobs[-1]["metadata"]["labels"]["trimtab.dev/attempt"])
    attempt = pilot.attempts(run_id)[number - 1]
    if len(attempt.nodes) != 2 or not pilot.running(name):
        return
    if number == 1 and "hit" not in done:
        pilot.beat(run_id, 1, 12, no=1)
        pilot.save(run_id, 10, no=1, at=-30)
        pilot.hit(attempt.nodes[1])
        done.add("hit")
    elif number == 2 and "resumed" not in done:
        container = jobs[-1]["spec"]["template"]["spec"]["containers"][0]
        given = {one["name"]: one.get("value") for one in container["env"]}
        first = int(given["TRIMTAB_RESUME_FROM"].rpartition("-")[2]) + 1
        assert first == 11
        pilot.beat(run_id, first, 40, no=2)
        done.add("resumed")
    elif number == 2 and "ended" not in done:
        pilot.end_all(name, 0)
        done.add("ended")


def play(pilot: KubePilot) -> str:
    run_id, done = pilot.submit(), set[str]()

    def over() -> bool:
        pilot.live_round()
        trainers(pilot, run_id, done)
        return pilot.run(run_id).status == "succeeded"

    wait_for(over)
    return run_id


def check(pilot: KubePilot, run_id: str) -> None:
    where = f"killed {pilot.points.where or 'nowhere'} (point {pilot.points.fatal})"
    first, second = pilot.attempts(run_id)
    assert (first.state, second.state) == ("superseded", "succeeded"), where
    assert (second.resume_step, second.first_step, second.last_step) == (10, 11, 40), where
    jobs = pilot.jobs()
    assert [one["metadata"]["name"] for one in jobs] == [first.name, second.name], where
    assert [one["metadata"]["uid"] for one in jobs] == [first.backend_uid, second.backend_uid], where
    faulty = first.nodes[1]
    assert faulty not in {pod["spec"]["nodeName"] for pod in pilot.pods(second.name)}, where
    assert len(pilot.pods(second.name)) == 2, where
    (decision,) = pilot.decisions(run_id)
    assert (decision.state, decision.action) == ("verified", "restart_exclude"), where
    node = pilot.world.node(faulty)
    assert node["spec"]["unschedulable"] is True, where
    assert wrongs(pilot.store) == [], where


def survive(world: World, api: KubeApi, fresh: Path, folder: Path, fatal: int) -> Points:
    """Plays the scenario with a death at one point, and checks what came of it."""
    folder.mkdir()
    shutil.copy(fresh, folder / "store.db")
    store = Store(f"sqlite:///{folder / 'store.db'}", synchronous="OFF")  # the process dies, not the machine
    pilot = KubePilot(world, api, store, folder, Points(fatal))
    try:
        run_id = play(pilot)
        check(pilot, run_id)
        if fatal:
            tell(pilot, run_id, KILLED, GOES_ON)
    finally:
        pilot.close()
        store.close()
    return pilot.points


@pytest.fixture(scope="module")
def points(world: World, controller_api: KubeApi, fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many points the scenario has when nobody dies."""
    return survive(world, controller_api, fresh, tmp_path_factory.mktemp("alive") / "untouched", 0).seen


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_controller_killed_anywhere_is_followed_by_one_that_goes_on(
    world: World, controller_api: KubeApi, fresh: Path, tmp_path: Path, points: int, shard: int
) -> None:
    assert points > 20, "a restart has more points than that"
    for fatal in range(1 + shard, points + 1, SHARDS):
        survive(world, controller_api, fresh, tmp_path / str(fatal), fatal)

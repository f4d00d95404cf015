"""Pods that really run: the runner as kubelet of two nodes, real commands, on a real API server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.backends.base import AttemptPlan, Observation, StopMode
from controlplane.backends.kube.backend import KubeBackend
from controlplane.cli import cluster_nodes
from controlplane.cli.cluster_runner import Runner
from controlplane.clock import SystemClock
from tests.kube.conftest import NAMESPACE, NODES, World, until

RUNNERS = ("node-900", "node-901")
OTHERS = tuple(f"node-{index:03d}" for index in range(NODES))
_numbers = itertools.count(1)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    return {"runs": tmp_path / "runs", "runtime": tmp_path / "nodes"}


@pytest.fixture
def runner(world: World, places: dict[str, Path], tmp_path: Path) -> Iterator[Runner]:
    for index in (900, 901):
        world.admin.create("/api/v1/nodes", cluster_nodes.node(index, "runner"))
    mounts = {"/var/lib/trimtab/runs": str(places["runs"]), "/run/trimtab": f"{places['runtime']}/{{node}}"}
    found = Runner(world.admin, NAMESPACE, RUNNERS, tmp_path / "pods", mounts, SystemClock())
    found.start()
    yield found
    found.stop()
    for name in RUNNERS:
        world.admin.delete(f"/api/v1/nodes/{name}")


def planned(script: str) -> AttemptPlan:
    number = next(_numbers)
    name = f"real-{number}"
    return AttemptPlan(
        name,
        f"uid-real-{number}",
        1,
        "hash",
        (),
        1,
        ("{python}", "-S", "-c", script),
        {"TRIMTAB_ATTEMPT_NAME": name, "TRIMTAB_RUN_DIR": "/var/lib/trimtab/runs/x"},
        node_count=2,
        gpus_per_node=8,
        grace_s=20.0,
        excluded=OTHERS,
    )


def reaches(backend: KubeBackend, plan: AttemptPlan, state: str) -> Observation:
    until(lambda: backend.observe([plan.name], 5.0)[plan.name].state == state)
    return backend.observe([plan.name], 5.0)[plan.name]


def end(world: World, plan: AttemptPlan) -> None:
    world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{plan.name}")
    until(lambda: world.pods(plan.name) == [])


def test_a_pods_command_runs_with_its_place_and_its_log_can_be_read(
    world: World, backend: KubeBackend, runner: Runner, places: dict[str, Path]
) -> None:
    words = "TRIMTAB_NODE,JOB_COMPLETION_INDEX,TRIMTAB_HEARTBEAT_DIR,TRIMTAB_RUN_DIR,PET_RDZV_ENDPOINT,PET_NNODES"
    plan = planned(f"import os; print([os.environ[k] for k in '{words}'.split(',')])")
    backend.submit(plan)
    found = reaches(backend, plan, "succeeded")
    assert {member.node for member in found.members} == set(RUNNERS)
    assert {(member.termination or {})["class"] for member in found.members} == {"done"}
    for member in found.members:
        said = backend.read_logs(plan.name, member.index).decode()
        assert f"'{member.node}', '{member.index}', '{places['runtime']}/{member.node}/attempts/{plan.name}'" in said
        assert f"'{places['runs']}/x', '127.0.0.1:" in said and said.rstrip().endswith("'2']")
    end(world, plan)


def test_a_failing_command_fails_the_gang_with_its_own_words(
    world: World, backend: KubeBackend, runner: Runner
) -> None:
    plan = planned(
        "import os, time\nif os.environ['JOB_COMPLETION_INDEX'] == '1': raise SystemExit(78)\ntime.sleep(300)"
    )
    backend.submit(plan)
    reaches(backend, plan, "failed")
    until(lambda: backend.fenced(plan.name))
    found = backend.observe([plan.name], 5.0)[plan.name]
    first = next(member for member in found.members if member.index == 1)
    assert first.exit_code == 78 and (first.termination or {})["code"] == 78
    assert all(running.child.poll() is not None for running in runner._running.values())
    end(world, plan)


@pytest.mark.parametrize("mode", ["terminate", "kill"])
def test_a_stop_lets_it_save_and_a_kill_does_not(
    world: World, backend: KubeBackend, runner: Runner, mode: StopMode
) -> None:
    script = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(3); print('saved', flush=True); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)"
    )
    plan = replace(planned(script), node_count=1)
    backend.submit(plan)
    until(lambda: b"ready" in backend.read_logs(plan.name, 0))
    (running,) = runner._running.values()
    backend.stop(plan.name, mode=mode)
    until(lambda: backend.fenced(plan.name))
    assert running.child.poll() is not None
    assert (b"saved" in running.log.read_bytes()) == (mode == "terminate")
    end(world, plan)

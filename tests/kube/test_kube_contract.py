"""The contract of all backends on a real API server: scheduler and Job controller are real, commands are processes.

Kubelets of three nodes are played by the runner, which really runs what the pods bound to them say. The contract names
nodes and Kubernetes chooses them: a plan is kept to the named ones by leaving out all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.backends.base import AttemptPlan, Observation
from controlplane.backends.kube.backend import KubeBackend
from controlplane.cli import cluster_nodes
from controlplane.cli.cluster_runner import Runner
from controlplane.clock import SystemClock
from tests.backends import test_backend_contract as contract
from tests.backends.benching import SLEEP, Bench, made
from tests.backends.test_backend_contract import *  # noqa: F403  # the tests themselves
from tests.kube.conftest import NAMESPACE, NODES, World, until

PLACES = {"node-0": "node-920", "node-1": "node-921", "node-2": "node-922"}
NAMES = {there: name for name, there in PLACES.items()}
EVERYWHERE = {*PLACES.values(), *(f"node-{index:03d}" for index in range(NODES))}


class KubeBench(Bench):
    """Plans that the scheduler can only place on the named nodes, and its answers in the contract's names."""

    def plan(self, command: tuple[str, ...] = SLEEP, nodes: tuple[str, ...] = ("node-0", "node-1")) -> AttemptPlan:
        others = EVERYWHERE - {PLACES[name] for name in nodes}
        kept = {"node_count": len(nodes), "gpus_per_node": 8, "grace_s": 5.0, "excluded": tuple(sorted(others))}
        return replace(super().plan(command, nodes), nodes=(), **kept)  # type: ignore[arg-type]  # a test's shorthand

    def places(self, found: Observation) -> tuple[str, ...]:
        return tuple(sorted(NAMES[node] for node in found.nodes))

    def capacity(self, nodes: tuple[str, ...]) -> dict[str, bool]:
        found = self.backend.capacity([PLACES.get(name, name) for name in nodes])
        return {NAMES[one.node]: one.free for one in found}


@pytest.fixture(scope="module")
def kubelets(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("kubelets")
    for name in PLACES.values():
        world.admin.create("/api/v1/nodes", cluster_nodes.node(int(name[5:]), "runner"))
    mounts = {"/var/lib/trimtab/runs": str(folder / "runs"), "/run/trimtab": f"{folder}/nodes/{{node}}"}
    runner = Runner(world.admin, NAMESPACE, tuple(PLACES.values()), folder / "pods", mounts, SystemClock())
    runner.start()
    yield
    runner.stop()
    for name in PLACES.values():
        world.admin.delete(f"/api/v1/nodes/{name}")


@pytest.fixture
def bench(world: World, backend: KubeBackend, kubelets: None) -> Iterator[Bench]:
    until(lambda: len(backend.capacity(tuple(PLACES.values()))) == 3)
    benched = KubeBench(backend)
    yield from made(backend, benched)
    for name in benched.names:
        world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}")
        until(lambda name=name: world.pods(name) == [])


def test_all_of_the_contract_is_here() -> None:
    whole = {name for name in vars(contract) if name.startswith("test_")}
    assert whole and whole < set(globals())

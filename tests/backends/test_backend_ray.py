"""The contract of all backends on a real Ray of two raylets with token authentication, and what is Ray's own.

What the control plane does goes over HTTP; drivers, actors, keepers and launchers are the real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.backends.base import AttemptPlan, SubmitConflict
from controlplane.backends.ray.backend import RayBackend
from controlplane.backends.ray.cluster import RayCluster
from controlplane.backends.ray.http import RayHttp
from tests.backends import test_backend_contract as contract
from tests.backends.benching import SLEEP, Bench, until
from tests.backends.local_ray import LocalRay
from tests.backends.test_backend_contract import *  # noqa: F403  # the tests themselves

TOKEN = "a-token-of-a-test-" * 2
LATE = {"test_capacity_says_what_is_there_and_free", "test_a_forecast_makes_nothing"}
"""tests that ask for the nodes as they are: they wait until those of earlier tests are free"""


@pytest.fixture(scope="module")
def ray() -> Iterator[LocalRay]:
    # GPUs for two attempts: one may end while the next begins
    found = LocalRay(TOKEN, {"RAY_prestart_worker_first_driver": "0"}, ("node-0", "node-1"), gpus=16)
    try:
        found.start()
        yield found
    finally:
        found.close()


class RayBench(Bench):
    """Plans for whole nodes of 8 GPUs."""

    def plan(self, command: tuple[str, ...] = SLEEP, nodes: tuple[str, ...] = ("node-0", "node-1")) -> AttemptPlan:
        return replace(super().plan(command, nodes), node_count=len(nodes), gpus_per_node=8, grace_s=5.0)


def opened(ray: LocalRay, token: str = TOKEN) -> RayBackend:
    # this Ray had no head before it: what it does not know was never there
    return RayBackend(RayCluster(ray.address, RayHttp(lambda: token)), gone_s=lambda: 0.0)


@pytest.fixture(scope="module")
def left(ray: LocalRay) -> Iterator[list[str]]:
    """Attempts that were told to end, and have ended when the last test is over."""
    names: list[str] = []
    yield names
    for name in names:
        until(lambda name=name: opened(ray).fenced(name))


@pytest.fixture
def bench(ray: LocalRay, left: list[str], request: pytest.FixtureRequest) -> Iterator[Bench]:
    benched = RayBench(opened(ray))
    if request.node.name in LATE:
        until(lambda: benched.capacity(("node-0", "node-1")) == {"node-0": True, "node-1": True})
    yield benched
    for name in benched.names:
        benched.backend.stop(name, mode="terminate")
    left += benched.names


def test_all_of_the_contract_is_here() -> None:
    whole = {name for name in vars(contract) if name.startswith("test_")}
    assert whole and whole < set(globals())


@pytest.mark.parametrize("changes", [{"run_uid": "other"}])
def test_a_name_that_means_something_else_is_a_conflict(bench: Bench, changes: dict[str, object]) -> None:
    """The contract's, all three ways of it on one attempt: each takes Ray seconds to start."""
    plan = bench.plan()
    bench.backend.submit(plan)
    for other in (changes, {"attempt_no": 2}, {"spec_hash": "other"}):
        with pytest.raises(SubmitConflict, match=plan.name):
            bench.backend.submit(replace(plan, **other))  # type: ignore[arg-type]  # a test's shorthand
    assert bench.reaches(plan.name, "running").state == "running", "it is left alone"

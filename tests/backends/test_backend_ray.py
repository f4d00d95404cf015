"""The contract of all backends on a real Ray of two raylets with token authentication, and what is Ray's own.

What the control plane does goes over HTTP; drivers, actors, keepers and launchers are the real processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from controlplane.api.app import create_app
from controlplane.backends.base import AttemptPlan, BackendUnavailable
from controlplane.backends.ray.backend import RayBackend
from controlplane.backends.ray.cluster import RayCluster
from controlplane.backends.ray.http import Answer, RayHttp
from controlplane.cli import serve
from controlplane.clock import SystemClock
from controlplane.settings import Settings
from jobs.spec import load_template
from tests.api.conftest import Api, listening
from tests.backends import test_backend_contract as contract
from tests.backends.benching import FAMILY, HANDLER, SLEEP, Bench, carriers, launchers, ready, until
from tests.backends.local_ray import LocalRay
from tests.backends.test_backend_contract import *  # noqa: F403  # the tests themselves

TOKEN = "a-token-of-a-test-" * 2
PLAN_OF_ONE = AttemptPlan("one", "uid", 1, "hash", ("node-0",), 1, SLEEP, {}, 1, 8)
SHARING = {
    "test_an_attempt_runs_on_its_nodes",
    "test_submitting_again_adopts_and_starts_nothing",
    "test_a_name_that_means_something_else_is_a_conflict",
}
"""tests that look at one attempt on both nodes"""
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
    """Plans for whole nodes of 8 GPUs. `shared` holds the plan that several tests look at, or will."""

    def __init__(self, backend: RayBackend, shared: list[AttemptPlan] | None = None) -> None:
        super().__init__(backend)
        self._shared = shared

    def plan(self, command: tuple[str, ...] = SLEEP, nodes: tuple[str, ...] = ("node-0", "node-1")) -> AttemptPlan:
        if self._shared:
            return self._shared[0]
        made = replace(super().plan(command, nodes), node_count=len(nodes), gpus_per_node=8, grace_s=5.0)
        if self._shared is not None:
            self._shared.append(made)
            self.names.remove(made.name)
        return made


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


@pytest.fixture(scope="module")
def shared() -> list[AttemptPlan]:
    """The attempt that sleeps on both nodes, once it has been submitted: it takes Ray seconds to start one."""
    return []


@pytest.fixture
def bench(ray: LocalRay, left: list[str], shared: list[AttemptPlan], request: pytest.FixtureRequest) -> Iterator[Bench]:
    asked = request.node.originalname
    benched = RayBench(opened(ray), shared if asked in SHARING else None)
    if asked in LATE:
        for plan in shared:
            benched.backend.stop(plan.name, mode="terminate")
        until(lambda: benched.capacity(("node-0", "node-1")) == {"node-0": True, "node-1": True})
    yield benched
    for name in benched.names:
        benched.backend.stop(name, mode="terminate")
    left += benched.names


def test_all_of_the_contract_is_here() -> None:
    whole = {name for name in vars(contract) if name.startswith("test_")}
    assert whole and whole < set(globals())


class Lossy(RayHttp):
    """Loses the answer to the next submission."""

    losing = True

    def call(self, method: str, address: str, path: str, body: object = None) -> Answer:
        found = super().call(method, address, path, body)
        if method == "POST" and self.losing:
            self.losing = False
            raise BackendUnavailable("the answer was lost")
        return found


def launcher(name: str, index: int) -> psutil.Process:
    """The launcher of one member."""
    return next(one for one in launchers(name) if one.environ()["JOB_COMPLETION_INDEX"] == str(index))


def test_a_driver_that_is_killed_leaves_nobody(ray: LocalRay, bench: Bench) -> None:
    """Also: an answer that was lost, and children that left their parent and its session."""
    plan = bench.plan(FAMILY)
    lossy = RayBackend(RayCluster(ray.address, Lossy(lambda: TOKEN)))
    with pytest.raises(BackendUnavailable, match="lost"):
        lossy.submit(plan)
    assert lossy.submit(plan).adopted
    bench.reaches(plan.name, "running")
    ready(bench, plan.name, 2)
    until(lambda: len(carriers(plan.name)) == 6)  # two launchers, two commands, two grandchildren without a parent
    job = RayCluster(ray.address, RayHttp(lambda: TOKEN)).job(plan.name) or {}
    psutil.Process(int(job["driver_info"]["pid"])).kill()
    until(lambda: bench.backend.fenced(plan.name))
    assert carriers(plan.name) == []
    found = bench.look(plan.name)
    assert found.state == "failed" and not any(member.alive for member in found.members)
    assert {member.exit_code for member in found.members} == {137}
    # with the driver's node its output is lost: then only time tells that nobody of it is left
    (ray.folder / "s" / "session_latest" / "logs" / f"job-driver-{plan.name}.log").unlink()
    assert not RayBackend(RayCluster(ray.address, RayHttp(lambda: TOKEN)), gone_s=lambda: 3600.0).fenced(plan.name)
    until(lambda: bench.backend.fenced(plan.name))
    bench.backend.stop(plan.name, mode="kill")


def test_nobody_hears_a_server_with_another_token_or_another_address(ray: LocalRay) -> None:
    for token, address in (("", ray.address), ("another", ray.address), (TOKEN, "http://127.0.0.1:1")):
        backend = RayBackend(RayCluster(address, RayHttp(lambda token=token: token)))  # type: ignore[misc]  # as above
        assert backend.observe(["any"], 5.0)["any"].state == "unknown"
        for call in (backend.fenced, lambda name, it=backend: it.stop(name, mode="kill"), backend.capacity):
            with pytest.raises(BackendUnavailable):
                call("any")  # type: ignore[operator]  # each takes a name
        assert backend.forecast(PLAN_OF_ONE).unasked


def test_a_server_that_leads_no_more_starts_and_stops_nothing(ray: LocalRay) -> None:
    backend = RayBackend(RayCluster(ray.address, RayHttp(lambda: TOKEN), lambda: False))
    with pytest.raises(BackendUnavailable, match="lease"):
        backend.submit(PLAN_OF_ONE)
    assert backend.observe([PLAN_OF_ONE.name], 5.0)[PLAN_OF_ONE.name].state == "absent"


def test_what_a_young_head_does_not_know_may_be_an_earlier_ones(ray: LocalRay) -> None:
    """A raylet outlives its head by a minute at most."""
    cluster = RayCluster(ray.address, RayHttp(lambda: TOKEN))
    assert 0 < cluster.nodes().head_age_s() < 3000
    assert not RayBackend(cluster, gone_s=lambda: 3600.0).fenced("never")
    assert RayBackend(cluster, gone_s=lambda: 0.0).fenced("never")


def job(name: str) -> dict[str, Any]:
    """A job of two nodes that saves when it is told to, and speaks no contract."""
    found = load_template("toy").to_dict()
    found["metadata"]["name"] = name
    found["spec"] |= {"command": list(HANDLER), "contractLevel": 0}
    found["spec"]["faults"]["graceSeconds"] = 5.0
    return found


@pytest.fixture
def api(ray: LocalRay, tmp_path: Path) -> Iterator[Api]:
    """The server as `trimtab serve --backend ray` builds it, its loops running."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    settings = Settings(
        data=tmp_path / "data",
        dashboard=False,
        backend="ray",
        ray_address=ray.address,
        ray_token_file=str(tmp_path / "token"),
    )
    server = serve.build(settings, ("127.0.0.1", 0), SystemClock())
    server.start()
    context: Any = server.context
    try:
        with listening(create_app(context)) as url, httpx2.Client(timeout=30, trust_env=False) as http:
            unused: Any = None
            yield Api(url, context, unused, unused, unused, http)
    finally:
        server.stop()


def test_a_run_goes_on_after_one_of_its_members_was_killed(ray: LocalRay, bench: Bench, api: Api) -> None:
    """The whole way: submitted over the API, a launcher killed, a second attempt by decision, stopped by a person."""
    operator = api.token(role="operator")

    def comes_true(question: Callable[[], object]) -> None:
        def ask() -> object:
            for node in ("node-0", "node-1"):
                api.report(node)
            return question()

        until(ask)

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = api.call("GET", f"runs/{run}", operator).json()
        return found

    comes_true(lambda: True)
    answer = api.call("POST", "runs", operator, json={"spec": job("on-ray")})
    assert (answer.status_code, answer.json()["backend"]) == (201, "ray"), answer.text
    run = answer.json()["id"]
    bench.names += [f"{run}-1", f"{run}-2"]
    comes_true(lambda: b"ready" in bench.backend.read_logs(f"{run}-1", 1))
    launcher(f"{run}-1", 1).kill()
    comes_true(lambda: bench.look(f"{run}-2").state == "running")
    ended = next(one for one in shown()["attempts"] if one["no"] == 1)
    assert (ended["state"], ended["end"]["class"], ended["end"]["node"]) == ("failed", "killed", "node-1")
    assert ended["end"]["message"] == "its launcher was ended by SIGKILL"
    first = bench.look(f"{run}-1")
    assert [(one.node, one.exit_code) for one in first.members] == [("node-0", 75), ("node-1", 137)]
    beats = ray.folder / "run" / "node-0" / "attempts" / f"{run}-1"
    assert json.loads((beats / "save-by.json").read_text()), "the other one was told to save, and by when"
    assert carriers(f"{run}-1") == []
    assert api.call("POST", f"runs/{run}/stop", operator).status_code < 300
    comes_true(lambda: shown()["status"] == "cancelled")
    assert carriers(f"{run}-2") == []

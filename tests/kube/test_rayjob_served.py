"""`trimtab serve` with Ray switched on: a job that asks for it becomes a RayJob, under the rights that ship."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from controlplane.api.app import create_app
from controlplane.backends.kube import rayjob_manifests
from controlplane.cli import cluster_access, serve
from controlplane.clock import SystemClock
from controlplane.settings import Settings
from jobs.spec import load_template
from tests.api.conftest import Api, listening
from tests.kube import kuberay_operator
from tests.kube.conftest import NAMESPACE, World, rules, until
from tests.kube.kuberay_operator import RAYJOBS, Operator

NODES = [f"node-{index:03d}" for index in range(4)]
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"


@pytest.fixture(scope="module")
def kubeconfig(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chart's server holds with ray.enabled, in a file."""
    kuberay_operator.install(world.admin)
    given = {"role": [*rules("controller"), *rules("ray")], "cluster": rules("reader")}
    token = cluster_access.account(world.admin, NAMESPACE, "trimtab-served", given)
    return world.cluster.write_kubeconfig(tmp_path_factory.mktemp("served") / "kubeconfig", token, NAMESPACE)


@pytest.fixture
def settings(kubeconfig: Path, tmp_path: Path) -> Settings:
    return Settings(
        data=tmp_path / "data",
        dashboard=False,
        backend="kube",
        kube_config=str(kubeconfig),
        kube_namespace=NAMESPACE,
        kube_image="trimtab-trainer:test",
        kube_volume_path=str(tmp_path / "runs"),
        kube_ray=True,
    )


@contextmanager
def served(settings: Settings) -> Iterator[Api]:
    """The server as `trimtab serve` builds it, its loops running."""
    server = serve.build(settings, ("127.0.0.1", 0), SystemClock())
    server.start()
    context: Any = server.context
    try:
        with listening(create_app(context)) as url, httpx2.Client(timeout=30, trust_env=False) as http:
            unused: Any = None
            yield Api(url, context, unused, unused, unused, http)
    finally:
        server.stop()


def job(*, ray: bool) -> dict[str, Any]:
    found = load_template("toy").to_dict()
    found["metadata"]["name"] = "on-ray"
    found["spec"]["kubernetes"] = {"ray": ray}
    found["spec"]["contractLevel"] = 0
    found["spec"]["command"] = ["{python}", "-m", "verl.trainer.main_ppo"]
    return found


def comes_true(api: Api, question: Callable[[], object]) -> None:
    """Asks until it is true, while every agent goes on reporting."""

    def ask() -> object:
        for node in NODES:
            api.report(node)
        return question()

    until(ask)


def test_a_run_that_asks_for_ray_is_a_rayjob_from_submission_to_end(world: World, settings: Settings) -> None:
    with served(settings) as api:
        operator = api.token(role="operator")
        for node in NODES:
            api.report(node)
        answer = api.call("POST", "runs", operator, json={"spec": job(ray=True)})
        assert (answer.status_code, answer.json()["backend"]) == (201, "rayjob"), answer.text
        run = answer.json()["id"]
        ray = Operator(world.admin, f"{run}-1")
        try:
            comes_true(
                api, lambda: world.admin.get(RAYJOBS, labelSelector=f"trimtab.dev/attempt-name={run}-1")["items"]
            )
            comes_true(api, lambda: not ray.rayjob()["spec"]["suspend"])
            assert "verl.trainer.main_ppo" in ray.rayjob()["spec"]["entrypoint"]
            assert ray.rayjob()["spec"]["jobId"] == f"{run}-1"
            ray.run()

            def shown() -> dict[str, Any]:
                found: dict[str, Any] = api.call("GET", f"runs/{run}", operator).json()
                return found

            comes_true(api, lambda: len(shown()["attempts"][0]["nodes"]) == 2)
            ray.say("SUCCEEDED", "Complete")
            ray.shut_down()
            comes_true(api, lambda: shown()["status"] == "succeeded")
            assert len(world.admin.get(RAYJOBS, labelSelector="trimtab.dev/attempt=1")["items"]) == 1
        finally:
            ray.clear()


def test_a_server_that_starts_again_makes_the_same_tokens(world: World, settings: Settings) -> None:
    found = []
    for _ in range(2):
        with served(settings) as api:
            backend: Any = api.context.backends["rayjob"]
            found.append(backend.token("on-ray-1"))
    assert found[0] == found[1]
    with served(replace(settings, data=settings.data / "another")) as api:
        other: Any = api.context.backends["rayjob"]
        assert other.token("on-ray-1") != found[0]


def test_the_preflight_of_a_ray_job_shows_what_kuberay_would_get(settings: Settings) -> None:
    with served(settings) as api:
        for node in NODES:
            api.report(node)
        asked = {"json": {"spec": job(ray=True)}}
        comes_true(
            api, lambda: api.call("POST", "runs/validate", api.token(role="viewer"), **asked).json()["cluster"]["asked"]
        )
        found = api.call("POST", "runs/validate", api.token(role="viewer"), **asked).json()
        assert found["cluster"]["backend"] == "rayjob" and "kind: RayJob" in found["cluster"]["manifests"]
        told = [one["sentence"] for one in found["checks"] if one["name"] == "manifests"]
        assert told == ["the API server takes the RayJob and the Secret"]
        assert rayjob_manifests.ray_token(b"", "on-ray-dryrun-1") not in found["cluster"]["manifests"]
        plain = api.call("POST", "runs/validate", api.token(role="viewer"), json={"spec": job(ray=False)}).json()
        assert plain["cluster"]["backend"] == "kube"


def test_a_server_without_ray_says_so_at_once(settings: Settings) -> None:
    with served(replace(settings, kube_ray=False)) as api:
        assert sorted(api.context.backends) == ["kube", "local"]
        refused = api.call("POST", "runs", api.token(role="operator"), json={"spec": job(ray=True)})
        assert refused.status_code == 422 and refused.json()["problems"][0]["path"] == "kubernetes.ray"
        told = api.call("POST", "runs/validate", api.token(role="viewer"), json={"spec": job(ray=True)}).json()
        assert told["problems"] == refused.json()["problems"]

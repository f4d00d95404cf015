"""A real Kubernetes control plane a session, with simulated nodes, and the controller's own rights on it.

Missing programs are a failure, not a skip: `make test` builds them first.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client as k8s

from controlplane.backends.kube.api import Json, KubeApi
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.bucket import TokenBucket
from controlplane.backends.kube.options import KubeOptions
from controlplane.cli import cluster_access, cluster_nodes
from controlplane.cli.cluster_access import rules
from controlplane.cli.cluster_parts import Cluster
from controlplane.clock import SystemClock

NODES, MORTAL = 16, 4
NAMESPACE = "trimtab-jobs"
OPTIONS = KubeOptions(namespace=NAMESPACE, image="trimtab-trainer:test")


def until(question: Callable[[], object], seconds: float = 60.0, every_s: float = 0.05) -> None:
    """Asks until it is true; the test fails when it never is."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(every_s)


@dataclass
class World:
    """The cluster, its administrator, and ways to do what people and kubelets do."""

    cluster: Cluster
    admin: KubeApi

    def account(self, name: str, given: dict[str, list[dict[str, object]]]) -> KubeApi:
        """A service account with exactly these rules (`role` in the jobs' namespace, `cluster` everywhere)."""
        token = cluster_access.account(self.admin, NAMESPACE, name, given)
        return self.as_user(token)

    def as_user(self, token: str) -> KubeApi:
        settings = k8s.Configuration()
        settings.host, settings.ssl_ca_cert, settings.retries = (
            self.cluster.server,
            str(self.cluster.certificate),
            False,
        )
        settings.api_key, settings.api_key_prefix = {"authorization": token}, {"authorization": "Bearer"}
        return KubeApi(k8s.ApiClient(settings), TokenBucket(rate_per_s=500, burst=1000))

    def pods(self, attempt: str) -> list[Json]:
        found = self.admin.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=f"trimtab.dev/attempt-name={attempt}"
        )
        return list(found["items"])

    def end_pod(self, name: str, code: int, said: dict[str, object] | None = None) -> None:
        """A pod's command ends with a code, and its launcher's last words."""
        notes = {"trimtab.dev/exit": str(code), "trimtab.dev/said": json.dumps(said) if said else ""}
        self.admin.patch(
            f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", {"metadata": {"annotations": notes}}, kind="merge"
        )

    @contextmanager
    def silent(self, *kubelets: str) -> Iterator[None]:
        """The kubelets of some nodes (`kwok`, `kwok-mortal`) stand still: pods that are deleted stay Terminating."""
        for name in kubelets:
            self.cluster.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            for name in kubelets:
                self.cluster.signal(name, signal.SIGCONT)

    def node(self, name: str) -> Json:
        return self.admin.get(f"/api/v1/nodes/{name}")


_clusters: list[Cluster] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The session's cluster ends with the last test of this room: an idle one takes a twentieth of a core."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        for cluster in _clusters:
            cluster.end()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("cluster")
    cluster = cluster_nodes.open_cluster(folder, NODES, lambda _: None, mortal=MORTAL)
    _clusters.append(cluster)
    try:
        admin = cluster_nodes.administrator(cluster)
        cluster_access.namespace(admin, NAMESPACE)
        yield World(cluster, admin)
    finally:
        cluster.end()


@pytest.fixture(scope="session")
def controller_api(world: World) -> KubeApi:
    """What the controller in production holds: the shipped rules, through a service-account token."""
    cluster = [*rules("reader"), *rules("actuator")]
    return world.account("trimtab-controller", {"role": rules("controller"), "cluster": cluster})


@pytest.fixture
def backend(controller_api: KubeApi) -> Iterator[KubeBackend]:
    found = KubeBackend(controller_api, OPTIONS, SystemClock())
    found.start()
    until(lambda: max(found.jobs.age_s, found.pods.age_s, found.nodes.age_s) < 60)
    yield found
    found.stop_watching()

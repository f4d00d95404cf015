"""The chart installed, on simulated kubelets: objects, rights, admission and secrets are real, no program runs."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlplane.backends.kube.api import Json, NotFound
from tests.kube.conftest import World, until
from tests.kube.helm_chart import Helm, make_namespace, papers

_numbers = itertools.count(1)


@dataclass
class Installed:
    """A release in a restricted namespace, with its jobs in another."""

    world: World
    helm: Helm
    space: str
    jobs: str

    def upgrade(self, *settings: str) -> None:
        self.helm.upgrade("--set", ",".join([f"jobs.namespace={self.jobs}", *settings]))

    def secret(self, name: str, namespace: str = "") -> dict[str, bytes]:
        return papers(self.world.admin.get(f"/api/v1/namespaces/{namespace or self.space}/secrets/trimtab-{name}"))

    def may(self, verb: str, resource: str, namespace: str = "") -> bool:
        """Whether the server's account may."""
        asked: dict[str, Any] = {"verb": verb, "resource": resource, "namespace": namespace}
        asked["group"] = "batch" if resource == "jobs" else ""
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": f"system:serviceaccount:{self.space}:trimtab-server", "resourceAttributes": asked},
        }
        answer = self.world.admin.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    def running(self, namespace: str) -> set[str]:
        """The parts whose pods run."""
        pods = self.world.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return {
            one["metadata"]["labels"]["app.kubernetes.io/component"]
            for one in pods
            if (one.get("status") or {}).get("phase") == "Running"
        }

    def _released(self, found: Json) -> bool:
        """Whether this release made it: other tests' accounts have roles of like names."""
        notes = found["metadata"].get("annotations") or {}
        return notes.get("meta.helm.sh/release-namespace") == self.space

    def left(self) -> list[str]:
        """Objects of the release that are still there."""
        found: list[Json] = []
        for space in (self.space, self.jobs):
            for group, kinds in (("apis/apps/v1", "deployments daemonsets"), ("api/v1", "secrets services")):
                for kind in kinds.split():
                    found += self.world.admin.get(f"/{group}/namespaces/{space}/{kind}")["items"]
        for kind in ("clusterroles", "clusterrolebindings"):
            everywhere = self.world.admin.get(f"/apis/rbac.authorization.k8s.io/v1/{kind}")["items"]
            found += [one for one in everywhere if self._released(one)]
        names = [one["metadata"]["name"] for one in found]
        return [name for name in names if name.startswith(("trimtab-", f"{self.space}-", "sh.helm."))]


@pytest.fixture
def installed(world: World, tmp_path: Path) -> Iterator[Installed]:
    number = next(_numbers)
    space, jobs = f"real-{number}", f"real-{number}-jobs"
    make_namespace(world.admin, space, "restricted")
    make_namespace(world.admin, jobs, "privileged")
    found = Installed(world, Helm(tmp_path, space, kubeconfig=world.cluster.kubeconfig), space, jobs)
    found.upgrade()
    yield found
    found.helm.run("uninstall", found.helm.release)
    for name in (space, jobs):
        world.admin.delete(f"/api/v1/namespaces/{name}")


def test_an_installation_keeps_its_authority_and_leaves_nothing(installed: Installed) -> None:
    first = {name: installed.secret(name) for name in ("ca", "server-tls", "dashboard-tls")}
    agent = installed.secret("agent-tls", installed.jobs)
    assert first["ca"]["tls.crt"] == first["server-tls"]["ca.crt"] == agent["ca.crt"]
    until(lambda: installed.may("create", "jobs", installed.jobs) and installed.may("list", "nodes"))
    assert not installed.may("create", "jobs", installed.space) and not installed.may("patch", "nodes")

    installed.upgrade("server.log=debug", "nodeActuator.enabled=true")
    assert {name: installed.secret(name) for name in first} == first, "an upgrade changes no certificate"
    until(lambda: installed.may("patch", "nodes"))

    installed.upgrade("dashboard.hosts={board.example}")
    again = {name: installed.secret(name) for name in first}
    assert (again["ca"], again["server-tls"]) == (first["ca"], first["server-tls"])
    assert again["dashboard-tls"]["tls.crt"] != first["dashboard-tls"]["tls.crt"], "a new name needs a new certificate"
    assert again["dashboard-tls"]["ca.crt"] == first["ca"]["tls.crt"]
    until(lambda: not installed.may("patch", "nodes"))

    installed.helm.done("uninstall", installed.helm.release)
    until(lambda: installed.left() == [])


def test_an_authority_of_ones_own_signs(world: World, installed: Installed) -> None:
    made = installed.secret("ca")
    data = {name: base64.b64encode(value).decode() for name, value in made.items()}
    head = {"name": "ours", "namespace": installed.space}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": head, "type": "kubernetes.io/tls", "data": data}
    world.admin.create(f"/api/v1/namespaces/{installed.space}/secrets", body)
    installed.upgrade("tls.caSecret=ours")
    with pytest.raises(NotFound):
        installed.secret("ca")
    assert installed.secret("server-tls")["ca.crt"] == made["tls.crt"]


def test_its_pods_are_let_in_where_they_belong(world: World, installed: Installed) -> None:
    """The release's namespace enforces the restricted level; the simulated kubelets start what was admitted."""
    claim = {"name": "trimtab-runs", "namespace": installed.space}
    size = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume: Json = {
        **size,
        "capacity": {"storage": "1Gi"},
        "nfs": {"server": "nfs.example", "path": "/"},
        "claimRef": claim,
    }
    wanted: Json = {**size, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": installed.space}
    head = {"name": installed.space}
    world.admin.create(
        "/api/v1/persistentvolumes",
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": head, "spec": volume},
    )
    try:
        world.admin.create(
            f"/api/v1/namespaces/{installed.space}/persistentvolumeclaims",
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim, "spec": wanted},
        )
        until(lambda: installed.running(installed.space) == {"server", "dashboard"})
        until(lambda: installed.running(installed.jobs) == {"agent"})
    finally:
        world.admin.delete(f"/api/v1/persistentvolumes/{installed.space}")

"""Rights in a cluster as the chart ships them: a service account bound to rule files, and a kubeconfig that is it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from controlplane.backends.kube.api import Json, KubeApi
from controlplane.cli.cluster_parts import Cluster

RULES = Path(__file__).resolve().parents[2] / "deploy" / "trimtab" / "files"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def rules(name: str) -> list[Json]:
    """The rules of one of the chart's files: controller, reader or actuator."""
    found: list[Json] = yaml.safe_load((RULES / f"{name}-rules.yaml").read_text())
    return found


def namespace(admin: KubeApi, name: str) -> None:
    """A namespace of that name."""
    admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


def account(admin: KubeApi, space: str, name: str, given: Mapping[str, Sequence[Json]], life_s: int = 7200) -> str:
    """A service account with exactly these rules (`role` in its namespace, `cluster` everywhere); returns a token."""
    head = {"name": name, "namespace": space}
    accounts = f"/api/v1/namespaces/{space}/serviceaccounts"
    admin.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": head})
    if given.get("role"):
        _bind(admin, f"{RBAC}/namespaces/{space}", "Role", head, name, space, given["role"])
    if given.get("cluster"):
        _bind(admin, RBAC, "ClusterRole", {"name": name}, name, space, given["cluster"])
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": life_s}}
    return str(admin.create(f"{accounts}/{name}/token", asked)["status"]["token"])


def _bind(admin: KubeApi, place: str, kind: str, head: Json, name: str, space: str, given: Sequence[Json]) -> None:
    version = "rbac.authorization.k8s.io/v1"
    kinds = f"{kind.lower()}s"
    admin.create(f"{place}/{kinds}", {"apiVersion": version, "kind": kind, "metadata": head, "rules": list(given)})
    binding = {
        "apiVersion": version,
        "kind": f"{kind}Binding",
        "metadata": head,
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": space}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
    }
    admin.create(f"{place}/{kinds[:-1]}bindings", binding)


def controller_kubeconfig(cluster: Cluster, admin: KubeApi, space: str) -> Path:
    """A kubeconfig with what the controller and its node actuator hold in production, and nothing else."""
    given = {"role": rules("controller"), "cluster": [*rules("reader"), *rules("actuator")]}
    token = account(admin, space, "trimtab-controller", given, life_s=86_400)
    return cluster.write_kubeconfig(cluster.folder / "controller.kubeconfig", token, space)

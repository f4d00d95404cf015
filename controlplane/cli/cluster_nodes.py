"""Simulated nodes of a cluster: registered through the real API, waited for, counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controlplane.backends.kube.api import AlreadyExists, Json, KubeApi, connect
from controlplane.backends.kube.bucket import TokenBucket
from controlplane.cli import cluster_parts
from controlplane.cli.cluster_parts import MORTAL, Cluster, ClusterError

READY_S = 180.0
RACK = 16


def administrator(cluster: Cluster) -> KubeApi:
    """The cluster's API for its administrator, without a limit that a person would feel."""
    return KubeApi(connect(str(cluster.kubeconfig)), TokenBucket(rate_per_s=1000, burst=2000))


def node(index: int, kubelet: str = "kwok") -> Json:
    """A simulated MI300X node; names sort by number."""
    name = f"node-{index:04d}" if index >= 1000 else f"node-{index:03d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "trimtab.dev/simulated": "true",
                "trimtab.dev/kubelet": kubelet,
                "topology.kubernetes.io/rack": f"rack-{index // RACK}",
                "feature.node.kubernetes.io/amd-gpu": "true",
            },
        },
    }


def add_nodes(api: KubeApi, count: int, say: Callable[[str], None], *, mortal: int = 0, runners: int = 0) -> list[str]:
    """Registers nodes and waits until all are Ready; the first `runners`, the last `mortal` have other kubelets."""

    def kind(index: int) -> str:
        return "runner" if index < runners else "mortal" if index >= count - mortal else "kwok"

    wanted = [node(index, kind(index)) for index in range(count)]
    names = [one["metadata"]["name"] for one in wanted]

    def register(one: Json) -> None:
        try:
            api.create("/api/v1/nodes", one)
        except AlreadyExists:
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(register, wanted))
    say(f"{count} simulated nodes registered")
    deadline, told = time.monotonic() + READY_S, 0.0
    while True:
        ready = ready_nodes(api)
        if len(ready & set(names)) == count:
            say(f"{count} nodes are Ready, 8 simulated MI300X each")
            return names
        if time.monotonic() > deadline:
            raise ClusterError(f"only {len(ready)} of {count} nodes were Ready within {READY_S:.0f} s")
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"{len(ready)} of {count} nodes are Ready")
        time.sleep(0.5)


def ready_nodes(api: KubeApi) -> set[str]:
    """The names of the nodes whose kubelet says Ready."""
    found: set[str] = set()
    token = ""
    while True:
        page = api.get("/api/v1/nodes", limit=500, **{"continue": token})
        for one in page["items"]:
            conditions = (one.get("status") or {}).get("conditions") or ()
            if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
                found.add(one["metadata"]["name"])
        token = page["metadata"].get("continue", "")
        if not token:
            return found


def open_cluster(
    folder: Path, nodes: int, say: Callable[[str], None], *, mortal: int = 0, runners: int = 0, watch_cache: bool = True
) -> Cluster:
    """Starts everything; the caller ends it."""
    programs = cluster_parts.find_programs()
    cluster = cluster_parts.start(folder, programs, say, watch_cache=watch_cache)
    try:
        cluster_parts.start_kubelets(cluster, programs["kwok"], nodes="trimtab.dev/kubelet=kwok")
        if mortal:
            cluster_parts.start_kubelets(cluster, programs["kwok"], "kwok-mortal", nodes=MORTAL)
        if nodes:
            add_nodes(administrator(cluster), nodes, say, mortal=mortal, runners=runners)
    except BaseException:
        cluster.end()
        raise
    return cluster

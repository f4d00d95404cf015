"""What Kubernetes does by itself about the same faults: an Indexed Job with a backoffLimit, nobody watching over it.

The Job is the one that we make, as far as it can be without us: whole nodes, one pod a node. What it needs of its own
differs: failed pods are replaced up to backoffLimit, and pods of dead nodes are evicted after Kubernetes' own default
patience (node-monitor-grace-period, then tolerationSeconds 300). Either way only the lost pod comes back, wherever the
scheduler puts it: on the faulty node too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.kube_server import POOL, Bench, until
from controlplane.backends.kube.api import Json
from controlplane.cli import cluster_access

NAMESPACE = "bare-jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PEER = "peer"
"""the pool of nodes of the peer that waits for an eviction"""


def job(name: str, size: int, pool: str) -> Json:
    """A bare Indexed Job of `size` pods with all 8 GPUs of a node each."""
    container = {
        "name": "trainer",
        "image": "trainer:bench",
        "command": ["torchrun"],
        "resources": {"limits": {"amd.com/gpu": "8"}},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": size,
            "parallelism": size,
            "completionMode": "Indexed",
            "backoffLimit": 6,
            "template": {
                "spec": {"restartPolicy": "Never", "nodeSelector": {POOL: pool}, "containers": [container]},
            },
        },
    }


class BareJob:
    """A bare Job on the bench's cluster."""

    def __init__(self, bench: Bench, size: int, pool: str) -> None:
        self.bench, self.size, self.name = bench, size, f"bare-{pool}-{size}"
        bench.admin.create(JOBS, job(self.name, size, pool))

    def running(self) -> dict[str, Json]:
        """Its pods that run and that nobody is deleting, by name."""
        query = {"labelSelector": f"job-name={self.name}", "fieldSelector": "status.phase=Running"}
        found = self.bench.admin.get(PODS, **query)["items"]
        return {one["metadata"]["name"]: one for one in found if "deletionTimestamp" not in one["metadata"]}

    def whole(self, without: str = "", patience_s: float = 300.0) -> float:
        """Waits until all of it runs, the pod `without` not counted; when that was."""
        return until(
            lambda: len(self.running().keys() - {without}) == self.size, patience_s, f"{self.name} runs whole", 0.2
        )

    def pod_on(self, node: str) -> str:
        """The name of its pod on a node."""
        return next(name for name, one in self.running().items() if one["spec"]["nodeName"] == node)

    def fail_one(self) -> float:
        """One pod ends with an error, as a rank does whose GPU erred; seconds until the gang runs whole again."""
        victim = next(iter(self.running()))
        at = time.time()
        self.bench.admin.patch(
            f"{PODS}/{victim}", {"metadata": {"annotations": {"trimtab.dev/exit": "1"}}}, kind="merge"
        )
        return self.whole(without=victim) - at

    def restart(self) -> float:
        """Suspends it, waits for its pods to go, and lets it go again: seconds until all new pods are created.

        By the Job's own counts, which its controller writes once a second: listing 1,024 pods would slow what it times.
        """
        path, at = f"{JOBS}/{self.name}", time.time()

        def pods(*kinds: str) -> int:
            status = self.bench.admin.get(path)["status"]
            return sum(int(status.get(kind) or 0) for kind in kinds)

        self.bench.admin.patch(path, {"spec": {"suspend": True}}, kind="merge")
        until(lambda: pods("active", "terminating") == 0, 300, f"the pods of {self.name} are gone", 0.2)
        self.bench.admin.patch(path, {"spec": {"suspend": False}}, kind="merge")
        return until(lambda: pods("active") == self.size, 300, f"{self.name} has its pods again", 0.2) - at

    def end(self) -> None:
        """Deletes it and waits for its pods to be gone."""
        self.bench.admin.delete(f"{JOBS}/{self.name}")
        until(lambda: not self.running(), 300, f"{self.name} is gone", 0.5)


@contextmanager
def bare_job(bench: Bench, size: int, pool: str) -> Iterator[BareJob]:
    """A bare Job that runs whole; it is gone afterwards."""
    made = BareJob(bench, size, pool)
    try:
        made.whole()
        yield made
    finally:
        made.end()


def prepare(bench: Bench) -> None:
    """The peers' namespace."""
    cluster_access.namespace(bench.admin, NAMESPACE)


def restarts(bench: Bench, size: int, tries: int, pool: str) -> tuple[float, float]:
    """Medians of some tries, each of a fresh Job, in seconds: of one failed pod restarted by the Job's own backoffLimit
    until all run, and of all pods taken down and created anew."""
    by_backoff, whole = [], []
    for _ in range(tries):
        with bare_job(bench, size, pool) as made:
            by_backoff.append(made.fail_one())
            whole.append(made.restart())
    return statistics.median(by_backoff), statistics.median(whole)

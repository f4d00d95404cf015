"""From a fault to a running gang on a real Kubernetes control plane with 1,024 simulated nodes and more.

The server's own parts run in this process as `trimtab serve` wires them (store, ingest, rules, controller, reflectors,
node actuator) over the real API server, scheduler and Job controller; only nodes are simulated. A fault enters through
ingest as an agent's batch. The clock starts at the first sample that satisfies the rule. Peers are taken in the same
run: a failed pod restarted by a Job's own backoffLimit, from the pod's end to the gang running again.

`--quick` uses 24 nodes and small gangs: to try the bench, not to publish it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from agents.readings import GPU_METRICS, Fault, fault_id
from agents.wire import Batch, Columns
from controlplane.backends.base import Backend
from controlplane.backends.kube.api import Json, KubeApi, connect
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.manifests import NAME
from controlplane.backends.kube.options import KubeOptions
from controlplane.cli import cluster_access, cluster_nodes, serve
from controlplane.cli.cluster_parts import Cluster
from controlplane.clock import SystemClock
from controlplane.loops import Leadership
from controlplane.rules import book as rule_book
from controlplane.services import runs as run_service
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.services.reconcile import Controller, Places
from controlplane.store import heartbeats, leases, runs
from controlplane.store.engine import Store
from controlplane.store.tables import Event, Node
from jobs.contract import Heartbeat
from jobs.spec import load_template, parse_job

Line = dict[str, Any]
OPTIONS = KubeOptions(image="trimtab-trainer:bench")
SPARES = 8


def line(name: str, value: float | None, target: float | None, unit: str = "s", **more: Any) -> Line:
    """One figure; lower is better for all of them."""
    rounded = None if value is None else round(value, 3)
    base = {"name": name, "value": rounded, "unit": unit, "target": target, "better": "lower"}
    return {**base, "peer": None, "peer_value": None, **more}


def spread(name: str, values: list[float], target: float | None, **more: Any) -> Line:
    """The p95 of some tries as the figure, median and maximum beside it."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))] if ordered else None
    middle = round(statistics.median(ordered), 3) if ordered else None
    most = round(ordered[-1], 3) if ordered else None
    return line(f"{name}, p95", p95, target, p50=middle, max=most, tries=len(ordered), **more)


def until(question: Callable[[], object], seconds: float, what: str) -> float:
    """Waits for it; returns when it was so, by the wall clock."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.02)
    return time.time()


class Bench:
    """One server over one cluster."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.cluster: Cluster = cluster_nodes.open_cluster(folder / "cluster", nodes, say)
        self.admin = cluster_nodes.administrator(self.cluster)
        cluster_access.namespace(self.admin, OPTIONS.namespace)
        config = cluster_access.controller_kubeconfig(self.cluster, self.admin, OPTIONS.namespace)
        self.names = [cluster_nodes.node(index)["metadata"]["name"] for index in range(nodes)]
        self.clock = SystemClock()
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        self.leadership = Leadership(self.store, leases.this_process("bench"), self.clock)
        self.api = KubeApi(connect(str(config)), may_write=lambda: self.leadership.epoch is not None)
        self.kube = KubeBackend(self.api, OPTIONS, self.clock, marks_nodes=True)
        self.ingest = Ingest(self.store, Live(self.store, self.clock), self.clock)
        self._wire(folder)
        self._greet()
        self.greeting = threading.Thread(target=self._greet_on, name="nodes", daemon=True)
        self.over = threading.Event()
        self.sequence = 0

    def _wire(self, folder: Path) -> None:
        backends: dict[str, Backend] = {"kube": self.kube}
        book = rule_book.load()
        controller = Controller(self.store, backends, book, Places(folder / "runs", "http://127.0.0.1:1"))
        watch = Watch(book, since_s=self.clock.now())
        self.loops = serve.wire_loops(
            self.store, self.leadership, watch, controller, backends, {}, self.ingest, self.clock
        )

    def start(self) -> None:
        """Everything that `trimtab serve` starts, but its API and its dashboard."""
        self.ingest.start()
        self.kube.start()
        self.leadership.campaign_once()
        for loop in self.loops.values():
            loop.start()
        self.greeting.start()
        until(lambda: max(self.kube.jobs.age_s, self.kube.pods.age_s, self.kube.nodes.age_s) < 30, 60, "the copies")

    def stop(self) -> None:
        self.over.set()
        for loop in self.loops.values():
            loop.stop()
        self.kube.stop_watching()
        self.ingest.stop()
        self.store.close()
        self.cluster.end()

    # --- nodes and trainers, simulated ---

    def _greet(self) -> None:
        """Every node is heard: its row, as its agent's batches would leave it."""
        now = self.clock.now()
        facts = {"gpus": [{"index": index} for index in range(8)]}
        with self.store.write() as session:
            known = {row.name: row for row in session.scalars(select(Node))}
            for name in self.names:
                row = known.get(name)
                if row is None:
                    row = Node(name=name, facts=facts, simulated=True, first_seen_s=now, state_since_s=now)
                    session.add(row)
                row.last_seen_s = now

    def _greet_on(self) -> None:
        while not self.over.wait(5.0):
            self._greet()

    def submit(self, nodes: int) -> str:
        """A level-1 job on so many nodes."""
        spec = load_template("toy").to_dict()
        spec["spec"]["resources"]["nodes"] = nodes
        spec["spec"]["contractLevel"] = 1
        spec["spec"]["faults"]["restarts"] = 1000
        with self.store.write() as session:
            made = run_service.submit(session, parse_job(spec), backend="kube", actor="bench", now=self.clock.now())
            run_id = made.id
        self.loops["runs"].wake()
        return run_id

    def trains(self, run_id: str, no: int, nodes: list[str]) -> None:
        """The first rank says that it trains: that proves a restart at level 1."""
        now = self.clock.now()
        with self.store.read() as session:
            epoch = runs.attempt_of(session, run_id, no).epoch
        beat = Heartbeat(run_id, no, epoch, 0, len(nodes), nodes[0], 1, "train", 1, 1, 1, None, now, now, 0.5)
        with self.store.write() as session:
            heartbeats.put(session, [beat], now=now)

    def hit(self, *nodes: str) -> float:
        """One GPU of each node reports an uncorrectable memory error, in the batch of its agent; returns when."""
        at = time.time()
        for node in nodes:
            self.sequence += 1
            fault = Fault(
                id=fault_id(node, "boot", "hbm-uncorrectable", "gpu3", at),
                rule="hbm-uncorrectable",
                severity="critical",
                action="restart",
                node=node,
                entity="gpu3",
                state="firing",
                onset_s=at,
                last_clean_s=at - 1,
                observed_s=at,
                value=1.0,
                threshold=1.0,
                sentence=f"GPU 3 of {node} reported 1 uncorrectable HBM error",
            )
            self.ingest.submit(_batch(node, self.sequence, at, fault), time.time())
        return at

    # --- what is looked at ---

    def pods(self, attempt: str) -> list[Json]:
        """An attempt's pods in the copy."""
        return [pod for pod in self.kube.pods.objects().values() if pod["metadata"]["labels"].get(NAME) == attempt]

    def running(self, attempt: str) -> int:
        return sum((pod.get("status") or {}).get("phase") == "Running" for pod in self.pods(attempt))

    def moment(self, kind: str, since: float, **where: Any) -> float | None:
        """When the first line of a kind was written to the timeline after a moment."""
        query = select(Event.at_s).where(Event.kind == kind, Event.at_s >= since - 1).order_by(Event.at_s)
        for name, value in where.items():
            query = query.where(getattr(Event, name) == value)
        with self.store.read() as session:
            return session.scalars(query).first()

    def attempt(self, run_id: str, no: int) -> Any:
        with self.store.read() as session:
            return next((one for one in runs.attempts(session, run_id) if one.no == no), None)

    def placed(self, run_id: str, no: int, size: int) -> list[str]:
        until(lambda: len(getattr(self.attempt(run_id, no), "nodes", ())) == size, 300, f"attempt {no} is placed")
        return list(self.attempt(run_id, no).nodes)


def _batch(node: str, sequence: int, at: float, fault: Fault) -> Batch:
    metrics = tuple(metric.name for metric in GPU_METRICS)
    gpu = Columns(metrics, 8, array("d", [at]), array("d", [at]), tuple(array("q", [1] * 8) for _ in metrics))
    return Batch(node, "boot", sequence, "simulated", True, "bench", at, at, gpu=gpu, faults=(fault,))


def say(sentence: str) -> None:
    print(f"bench: {sentence}", file=sys.stderr, flush=True)


def restart_of(bench: Bench, run_id: str, no: int, size: int) -> dict[str, float]:
    """One fault on a running gang, followed to the next gang running; seconds from the fault."""
    nodes = bench.placed(run_id, no, size)
    name = f"{run_id}-{no}"
    until(lambda: bench.running(name) == size, 300, "the gang runs")
    bench.trains(run_id, no, nodes)
    until(lambda: bench.attempt(run_id, no).state == "training", 60, "it trains")
    time.sleep(1.5)
    victim, calls = nodes[len(nodes) // 2], sum(bench.api.calls.values())
    at, after = bench.hit(victim), f"{run_id}-{no + 1}"
    cordoned = until(lambda: (bench.kube.nodes.get(victim) or {"spec": {}})["spec"].get("unschedulable"), 60, "cordon")
    created = until(lambda: len(bench.pods(after)) >= size, 300, "all pods are created")
    running = until(lambda: bench.running(after) >= size, 600, "all pods run")
    if victim in {pod["spec"]["nodeName"] for pod in bench.pods(after)}:
        raise RuntimeError(f"a pod of {after} runs on {victim}")
    fenced = bench.attempt(run_id, no).ended_s
    opened = bench.moment("incident_opened", at)
    bench.admin.delete(f"/apis/batch/v1/namespaces/{OPTIONS.namespace}/jobs/{name}")
    return {
        "incident": (opened or at) - at,
        "cordon": cordoned - at,
        "fenced": fenced - at,
        "created": created - at,
        "running": running - at,
        "calls": float(sum(bench.api.calls.values()) - calls),
    }


def give_back(bench: Bench) -> None:
    """Every node is healthy again: incidents resolved, nodes returned, as an operator would between drills."""
    from controlplane.services import incidents
    from controlplane.store import incidents as incident_rows
    from controlplane.store import nodes

    now = bench.clock.now()
    with bench.store.write() as session:
        for row in incident_rows.listed(session, ("open", "acked")):
            incidents.resolve(session, row, actor="bench", reason="bench", now=now)
        for node in nodes.listed(session):
            if node.cordoned:
                nodes.uncordon(session, node.name, reason="bench", now=now)


def gangs(bench: Bench, size: int, tries: int, targets: dict[str, float]) -> list[Line]:
    """Restarts of a gang of `size` nodes, one after the other."""
    run_id = bench.submit(size)
    found: list[dict[str, float]] = []
    for no in range(1, tries + 1):
        found.append(restart_of(bench, run_id, no, size))
        say(f"gang of {size}, try {no}: " + ", ".join(f"{name} {value:.2f}" for name, value in found[-1].items()))
    lines = [
        spread(f"gang of {size}: fault to {words}", [one[key] for one in found], targets.get(key))
        for key, words in (
            ("incident", "incident"),
            ("cordon", "cordon"),
            ("fenced", "old attempt fenced"),
            ("created", "all new pods created"),
            ("running", "all new pods running"),
        )
    ]
    calls = [one["calls"] for one in found]
    lines.append(line(f"gang of {size}: API requests a restart", statistics.median(calls), None, "requests"))
    return lines


def cost(bench: Bench, seconds: float, name: str) -> list[Line]:
    """CPU and memory of this process, controller and all, over some seconds."""
    me = psutil.Process()
    before, began = sum(me.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    used = 100 * (sum(me.cpu_times()[:2]) - before) / (time.monotonic() - began)
    return [
        line(f"controller CPU, {name}", used, None, "% of a core", nodes=len(bench.names)),
        line(f"controller memory, {name}", me.memory_info().rss / 2**20, None, "MiB"),
    ]


def run(nodes: int, sizes: dict[int, int]) -> list[Line]:
    """Every figure. `sizes`: tries by gang size."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        bench = Bench(Path(folder), nodes + SPARES)
        try:
            bench.start()
            lines = cost(bench, 10.0, "idle")
            for size, tries in sizes.items():
                created = 8.0 if size <= 128 else 15.0
                lines += gangs(bench, size, tries, {"incident": 3.0, "cordon": 4.0, "created": created})
            lines += cost(bench, 10.0, "one gang running")
        finally:
            bench.stop()
    return lines


def main() -> int:
    """One JSON line a figure; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="24 nodes, small gangs")
    options = parser.parse_args()
    figures = run(24, {8: 2, 16: 2}) if options.quick else run(1024, {128: 6, 1024: 3})
    missed = 0
    for figure in figures:
        print(json.dumps(figure), flush=True)
        target, value = figure["target"], figure["value"]
        missed += target is not None and (value is None or value > target)
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main())

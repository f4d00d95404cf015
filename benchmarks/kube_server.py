"""One server over one real Kubernetes control plane with simulated nodes: what `make bench NAME=kube` measures.

The server's own parts run in this process as `trimtab serve` wires them (store, ingest, rules, controller, reflectors,
node actuator) over the real API server, scheduler and Job controller; only nodes are simulated.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from controlplane.ids import uuid7
from controlplane.loops import Leadership
from controlplane.rules import book as rule_book
from controlplane.services import incidents as incident_service
from controlplane.services import runs as run_service
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.services.plans import Places
from controlplane.services.pulses import Pulses
from controlplane.services.reconcile import Controller
from controlplane.store import heartbeats, incidents, leases, nodes, runs
from controlplane.store.engine import Store
from controlplane.store.tables import Event, Node
from jobs.contract import Heartbeat
from jobs.spec import load_template, parse_job

POOL = "trimtab.dev/bench"
"""the label of the nodes that the bench's own gangs may use"""
OURS = "ours"
OPTIONS = KubeOptions(image="trimtab-trainer:bench", node_selector={POOL: OURS})
JOBS = f"/apis/batch/v1/namespaces/{OPTIONS.namespace}/jobs"
MANAGED = "app.kubernetes.io/managed-by=trimtab"


def until(question: Callable[[], object], seconds: float, what: str, each_s: float = 0.05) -> float:
    """Waits for it, asking each so often; returns when it was so, by the wall clock. TimeoutError names it."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(each_s)
    return time.time()


class Bench:
    """One server over one cluster."""

    def __init__(self, folder: Path, nodes: int, mortal: int) -> None:
        self.cluster: Cluster = cluster_nodes.open_cluster(folder / "cluster", nodes, say, mortal=mortal)
        self.admin = cluster_nodes.administrator(self.cluster)
        cluster_access.namespace(self.admin, OPTIONS.namespace)
        config = cluster_access.controller_kubeconfig(self.cluster, self.admin, OPTIONS.namespace)
        self.names = [cluster_nodes.node(index)["metadata"]["name"] for index in range(nodes)]
        self.mortal = self.names[nodes - mortal :]
        self.silent: frozenset[str] = frozenset()
        self.hurt: set[str] = set()
        self.pool(dict.fromkeys(self.names, OURS))
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
        places = Places(folder / "runs", "http://127.0.0.1:1")
        controller = Controller(self.store, backends, book, places, quarantine_share=1.0)
        pulses = Pulses(backends.values())
        watch = Watch(book, since_s=self.clock.now(), quarantine_share=1.0, pulses=pulses.stopped)
        self.loops = serve.wire_loops(
            self.store, self.leadership, watch, controller, backends, {}, self.ingest, self.clock, pulses
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
                if name in self.silent:
                    continue
                row = known.get(name)
                if row is None:
                    row = Node(name=name, facts=facts, simulated=True, first_seen_s=now, state_since_s=now)
                    row.session_id = uuid7(now)
                    session.add(row)
                row.last_seen_s = now

    def _greet_on(self) -> None:
        while not self.over.wait(5.0):
            self._greet()

    def pool(self, labels: dict[str, str]) -> None:
        """Says which gangs may use which nodes."""

        def label(one: tuple[str, str]) -> None:
            self.admin.patch(f"/api/v1/nodes/{one[0]}", {"metadata": {"labels": {POOL: one[1]}}}, kind="merge")

        with ThreadPoolExecutor(8) as workers:
            list(workers.map(label, labels.items()))

    def die(self, *nodes: str) -> float:
        """The kubelets of the mortal nodes fall silent, and the agents of these; returns when."""
        self.cluster.signal("kwok-mortal", signal.SIGSTOP)
        self.silent = frozenset(nodes)
        return time.time()

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

    def clear(self, run_id: str, no: int) -> None:
        """Ends a run and lets every node return, as an operator would between drills."""
        run_service.stop(self.store, run_id, actor="bench", now=self.clock.now())
        self.loops["runs"].wake()
        until(lambda: self.attempt(run_id, no).ended_s is not None, 300, f"attempt {no} ends")
        self.admin.delete_all(JOBS, MANAGED)
        with self.store.read() as session:
            open_ones = [row.number for row in incidents.listed(session, ("open", "acked"))]
        now = self.clock.now()
        for number in open_ones:
            incident_service.resolve(self.store, number, actor="bench", reason="bench", now=now)
        with self.store.write() as session:
            for node in nodes.listed(session):
                if node.cordoned:
                    nodes.uncordon(session, node.name, reason="bench", now=now)
        until(lambda: not any(self.cordoned(name) for name in self.names), 120, "every node is back")
        until(lambda: not self.kube.pods.objects(), 300, "every pod is gone")

    def trains(self, run_id: str, no: int, nodes: list[str]) -> None:
        """The first rank says that it trains: that proves a restart at level 1."""
        now = self.clock.now()
        with self.store.read() as session:
            epoch = runs.attempt_of(session, run_id, no).epoch
        beat = Heartbeat(
            run_id, no, epoch, 0, len(nodes), nodes[0], 1, "train", 100 * no, 1, 100 * no, None, now, now, 0.5
        )
        with self.store.write() as session:
            heartbeats.put(session, [beat], now=now)

    def hit(self, *nodes: str) -> float:
        """One GPU of each node reports an uncorrectable memory error, in the batch of its agent; returns when."""
        at = time.time()
        self.hurt |= set(nodes)
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

    def unhurt(self, nodes: Sequence[str], count: int) -> list[str]:
        """So many of these nodes that were never hit: a second fault of a GPU would belong to its first incident."""
        fit = [name for name in nodes if name not in self.hurt and name not in self.mortal]
        if len(fit) < count:
            raise RuntimeError(f"{count} nodes that were never hit are wanted, {len(fit)} are there")
        middle = (len(fit) - count) // 2
        return fit[middle : middle + count]

    def state(self, node: str) -> str:
        """A node's state, as the server has it."""
        with self.store.read() as session:
            found = nodes.get(session, node)
            return found.state if found is not None else ""

    def pods(self, attempt: str) -> list[Json]:
        """An attempt's pods in the copy."""
        return [pod for pod in self.kube.pods.objects().values() if pod["metadata"]["labels"].get(NAME) == attempt]

    def running(self, attempt: str) -> int:
        return sum((pod.get("status") or {}).get("phase") == "Running" for pod in self.pods(attempt))

    def cordoned(self, node: str) -> bool:
        return bool((self.kube.nodes.get(node) or {"spec": {}})["spec"].get("unschedulable"))

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

    def newest(self, run_id: str) -> int:
        """The number of a run's newest attempt; 0 while there is none."""
        with self.store.read() as session:
            return max((one.no for one in runs.attempts(session, run_id)), default=0)

    def training(self, run_id: str, no: int, size: int) -> list[str]:
        """Waits until an attempt runs whole and trains; its nodes."""
        until(lambda: len(getattr(self.attempt(run_id, no), "nodes", ())) == size, 300, f"attempt {no} is placed")
        placed = list(self.attempt(run_id, no).nodes)
        until(lambda: self.running(f"{run_id}-{no}") == size, 300, "the gang runs")
        self.trains(run_id, no, placed)
        until(lambda: self.attempt(run_id, no).state == "training", 60, "it trains")
        return placed


def _batch(node: str, sequence: int, at: float, fault: Fault) -> Batch:
    metrics = tuple(metric.name for metric in GPU_METRICS)
    gpu = Columns(metrics, 8, array("d", [at]), array("d", [at]), tuple(array("q", [1] * 8) for _ in metrics))
    return Batch(node, "boot", sequence, "simulated", True, "bench", at, at, gpu=gpu, faults=(fault,))


def say(sentence: str) -> None:
    print(f"bench: {sentence}", file=sys.stderr, flush=True)

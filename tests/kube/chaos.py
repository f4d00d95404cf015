"""A controller over the real API server that can be made to die, and trainers that know the cluster only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlplane.backends.kube.api import Json, KubeApi
from controlplane.backends.kube.backend import KubeBackend
from controlplane.clock import SystemClock
from controlplane.services import quarantine
from controlplane.services import runs as service
from controlplane.services.reconcile import Controller
from controlplane.store.engine import Store
from jobs.spec import load_template, parse_job
from tests.deaths import Killed, MortalStore, Points, files_of
from tests.kube.conftest import NAMESPACE, OPTIONS, World
from tests.runs.piloting import BOOK, Pilot

JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DONE = {"code": 0, "class": "done", "fingerprint": "", "message": "", "first_rank": None, "at_s": 1.0}
BOOM = {"code": 1, "class": "error", "fingerprint": "boom", "message": "boom", "first_rank": 0, "at_s": 1.0}
PATIENCE_S = 60.0


class Shifted(SystemClock):
    """The cluster's clock, as the backend reads it: a test may let it go ahead."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class KubePilot(Pilot):
    """A pilot on the real cluster. Its clock is the test's; the cluster's is its own."""

    def __init__(self, world: World, api: KubeApi, store: Store, folder: Path, points: Points | None = None) -> None:
        self.world, self.api, self.points, self.called = world, api, points or Points(), 0
        self.points.look = lambda: (files_of(folder), self.clock.now(), self.called)
        self.kube_clock = Shifted()
        self.kube = KubeBackend(api, OPTIONS, self.kube_clock, marks_nodes=True)
        self.kube.start()
        api.before_call = lambda call: self._reach("before", call)
        api.after_call = lambda call: self._reach("after", call)
        super().__init__(store, folder, node_count=0)
        self.names = [f"node-{index:03d}" for index in range(16)]
        self.greet()
        wait_for(lambda: max(self.kube.jobs.age_s, self.kube.pods.age_s, self.kube.nodes.age_s) < 30)

    def _reach(self, when: str, call: str) -> None:
        """Reads are no points: they change nothing, so a death at one is the death after the write before it."""
        if not call.startswith("GET"):
            self.called += when == "after"
            self.points.reach(f"{when} {_short(call)}")

    def new_controller(self) -> Controller:
        store: Any = MortalStore(self.store, self.points)
        return Controller(store, {"kube": self.kube}, BOOK, self.places)

    def close(self) -> None:
        """What the run left in the cluster goes, and its marks with it."""
        self.points.fatal = 0
        self.api.before_call = self.api.after_call = lambda _call: None
        self.kube.stop_watching()
        for job in self.jobs():
            self.world.admin.delete(f"{JOBS}/{job['metadata']['name']}")
        self.kube.mark_nodes(dict.fromkeys(self.names))
        wait_for(lambda: not self.jobs() and not self.world.admin.get(PODS)["items"])

    def submit(self, *, name: str = "trial", nodes: int = 2, steps: int = 40, **policy: Any) -> str:
        """A run of the toy's shape on the cluster."""
        spec = load_template("toy").to_dict()
        spec["metadata"]["name"] = name
        spec["spec"]["resources"]["nodes"] = nodes
        spec["spec"]["train"]["steps"] = steps
        spec["spec"]["contractLevel"] = policy.pop("level", 2)
        spec["spec"]["faults"].update({"graceSeconds": 2.0, **policy})
        with self.store.write() as session:
            made = service.submit(session, parse_job(spec), backend="kube", actor="ada", now=self.clock.now())
            return made.id

    def live_round(self, seconds: float = 1.0) -> None:
        """A round of runs and one of nodes; if the controller dies in it, the next one begins at once."""
        try:
            self.round(seconds)
            store: Any = MortalStore(self.store, self.points)
            quarantine.mark_once(store, {"kube": self.kube}, self.epoch, self.clock.now())
        except Killed:
            self.lead()

    # --- the cluster, as the world sees it ---

    def jobs(self) -> list[Json]:
        """Every Job of ours, oldest first."""
        found = self.world.admin.get(JOBS, labelSelector="app.kubernetes.io/managed-by=trimtab")["items"]
        return sorted(found, key=lambda one: int(one["metadata"]["labels"]["trimtab.dev/attempt"]))

    def pods(self, attempt: str) -> list[Json]:
        return self.world.pods(attempt)

    def running(self, attempt: str) -> bool:
        found = self.pods(attempt)
        return len(found) == 2 and all(
            one["status"].get("phase") == "Running" and "deletionTimestamp" not in one["metadata"] for one in found
        )

    def end_all(self, attempt: str, code: int) -> None:
        """Every pod of an attempt returns a code."""
        for pod in self.pods(attempt):
            self.world.end_pod(pod["metadata"]["name"], code, DONE if code == 0 else BOOM)


def tell(pilot: KubePilot, run_id: str, done: str, must: str, *, plays: int = 1) -> None:
    """A row of docs/chaos.md, from what is there now, where `make chaos` asks for it."""
    file = os.environ.get("TRIMTAB_CHAOS_ROWS")
    if not file:
        return
    cordoned = [name for name in pilot.names if pilot.world.node(name)["spec"].get("unschedulable")]
    row = {
        "test": os.environ.get("PYTEST_CURRENT_TEST", ""),
        "done": done,
        "must": must,
        "attempts": ", ".join(f"{one.no} {one.state}" for one in pilot.attempts(run_id)),
        "jobs": len(pilot.jobs()),
        "restarts": len(pilot.attempts(run_id)) - 1,
        "cordoned": len(cordoned),
        "plays": plays,
    }
    with Path(file).open("a") as rows:
        rows.write(json.dumps(row) + "\n")


def wait_for(question: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Asks until it is true."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _short(call: str) -> str:
    """POST …/jobs, without the names that differ each time."""
    method, path = call.split(" ", 1)
    parts = [part for part in path.split("/") if part in ("jobs", "pods", "services", "nodes", "leases", "log")]
    return f"{method} {'/'.join(parts[-1:]) or path}"

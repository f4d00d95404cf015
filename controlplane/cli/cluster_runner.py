"""The kubelet of a few simulated nodes, which really runs what the pods bound to them say: for the demo on Kubernetes.

It does what a kubelet does towards the API server (status and lease of a node; status, exit code, last words and log of
a pod; a grace before the kill, the last delete) and starts each pod's command as a process of this machine, not in a
container. Mounts are played by rewriting paths in the pod's environment, DNS by rewriting the rendezvous address. It is
level-triggered: `run_once` compares the pods it sees with the processes it has.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import structlog

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import AlreadyExists, Json, KubeApi, NotFound, Refused, connect
from controlplane.backends.kube.bucket import TokenBucket
from controlplane.backends.kube.options import KubeOptions
from controlplane.backends.kube.reflector import Reflector
from controlplane.cli.cluster_logs import LogServer
from controlplane.cli.cluster_parts import free_ports
from controlplane.clock import Clock, SystemClock

LEASE_S, BEAT_S, ROUND_S = 40, 10.0, 0.2
_log = structlog.get_logger()


@dataclass
class Running:
    """A pod's process and what was told of it."""

    pod: Json
    child: subprocess.Popen[bytes]
    log: Path
    said: Path
    started_s: float
    asked_s: float | None = None
    ended: bool = False


def stamp(at_s: float) -> str:
    """Kubernetes' time: RFC 3339 in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(pod: Json, container: Json) -> dict[str, str]:
    """A container's variables, those that name fields of the pod included."""
    found: dict[str, str] = {}
    for one in container.get("env") or ():
        field = ((one.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath")
        found[one["name"]] = _field(pod, field) if field else str(one.get("value") or "")
    return found


def _field(pod: Json, path: str) -> str:
    if path.startswith("metadata.annotations["):
        return str((pod["metadata"].get("annotations") or {}).get(path[len("metadata.annotations['") : -2], ""))
    if path.startswith("metadata.labels["):
        return str((pod["metadata"].get("labels") or {}).get(path[len("metadata.labels['") : -2], ""))
    found: object = pod
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return "" if found is None else str(found)


class Runner:
    """Kubelet of `nodes`. `mounts` maps a path inside of pods to a folder here; `{node}` in it stands for the node."""

    def __init__(
        self, api: KubeApi, namespace: str, nodes: Sequence[str], folder: Path, mounts: Mapping[str, str], clock: Clock
    ) -> None:
        self._api, self._namespace, self._nodes, self._folder = api, namespace, frozenset(nodes), folder
        self._mounts, self._clock = dict(mounts), clock
        self._pods = Reflector(api, f"/api/v1/namespaces/{namespace}/pods", clock)
        self._running: dict[str, Running] = {}
        self._ports: dict[str, int] = {}
        self._beaten_s = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = LogServer(folder, clock.now(), self._log_of)

    def _log_of(self, pod: str) -> Path | None:
        return next((one.log for one in self._running.values() if one.pod["metadata"]["name"] == pod), None)

    def start(self) -> None:
        """Nodes become Ready; pods bound to them are run."""
        self._logs.start()
        self.beat()
        self._pods.start()
        self._thread.start()

    def stop(self) -> None:
        """Ends the rounds and every process of a pod."""
        self._stop.set()
        self._pods.stop()
        if self._thread.is_alive():
            self._thread.join(10)
        for running in self._running.values():
            _kill(running.child)
        self._logs.stop()

    def _run(self) -> None:
        while not self._stop.wait(ROUND_S):
            try:
                if self._clock.monotonic() - self._beaten_s >= BEAT_S:
                    self.beat()
                self.run_once()
            except (BackendUnavailable, Refused) as error:
                _log.warning("the runner goes on", error=str(error))

    # --- nodes ---

    def beat(self) -> None:
        """Every node says that it is there: its status once, its lease each time."""
        first = self._beaten_s == float("-inf")
        for name in self._nodes:
            if first:
                self._api.patch(
                    f"/api/v1/nodes/{name}/status", {"status": _ready(self._clock.now(), self._logs.port)}, kind="merge"
                )
            self._renew(name)
        self._beaten_s = self._clock.monotonic()

    def _renew(self, name: str) -> None:
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        at = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": at}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": spec,
        }
        try:
            self._api.patch(f"{path}/{name}", {"spec": spec}, kind="merge")
        except NotFound:
            self._api.create(path, lease)
        except AlreadyExists:
            return

    # --- pods ---

    def run_once(self) -> None:
        """Starts what was bound to us, tells what ended, ends what is to be deleted."""
        seen = {
            str(pod["metadata"]["uid"]): pod
            for pod in self._pods.objects().values()
            if (pod.get("spec") or {}).get("nodeName") in self._nodes
        }
        for uid, pod in seen.items():
            running = self._running.get(uid)
            if running is None:
                if "deletionTimestamp" in pod["metadata"]:
                    self._remove(pod)
                elif (pod.get("status") or {}).get("phase", "Pending") == "Pending":
                    self._start(uid, pod)
                continue
            if not running.ended and running.child.poll() is not None:
                self._tell_end(running)
            if "deletionTimestamp" in pod["metadata"]:
                self._end(running, pod)
        for uid in [uid for uid in self._running if uid not in seen]:
            # forced away: a kubelet kills what the API server no longer knows
            _kill(self._running.pop(uid).child)

    def _start(self, uid: str, pod: Json) -> None:
        (container,) = pod["spec"]["containers"]
        node, name = str(pod["spec"]["nodeName"]), str(pod["metadata"]["name"])
        said = self._folder / f"{name}.said"
        given = {**environment(pod, container), "TRIMTAB_TERMINATION_LOG": str(said)}
        given = {key: self._here(value, node) for key, value in given.items()}
        meeting = given.get("PET_RDZV_ENDPOINT")
        if meeting:
            if meeting not in self._ports:
                (self._ports[meeting],) = free_ports(1)
            given["PET_RDZV_ENDPOINT"] = f"127.0.0.1:{self._ports[meeting]}"
        command = [sys.executable if word == "python" else word for word in container["command"]]
        log = self._folder / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRIMTAB_", "PET_"))}
        with log.open("ab") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**kept, "OMP_NUM_THREADS": "1", **given},
                start_new_session=True,
            )
        running = Running(pod, child, log, said, self._clock.now())
        self._running[uid] = running
        self._status(
            pod,
            {"phase": "Running", **_conditions(True, self._clock.now())},
            {"running": {"startedAt": stamp(running.started_s)}},
        )

    def _here(self, value: str, node: str) -> str:
        """A path inside of a pod as the path here."""
        for inside, outside in self._mounts.items():
            if value == inside or value.startswith(f"{inside}/"):
                return outside.replace("{node}", node) + value[len(inside) :]
        return value

    def _tell_end(self, running: Running) -> None:
        code = running.child.returncode
        message = running.said.read_text(errors="replace")[:4096] if running.said.exists() else ""
        now = self._clock.now()
        ended: Json = {
            "exitCode": code if code >= 0 else 128 - code,
            "reason": "Completed" if code == 0 else "Error",
            "message": message,
            "startedAt": stamp(running.started_s),
            "finishedAt": stamp(now),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        with contextlib.suppress(NotFound):
            self._status(running.pod, {"phase": phase, **_conditions(False, now)}, {"terminated": ended})
        running.ended = True

    def _end(self, running: Running, pod: Json) -> None:
        """SIGTERM, the grace, SIGKILL; once it is over the pod goes for good."""
        now = self._clock.monotonic()
        if running.ended:
            self._remove(pod)
        elif running.asked_s is None:
            running.asked_s = now
            running.child.send_signal(signal.SIGTERM)
        elif now - running.asked_s > float(pod["metadata"].get("deletionGracePeriodSeconds") or 0):
            _kill(running.child)

    def _remove(self, pod: Json) -> None:
        head = pod["metadata"]
        path = f"/api/v1/namespaces/{self._namespace}/pods/{head['name']}"
        if not head.get("finalizers"):
            self._api.delete(path, uid=str(head["uid"]), grace_s=0)
        elif (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            self._status(pod, {"phase": "Failed"}, None)

    def _status(self, pod: Json, status: Json, state: Json | None) -> None:
        (container,) = pod["spec"]["containers"]
        if state is not None:
            running = "running" in state
            status["containerStatuses"] = [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": running,
                    "started": running,
                    "restartCount": 0,
                    "state": state,
                }
            ]
        name = pod["metadata"]["name"]
        self._api.patch(f"/api/v1/namespaces/{self._namespace}/pods/{name}/status", {"status": status}, kind="merge")


def _conditions(ready: bool, at_s: float) -> Json:
    word, at = "True" if ready else "False", stamp(at_s)
    return {
        "startTime": at,
        "conditions": [
            {"type": kind, "status": word if kind != "PodScheduled" else "True", "lastTransitionTime": at}
            for kind in ("PodScheduled", "Initialized", "Ready", "ContainersReady")
        ],
    }


def _ready(at_s: float, port: int) -> Json:
    room = {"cpu": "96", "memory": "2Ti", "pods": "110", "amd.com/gpu": "8"}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "RunnerReady",
        "message": "pods of this simulated node run as processes of the host",
        "lastHeartbeatTime": stamp(at_s),
        "lastTransitionTime": stamp(at_s),
    }
    return {
        "conditions": [ready],
        "capacity": room,
        "allocatable": room,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }


def _kill(child: subprocess.Popen[bytes]) -> None:
    """A process and all below it, as the end of a container would."""
    if child.poll() is None:
        try:
            family = psutil.Process(child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        child.kill()
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
    child.wait(10)


def main() -> int:
    """Runs until SIGTERM: `python -m controlplane.cli.cluster_runner --kubeconfig F --folder D --runtime R NODE …`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", default=KubeOptions().namespace)
    parser.add_argument("--folder", type=Path, required=True, help="logs and last words of the pods")
    parser.add_argument(
        "--mount", action="append", default=[], metavar="INSIDE=HERE", help="{node} stands for the node"
    )
    parser.add_argument("nodes", nargs="+")
    options = parser.parse_args()
    mounts = dict(one.split("=", 1) for one in options.mount)
    api = KubeApi(connect(options.kubeconfig), TokenBucket(rate_per_s=500, burst=1000))
    runner = Runner(api, options.namespace, options.nodes, options.folder, mounts, SystemClock())
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    runner.start()
    print(f"runner: {len(options.nodes)} nodes are Ready", flush=True)
    stopping.wait()
    runner.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

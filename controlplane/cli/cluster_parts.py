"""A real Kubernetes control plane on loopback, and simulated kubelets: the processes, their keys and their files.

etcd, kube-apiserver (RBAC on), kube-controller-manager and kube-scheduler are the real ones. The nodes are not: kwok
plays their kubelets by the stages of kwok.yaml, and every node says so in a label. For tests, for `trimtab cluster` and
for the demo on Kubernetes; not for production (etcd does not even sync). Everything is ended by its process id.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

STATE = "cluster.json"
STAGES = Path(__file__).parent / "kwok.yaml"
READY_S = 60.0
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "kwok": "system:masters",
}
MORTAL = "trimtab.dev/kubelet=mortal"
"""the label of nodes whose kubelet may be stopped apart from the others'"""
RUNNER = "trimtab.dev/kubelet=runner"
"""the label of nodes whose pods are run for real, by cluster_runner"""


class ClusterError(Exception):
    """The cluster cannot be started; the message says what to do."""


def find_programs(environment: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """The programs: KWOK_BIN, KUBEBUILDER_ASSETS, or as `make kube` built them. ClusterError if one lacks."""
    shelves = [Path(environment["KUBEBUILDER_ASSETS"])] if environment.get("KUBEBUILDER_ASSETS") else []
    cache = environment.get("TRIMTAB_CACHE") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "trimtab"
    shelves.append(Path(cache).expanduser() / "kube" / "bin")  # where `make kube` leaves them
    found: dict[str, Path] = {}
    for name in PROGRAMS:
        given = environment.get("KWOK_BIN") if name == "kwok" else None
        places = [Path(given)] if given else [shelf / name for shelf in shelves]
        there = next((place for place in places if place.exists()), None)
        if there is None:
            raise ClusterError(
                f"{name} is not here. In a checkout: make kube (some ten minutes, once). Elsewhere: set "
                "KUBEBUILDER_ASSETS to a folder with the Kubernetes programs, and KWOK_BIN"
            )
        found[name] = there
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


@dataclass
class Process:
    """One started program, told apart from whoever gets its id later by the time it was born."""

    name: str
    pid: int
    born: float

    def found(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.born) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
            return process if same else None
        except psutil.NoSuchProcess:
            return None


@dataclass
class Cluster:
    """A running cluster and where everything of it is. `save`d as JSON, so that another command finds and ends it."""

    folder: Path
    server: str
    etcd: str
    tokens: dict[str, str]
    processes: list[Process] = field(default_factory=list)
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    @property
    def certificate(self) -> Path:
        """What the API server's certificate is checked against."""
        return self.folder / "certs" / "apiserver.crt"

    def save(self) -> None:
        """Writes what `load` reads."""
        kept = {
            "server": self.server,
            "etcd": self.etcd,
            "tokens": self.tokens,
            "processes": [asdict(process) for process in self.processes],
        }
        path = self.folder / STATE
        path.touch(mode=0o600)
        path.write_text(json.dumps(kept, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Cluster | None:
        """The cluster of a folder, running or not; None if there never was one."""
        path = folder / STATE
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        return cls(folder, kept["server"], kept["etcd"], kept["tokens"], [Process(**one) for one in kept["processes"]])

    def running(self) -> dict[str, bool]:
        """Which of its programs run."""
        return {process.name: process.found() is not None for process in self.processes}

    def process(self, name: str) -> Process:
        """One of its programs."""
        return next(process for process in self.processes if process.name == name)

    def write_kubeconfig(self, path: Path, token: str, namespace: str = "default") -> Path:
        """A kubeconfig that signs in with a token."""
        context = {"cluster": "trimtab", "user": "user", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "trimtab",
            "clusters": [
                {
                    "name": "trimtab",
                    "cluster": {"server": self.server, "certificate-authority": str(self.certificate)},
                }
            ],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "trimtab", "context": context}],
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def spawn(self, name: str, command: list[str]) -> Process:
        """Starts a program of the cluster; its output goes to a file of its name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._children[child.pid] = child
        process = Process(name, child.pid, psutil.Process(child.pid).create_time())
        self.processes = [one for one in self.processes if one.name != name] + [process]
        self.save()
        return process

    def signal(self, name: str, number: int) -> None:
        """Sends a program a signal: SIGSTOP and SIGCONT make it fall silent and speak again."""
        found = self.process(name).found()
        if found is not None:
            found.send_signal(number)

    def end(self) -> None:
        """Ends every program, kubelets first, and waits for it."""
        left = [found for process in reversed(self.processes) if (found := process.found())]
        for process in left:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=1)  # nothing of it is kept: no need to end in beauty
        for process in stubborn:
            process.kill()
        psutil.wait_procs(stubborn, timeout=5)
        for child in self._children.values():
            child.wait()


def start(
    folder: Path, programs: Mapping[str, Path], say: Callable[[str], None], *, watch_cache: bool = True
) -> Cluster:
    """Starts the four programs; returns when the API server is ready. ClusterError with the log's end if it is not."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "certs").mkdir(exist_ok=True)
    etcd, peer, api, manager, scheduler = free_ports(5)
    tokens = {user: secrets.token_urlsafe(24) for user in USERS}
    cluster = Cluster(folder, f"https://127.0.0.1:{api}", f"http://127.0.0.1:{etcd}", tokens)
    cluster.save()
    keys = _service_account_keys(folder)
    rows = [f'{token},{user},{index},"{USERS[user]}"' for index, (user, token) in enumerate(tokens.items())]
    users = folder / "users.csv"
    users.touch(mode=0o600)
    users.write_text("\n".join(rows) + "\n")
    try:
        cluster.spawn("etcd", _etcd(programs["etcd"], folder, etcd, peer))
        cluster.spawn("kube-apiserver", _apiserver(programs["kube-apiserver"], folder, api, etcd, keys, watch_cache))
        say("the API server starts")
        _until_ready(cluster)
        cluster.write_kubeconfig(cluster.kubeconfig, tokens["admin"])
        for user, part, port in (
            ("system:kube-controller-manager", "kube-controller-manager", manager),
            ("system:kube-scheduler", "kube-scheduler", scheduler),
        ):
            config = cluster.write_kubeconfig(folder / f"{part}.kubeconfig", tokens[user])
            make = _manager if part == "kube-controller-manager" else _scheduler
            cluster.spawn(part, make(programs[part], folder, config, port, keys[0]))
        say("the API server answers; controller manager and scheduler run")
    except BaseException:
        cluster.end()
        raise
    return cluster


def start_kubelets(
    cluster: Cluster, kwok: Path, name: str = "kwok", *, nodes: str = "", stages: Iterable[Mapping[str, Any]] = ()
) -> Process:
    """Simulated kubelets for every node, or for those of a label selector."""
    config = cluster.write_kubeconfig(cluster.folder / f"{name}.kubeconfig", cluster.tokens["kwok"])
    text = STAGES.read_text() + "".join(f"---\n{yaml.safe_dump(dict(stage))}" for stage in stages)
    file = cluster.folder / f"{name}.yaml"
    file.write_text(text)
    which = f"--manage-nodes-with-label-selector={nodes}" if nodes else "--manage-all-nodes=true"
    command = [str(kwok), f"--kubeconfig={config}", f"--config={file}", which]
    if nodes:
        command.append("--manage-all-nodes=false")
    return cluster.spawn(name, [*command, f"--server-address=127.0.0.1:{free_ports(1)[0]}"])


def _service_account_keys(folder: Path) -> tuple[Path, Path]:
    """(private, public) key files with which service-account tokens are signed."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    paths = folder / "service-account.key", folder / "service-account.pub"
    paths[0].touch(mode=0o600)
    paths[0].write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    paths[1].write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


def _etcd(program: Path, folder: Path, port: int, peer: int) -> list[str]:
    return [
        str(program),
        "--name=default",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{port}",
        f"--advertise-client-urls=http://127.0.0.1:{port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(
    program: Path, folder: Path, port: int, etcd: int, keys: tuple[Path, Path], watch_cache: bool
) -> list[str]:
    return [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--cert-dir={folder / 'certs'}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={keys[0]}",
        f"--service-account-key-file={keys[1]}",
        f"--token-auth-file={folder / 'users.csv'}",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        "--profiling=false",
        f"--watch-cache={'true' if watch_cache else 'false'}",
    ]


def _manager(program: Path, folder: Path, config: Path, port: int, key: Path) -> list[str]:
    return [
        str(program),
        f"--kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certs' / 'manager'}",
        f"--service-account-private-key-file={key}",
        f"--root-ca-file={folder / 'certs' / 'apiserver.crt'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        # its own limit of 20 calls a second would take a minute for a gang of 1,024 pods
        "--kube-api-qps=600",
        "--kube-api-burst=1200",
        "--concurrent-gc-syncs=40",
    ]


def _scheduler(program: Path, folder: Path, config: Path, port: int, _key: Path) -> list[str]:
    path = folder / "scheduler.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "KubeSchedulerConfiguration",
                "leaderElection": {"leaderElect": False},
                "clientConnection": {"kubeconfig": str(config), "qps": 600, "burst": 1200},
            }
        )
    )
    return [
        str(program),
        f"--config={path}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certs' / 'scheduler'}",
    ]


def _until_ready(cluster: Cluster) -> None:
    """Asks /readyz until it says ok."""
    deadline = time.monotonic() + READY_S
    said = "nothing"
    while time.monotonic() < deadline:
        for process in cluster.processes:
            if process.found() is None:
                raise ClusterError(f"{process.name} ended: {_tail(cluster.folder / f'{process.name}.log')}")
        try:
            if cluster.certificate.exists():
                context = ssl.create_default_context(cafile=str(cluster.certificate))
                request = urllib.request.Request(
                    f"{cluster.server}/readyz", headers={"Authorization": f"Bearer {cluster.tokens['admin']}"}
                )
                with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                    if answer.status == 200:
                        return
        except (urllib.error.URLError, OSError, ssl.SSLError) as error:
            said = str(error)
        time.sleep(0.1)
    raise ClusterError(
        f"the API server was not ready within {READY_S:.0f} s ({said}): {_tail(cluster.folder / 'kube-apiserver.log')}"
    )


def _tail(path: Path, lines: int = 5) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "no log"

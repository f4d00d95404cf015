"""A real Ray on loopback, with token authentication, in a process of its own and ended by its id (never by `ray stop`).

It stands for the head of an attempt's cluster, or, with further raylets beside it, for a cluster of several nodes. Ray
needs a few tries on a busy machine: it gives its agent 15 s to start, which no setting changes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from controlplane.cli.cluster_parts import free_ports

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
TRIES, START_S = 5, 120.0


class LocalRay:
    """`address` is its dashboard; `environment` is what a process needs to speak to it."""

    def __init__(self, token: str, environment: dict[str, str], nodes: Sequence[str] = ("",), gpus: int = 0) -> None:
        """`nodes`: what its raylets are called, the head first; `gpus`: that each says it has."""
        self.nodes, self._gpus = tuple(nodes), gpus
        # short: a socket's path may have 107 characters
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            "PATH": path,
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # on Linux Ray takes the machine's own address for 127.0.0.1 unless it is a single node, as on a laptop;
            # other addresses of loopback it leaves alone
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(len(self.nodes) > 1)),
            **environment,
        }
        self.address = ""
        self.raylets: dict[str, subprocess.Popen[bytes]] = {}
        self._shells: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when all of it runs."""
        for _ in range(TRIES):
            if self._start_head() and all(self._start_node(name) for name in self.nodes[1:]):
                return
            self._end()
        raise AssertionError(f"Ray did not start: {self._log(self.nodes[0]).read_text()[-3000:]}")

    def _start_head(self) -> bool:
        session = self.folder / "s"
        shutil.rmtree(session, ignore_errors=True)
        self._gcs, dashboard, client = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        command = ["--head", f"--port={self._gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += ["--no-monitor", f"--ray-client-server-port={client}", f"--temp-dir={session}"]
        return self._start(self.nodes[0], command)

    def _start_node(self, name: str) -> bool:
        return self._start(name, [f"--address={self._ip(self.nodes[0])}:{self._gcs}"])

    def _start(self, name: str, options: list[str]) -> bool:
        agent, agent_rpc, runtime, metrics, manager, objects = free_ports(6)
        command = [str(PROGRAMS / "ray"), "start", "--block", f"--node-ip-address={self._ip(name)}", *options]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_rpc}"]
        command += [f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}"]
        command += [f"--node-manager-port={manager}", f"--object-manager-port={objects}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2", f"--num-gpus={self._gpus}"]
        command += ["--object-store-memory=80000000", *([f"--node-name={name}"] if name else [])]
        log = self._log(name)
        runtime_dir = {"TRIMTAB_RUNTIME_DIR": str(self.folder / "run" / name)} if name else {}
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=self.environment | runtime_dir,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.raylets[name] = child
        _favour(child.pid)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and child.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return True
            time.sleep(0.1)
        return False

    def _ip(self, name: str) -> str:
        return "127.0.0.1" if len(self.nodes) == 1 else f"127.0.0.{2 + self.nodes.index(name)}"

    def _log(self, name: str) -> Path:
        return self.folder / f"log-{name or 'head'}"

    def run(self, line: str) -> subprocess.Popen[bytes]:
        """A shell line beside it, as the submitter runs one."""
        child = subprocess.Popen(
            ["/bin/bash", "-ec", line],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _favour(child.pid)
        self._shells.append(child)
        return child

    def _end(self) -> None:
        for child in reversed(self.raylets.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
                child.terminate()
                _, stubborn = psutil.wait_procs(family, timeout=20)
                for one in stubborn:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            child.wait(20)
        self.raylets.clear()

    def close(self) -> None:
        """Ends it with all that it started, and removes its files."""
        for shell in self._shells:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate(timeout=20)
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)


def _favour(session: int) -> None:
    """A larger share of a busy machine for a session's processes, where one may ask for it."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text("-15")

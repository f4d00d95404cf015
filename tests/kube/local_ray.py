"""A real Ray on loopback, with token authentication, in a process of its own and ended by its id (never by `ray stop`).

It stands for the head of an attempt's cluster. Ray needs a few tries on a busy machine: it gives its agent 15 s to
start, which no setting changes.
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
from pathlib import Path

import psutil

from controlplane.cli.cluster_parts import free_ports

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
TRIES, START_S = 5, 120.0


class LocalRay:
    """`address` is its dashboard; `environment` is what a process needs to speak to it."""

    def __init__(self, token: str, environment: dict[str, str]) -> None:
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
            # on Linux Ray takes the machine's own address for 127.0.0.1 unless it is a single node, as on a laptop
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            **environment,
        }
        self.address = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._shells: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when it runs."""
        for _ in range(TRIES):
            if self._start_once():
                return
            self._end()
        raise AssertionError(f"Ray did not start: {(self.folder / 'log').read_text()[-3000:]}")

    def _start_once(self) -> bool:
        session = self.folder / "s"
        shutil.rmtree(session, ignore_errors=True)
        gcs, dashboard, agent, agent_rpc, runtime, metrics, manager, objects, client = free_ports(9)
        self.address = f"http://127.0.0.1:{dashboard}"
        command = [str(PROGRAMS / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--no-monitor"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_rpc}"]
        command += [f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}"]
        command += [f"--node-manager-port={manager}", f"--object-manager-port={objects}"]
        command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=80000000", f"--temp-dir={session}"]
        log = self.folder / "log"
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _favour(self._child.pid)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._child.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return True
            time.sleep(0.1)
        return False

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
        if self._child is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._child.pid)
            family = [main, *main.children(recursive=True)]
            main.terminate()
            _, stubborn = psutil.wait_procs(family, timeout=20)
            for one in stubborn:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self._child.wait(20)

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

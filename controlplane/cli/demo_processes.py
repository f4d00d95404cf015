"""The processes of a demo: started as a person would start them, watched, and ended by their ids whatever happens."""

from __future__ import annotations

import base64
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from controlplane.client import Client

READY = re.compile(r"trimtab ready: dashboard (\S+)  api (\S+)")
START_S = 60.0


class DemoError(Exception):
    """The demo cannot go on; the message says what did not happen."""


class Stage:
    """One folder with everything of a demo: data, logs, tokens, nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "server"
        self.nodes = folder / "nodes"
        self.logs = folder / "logs"
        self.runs = self.data / "runs"
        for each in (self.data, self.nodes, self.logs):
            each.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[str]] = {}

    def _start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[str]:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._running[name] = process
        return process

    def _line(self, name: str) -> str:
        """The first line that a process says on stdout."""
        stdout = self._running[name].stdout
        line = stdout.readline() if stdout is not None else ""
        if not line:
            raise DemoError(f"{name} did not start; see {self.logs / f'{name}.log'}:\n{self.tail(name)}")
        return line.strip()

    def tail(self, name: str) -> str:
        """The end of a process's log."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace")[-1500:] if path.exists() else ""

    def prepare(self, nodes: Sequence[str]) -> None:
        """What has to be there before the server: nothing on one machine."""

    def server_options(self) -> list[str]:
        """What the server is told beside its folders."""
        return []

    def start_server(self) -> tuple[str, str]:
        """`trimtab serve` on free ports: (dashboard link, API address)."""
        arguments = ["serve", "--data", str(self.data), "--port", "0", "--dashboard-port", "0"]
        arguments += ["--runtime", str(self.nodes), "--webhook-loopback", *self.server_options()]
        self._start("server", "controlplane.cli.main", *arguments)
        line = self._line("server")
        found = READY.match(line)
        if found is None:
            raise DemoError(f"the server said {line!r} instead of being ready")
        return found[1], found[2]

    def admin_token(self) -> str:
        """What the server made on its first run."""
        return (self.data / "admin-token").read_text().strip()

    def start_receiver(self, client: Client) -> None:
        """A webhook receiver on this machine, and the channel that tells it."""
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        file = self.folder / "webhook-secret"
        file.touch(0o600)
        file.write_text(secret)
        received = self.folder / "messages.jsonl"
        arguments = ["--port", "0", "--secret-file", str(file), "--out", str(received)]
        self._start("receiver", "controlplane.notify.receiver", *arguments)
        found = re.search(r"http://\S+", self._line("receiver"))
        if found is None:
            raise DemoError("the webhook receiver did not say where it listens")
        body = {"kind": "webhook", "url": found[0], "secret": secret}
        client.call("PUT", "channels/demo", body=body)

    def start_agent(self, node: str, client: Client, api: str) -> None:
        """A node agent over a simulated node, with a token of its own."""
        token = client.post("tokens", {"kind": "agent", "node": node})["token"]
        file = self.folder / f"token-{node}"
        file.touch(0o600)
        file.write_text(token)
        (self.nodes / node).mkdir(parents=True, exist_ok=True)
        arguments = ["--source", "simulated", "--node", node, "--server", api, "--token-file", str(file)]
        arguments += ["--runtime-dir", str(self.nodes / node), "--spool-dir", str(self.folder / "spool" / node)]
        self._start(f"agent-{node}", "agents.node.main", *arguments)

    def still_alive(self) -> None:
        """DemoError naming a process that ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with code {process.returncode}:\n{self.tail(name)}")

    def end(self) -> None:
        """Ends all processes, the server first, so that nothing is restarted; asks, then kills."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 15
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self._running.clear()
        self._end_attempts()

    def _end_attempts(self) -> None:
        """A demo that is cut short leaves no rank behind: its attempts are killed through their backend."""
        from controlplane.backends.local import LocalBackend

        backend = LocalBackend(self.data / "attempts", self.nodes)
        attempts = self.data / "attempts"
        for home in attempts.iterdir() if attempts.is_dir() else ():
            if not backend.fenced(home.name):
                backend.stop(home.name, mode="kill")

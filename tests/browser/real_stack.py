"""The whole product for a browser test: `trimtab serve` with its dashboard child, and simulated nodes' real agents.

Every process is started here by its own command line, as a customer starts it, and ended by its id. Nothing is faked:
the agents simulate only their devices.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.client import Client

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"dashboard (http://\S+/open/\S+)\s+api (http://\S+)")
STOP_S = 30
LIVE = "queued,active,paused,needs_human"


@dataclass
class Stack:
    """A running product: the link that signs a browser in, once, and the API under the administrator's token."""

    link: str
    client: Client
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """The dashboard's address, without a slash at its end."""
        return self.link.split("/open/")[0]

    def add_node(self, name: str) -> None:
        """Start one simulated node's agent with a token of its own."""
        token = self.folder / f"{name}.token"
        token.write_text(self.client.call("POST", "tokens", body={"kind": "agent", "node": name})["token"])
        command = [sys.executable, "-m", "agents.node.main", "--source", "simulated", "--node", name]
        command += ["--server", self.client.url, "--token-file", str(token)]
        command += ["--runtime-dir", str(self.folder / "data" / "nodes" / name)]
        command += ["--spool-dir", str(self.folder / "spool" / name)]
        self.processes.append(_start(command, self.folder / f"{name}.log"))


def _start(command: list[str], log: Path, stdout: int | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=stdout if stdout is not None else file, stderr=file
        )


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)
    if process.stdout is not None:
        process.stdout.close()


def _stop_runs(client: Client) -> None:
    """Stop what still trains: ranks outlive their server on purpose, so they must be told."""
    for end in range(STOP_S * 2):
        rows = client.call("GET", "runs", params={"status": LIVE})["runs"]
        if not rows:
            return
        for row in rows if end == 0 else ():
            client.call("POST", f"runs/{row['id']}/stop", body={})
        time.sleep(0.5)
    raise AssertionError(f"these runs did not stop: {[row['id'] for row in rows]}")


@contextmanager
def running(folder: Path, nodes: tuple[str, ...]) -> Iterator[Stack]:
    """Serve on free ports with these simulated nodes; everything ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "controlplane.cli.main", "serve", "--data", str(folder / "data")]
    server = _start([*command, "--port", "0", "--dashboard-port", "0"], folder / "serve.log", subprocess.PIPE)
    stack: Stack | None = None
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = READY.search(line)
        assert found, f"no ready line, but {line!r}:\n{(folder / 'serve.log').read_text()[-4000:]}"
        token = (folder / "data" / "admin-token").read_text().strip()
        stack = Stack(found[1], Client(found[2], token), folder)
        for name in nodes:
            stack.add_node(name)
        yield stack
    finally:
        try:
            if stack:
                _stop_runs(stack.client)
        finally:
            for process in [*(stack.processes if stack else ()), server]:
                _end(process)
            if stack:
                stack.client.close()

"""How long nobody is in control after a server was killed: the same one started again, and another that stood by.

Real `trimtab serve` processes on one SQLite database, killed with SIGKILL while they lead. The clock starts at the kill
and ends when a server's own /metrics says that it leads; a start of Python and of the server is in it. Both servers are
on one machine, where a holder that is proven dead need not be waited out; one on another machine waits its 9 s besides.
"""

from __future__ import annotations

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TRIES, PATIENCE_S = 5, 60.0
TARGETS = {
    "controller killed, started again, to in control": 10.0,
    "controller killed, to the one that stood by in control": 20.0,
}


class Server:
    """A server over a data directory, on a port of its own."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "controlplane.cli.main", "serve", "--no-dashboard"]
        command += ["--data", str(data), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def leads(self) -> bool | None:
        """Whether it holds the lease; None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as answer:
                return b"\ntrimtab_leader 1" in answer.read()
        except (urllib.error.URLError, OSError):
            return None

    def until(self, leads: bool) -> float:
        """Waits until it answers and leads, or does not; when that was. TimeoutError."""
        deadline = time.monotonic() + PATIENCE_S
        while self.leads() is not leads:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {PATIENCE_S:.0f} s in vain for a server that {'leads' if leads else 'waits'}"
                )
            time.sleep(0.05)
        return time.monotonic()

    def end(self, how: signal.Signals) -> float:
        """Sends a signal and waits for the end; when the signal was sent."""
        at = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(30)
        return at


def started_again(data: Path) -> list[float]:
    """Seconds from each kill to the next process of the same server in control."""
    found, server = [], Server(data)
    server.until(True)
    try:
        for _ in range(TRIES):
            at = server.end(signal.SIGKILL)
            server = Server(data)
            found.append(server.until(True) - at)
    finally:
        server.end(signal.SIGTERM)
    return found


def stood_by(data: Path) -> list[float]:
    """Seconds from each kill of the leader to the other server in control."""
    found, leader = [], Server(data)
    leader.until(True)
    other = Server(data)
    try:
        for _ in range(TRIES):
            other.until(False)
            at = leader.end(signal.SIGKILL)
            found.append(other.until(True) - at)
            leader, other = other, Server(data)
    finally:
        for server in (other, leader):
            server.end(signal.SIGTERM)
    return found


def line(name: str, values: list[float]) -> dict[str, Any]:
    """The slowest of a few tries as the figure: so few have no p95 of their own."""
    slowest, middle = round(max(values), 3), round(statistics.median(values), 3)
    figure = {"name": name, "value": slowest, "unit": "s", "target": TARGETS[name], "better": "lower"}
    return {**figure, "peer": None, "peer_value": None, "p50": middle, "tries": len(values)}


def main() -> int:
    """One JSON line a figure; 1 if a target is missed."""
    missed = 0
    for name, measure in zip(TARGETS, (started_again, stood_by), strict=True):
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
            figure = line(name, measure(Path(folder) / "data"))
        print(json.dumps(figure), flush=True)
        missed += figure["value"] > figure["target"]
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main())

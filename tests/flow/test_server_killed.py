"""A server killed -9 under load: what it acknowledged is there, and the run that it led has no second attempt."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from agents.node.agent import columns
from agents.node.sources.simulated import SimulatedSource
from agents.wire import Batch, encode
from controlplane.client import Client, Unreachable

JOB: dict[str, Any] = {
    "metadata": {"name": "sleeper"},
    "spec": {
        "stage": "sleep",
        "command": ["{python}", "-c", "import time; time.sleep(600)"],
        "resources": {"nodes": 2, "gpusPerNode": 8},
        "train": {"steps": 1},
        "contractLevel": 0,
    },
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(data: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controlplane.cli.main", "serve", "--data", str(data), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--no-dashboard"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    assert "ready" in server.stdout.readline()
    return server


def until(holds: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        try:
            found = holds()
        except Unreachable:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@dataclass
class Sending:
    """A node that sends as fast as it is answered and notes what was acknowledged."""

    node: str
    port: int
    token: str
    acknowledged: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.source = SimulatedSource(self.node, time.time())
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            body = self.batch(self.acknowledged + 1)
            headers = {"Authorization": f"Bearer {self.token}"}
            connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("POST", "/api/v1/ingest", body, headers)
                answer = connection.getresponse()
                if answer.status == 200:
                    self.acknowledged = json.loads(answer.read())["acknowledged"]
            except (OSError, HTTPException):
                time.sleep(0.02)
            finally:
                connection.close()

    def batch(self, sequence: int) -> bytes:
        now = time.time()
        sample = self.source.sample(now, time.monotonic())
        gpu = columns([sample], "gpu")
        facts = self.source.facts()
        return encode(Batch(self.node, "b", sequence, "simulated", True, "0", now, now, gpu=gpu, facts=facts))


def test_acknowledged_batches_are_there_and_the_run_goes_on_as_it_was(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    for node in ("node-a", "node-b"):
        (data / "nodes" / node).mkdir(parents=True)
    server = serve(data, port)
    client = Client(f"http://127.0.0.1:{port}", (data / "admin-token").read_text())
    sending: list[Sending] = []
    try:
        for node in ("node-a", "node-b"):
            token = client.post("tokens", {"kind": "agent", "node": node})["token"]
            sending.append(Sending(node, port, token))
        until(lambda: len(client.nodes()) == 2)
        run = client.submit(JOB)["id"]
        until(lambda: client.run(run)["attempts"] and client.run(run)["attempts"][0]["state"] == "starting")
        (processes,) = (data / "attempts").glob("*/processes.json")
        before = processes.read_text()
        for _ in range(2):
            os.kill(server.pid, signal.SIGKILL)
            server.communicate(timeout=10)
            told = [one.acknowledged for one in sending]
            server = serve(data, port)
            until(lambda told=told: all(one.acknowledged > t + 3 for one, t in zip(sending, told, strict=True)))
        for one in sending:
            one.stop.set()
            one.thread.join(10)
        stored = client.get(f"runs/{run}/stored")["gpu_samples"]
        assert stored == sum(one.acknowledged for one in sending)
        shown = client.run(run)
        assert [attempt["no"] for attempt in shown["attempts"]] == [1]
        assert processes.read_text() == before
        client.post(f"runs/{run}/stop")
        until(lambda: client.run(run)["status"] == "cancelled")
    finally:
        for one in sending:
            one.stop.set()
        server.terminate()
        server.communicate(timeout=20)
        client.close()

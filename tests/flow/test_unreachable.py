"""The way to the server is cut for longer than a rank may be silent: no decision comes of it, and no record is lost.

Real processes: the server, an agent a node, a trainer that keeps the contract. The clocks are the machine's, since
processes read no other; so the suite cuts for as long as makes a rank suspect and its node blind, and `make soak` for
as long as would make it hung. That a minute and a half is no hang, test_cut_off shows at clocks that it moves.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from controlplane.client import Client
from controlplane.store import expert_parts, experts, steps, telemetry
from controlplane.store.engine import Store
from jobs.contract import read_exit_records
from tests.flow.test_server_killed import free_port, serve, until

NODES = ("node-a", "node-b")
STEPS, STEP_S = 100_000, 0.5
CUT_S = float(os.environ.get("TRIMTAB_CUT_S", "24"))
"""A node is blind after 15 s, a training rank suspect after 20 s, and hung after 60 s."""
JOB: dict[str, Any] = {
    "metadata": {"name": "stub"},
    "spec": {
        "stage": "pretrain",
        "command": ["{python}", "-m", "tests.flow.stub_trainer", str(STEPS), str(STEP_S)],
        "resources": {"nodes": 2, "gpusPerNode": 8},
        "train": {"steps": STEPS},
        "contractLevel": 2,
    },
}


class Way:
    """A relay between the agents and the server that a test cuts and mends."""

    def __init__(self, server_port: int) -> None:
        self._server_port, self._open, self.is_cut = server_port, set[socket.socket](), False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.is_cut:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    near.close()
                    continue
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


class Stage:
    """Server, way, agents."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, port = folder, folder / "data", free_port()
        self.server = serve(self.data, port)
        self.client = Client(f"http://127.0.0.1:{port}", (self.data / "admin-token").read_text())
        self.way = Way(port)
        self.agents = [self.agent(node) for node in NODES]

    def agent(self, node: str) -> subprocess.Popen[bytes]:
        token = self.folder / f"token-{node}"
        token.write_text(self.client.post("tokens", {"kind": "agent", "node": node})["token"])
        command = [sys.executable, "-m", "agents.node.main", "--source", "simulated", "--node", node]
        command += ["--server", f"http://127.0.0.1:{self.way.port}", "--token-file", str(token)]
        command += ["--runtime-dir", str(self.data / "nodes" / node), "--spool-dir", str(self.folder / "spool" / node)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def spooled(self) -> int:
        """How many batches wait at the agents."""
        return len(list((self.folder / "spool").glob("*/*.batch")))

    def ends(self, attempt: str) -> dict[int, int]:
        """The last step of each rank, by what its process left when it ended."""
        folders = [self.data / "nodes" / node / "attempts" / attempt for node in NODES]
        return {record.rank: record.step or 0 for folder in folders for record in read_exit_records(folder)}

    def end(self) -> None:
        for process in self.agents:
            process.terminate()
            process.wait(20)
        self.way.close()
        self.client.close()
        self.server.terminate()
        self.server.communicate(timeout=20)


def nothing_waits(store: Store) -> bool:
    """Whether no rank's part of a step waits for another's."""
    with store.read() as session:
        return not expert_parts.any_older(session, received_before_s=time.time() + 60)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.end()


@pytest.mark.timeout(480)
def test_a_server_that_cannot_be_reached_decides_nothing_and_loses_nothing(stage: Stage) -> None:
    client = stage.client
    until(lambda: len([node for node in client.nodes() if len(node["gpus"]) == 8]) == 2)
    run = client.submit(JOB)["id"]
    until(lambda: (client.run(run)["attempts"] or [{}])[0].get("state") == "training")

    def stored() -> int:
        return int(client.get(f"runs/{run}/stored")["expert_records"])

    until(lambda: stored() >= 10)
    stage.way.cut()
    time.sleep(CUT_S)
    assert {one["rule"] for one in client.get("incidents")["incidents"]} == {"no-telemetry-fleet"}, "blind, no more"
    assert client.run(run)["status"] == "active" and stage.spooled() > CUT_S
    stage.way.mend()
    until(lambda: stage.spooled() <= 3 * len(NODES), within_s=240)
    caught_up = stored()
    until(lambda: stored() > caught_up + 10)
    client.post(f"runs/{run}/stop")
    until(lambda: client.run(run)["status"] == "cancelled")

    shown = client.run(run)
    assert [(attempt["no"], attempt["first_step"]) for attempt in shown["attempts"]] == [(1, 1)]
    assert shown["decisions"] == []
    assert {one["rule"] for one in client.get("incidents")["incidents"]} <= {"no-telemetry-fleet", "no-telemetry"}
    ends = stage.ends(shown["attempts"][0]["name"])
    until(lambda: stage.spooled() == 0)  # between two samples of either agent
    store = Store(f"sqlite:///{stage.data / 'trimtab.sqlite'}")
    until(lambda: nothing_waits(store))  # the last steps of the rank that was ahead
    stage.end()
    with store.read() as session:
        told = [(r, s) for part in steps.read(session, run) for r, s in zip(part.rank, part.step, strict=True)]
        assert sorted(told) == [(rank, step) for rank in (0, 1) for step in range(1, ends[rank] + 1)]
        whole = {one.step for one in experts.recent(session, run, limit=10_000) if one.ranks == 2}
        assert whole >= set(range(1, min(ends.values()) + 1)), "each rank's share of each step"
        assert all(telemetry.counted(session, "gpu", node) > CUT_S for node in NODES)
    store.close()

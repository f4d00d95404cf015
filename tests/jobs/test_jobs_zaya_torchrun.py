"""Two nodes of one rank each under torchrun, as the local backend starts them: one node's stop saves and ends both,
the next attempt goes on at the step after, sharded (FSDP2), and a killed rank is told from one that lost its peer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import contract
from jobs.contract import Exit, Heartbeat

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"steps": 2000, "checkpointEvery": 1, "sequences": 2, "length": 16, "seed": 5}
ROUTER = {"experts": 4, "layers": 2, "hidden": 32, "expertHidden": 16, "routerHidden": 16}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Attempt:
    """One attempt on two nodes; `nodes` are the launchers, PID 1 of each."""

    def __init__(self, directory: Path, no: int, **more: str) -> None:
        self.directory, self.no = directory, no
        port = str(free_port())
        self.nodes = [self._start(node, port, more) for node in (0, 1)]

    def _start(self, node: int, port: str, more: dict[str, str]) -> subprocess.Popen[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "-m", "jobs.zaya.train", "--config", "toy"]
        environment = {
            **os.environ,
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "PET_MAX_RESTARTS": "0",
            "PET_RDZV_ID": f"run-1-{self.no}",
            "OMP_NUM_THREADS": "1",
            "TRIMTAB_RUN_ID": "run-1",
            "TRIMTAB_ATTEMPT": str(self.no),
            "TRIMTAB_RUN_DIR": str(self.directory / "run"),
            "TRIMTAB_HEARTBEAT_DIR": str(self.beats(node)),
            "TRIMTAB_TRAIN_JSON": json.dumps(TRAIN),
            "TRIMTAB_ROUTER_JSON": json.dumps(ROUTER),
            **more,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.launch", "--", *torchrun],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def beats(self, node: int) -> Path:
        return self.directory / f"node-{node}" / "attempts" / f"run-1-{self.no}"

    def wait_for_a_checkpoint(self) -> None:
        """Rank 0 says each checkpoint on stdout."""
        out = self.nodes[0].stdout
        assert out is not None
        assert any(line.startswith("saved step") for line in out)

    def heartbeat(self, node: int) -> Heartbeat:
        return Heartbeat.from_json((self.beats(node) / f"heartbeat-rank-{node}.json").read_bytes())

    def end(self) -> list[tuple[int, str]]:
        """Exit code and class of both nodes."""
        for process in self.nodes:
            process.communicate(timeout=120)
        found: list[dict[str, Any]] = [
            json.loads((self.beats(node) / "termination.json").read_text()) for node in (0, 1)
        ]
        return [(process.returncode, ended["class"]) for process, ended in zip(self.nodes, found, strict=True)]

    def kill(self) -> None:
        """For a test that failed half-way: stops what still runs."""
        for process in self.nodes:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)


@pytest.mark.timeout(240)
def test_two_nodes_stop_together_go_on_at_the_next_step_and_tell_a_killed_rank(tmp_path: Path) -> None:
    first = Attempt(tmp_path, 1)
    try:
        first.wait_for_a_checkpoint()
        first.nodes[1].send_signal(signal.SIGTERM)
        assert first.end() == [(Exit.SAVED, "saved"), (Exit.SAVED, "saved")]
    finally:
        first.kill()
    newest = contract.list_checkpoints(tmp_path / "run")[-1]
    assert contract.verify(newest).ok
    step = contract.read_manifest(newest).step
    assert [first.heartbeat(node).last_step for node in (0, 1)] == [step, step]

    sharded = json.dumps({**TRAIN, "sharding": "fsdp2"})
    second = Attempt(tmp_path, 2, TRIMTAB_RESUME_FROM=str(newest), TRIMTAB_TRAIN_JSON=sharded)
    try:
        second.wait_for_a_checkpoint()
        beats = [second.heartbeat(node) for node in (0, 1)]
        assert [beat.first_step for beat in beats] == [step + 1, step + 1]
        assert {beat.resumed_from for beat in beats} == {str(newest)}
        os.kill(beats[1].pid, signal.SIGKILL)
        assert second.end() == [(1, "peer_lost"), (137, "killed")]
    finally:
        second.kill()
    whole = [one for one in contract.list_checkpoints(tmp_path / "run") if contract.verify(one).ok]
    saved = contract.read_manifest(whole[-1])
    assert saved.attempt_no == 2 and len([one for one in saved.files if one.name.endswith(".distcp")]) == 2

"""A checkpoint of the smallest real model and the environment of a job that starts from it; not a test itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs import contract
from jobs.contract import Environment, HeartbeatWriter, Result, StopFlag
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.training.learner import Learner
from tests.jobs.zaya_small import MODEL, learner, train


class Wishes(StopFlag):
    """A stop flag that no signal reaches: the test raises it."""

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop


def saved(directory: Path, one: Learner | None = None, steps: int = 2) -> Path:
    """Where the checkpoint of a learner lies that trained a little."""
    one = one or learner()
    train(one, 1, steps)
    where, _ = checkpoint.save(
        Environment.read({"TRIMTAB_RUN_DIR": str(directory), "TRIMTAB_STAGE": "sft"}),
        one.state(),
        step=steps,
        world=1,
        data_position=steps + 1,
        biases=one.balancer.biases,
        state_at_s=time.time(),
        extra={"model": asdict(MODEL)},
    )
    return where


class Attempts:
    """A run's directory, and attempts of a job in it that start from a checkpoint."""

    def __init__(self, directory: Path, init: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.init, self.monkeypatch = directory, init, monkeypatch
        self.hash = contract.checkpoint_hash(init)
        self.prepared = directory / "prepared"
        self.alive = 0
        """how often the attempts said between two steps that they go on"""

    def run(
        self,
        attempt: Callable[[StopFlag], int],
        data: dict[str, Any],
        train: dict[str, Any] | None = None,
        flag: StopFlag | None = None,
        **more: str,
    ) -> int:
        """The exit code of one attempt with these maps, in this process."""
        values = {
            "TRIMTAB_RUN_ID": "run-1",
            "TRIMTAB_RUN_DIR": str(self.directory),
            "TRIMTAB_HEARTBEAT_DIR": str(self.directory / "beats"),
            "TRIMTAB_PREPARED_DIR": str(self.prepared),
            "TRIMTAB_INIT_FROM": str(self.init),
            "TRIMTAB_INIT_HASH": self.hash,
            "TRIMTAB_TRAIN_JSON": json.dumps({"steps": 1, "checkpointEvery": 100, **(train or {})}),
            "TRIMTAB_DATA_JSON": json.dumps(data),
            **more,
        }
        with self.monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("TRIMTAB_")]:
                patch.delenv(name)
            for name, value in values.items():
                patch.setenv(name, value)
            patch.setattr(HeartbeatWriter, "alive", self._alive)
            return attempt(flag or Wishes())

    def _alive(self) -> None:
        self.alive += 1

    def result(self) -> Result:
        """What the attempt found out."""
        found = contract.read_result(self.directory / "attempt-0001")
        assert found is not None
        return found

    def record(self) -> contract.ExitRecord:
        return contract.read_exit_records(self.directory / "beats")[0]

    def beat(self) -> contract.Heartbeat:
        return contract.Heartbeat.from_json((self.directory / "beats" / "heartbeat-rank-0.json").read_bytes())

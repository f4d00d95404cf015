"""Writes checkpoints while training goes on, one at a time: the state is copied, files follow in the background, and
the manifest appears when all of them are there.

A checkpoint without a manifest is none, so an attempt that dies meanwhile has lost only what it had not yet saved.
Every rank makes the same calls. Jobs that save in the foreground call jobs/zaya/checkpoints/state.py themselves.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jobs.contract import Environment, announce_checkpoint, step_directory
from jobs.zaya.checkpoints import state as checkpoint

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A state that the next step does not change."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found[name] = copied(value)
        else:
            found[name] = value.clone() if isinstance(value, Tensor) else value
    return found


class Saver:
    """One rank's part in the checkpoints of an attempt. `seconds` is the longest save so far, begin to manifest."""

    def __init__(self, environment: Environment, rank: int, world: int) -> None:
        self.environment, self.rank, self.world = environment, rank, world
        self.seconds = 0.0
        self._begun = 0.0
        self.kind = "whole"
        self._group: ProcessGroup | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def open(self, kind: str) -> None:
        """Before the first step, on every rank: `whole` or `dcp`, which has a process group of its own."""
        self.kind = kind
        if kind == "dcp":
            from jobs.zaya.checkpoints import shards  # late: what it imports takes two seconds of CPU time

            self._group = shards.group()

    def begin(self, state: dict[str, Any], facts: checkpoint.Facts) -> None:
        """Copies the state and returns; waits for the checkpoint before and raises what went wrong with it."""
        self.finish()
        begun = self._begun = time.monotonic()
        if self.kind == "dcp":
            self._begin_shards(state, facts, begun)
        elif self.rank == 0:
            directory, kept = checkpoint.begun(self.environment, facts.step), copied(state)
            self._writing = self._thread.submit(self._write_whole, directory, kept, facts, begun)

    def _begin_shards(self, state: dict[str, Any], facts: checkpoint.Facts, begun: float) -> None:
        from jobs.zaya.checkpoints import shards  # late, as above

        if self.rank == 0:
            directory = checkpoint.begun(self.environment, facts.step)
        else:
            directory = step_directory(self.environment.checkpoint_dir, facts.step)
        names = shards.write(state, directory, self._group)
        self._writing = self._thread.submit(self._complete_shards, directory, names, facts, begun)

    def _write_whole(self, directory: Path, state: dict[str, Any], facts: checkpoint.Facts, begun: float) -> None:
        self._complete(directory, checkpoint.write_whole(state, directory), facts, begun)

    def _complete_shards(
        self, directory: Path, names: Future[list[str]], facts: checkpoint.Facts, begun: float
    ) -> None:
        found = names.result()
        if self.rank == 0:  # it knows only when the parts of all ranks are written
            self._complete(directory, found, facts, begun)
        self.seconds = max(self.seconds, time.monotonic() - begun)

    def _complete(self, directory: Path, names: list[str], facts: checkpoint.Facts, begun: float) -> None:
        manifest = checkpoint.completed(self.environment, directory, names, facts)
        self.seconds = max(self.seconds, time.monotonic() - begun)
        problem = announce_checkpoint(self.environment, directory, manifest)
        print(f"saved step {facts.step}" + (f"; not announced: {problem}" if problem else ""), flush=True)

    def needed_s(self) -> float:
        """How long a save that is begun now would take, in seconds, what is still being written included: each as long
        as the longest so far."""
        if self._writing is None or self._writing.done():
            return self.seconds
        passed = time.monotonic() - self._begun
        longest = max(self.seconds, passed)
        return longest - passed + longest

    def finish(self) -> None:
        """Waits until nothing is being written; raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits as `finish` does and never raises: it comes last, perhaps after an error that matters more."""
        try:
            self.finish()
        except Exception as error:
            print(f"a checkpoint was not completed: {error}", file=sys.stderr, flush=True)
        self._thread.shutdown()

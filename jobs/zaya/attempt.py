"""What every attempt of the reference workload does around its work: read the environment, keep the heartbeat, turn
what ended it into an exit code of the contract, and leave an exit record.

The work itself (jobs/zaya/train.py, jobs/zaya/rl) knows what a step is; this file does not.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    ExitRecord,
    HeartbeatWriter,
    StopFlag,
    step_directory,
    write_exit_record,
)
from jobs.zaya.training.learner import NumericsError


class TooLateError(Exception):
    """A stop left less time than a save needs: what was computed since the last one is lost, and no half save begun."""


class Work(Protocol):
    """One attempt's work. `step` is the last optimizer step that it completed."""

    step: int

    def run(self) -> Exit:
        """Works to the end, or until asked to stop."""


def code_of(error: Exception) -> int:
    """The exit code of the contract that an error stands for; 1 for one that nobody expected."""
    if isinstance(error, ContractError):
        return Exit.CONFIG
    if isinstance(error, TooLateError):
        return Exit.UNSAVED
    return Exit.NUMERICS if isinstance(error, NumericsError) else 1


def reached(environment: Environment, step: int) -> Path:
    """The checkpoint of an attempt's last step: the one that it resumed from where nothing was left to train."""
    saved = step_directory(environment.checkpoint_dir, step)
    if not saved.is_dir() and environment.resume_from is not None:
        return environment.resume_from
    return saved


def _leave_record(record: ExitRecord) -> None:
    """Beside the heartbeats, even when the rest of the environment could not be read.

    One that cannot be written (a full disk) is said on stderr: the exit code says the most of it.
    """
    directory = os.environ.get("TRIMTAB_HEARTBEAT_DIR")
    if directory:
        try:
            write_exit_record(Path(directory), record)
        except OSError as error:
            print(f"exit record: {error}", file=sys.stderr, flush=True)


def carry_out(make: Callable[[Environment, HeartbeatWriter], Work], rank: int, world: int) -> int:
    """Runs the attempt that `make` makes; every end leaves an exit record. An unexpected error is 1."""
    work: Work | None = None
    beat: HeartbeatWriter | None = None
    code: int = 1
    name, message, trace = "", "", ""
    try:
        environment = Environment.read()
        beat = HeartbeatWriter(environment, rank, world)
        work = make(environment, beat)
        code = work.run()
    except Exception as error:
        code, name, message = code_of(error), type(error).__name__, str(error)
        trace = "".join(traceback.format_exception(error))
        print(trace, file=sys.stderr, flush=True)
    phase = beat.current if beat else "start"
    step = work.step if work else None
    _leave_record(ExitRecord(rank, code, phase, step, name, message, trace[-8000:], time.time()))
    if beat is not None:
        beat.phase("exit", error=message or None)
    if dist.is_initialized() and not trace:
        dist.destroy_process_group()
    return code


def carry_out_alone(make: Callable[[Environment, HeartbeatWriter, StopFlag], Work], what: str, flag: StopFlag) -> int:
    """As carry_out, for work that is one process: `what` names it where somebody asks for more of them."""
    rank, world = _place(os.environ)

    def one(environment: Environment, beat: HeartbeatWriter) -> Work:
        if world > 1:
            raise ContractError(f"{what} is one process, not {world}: ask for one node and one rank")
        return make(environment, beat, flag)

    return carry_out(one, rank, world)


def _place(env: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank and how many there are: torchrun's words, or those that a backend leaves for torchrun where
    the command is started on each node without it."""
    if "WORLD_SIZE" in env:
        return int(env.get("RANK", "0")), int(env["WORLD_SIZE"])
    return int(env.get("PET_NODE_RANK", env.get("JOB_COMPLETION_INDEX", "0"))), int(env.get("PET_NNODES", "1"))

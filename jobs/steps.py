"""RUN_DIR/steps.jsonl: a step a line, for a trainer that keeps the contract's level 1 and has no probe.

A line is a JSON object: `step` (completed optimizer steps), `attempt_no`, `epoch` and `rank`, and what is known of
`at_s` (Unix seconds), `loss` (nats a token), `grad_norm`, `step_seconds`, `tokens`, `learning_rate` (or `lr`),
`data_position`. All attempts of a run append to the one file; what a fenced attempt still appends is told by its epoch
and left out. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.manifest import is_whole

if TYPE_CHECKING:
    from jobs.contract import Environment

FILE = "steps.jsonl"
WHOLE_JOB = -1
"""The rank of what a job says as a whole."""
_REAL = ("at_s", "loss", "grad_norm", "step_seconds", "learning_rate")
_WHOLE = ("tokens", "data_position", "attempt_no", "epoch")
_LARGEST_STEP, _LARGEST_RANK = 2**31 - 1, 1_000_000


@dataclass(frozen=True, slots=True)
class StepScalars:
    """What is known of one completed step; None for what is not. NaN and infinity are what the trainer said."""

    step: int
    rank: int = WHOLE_JOB
    at_s: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    step_seconds: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    data_position: int | None = None
    attempt_no: int | None = None
    epoch: int | None = None

    def completed_by(self, other: StepScalars) -> StepScalars:
        """Both together; what `other` knows counts."""
        return replace(self, **{name: value for name in self.__slots__ if (value := getattr(other, name)) is not None})


def append_step(environment: Environment, rank: int, step: int, **known: float) -> None:
    """A trainer's word of a completed step: one line, appended whole. OSError; the keys are StepScalars'."""
    line = {"attempt_no": environment.attempt_no, "epoch": environment.epoch, "rank": rank, "step": step}
    body = (json.dumps({**line, "at_s": time.time(), **known}) + "\n").encode()
    descriptor = os.open(environment.run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, body)
    finally:
        os.close(descriptor)


def parse_line(line: bytes) -> StepScalars | None:
    """The step of a line; None for one that is none: a line torn by two writers costs itself alone."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return of_mapping(found) if isinstance(found, dict) else None


def of_mapping(found: Mapping[str, Any]) -> StepScalars | None:
    """The step that a mapping tells of; None without a step of a sane size."""
    if not is_step(found.get("step")):
        return None
    rank = found.get("rank", WHOLE_JOB)
    values = {**found, "learning_rate": found.get("learning_rate", found.get("lr"))}
    known: dict[str, Any] = {name: real(values.get(name)) for name in _REAL}
    known |= {name: values[name] for name in _WHOLE if is_whole(values.get(name))}
    sound = is_whole(rank) and WHOLE_JOB <= rank <= _LARGEST_RANK
    return StepScalars(step=found["step"], rank=rank if sound else WHOLE_JOB, **known)


def is_step(value: object) -> bool:
    """Whether a value is the number of a completed step."""
    return is_whole(value) and isinstance(value, int) and 0 < value <= _LARGEST_STEP


def real(value: object) -> float | None:
    """A number as it was said, NaN and infinity included; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) or isinstance(value, float | str) else None

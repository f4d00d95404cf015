"""verl's file logger: `{"step": N, "data": {…}}` a line, at the path in VERL_FILE_LOGGER_PATH.

verl opens it anew for writing, so a second start on one path would cut it: the preset gives each attempt a path of its
own, `metrics.jsonl` in the attempt's directory. Lines have no time. Source: verl/utils/tracking.py (FileLogger),
verl/trainer/ppo/metric_utils.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.meters.base import Mark, Marks, lines
from jobs.steps import StepScalars, is_step, real

FILE = "metrics.jsonl"
_LOSS, _NORM = ("actor/loss", "actor/pg_loss", "train/loss"), ("actor/grad_norm", "train/grad_norm")
_RATE, _SECONDS = ("actor/lr", "train/lr"), ("perf/time_per_step", "timing_s/step")


class Verl:
    """The lines of verl's file logger; its step 0 is a validation before training and no step."""

    name = "verl"
    replays = False

    def read(self, attempt_dir: Path, marks: Marks) -> tuple[list[StepScalars], Marks]:
        path = attempt_dir / FILE
        try:
            found, mark = lines(path, marks.get(str(path), Mark()))
        except FileNotFoundError:
            return [], marks
        steps = [step for line in found if (step := _step(line)) is not None]
        return steps, {**marks, str(path): mark}


def _step(line: bytes) -> StepScalars | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, dict) or not is_step(found.get("step")):
        return None
    tokens = data.get("perf/total_num_tokens")
    return StepScalars(
        step=found["step"],
        loss=_first(data, _LOSS),
        grad_norm=_first(data, _NORM),
        learning_rate=_first(data, _RATE),
        step_seconds=_first(data, _SECONDS),
        tokens=int(tokens) if isinstance(tokens, int | float) and 0 <= tokens < 2**62 else None,
    )


def _first(data: dict[str, Any], names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := real(data.get(name))) is not None), None)

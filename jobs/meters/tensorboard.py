"""Steps from TensorBoard's event files, by the tags that each framework writes.

Writers keep events back for up to two minutes (`flush_secs` 120, ROLL 10), so a page is as late; where a trainer prints
its steps the log is quicker. ROLL counts from 0 and, resumed, writes its whole history again; slime counts rollouts
from 0 and numbers `train/` by another count, so its losses are left out. Source of the tags:
megatron/training/training.py (training_log), torchtitan/components/metrics.py, roll/pipeline/base_pipeline.py,
slime/utils/tensorboard_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.meters import events
from jobs.meters.base import Mark, Marks, below, fresh
from jobs.steps import StepScalars, is_step

PATTERN = "events.out.tfevents.*"
Tags = Mapping[str, str]
"""By tag, the field of StepScalars."""
USUAL: Tags = {
    "lm loss": "loss",
    "loss_metrics/global_avg_loss": "loss",
    "train/loss": "loss",
    "actor/loss": "loss",
    "actor/pg_loss": "loss",
    "grad-norm": "grad_norm",
    "grad_norm": "grad_norm",
    "train/grad_norm": "grad_norm",
    "actor/grad_norm": "grad_norm",
    "learning-rate": "learning_rate",
    "lr": "learning_rate",
    "train/learning_rate": "learning_rate",
    "actor/lr": "learning_rate",
    "iteration-time": "step_seconds",
    "time_metrics/end_to_end(s)": "step_seconds",
    "perf/time_per_step": "step_seconds",
}
ROLL: Tags = {
    "actor/total_loss": "loss",
    "actor_train/grad_norm": "grad_norm",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "time/step_total": "step_seconds",
}
SLIME: Tags = {"perf/step_time": "step_seconds", "rollout/rewards": "", "rollout/raw_reward": ""}


@dataclass(frozen=True)
class TensorBoard:
    """The event files below an attempt's directory. `counts_from`: the number that the trainer gives its first step."""

    name: str = "tensorboard"
    tags: Tags = field(default_factory=lambda: USUAL)
    counts_from: int = 1
    replays: bool = False

    def read(self, attempt_dir: Path, marks: Marks) -> tuple[list[StepScalars], Marks]:
        steps: dict[int, StepScalars] = {}
        after = dict(marks)
        for path in below(attempt_dir, PATTERN):
            mark = marks.get(str(path), Mark())
            if mark.broken:
                continue
            found, after[str(path)] = self._read(path, mark)
            for one in found:
                known = steps.get(one.step)
                steps[one.step] = one if known is None else known.completed_by(one)
        return [steps[step] for step in sorted(steps)], after

    def _read(self, path: Path, mark: Mark) -> tuple[list[StepScalars], Mark]:
        body, begun = fresh(path, mark)
        found: list[StepScalars] = []
        done = 0
        try:
            for end, record in events.records(body):
                found += [step for scalar in events.scalars(record) if (step := self._step(scalar)) is not None]
                done = end
        except events.BrokenRecord as error:
            return found, Mark(begun.inode, begun.offset + done, str(error))
        if not done and (length := events.length_of(body)) is not None and length > len(body):
            # a picture or a text larger than what is read at once: it is passed over when it is whole
            done = length if begun.offset + length <= path.stat().st_size else 0
        return found, Mark(begun.inode, begun.offset + done)

    def _step(self, scalar: events.Scalar) -> StepScalars | None:
        name = self.tags.get(scalar.tag)
        number = scalar.step + 1 - self.counts_from
        if name is None or not is_step(number):
            return None
        told: dict[str, Any] = {name: scalar.value} if name else {}
        return StepScalars(number, at_s=scalar.at_s, **told)

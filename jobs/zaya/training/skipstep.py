"""SkipStep: a step whose loss or gradient norm is far above those before it moves no weight.

The rule is that of OLMo-core (allenai/OLMo-core, olmo_core.optim.SkipStepOptimizer): skip when the value is more than
σ standard deviations away from the mean of a trailing window, and never before half a window is there. Two things
differ. Only values above the mean count. A skipped step's values stay out of the window, or a bad stretch would soon
be the rule it is judged by; in return, several skipped steps in a row end the attempt, and the controller goes back to
a checkpoint and leaves the data out. It changes no weight itself; jobs/zaya/training/learner.py asks it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from jobs.contract import format_ranges, merged
from jobs.zaya.phases import SkipRule


class NumericsError(ArithmeticError):
    """The loss or a gradient is not finite, or far out step after step: the controller rolls back and skips data."""


class SkipStep:
    """The trailing window of losses and gradient norms, and the data indices skipped in a row."""

    def __init__(self, rule: SkipRule) -> None:
        self.rule = rule
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.skipped: list[int] = []
        self.phase = 0

    def judge(self, loss: float, norm: float, index: int, phase: int = 0) -> str:
        """Why the step on a data index must move nothing; "" when it may. Both values are those of all ranks.

        A new phase begins a new window: other data or another learning rate is not judged by what was before.
        Raises NumericsError at the last of `consecutive` such steps in a row, on every rank alike.
        """
        if phase != self.phase:
            self.phase, self.losses, self.norms, self.skipped = phase, [], [], []
        reason = self._far(loss, self.losses, "loss") or self._far(norm, self.norms, "gradient norm")
        if not reason:
            self.losses = [*self.losses, loss][-self.rule.window :]
            self.norms = [*self.norms, norm][-self.rule.window :]
            self.skipped = []
            return ""
        self.skipped.append(index)
        count = len(self.skipped)
        if count >= self.rule.consecutive:
            where = format_ranges(merged((one, one) for one in self.skipped))
            raise NumericsError(f"{count} steps in a row, on data indices {where}, were skipped: at the last {reason}")
        return reason

    def _far(self, value: float, window: Sequence[float], name: str) -> str:
        """How a value lies above the limit; "" when it does not, or when there is no half window to say so."""
        count, sigmas = len(window), self.rule.sigmas
        if count < self.rule.window // 2:
            return ""
        mean = statistics.fmean(window)
        limit = mean + sigmas * statistics.stdev(window)
        if value <= limit or math.isclose(value, mean):
            return ""
        return f"the {name} {value:.3f} is above {limit:.3f}, mean and {sigmas:g} deviations of {count} steps"

    def state_dict(self) -> dict[str, Any]:
        """Part of a training's state: without it a resumed attempt would skip other steps. Always of one shape."""
        window = torch.full((2, self.rule.window), math.nan, dtype=torch.float64)
        window[:, : len(self.losses)] = torch.tensor([self.losses, self.norms], dtype=torch.float64)
        skipped = torch.zeros(self.rule.consecutive, dtype=torch.int64)
        skipped[: len(self.skipped)] = torch.tensor(self.skipped, dtype=torch.int64)
        return {"window": window, "skipped": skipped, "phase": self.phase}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state over; a rule of a shorter window, or of fewer steps in a row, keeps the newest."""
        losses, norms = ([one for one in row if not math.isnan(one)] for row in state["window"].tolist())
        self.losses, self.norms = losses[-self.rule.window :], norms[-self.rule.window :]
        self.phase = int(state["phase"])
        skipped = [index for index in state["skipped"].tolist() if index]
        # one more than these ends the attempt, as it does where they were skipped under this rule
        self.skipped = skipped[max(0, len(skipped) - self.rule.consecutive + 1) :]

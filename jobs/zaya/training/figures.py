"""The numbers that a training leaves for people: how it began and how it ended. No torch.

They go with the checkpoint, so that an attempt that resumes tells the whole training, not its own part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

WINDOW = 10
"""steps at either end of a training that a figure is the mean of"""


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


class Figures:
    """Means over the first and the last WINDOW steps of each number, and how many steps were skipped."""

    def __init__(self) -> None:
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.skipped = 0

    def told(self, values: Mapping[str, float], skipped: bool) -> None:
        """A step's numbers; those that are not known are NaN. A skipped step is counted and says nothing."""
        if skipped:
            self.skipped += 1
            return
        for name, value in values.items():
            first = self.first.setdefault(name, [])
            if len(first) < WINDOW:
                first.append(value)
            self.last[name] = [*self.last.get(name, []), value][-WINDOW:]

    def metrics(self) -> dict[str, float]:
        """By name the end's mean, by `first_` and the name the beginning's; only what is known."""
        found = {f"first_{name}": _mean(values) for name, values in self.first.items()}
        found |= {name: _mean(values) for name, values in self.last.items()}
        found["skipped_steps"] = float(self.skipped)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def state(self) -> dict[str, Any]:
        """As JSON has it, and no more changed by the steps to come: a manifest is written while training goes on."""
        return copy.deepcopy({"first": self.first, "last": self.last, "skipped": self.skipped})

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave, read back from JSON."""
        self.first, self.last, self.skipped = dict(state["first"]), dict(state["last"]), int(state["skipped"])

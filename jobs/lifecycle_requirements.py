"""A requirement of a gate in its written form, `loss < 2.6` or `pass@1 > constant_baseline`, read into its three parts.

Whether a result meets it is judged in controlplane.runs.lifecycle_gates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobs.parsing import Problem, SpecError

_REQUIREMENT = re.compile(r"\s*(?P<metric>[^\s<>=]+)\s*(?P<op><=|>=|==|<|>)\s*(?P<bound>[^\s<>=]+)\s*")


@dataclass(frozen=True, slots=True)
class Requirement:
    """`metric op bound`: the bound is a number or another metric of the same result."""

    metric: str
    op: str
    bound: float | str

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Reads one; SpecError in plain words if it is none."""
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            how = "must be `<metric> <op> <number or metric>` with an op of < <= > >= =="
            raise SpecError([Problem("", f"{how}, not {text!r}")])
        bound = match["bound"]
        try:
            return cls(match["metric"], match["op"], float(bound))
        except ValueError:
            return cls(match["metric"], match["op"], bound)

    def __str__(self) -> str:
        bound = self.bound if isinstance(self.bound, str) else f"{self.bound:g}"
        return f"{self.metric} {self.op} {bound}"

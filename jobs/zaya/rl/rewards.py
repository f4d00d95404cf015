"""What a completion is worth: the environment's own score, or a preference model's with the written rubric beside it.

A completion that did not end within its limit is worth nothing: no environment says where such an answer stops, and a
policy that is paid for it does not learn to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jobs.zaya.envs.base import Problem
from jobs.zaya.envs.registry import find


@dataclass(frozen=True)
class Worth:
    """`reward` is learned from, `score` is the environment's (0..1), `gold` the rubric's; None where nobody asked."""

    reward: float
    score: float
    gold: float | None = None


class Scorer(Protocol):
    """Whatever turns an answer into what it is worth. It travels to the rollout actors."""

    def worth(self, problem: Problem, answer: str, ended: bool) -> Worth:
        """Never raises, whatever the answer."""


class EnvironmentScorer:
    """The environment that set the problem scores it."""

    def worth(self, problem: Problem, answer: str, ended: bool) -> Worth:
        score = find(problem.environment).score(problem, answer) if ended else 0.0
        return Worth(score, score)

"""What a completion is worth: the environment's own score, or a preference model's with the written rubric beside it.

A completion that did not end within its limit is worth nothing: no environment says where such an answer stops, and a
policy that is paid for it does not learn to stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.contract import ContractError
from jobs.zaya.envs.base import Problem
from jobs.zaya.envs.registry import find
from jobs.zaya.judge.pairs import PREFERENCES, read_pairs
from jobs.zaya.judge.preference import Proxy
from jobs.zaya.judge.rubric import gold


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


class ProxyScorer:
    """A preference model rewards, the rubric looks on.

    The reward is sigmoid(r), the probability that the answer is preferred to the mean answer of the model's fit, so
    that no answer is worth less than one that did not end.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    @classmethod
    def fitted(cls, prepared: Path | None, seed: int) -> ProxyScorer:
        """Fits the model to the stage's preferences; ContractError where there are none."""
        if prepared is None:
            raise ContractError("data.judge is proxy, and TRIMTAB_PREPARED_DIR names no directory with preferences")
        proxy = Proxy()
        proxy.fit(read_pairs(prepared / PREFERENCES), seed)
        return cls(proxy)

    def worth(self, problem: Problem, answer: str, ended: bool) -> Worth:
        if not ended:
            return Worth(0.0, 0.0, 0.0)
        found = gold(problem.question, answer)
        score = find(problem.environment).score(problem, answer)
        return Worth(self.proxy.preferred(problem.question, answer), score, found)

"""Which problems a step learns from: a function of seed, data index and the curriculum's state. No model, no actors.

A data index stands for one step's draw, as in pretraining, so that a skipped range of indices is never drawn. Slots
number the prompts of an index; those from `prompts` on are drawn for groups that taught nothing. The environments take
turns over the slots. Questions that evaluation owns (jobs/zaya/envs/base.py, held_out) are never drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from jobs.contract import ContractError
from jobs.zaya.envs.base import draw, within
from jobs.zaya.envs.registry import find
from jobs.zaya.evaluation_config import parts
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rollout import Asked, Group


def seed_of(*parts: object) -> int:
    """A seed of 56 bits from anything that can be written; equal parts give equal seeds in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")


class Fixed:
    """The curriculum that does not move: each environment's difficulties are drawn evenly."""

    def __init__(self, spans: dict[str, tuple[int, int]]) -> None:
        self.spans = spans

    def draw(self, environment: str, rng: random.Random) -> int:
        low, high = self.spans[environment]
        return rng.randint(low, high)

    def told(self, environment: str, difficulty: int, scores: list[float]) -> None:
        """Nothing comes of it."""

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """There is nothing to take over."""


class Sampler:
    """Draws prompts for a stage and moves its curriculum. Raises ContractError for environments that do not exist."""

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        spans: dict[str, tuple[int, int]] = {}
        for name, low, high in parts(config.environments):
            environment = find(name)
            spans[name] = (
                environment.easiest if low is None else within(environment, low),
                environment.hardest if high is None else within(environment, high),
            )
        self.environments = {name: find(name) for name in spans}
        self.names = list(spans)
        self.curriculum = Fixed(spans)

    def draw(self, index: int, slot: int) -> Asked:
        """The prompt in this slot of a data index, at a difficulty that the curriculum allows now."""
        name = self.names[(index * self.config.prompts + slot) % len(self.names)]
        rng = random.Random(f"{self.config.seed}/{index}/{slot}")
        difficulty = self.curriculum.draw(name, rng)
        problem = draw(self.environments[name], difficulty, rng.randrange(2**40), held=False)
        return Asked(problem, rng.random() < self.config.aggregate)

    def told(self, groups: Sequence[Group]) -> None:
        """Moves the curriculum by the environments' scores of a step's groups."""
        for group in groups:
            scores = [worth.score for worth in group.worths]
            self.curriculum.told(group.problem.environment, group.problem.difficulty, scores)

    def state(self) -> dict[str, Any]:
        """As plain JSON: what another sampler needs to draw the same from here on."""
        return {"environments": self.config.environments, "curriculum": self.curriculum.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a state; raises ContractError when it is of other environments."""
        if state.get("environments") != self.config.environments:
            raise ContractError(
                f"the checkpoint drew from {state.get('environments')!r}, not from {self.config.environments!r}"
            )
        self.curriculum.load(state["curriculum"])

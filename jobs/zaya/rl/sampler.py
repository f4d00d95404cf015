"""Which problems a step learns from: a function of seed, data index and the curriculum's state. No model, no actors.

A data index stands for one step's draw, as in pretraining, so that a skipped range of indices is never drawn. Slots
number the prompts of an index; those from `prompts` on are drawn for groups that taught nothing. The environments take
turns over the slots. Questions that evaluation owns (jobs/zaya/envs/base.py, held_out) are never drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.contract import ContractError
from jobs.zaya.envs.base import Problem, draw, read_problems, within
from jobs.zaya.envs.curriculum import Curriculum
from jobs.zaya.envs.registry import find
from jobs.zaya.evaluation.problem_sets import trainable
from jobs.zaya.evaluation_config import parts
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rollout import Asked, Group
from jobs.zaya.tokens import prompt

CALIBRATION, PROBLEMS = "calibration.json", "problems.jsonl"
"""What jobs/zaya/prepare.py leaves for a stage: where a curriculum starts, and problems that can be learned from."""


_TRIES = 100
"""draws of one prompt, none of which fits into train.length, after which none will"""


def seed_of(*parts: object) -> int:
    """A seed of 56 bits from anything that can be written; equal parts give equal seeds in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")


def starts(prepared: Path | None, spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The bounds that a calibration found, within each environment's span; none where there was no calibration.

    ContractError for a calibration that cannot be read.
    """
    if prepared is None or not (prepared / CALIBRATION).exists():
        return {}
    try:
        found = json.loads((prepared / CALIBRATION).read_bytes())["environments"]
        bounds = {name: int(one["bound"]) for name, one in found.items() if name in spans}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"the calibration {prepared / CALIBRATION} cannot be read: {error!r}") from error
    return {name: min(max(bound, spans[name][0]), spans[name][1]) for name, bound in bounds.items()}


class Sampler:
    """Draws prompts for a stage and moves its curriculum.

    `prepared` is the directory of the stage's preparing jobs. With `data.problems: prepared` its problems are drawn,
    else each environment's own. Raises ContractError for environments or files that do not exist.
    """

    def __init__(self, config: RLConfig, prepared: Path | None = None) -> None:
        self.config = config
        named = [(find(name), low, high) for name, low, high in parts(config.environments)]
        spans = {
            one.name: (
                one.easiest if low is None else within(one, low),
                one.hardest if high is None else within(one, high),
            )
            for one, low, high in named
        }
        self.environments = [one for one, _, _ in named]
        self.curriculum = Curriculum(config.curriculum, spans, starts=starts(prepared, spans))
        self.problems = self._prepared(prepared) if config.problems == "prepared" else {}

    def _prepared(self, prepared: Path | None) -> dict[str, list[Problem]]:
        """The prepared problems by environment; an environment without any is no environment of the stage."""
        if prepared is None:
            raise ContractError("data.problems is prepared, and TRIMTAB_PREPARED_DIR names no directory")
        found: dict[str, list[Problem]] = {}
        path = prepared / PROBLEMS
        for problem in trainable(list(read_problems(path)), str(path)):
            if self._fits(problem):
                found.setdefault(problem.environment, []).append(problem)
        self.environments = [one for one in self.environments if one.name in found]
        if not self.environments:
            raise ContractError(
                f"none of the problems in {path} is of {self.config.environments} and leaves room for train.limit "
                f"{self.config.limit} in train.length {self.config.length}"
            )
        return found

    def draw(self, index: int, slot: int) -> Asked:
        """The prompt in this slot of a data index, at a difficulty that the curriculum allows now.

        ContractError where no question of that difficulty fits into `train.length`.
        """
        environment = self.environments[(index * self.config.prompts + slot) % len(self.environments)]
        rng = random.Random(f"{self.config.seed}/{index}/{slot}")
        aggregate = rng.random() < self.config.aggregate
        if self.problems:
            return Asked(rng.choice(self.problems[environment.name]), aggregate)
        difficulty = self.curriculum.draw(environment.name, rng)
        for _ in range(_TRIES):
            problem = draw(environment, difficulty, rng.randrange(2**40), held=False)
            if self._fits(problem):
                return Asked(problem, aggregate)
        raise ContractError(
            f"no question of {environment.name} at difficulty {difficulty} leaves room for train.limit "
            f"{self.config.limit} in train.length {self.config.length}: make it longer, or ask for easier ones"
        )

    def _fits(self, problem: Problem) -> bool:
        """Whether a plain prompt leaves room for a whole completion."""
        return len(prompt(problem.question)) + self.config.limit <= self.config.length

    def told(self, groups: Sequence[Group]) -> None:
        """Moves the curriculum by the environments' scores of a step's groups."""
        for group in groups:
            scores = [worth.score for worth in group.worths]
            self.curriculum.told(group.problem.environment, group.problem.difficulty, scores)

    def bounds(self) -> dict[str, int]:
        """Each environment's hardest difficulty now, of a curriculum that moves; none of a fixed one."""
        if self.curriculum.rule == "fixed":
            return {}
        return {one.name: self.curriculum.bound(one.name) for one in self.environments}

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

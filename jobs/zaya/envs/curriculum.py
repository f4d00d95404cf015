"""Which difficulty an environment is drawn at: a rule by name, moved by what answers scored. No model, no clock.

`rlve` (the original): difficulties are drawn evenly from the four up to a bound; once 8 prompts were answered at the
bound, it rises by 1 if at least 0.9 of their samples were right, and the counting starts anew. It never falls.
`zyphra` (arXiv 2605.05365): a group at the environment's difficulty raises it by 1 if its mean reward is above 0.7 and
lowers it by 1 if that is 0. `fixed`: drawn evenly from the whole span. No rule leaves the span that it was given.

Groups at another difficulty than the bound teach nothing, so several that were drawn before a move count as one. The
state is plain JSON and goes into a checkpoint's manifest: a learner that restarts draws on as if it had not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.manifest import ContractError, is_whole

RULES = ("rlve", "zyphra", "fixed")
WINDOW = 4
PROMPTS = 8
RIGHT_SHARE = 0.9
HARDER_ABOVE = 0.7
_RIGHT = 1.0 - 1e-9


@dataclass
class _Level:
    """An environment's bound, and what was counted at it."""

    bound: int
    prompts: int = 0
    samples: int = 0
    right: int = 0


class Curriculum:
    """The difficulties of several environments under one rule. `spans` gives each its easiest and hardest.

    `starts` sets bounds, as a calibration found them; the others start at their easiest. `prompts` is how many are
    answered at the bound before `rlve` judges. ContractError for a rule, a span or a start that cannot be.
    """

    def __init__(
        self,
        rule: str,
        spans: Mapping[str, tuple[int, int]],
        *,
        starts: Mapping[str, int] | None = None,
        prompts: int = PROMPTS,
    ) -> None:
        if rule not in RULES:
            raise ContractError(f"there is no curriculum {rule!r}: there are {', '.join(RULES)}")
        if prompts < 1:
            raise ContractError("a curriculum judges at least one prompt")
        for name, (easiest, hardest) in spans.items():
            if easiest > hardest:
                raise ContractError(f"{name}: difficulty {easiest} to {hardest} is empty")
        self.rule, self.spans, self.prompts = rule, dict(spans), prompts
        self._levels = {name: _Level(easiest) for name, (easiest, _) in spans.items()}
        for name, bound in (starts or {}).items():
            self._levels[self._known(name)].bound = self._inside(name, bound)

    def bound(self, environment: str) -> int:
        """The hardest difficulty that is drawn now."""
        return self.spans[environment][1] if self.rule == "fixed" else self._levels[self._known(environment)].bound

    def draw(self, environment: str, rng: random.Random) -> int:
        """A difficulty for the next prompt; it hangs on the generator and the state alone."""
        bound, easiest = self.bound(environment), self.spans[environment][0]
        if self.rule == "zyphra":
            return bound
        return rng.randint(easiest if self.rule == "fixed" else max(easiest, bound - WINDOW + 1), bound)

    def told(self, environment: str, difficulty: int, scores: Sequence[float]) -> None:
        """What the samples of one prompt scored, 0 to 1 each."""
        level = self._levels[self._known(environment)]
        if self.rule == "fixed" or difficulty != level.bound or not scores:
            return
        step = self._rlve(level, scores) if self.rule == "rlve" else self._zyphra(scores)
        easiest, hardest = self.spans[environment]
        level.bound = min(hardest, max(easiest, level.bound + step))

    def _rlve(self, level: _Level, scores: Sequence[float]) -> int:
        level.prompts, level.samples = level.prompts + 1, level.samples + len(scores)
        level.right += sum(score >= _RIGHT for score in scores)
        if level.prompts < self.prompts:
            return 0
        harder = level.right >= RIGHT_SHARE * level.samples
        level.prompts = level.samples = level.right = 0
        return int(harder)

    @staticmethod
    def _zyphra(scores: Sequence[float]) -> int:
        mean = sum(scores) / len(scores)
        return 1 if mean > HARDER_ABOVE else -1 if mean == 0 else 0

    def state(self) -> dict[str, Any]:
        """Plain JSON: the rule and each environment's bound and counts."""
        return {"rule": self.rule, "levels": {name: asdict(level) for name, level in self._levels.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes a state over; ContractError when it is of another rule or other environments, or no state at all."""
        levels = state.get("levels")
        if state.get("rule") != self.rule or not isinstance(levels, Mapping) or set(levels) != set(self.spans):
            raise ContractError(f"the curriculum's state is not of {self.rule} over {', '.join(self.spans)}")
        taken = {}
        for name, found in levels.items():
            if not isinstance(found, Mapping) or set(found) != set(_Level.__dataclass_fields__):
                raise ContractError(f"the curriculum's state of {name} cannot be read")
            if not all(is_whole(value) and value >= 0 for key, value in found.items() if key != "bound"):
                raise ContractError(f"the curriculum's counts of {name} must be whole numbers from 0")
            taken[name] = _Level(**{**found, "bound": self._inside(name, found["bound"])})
        self._levels = taken

    def _known(self, environment: str) -> str:
        if environment not in self.spans:
            raise ContractError(f"{environment} is not in this curriculum: it has {', '.join(self.spans)}")
        return environment

    def _inside(self, name: str, bound: Any) -> int:
        easiest, hardest = self.spans[name]
        if not is_whole(bound) or not easiest <= bound <= hardest:
            raise ContractError(f"{name}: a bound of {bound!r} is outside {easiest} to {hardest}")
        return int(bound)

"""From drawn prompts to the groups that a step learns from: sent ahead, collected, sorted, drawn anew, counted.

What was drawn and not yet learned from is part of the state: a restarted learner sends those very prompts again, so
none is lost and none is drawn at another difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from jobs.contract import Ranges, data_index
from jobs.zaya.envs.base import Problem
from jobs.zaya.rl.actors import Pool, Sent
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.grpo import sort_groups
from jobs.zaya.rl.rollout import Asked, Group, Task
from jobs.zaya.rl.sampler import Sampler, seed_of

_STALE_IN_A_ROW = 3


class StaleError(RuntimeError):
    """Steps on end had nothing to learn from: their completions were all by weights too far behind."""


@dataclass
class Taken:
    """A step's groups: `teaching` are learned from, `sampled` were completed. Counts are of groups; `staleness` is the
    oldest one's, in optimizer steps. Means are nan in a step whose groups were all stale: nothing is known of it."""

    teaching: list[Group] = field(default_factory=list)
    sampled: list[Group] = field(default_factory=list)
    all_pass: int = 0
    all_fail: int = 0
    all_same: int = 0
    stale: int = 0
    staleness: int = 0

    @property
    def reward(self) -> float:
        """The mean over all completions of the step, of groups that teach nothing too."""
        return _mean([reward for group in self.sampled for reward in group.rewards])

    @property
    def accuracy(self) -> float:
        """The share of completions that their environment scores 1."""
        return _mean([worth.score >= 1 for group in self.sampled for worth in group.worths])

    @property
    def difficulty(self) -> float:
        """The mean difficulty of the prompts."""
        return _mean([group.problem.difficulty for group in self.sampled])

    @property
    def gold(self) -> float | None:
        """The mean of the rubric's scores; None where there is no rubric."""
        golds = [worth.gold for group in self.sampled for worth in group.worths if worth.gold is not None]
        return sum(golds) / len(golds) if golds else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class Batches:
    """Keeps `ahead` batches on their way and hands over one a step."""

    def __init__(self, config: RLConfig, sampler: Sampler, pool: Pool, skipped: Ranges, last: int) -> None:
        self.config, self.sampler, self.pool, self.skipped, self.last = config, sampler, pool, skipped, last
        self._drawn: dict[int, list[Asked]] = {}
        self._sent: dict[int, list[Sent]] = {}
        self._stale = 0  # steps in a row; no part of the state, since whoever resumes begins with a push

    def fill(self, number: int) -> None:
        """Draws and sends what steps `number` to `number` + ahead need and is not on its way yet."""
        for step in range(number, min(number + self.config.ahead, self.last) + 1):
            index = data_index(step, self.skipped)
            if index not in self._drawn:
                self._drawn[index] = [self.sampler.draw(index, slot) for slot in range(self.config.prompts)]
            if index not in self._sent:
                self._sent[index] = self.pool.send(self._tasks(index, 0, self._drawn[index]))

    def take(self, number: int, stopped: Callable[[], bool], told: Callable[[], None]) -> Taken:
        """The groups of step `number`; StoppedError when a stop is seen before all have come, and nothing is lost.
        StaleError when all were stale in this step and those before it: in three, or in all of a shorter stage."""
        self.fill(number)
        index, taken = data_index(number, self.skipped), Taken()
        self._sort(taken, self.pool.collect(self._sent[index], stopped, told), number)
        slot = self.config.prompts
        for again in range(1, self.config.redraws + 1):
            missing = self.config.prompts - len(taken.teaching)
            if missing == 0:
                break
            asked = [self.sampler.draw(index, slot + more) for more in range(missing)]
            slot += missing
            sent = self.pool.send(self._tasks(index, again, asked))
            self._sort(taken, self.pool.collect(sent, stopped, told), number)
        del self._drawn[index], self._sent[index]
        self.sampler.told(taken.sampled)
        self._stale = 0 if taken.sampled else self._stale + 1
        if self._stale >= min(_STALE_IN_A_ROW, self.last):
            raise StaleError(
                f"nothing was learned in {self._stale} steps in a row up to step {number}: all completions were by "
                f"weights more than {self.config.staleness} optimizer steps behind (train.staleness)"
            )
        return taken

    def _sort(self, taken: Taken, groups: Sequence[Group], number: int) -> None:
        """Adds what came to what was taken; completions of weights that lie too far behind count for nothing."""
        fresh = []
        for group in groups:
            staleness = number - 1 - group.version
            if staleness > self.config.staleness:
                taken.stale += 1
                continue
            taken.staleness = max(taken.staleness, staleness)
            fresh.append(group)
        if not fresh:
            return
        found = sort_groups(torch.tensor([group.rewards for group in fresh]))
        taken.sampled += fresh
        taken.teaching += [fresh[place] for place in found.teaching]
        taken.all_pass += found.all_pass
        taken.all_fail += found.all_fail
        taken.all_same += found.all_same

    def _tasks(self, index: int, again: int, asked: Sequence[Asked]) -> list[Task]:
        """The prompts in as many parts as there are actors, each with a seed of its own."""
        config = self.config
        size = -(-len(asked) // config.rollouts)
        return [
            Task.of(config, asked[begin : begin + size], seed_of(config.seed, index, again, begin))
            for begin in range(0, len(asked), size)
        ]

    def state(self) -> dict[str, Any]:
        """As plain JSON: the sampler's state and what was drawn and not yet learned from."""
        drawn = {
            str(index): [[asked.problem.to_json(), asked.aggregate] for asked in found]
            for index, found in self._drawn.items()
        }
        return {**self.sampler.state(), "drawn": drawn}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; indices that are skipped by now are let go."""
        self.sampler.load(dict(state))
        for text, found in state["drawn"].items():
            index = int(text)
            if not any(first <= index <= last for first, last in self.skipped):
                self._drawn[index] = [Asked(Problem.from_json(line), bool(aggregate)) for line, aggregate in found]

"""What one rollout actor does: takes weights, completes prompts, scores the completions. No Ray here.

A task is whole in itself: its problems, its numbers and its own seed, so that a replaced actor given the same task
and weights says the same. Each group of completions carries the version of the weights that made it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.zaya.config import ModelConfig
from jobs.zaya.envs.base import Problem
from jobs.zaya.model.generate import Completion, generate
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rewards import Scorer, Worth
from jobs.zaya.tokens import decode, prompt


@dataclass(frozen=True)
class Weights:
    """A model's state by name, as arrays that Ray shares between processes without a copy; `version` is the number of
    optimizer steps behind it."""

    version: int
    arrays: Mapping[str, Any]

    @classmethod
    def of(cls, version: int, model: ZayaForCausalLM) -> Weights:
        """A copy of a model's weights and balancing biases."""
        return cls(version, {name: value.detach().numpy().copy() for name, value in model.state_dict().items()})


@dataclass(frozen=True)
class Asked:
    """A problem to complete; `aggregate` has the policy see the ends of candidates of its own first."""

    problem: Problem
    aggregate: bool = False


@dataclass(frozen=True)
class Task:
    """Prompts for one actor and how to complete them; the fields are named as in RLConfig."""

    asked: Sequence[Asked]
    seed: int
    samples: int
    limit: int
    temperature: float
    candidates: int
    tail: int
    length: int

    @classmethod
    def of(cls, config: RLConfig, asked: Sequence[Asked], seed: int) -> Task:
        """Prompts to complete as a stage is configured."""
        numbers = (config.samples, config.limit, config.temperature, config.candidates, config.tail, config.length)
        return cls(asked, seed, *numbers)


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, what each is worth, and the version of the weights that made them."""

    problem: Problem
    prompt: list[int]
    completions: list[Completion]
    worths: list[Worth]
    version: int

    @property
    def rewards(self) -> list[float]:
        return [worth.reward for worth in self.worths]


class RolloutWorker:
    """A copy of the model that only generates. Raises RuntimeError when it is asked before it has weights."""

    def __init__(self, model: Mapping[str, Any], scorer: Scorer) -> None:
        torch.set_num_threads(1)
        self.model = ZayaForCausalLM(ModelConfig(**model)).eval()
        self.scorer = scorer
        self.version: int | None = None

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    def load(self, weights: Weights) -> int:
        """Takes over weights; returns their version."""
        self.model.load_state_dict({name: torch.tensor(array) for name, array in weights.arrays.items()})
        self.version = weights.version
        return weights.version

    def roll(self, task: Task) -> list[Group]:
        """A group of completions for each prompt of the task, in order."""
        if self.version is None:
            raise RuntimeError("a rollout actor was asked for completions before it was given weights")
        generator = torch.Generator().manual_seed(task.seed)
        prompts = self._prompts(task, generator)
        repeated = [tokens for tokens in prompts for _ in range(task.samples)]
        found = generate(
            self.model,
            repeated,
            limit=task.limit,
            temperature=task.temperature,
            generator=generator,
            routes=True,
        )
        groups = []
        for number, (asked, tokens) in enumerate(zip(task.asked, prompts, strict=True)):
            mine = found[number * task.samples : (number + 1) * task.samples]
            worths = [self.scorer.worth(asked.problem, decode(one.tokens), one.ended) for one in mine]
            groups.append(Group(asked.problem, tokens, mine, worths, self.version))
        return groups

    def _prompts(self, task: Task, generator: torch.Generator) -> list[list[int]]:
        """Each problem's prompt; the aggregation prompts carry the last tokens of candidates made for them, fewer where
        `length` has no room for `tail` of each."""
        plain = [prompt(asked.problem.question) for asked in task.asked]
        among = [number for number, asked in enumerate(task.asked) if asked.aggregate]
        if not among:
            return plain
        repeated = [plain[number] for number in among for _ in range(task.candidates)]
        made = generate(self.model, repeated, limit=task.limit, temperature=task.temperature, generator=generator)
        for place, number in enumerate(among):
            room = (task.length - task.limit - len(plain[number])) // task.candidates - 1
            if room < 0:  # not even the marks between candidates fit
                continue
            kept = min(task.tail, room)
            mine = made[place * task.candidates : (place + 1) * task.candidates]
            tails = [one.tokens[len(one.tokens) - min(kept, len(one.tokens)) :] for one in mine]
            plain[number] = prompt(task.asked[number].problem.question, tails)
        return plain

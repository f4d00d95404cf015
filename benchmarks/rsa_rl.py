"""Reinforcement learning of the RSA experiment's models, in this process: no Ray, no files, no resume.

It is the stage's own sampler, rollout worker and learner (jobs/zaya/rl), taking turns as they do where `ahead` is 0 and
`syncEvery` 1. Groups that teach nothing are not drawn anew, so a step generates the same number of completions
whatever comes out. Candidates are generated too: a run without aggregation prompts asks as many more questions in each
step as the candidates of the other would have cost. It is not the stage's job: jobs/zaya/rl/job.py is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch

from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.grpo import sort_groups
from jobs.zaya.rl.learner import RLLearner
from jobs.zaya.rl.rewards import Scorer
from jobs.zaya.rl.rollout import Group, RolloutWorker, Task, Weights
from jobs.zaya.rl.sampler import Sampler, seed_of
from jobs.zaya.tokens import prompt


@dataclass(frozen=True)
class Reinforced:
    """The model after the last step and what the steps saw; `rewards` are each step's mean over its completions."""

    model: ZayaForCausalLM
    rewards: list[float]
    generated: int
    """tokens of completions and of candidates, ENDs counted"""
    learned: int
    """tokens of completions that were learned from"""

    def told(self) -> dict[str, float]:
        """Rewards over the first and the last fifth of the steps, and the tokens."""
        part = max(1, len(self.rewards) // 5)
        return {
            "first_reward": round(fmean(self.rewards[:part]), 4),
            "reward": round(fmean(self.rewards[-part:]), 4),
            "generated_tokens": self.generated,
            "learned_tokens": self.learned,
        }


def questions(config: RLConfig) -> int:
    """Questions of a step without aggregation prompts that cost the completions, candidates counted, of one with."""
    return round(config.prompts * (1 + config.aggregate * config.candidates / config.samples))


def generated(groups: Sequence[Group]) -> int:
    """Generated tokens behind groups, ENDs counted.

    A candidate is counted by what it adds to its prompt: its tail, with TAIL for its END or for its last token. That
    is its cost where `tail` is `limit` − 1 and no tail was cut.
    """
    done = sum(len(one.tokens) + one.ended for group in groups for one in group.completions)
    return done + sum(len(group.prompt) - len(prompt(group.problem.question)) for group in groups)


def reinforced(model: ZayaForCausalLM, shapes: ModelConfig, config: RLConfig, scorer: Scorer) -> Reinforced:
    """What `config.steps` steps make of a copy of the model. Raises NumericsError where a step's loss is not finite."""
    sampler, worker = Sampler(config), RolloutWorker(asdict(shapes), scorer)
    learner = RLLearner(copy.deepcopy(model), config, TrainConfig())
    rewards, cost, learned = [], 0, 0
    for number in range(1, config.steps + 1):
        worker.load(Weights.of(number - 1, learner.model))
        groups = worker.roll(_task(sampler, config, number))
        found = torch.tensor([group.rewards for group in groups])
        rewards.append(float(found.mean()))
        cost += generated(groups)
        learned += learner.step([groups[place] for place in sort_groups(found).teaching], number).tokens
        learner.reset_counts()
        sampler.told(groups)
    return Reinforced(learner.model.eval(), rewards, cost, learned)


def _task(sampler: Sampler, config: RLConfig, number: int) -> Task:
    asked = [sampler.draw(number, slot) for slot in range(config.prompts)]
    return Task.of(config, asked, seed_of(config.seed, number))

"""The smallest real model and trainer that the tests of jobs/zaya share; not a test itself."""

from __future__ import annotations

from typing import Any

import torch

from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.training.learner import Learner

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=4,
    moe_intermediate_size=16,
    router_hidden_size=16,
)


def learner(model: ModelConfig = MODEL, rank: int = 0, world: int = 1, **train: Any) -> Learner:
    """A learner of the small model: four sequences of 32 bytes a step, on one thread."""
    torch.set_num_threads(1)
    values: dict[str, Any] = {"steps": 20, "sequences": 4, "length": 32, "seed": 3, "warmup": 2, **train}
    return Learner(model, TrainConfig(**values), rank, world)


def train(one: Learner, first: int, last: int) -> list[float]:
    """Completes steps first..last; returns their losses."""
    losses = []
    for number in range(first, last + 1):
        losses.append(one.step(number, number).loss)
        one.reset_counts()
    return losses

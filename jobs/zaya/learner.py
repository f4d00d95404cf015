"""One rank's learning: model, optimizer, balancer and text, and what one optimizer step does to them.

It knows nothing of runs, files or signals; jobs/zaya/train.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.balance import Balancer
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.data import Text, documentation
from jobs.zaya.model import ZayaForCausalLM
from jobs.zaya.optim import FlatOptimizer


class NumericsError(ArithmeticError):
    """The loss or a gradient is not finite: the controller rolls back and skips the data."""


@dataclass(frozen=True)
class Stepped:
    """One optimizer step: mean loss over ranks in nats a byte, gradient norm before clipping, bytes over all ranks."""

    loss: float
    grad_norm: float
    tokens: int
    learning_rate: float


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    if step <= config.warmup:
        return config.learning_rate * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


class Learner:
    """The replicated training state of one rank; `state` is everything that a bit-equal resume needs."""

    def __init__(self, model_config: ModelConfig, config: TrainConfig, rank: int, world: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.rank, self.world = config, rank, world
        self.model = ZayaForCausalLM(model_config)
        self.model.train()
        self.routers = self.model.routers()
        self.optimizer = FlatOptimizer(self.model, config.optimizer, config.weight_decay)
        gains = (config.balancing_kp, config.balancing_ki, config.balancing_kd)
        self.balancer = Balancer(self.routers, config.balancing, config.balancing_rate, gains)
        self.text = Text(documentation(), config.length, config.seed)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a whole state; raises ContractError when it is that of another model or optimizer."""
        self.load_weights(state)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.balancer.load_state_dict(state["balancer"])
            torch.set_rng_state(state["random"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ContractError(f"the checkpoint's state does not fit this job: {error}") from error

    def load_weights(self, state: dict[str, Any]) -> None:
        """Takes over weights and balancing biases alone; raises ContractError when they do not fit."""
        try:
            self.model.load_state_dict(state["model"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ContractError(f"the checkpoint's weights do not fit this model: {error}") from error

    def counts(self) -> Tensor:
        """This rank's choices of the step, [layers, slots] int64."""
        return torch.stack([router.tokens_per_expert for router in self.routers])

    def reset_counts(self) -> None:
        """Zeroes the counters for the next step, after the probe has read them."""
        for router in self.routers:
            router.tokens_per_expert.zero_()

    def step(self, number: int, index: int) -> Stepped:
        """Optimizer step `number` on data index `index`; raises NumericsError on every rank alike."""
        batch = self.text.batch(index, self.rank, self.world, self.config.sequences)
        self.optimizer.gradients.zero_()
        logits = self.model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        mean_loss, norm = self._gather(loss.detach())
        if not math.isfinite(mean_loss) or not math.isfinite(norm):
            raise NumericsError(f"loss {mean_loss} and gradient norm {norm} at step {number}")
        rate = learning_rate(number, self.config)
        self.optimizer.step(rate)
        counts = self.counts()
        if self.world > 1:
            dist.all_reduce(counts)
        if not self.config.balancing_until or number <= self.config.balancing_until:
            self.balancer.step(counts)
        return Stepped(mean_loss, norm, batch[:, 1:].numel() * self.world, rate)

    def _gather(self, loss: Tensor) -> tuple[float, float]:
        """Means loss and gradients over ranks in one message and clips them; returns the loss and the norm before."""
        flat = self.optimizer.gradients
        flat[0] = loss
        if self.world > 1:
            dist.all_reduce(flat)
            flat /= self.world
        norm = float(flat[1:].norm())
        if norm > self.config.clip:
            flat[1:] *= self.config.clip / norm
        return float(flat[0]), norm

"""One rank's learning: model, optimizer, balancer and text, and what one optimizer step does to them.

It knows nothing of runs, files or signals; jobs/zaya/train.py does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.phases import learning_rate, place
from jobs.zaya.tokens import PAD
from jobs.zaya.training.balance import Balancer
from jobs.zaya.training.data import rows_of
from jobs.zaya.training.examples import IGNORED, answers
from jobs.zaya.training.optim import FlatOptimizer
from jobs.zaya.training.skipstep import NumericsError, SkipStep

if TYPE_CHECKING:
    from jobs.zaya.training.sharding import ShardedOptimizer

__all__ = ["Learner", "NumericsError", "Stepped"]


@dataclass(frozen=True)
class Stepped:
    """One optimizer step: mean loss over ranks in nats a learned byte, gradient norm before clipping, bytes over all
    ranks. `max_vio` is the mean over layers of max/mean − 1 of the experts' loads. `skipped` is why the step moved
    nothing, and then the learning rate is 0 and `max_vio` NaN; "" if it did."""

    loss: float
    grad_norm: float
    tokens: int
    learning_rate: float
    max_vio: float
    skipped: str = ""


class Learner:
    """The replicated training state of one rank; `state` is everything that a bit-equal resume needs."""

    def __init__(
        self, model_config: ModelConfig, config: TrainConfig, rank: int, world: int, prepared: Path | None = None
    ) -> None:
        """`prepared`: where the stage's preparing jobs wrote; the objective sft reads its examples there."""
        torch.manual_seed(config.seed)
        self.config, self.rank, self.world = config, rank, world
        self.model = ZayaForCausalLM(model_config)
        self.model.train()
        self.routers = self.model.routers()
        self.optimizer = self._optimizer()
        gains = (config.balancing_kp, config.balancing_ki, config.balancing_kd)
        self.balancer = Balancer(self.routers, config.balancing, config.balancing_rate, gains)
        self.guard = SkipStep(config.skip_step) if config.skip_step else None
        self.rows = rows_of(config, prepared)

    def _optimizer(self) -> FlatOptimizer | ShardedOptimizer:
        kind, decay = self.config.optimizer, self.config.weight_decay
        if self.config.sharding == "none":
            return FlatOptimizer(self.model, kind, decay)
        from jobs.zaya.training import sharding  # late: what it imports takes two seconds of CPU time at every start

        sharding.shard(self.model)
        return sharding.ShardedOptimizer(self.model, kind, decay)

    def state(self) -> dict[str, Any]:
        found = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "random": torch.get_rng_state(),
        }
        return {**found, "guard": self.guard.state_dict()} if self.guard else found

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a whole state; raises ContractError when it is that of another model or optimizer.

        A state of whole tensors fits a sharded learner too, and each rank keeps its part.
        """
        self.load_weights(state)
        try:
            self.optimizer.load_state_dict(self._parts(self.optimizer.state_dict(), state["optimizer"]))
            self.balancer.load_state_dict(state["balancer"])
            torch.set_rng_state(state["random"])
            if self.guard and "guard" in state:
                self.guard.load_state_dict(state["guard"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ContractError(f"the checkpoint's state does not fit this job: {error}") from error

    def load_weights(self, state: dict[str, Any]) -> None:
        """Takes over weights and balancing biases alone; raises ContractError when they do not fit."""
        try:
            self.model.load_state_dict(self._parts(self.model.state_dict(), state["model"]))
        except (KeyError, TypeError, RuntimeError) as error:
            raise ContractError(f"the checkpoint's weights do not fit this model: {error}") from error

    def _parts(self, own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """The state with what this learner shards cut as its own is; itself where nothing is sharded."""
        if self.config.sharding == "none":
            return state
        from jobs.zaya.training import sharding  # late, as above

        return sharding.cut(own, state)

    def finite(self) -> bool:
        """Whether all weights are finite, the same answer on every rank."""
        return self.optimizer.finite()

    def counts(self) -> Tensor:
        """This rank's choices of the step, [layers, slots] int64."""
        return torch.stack([router.tokens_per_expert for router in self.routers])

    def reset_counts(self) -> None:
        """Zeroes the counters for the next step, after the probe has read them."""
        for router in self.routers:
            router.tokens_per_expert.zero_()

    def step(self, number: int, index: int) -> Stepped:
        """Optimizer step `number` on data index `index`; raises NumericsError on every rank alike."""
        rows = self.rows.batch(index, self.rank, self.world, self.config.sequences)
        self.optimizer.zero()
        loss = self._loss(rows)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        mean_loss, norm = self.optimizer.gather(loss.detach(), self.world)
        if not math.isfinite(mean_loss) or not math.isfinite(norm):
            raise NumericsError(f"loss {mean_loss} and gradient norm {norm} at step {number}, data index {index}")
        tokens = rows[:, 1:].numel() * self.world
        skipped = self._judge(mean_loss, norm, index)
        if skipped:
            return Stepped(mean_loss, norm, tokens, 0.0, math.nan, skipped)
        if norm > self.config.clip:
            self.optimizer.scale(self.config.clip / norm)
        rate = learning_rate(number, self.config.schedule, self.config.warmup)
        self.optimizer.step(rate)
        return Stepped(mean_loss, norm, tokens, rate, self._balance(number))

    def _loss(self, rows: Tensor) -> Tensor:
        """This rank's loss; its mean over ranks is the mean over all learned bytes of the step."""
        inputs, targets = rows[:, :-1], rows[:, 1:]
        if self.config.objective == "text":
            return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        logits = self._logits(inputs)
        learned = answers(rows)[:, 1:]
        count = learned.sum()
        if self.world > 1:
            dist.all_reduce(count)
        targets = targets.where(learned, IGNORED)
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total * self.world / count.clamp_min(1)

    def _logits(self, inputs: Tensor) -> Tensor:
        """Logits [N, V] of rows that may be padded: padding takes the skip slot and counts for no expert's load."""
        padding = (inputs == PAD).flatten()
        count = int(padding.sum())
        skip = self.balancer.biases.shape[1] - 1
        routes = torch.where(padding, skip, -1).expand(len(self.routers), -1) if count else None
        logits: Tensor = self.model(inputs, routes=routes)
        for router in self.routers:
            router.tokens_per_expert[skip] -= count
        return logits.flatten(0, 1)

    def _judge(self, loss: float, norm: float, index: int) -> str:
        """Why the step must move nothing; "" when it may, and always without a rule."""
        if self.guard is None:
            return ""
        return self.guard.judge(loss, norm, index, place(index, self.config.schedule)[0])

    def _balance(self, number: int) -> float:
        """Moves the biases along the global batch's loads; returns their MaxVio."""
        counts = self.counts()
        if self.world > 1:
            dist.all_reduce(counts)
        if not self.config.balancing_until or number <= self.config.balancing_until:
            self.balancer.step(counts)
        experts = counts[:, :-1].float()
        return float((experts.amax(dim=1) / experts.mean(dim=1).clamp_min(1e-9) - 1).mean())

"""One optimizer step of reinforcement learning on completions: replayed routes, clipped importance ratios, a frozen
router. It knows nothing of actors, environments or files.

Router replay (arXiv 2510.11370): the learner's forward takes the slots that the rollout took, so that a token's
log-probability before and after is of the same experts; the route mismatch is the share of (token, layer) choices that
the learner would have made otherwise. Padding is sent to the skip slot and taken out of the probe's counts.

Shape suffixes: B completions, T tokens read, L layers, S slots, N = B * T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import ContractError
from jobs.zaya.config import TrainConfig
from jobs.zaya.model.generate import Completion
from jobs.zaya.model.network import Router, ZayaForCausalLM
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.grpo import advantages, clipped_loss, kl_penalty
from jobs.zaya.rl.rollout import Group
from jobs.zaya.tokens import END, PAD
from jobs.zaya.training.balance import Balancer
from jobs.zaya.training.learner import NumericsError
from jobs.zaya.training.optim import FlatOptimizer


@dataclass(frozen=True)
class Batch:
    """Completions side by side, right-padded: what is read, what follows, and what the rollout knew of it."""

    tokens_BT: Tensor
    targets_BT: Tensor
    sampled_BT: Tensor
    """log-probabilities of the generated targets, 0 elsewhere"""
    learned_BT: Tensor
    """which targets were generated"""
    real_BT: Tensor
    """which tokens read are no padding"""
    routes_LBT: Tensor
    """slots of the rollout, the last slot (skip) for padding"""
    advantages_B: Tensor


@dataclass(frozen=True)
class Learned:
    """A step's means: `tokens` generated and learned from; `ratio`, `clipped` and `mismatch` are means over tokens."""

    loss: float
    grad_norm: float
    tokens: int
    learning_rate: float
    mismatch: float
    ratio: float
    clipped: float


def learning_rate(step: int, config: RLConfig) -> float:
    """Linear warm-up, then constant."""
    return config.learning_rate * min(1.0, step / max(1, config.warmup))


def collate(rows: Sequence[tuple[list[int], Completion, float]], skip: int) -> Batch:
    """A batch of (prompt, completion, advantage); `skip` is the slot that padding takes."""
    sequences = [start + one.tokens + ([END] if one.ended else []) for start, one, _ in rows]
    longest = max(map(len, sequences)) - 1
    shape = (len(rows), longest)
    tokens = torch.full(shape, PAD, dtype=torch.int64)
    targets, sampled = torch.full_like(tokens, PAD), torch.zeros(shape)
    learned, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    first = rows[0][1].routes
    if first is None:
        raise ContractError("completions came without the routes of their rollout")
    routes = torch.full((first.shape[0], *shape), skip, dtype=torch.int64)
    for row, (sequence, (start, one, _)) in enumerate(zip(sequences, rows, strict=True)):
        read, begin = len(sequence) - 1, len(start) - 1
        tokens[row, :read], targets[row, :read] = torch.tensor(sequence[:-1]), torch.tensor(sequence[1:])
        sampled[row, begin:read] = torch.tensor(one.logprobs)
        learned[row, begin:read], real[row, :read] = True, True
        if one.routes is not None:
            routes[:, row, :read] = one.routes
    return Batch(tokens, targets, sampled, learned, real, routes, torch.tensor([value for *_, value in rows]))


@contextmanager
def _own_choices(routers: list[Router]) -> Iterator[list[Tensor]]:
    """A list to which each forward appends what every router [N] would choose itself, whatever it is told to take."""
    own: list[Tensor] = []

    def noted(router: Router) -> Any:
        def hook(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
            scores = logits.detach().float().softmax(dim=-1)
            own.append((scores + router.balancing_biases).argmax(dim=-1))

        return hook

    hooks = [router.router_mlp.register_forward_hook(noted(router)) for router in routers]
    try:
        yield own
    finally:
        for hook in hooks:
            hook.remove()


class RLLearner:
    """The model under training with its optimizer and balancer; `state` is what an exact resume needs of them.

    `reference` is the model that a KL penalty holds to; None where there is none. ContractError where `train.length` is
    beyond the model's context.
    """

    def __init__(
        self, model: ZayaForCausalLM, config: RLConfig, balance: TrainConfig, reference: ZayaForCausalLM | None = None
    ) -> None:
        self.model, self.config, self.reference = model.train(), config, reference
        context = model.model.config.max_position_embeddings
        if config.length > context:
            raise ContractError(f"train.length {config.length} is beyond the model's context of {context} tokens")
        self.routers = model.routers()
        self.optimizer = FlatOptimizer(model, config.optimizer, config.weight_decay)
        gains = (balance.balancing_kp, balance.balancing_ki, balance.balancing_kd)
        kind = "none" if config.freeze else balance.balancing
        self.balancer = Balancer(self.routers, kind, balance.balancing_rate, gains)
        self.frozen = [one for router in self.routers for one in router.parameters()] if config.freeze else []
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        self.skip = self.balancer.biases.shape[1] - 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes over a whole state; raises ContractError when it is that of another model or optimizer."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.balancer.load_state_dict(state["balancer"])
            torch.set_rng_state(state["random"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ContractError(f"the checkpoint's state does not fit this job: {error}") from error

    def step(self, groups: Sequence[Group], number: int) -> Learned:
        """Optimizer step `number` on groups that teach; without any nothing moves. Raises NumericsError."""
        rows = self._rows(groups)
        rate = learning_rate(number, self.config)
        if not rows:
            return Learned(math.nan, math.nan, 0, rate, math.nan, math.nan, math.nan)
        tokens = sum(len(one.logprobs) for _, one, _ in rows)
        divisor = len(rows) * self.config.limit if self.config.advantage == "dr" else tokens
        self.optimizer.zero()
        sums = torch.zeros(5, dtype=torch.float64)
        for begin in range(0, len(rows), self.config.sequences):
            batch = collate(rows[begin : begin + self.config.sequences], self.skip)
            sums += torch.tensor(self._backward(batch, float(divisor)), dtype=torch.float64)
        total, clipped, ratio, different, choices = sums.tolist()
        loss, norm = self.optimizer.gather(torch.tensor(total), 1)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NumericsError(f"loss {loss} and gradient norm {norm} at step {number}")
        if norm > self.config.clip:
            self.optimizer.scale(self.config.clip / norm)
        self._move(rate)
        return Learned(loss, norm, tokens, rate, different / choices, ratio / tokens, clipped / tokens)

    def reset_counts(self) -> None:
        """Zeroes the routers' counters for the next step, after the probe has read them."""
        for router in self.routers:
            router.tokens_per_expert.zero_()

    def _rows(self, groups: Sequence[Group]) -> list[tuple[list[int], Completion, float]]:
        """Completions with their advantages, those of like length together so that little is padded."""
        rows = []
        for group in groups:
            found = advantages(torch.tensor([group.rewards]), self.config.advantage)[0].tolist()
            rows += [(group.prompt, one, value) for one, value in zip(group.completions, found, strict=True)]
        return sorted(rows, key=lambda row: len(row[0]) + len(row[1].logprobs))

    def _backward(self, batch: Batch, divisor: float) -> tuple[float, float, float, float, float]:
        """Adds a micro batch's gradient; (loss, tokens clipped, ratios, choices that differ, choices) as sums."""
        config, real = self.config, batch.real_BT.flatten()
        routes = batch.routes_LBT.flatten(1)
        taken = routes if config.replay else torch.where(real, -1, routes)
        with _own_choices(self.routers) as own:
            logprobs = self._logprobs(self.model, batch, taken)
        for router in self.routers:
            router.tokens_per_expert[self.skip] -= int((~real).sum())
        found = clipped_loss(
            logprobs,
            batch.sampled_BT,
            batch.advantages_B,
            batch.learned_BT,
            low=config.clip_low,
            high=config.clip_high,
            divisor=divisor,
        )
        loss = found.value
        if config.kl and self.reference is not None:
            with torch.no_grad():
                reference = self._logprobs(self.reference, batch, taken)
            loss = loss + config.kl * kl_penalty(logprobs, reference, batch.learned_BT, divisor)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        different = (torch.stack(own) != routes)[:, real]
        return float(loss.detach()), found.clipped, found.ratio, float(different.sum()), float(different.numel())

    def _logprobs(self, model: ZayaForCausalLM, batch: Batch, routes: Tensor) -> Tensor:
        """Log-probabilities of the targets [B, T] at the temperature of the rollout: the policy that is learned is the
        one that was sampled, or the importance ratio of equal weights would not be 1."""
        logits: Tensor = model(batch.tokens_BT, routes=routes) / self.config.temperature
        return logits.log_softmax(dim=-1).gather(2, batch.targets_BT[..., None])[..., 0]

    def _move(self, rate: float) -> None:
        """One optimizer and balancer step; weight decay does not reach what is frozen."""
        kept = [one.detach().clone() for one in self.frozen]
        self.optimizer.step(rate)
        with torch.no_grad():
            for parameter, value in zip(self.frozen, kept, strict=True):
                parameter.copy_(value)
        if not self.config.freeze:
            self.balancer.step(torch.stack([router.tokens_per_expert for router in self.routers]))

"""Muon for the hidden matrices, AdamW for everything else, over one flat vector of parameters and one of gradients.

Flat vectors make the sum over ranks one message without copies, and matrices of one shape a batch for Muon, whatever
layer or expert they belong to. torch.optim is not used: its first optimizer imports the compiler, which costs seconds
at every start. Muon: Jordan et al. 2024, with the scale 0.2·√max(rows, columns) of arXiv 2502.16982, so that one
learning rate serves both.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.contract import ContractError
from jobs.zaya.config import OPTIMIZERS

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.7 and 1.2. [N, R, C] → the same."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def adamw(values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float, decay: float) -> None:
    """One AdamW step in place (Loshchilov & Hutter, arXiv 1711.05101), β = (0.9, 0.95); `step` counts from 1."""
    first, second = 0.9, 0.95
    values.mul_(1 - rate * decay)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    divisor = (square / (1 - second**step)).sqrt_().add_(1e-8)
    values.addcdiv_(mean, divisor, value=-rate / (1 - first**step))


Named = list[tuple[str, nn.Parameter]]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Attention's and the experts' matrices; embeddings, convolutions and routers are AdamW's."""
    return parameter.dim() >= 2 and not any(word in name for word in ("embed", "conv", ".gate."))


def matrix_shape(name: str, parameter: nn.Parameter) -> tuple[int, int]:
    """Rows and columns of one matrix of a parameter; gate and up of an expert are two."""
    rows, columns = parameter.shape[-2:]
    return (rows // 2 if name.endswith("gate_up_proj") else rows), columns


def parted(model: nn.Module, kind: str) -> tuple[Named, Named, Named]:
    """A model's parameters as AdamW's without and with weight decay, and Muon's by the shape of their matrices."""
    if kind not in OPTIMIZERS:
        raise ContractError(f"train.optimizer must be one of {', '.join(OPTIMIZERS)}, not {kind!r}")
    named = list(model.named_parameters())
    matrices = [item for item in named if kind == "muon" and is_hidden_matrix(*item)]
    taken = {name for name, _ in matrices}
    plain = [item for item in named if item[1].dim() < 2]
    decayed = [item for item in named if item[1].dim() >= 2 and item[0] not in taken]
    return plain, decayed, sorted(matrices, key=lambda item: matrix_shape(*item))


def muon_scale(rows: int, columns: int) -> float:
    """How far an orthogonalised matrix of this shape moves at a learning rate of 1."""
    return 0.2 * math.sqrt(max(rows, columns))


class FlatOptimizer:
    """Owns the model's parameters and gradients as views of two flat vectors, the same on every rank.

    `gradients[0]` is free for a scalar that wants to travel with them over the ranks (the loss).
    """

    def __init__(self, model: nn.Module, kind: str, decay: float) -> None:
        plain, decayed, matrices = parted(model, kind)
        self.decay, self.steps = decay, 0
        self.named = [*plain, *decayed, *matrices]
        self._lay_out()
        self._plain_end = sum(p.numel() for _, p in plain)
        self._adam_end = self._plain_end + sum(p.numel() for _, p in decayed)
        self._batches: list[tuple[int, int, tuple[int, int, int]]] = []
        begin = self._adam_end
        for (rows, columns), group in groupby(matrices, key=lambda item: matrix_shape(*item)):
            size = sum(p.numel() for _, p in group)
            self._batches.append((begin, begin + size, (size // (rows * columns), rows, columns)))
            begin += size
        self.mean = torch.zeros_like(self.values)
        self.square = torch.zeros(self._adam_end)

    def _lay_out(self) -> None:
        total = sum(p.numel() for _, p in self.named)
        self.values, self.gradients = torch.empty(total), torch.zeros(1 + total)
        begin = 0
        for _, parameter in self.named:
            end = begin + parameter.numel()
            self.values[begin:end] = parameter.data.flatten()
            parameter.data = self.values[begin:end].view_as(parameter)
            parameter.grad = self.gradients[1 + begin : 1 + end].view_as(parameter)
            begin = end

    def zero(self) -> None:
        """Forgets the last step's gradients."""
        self.gradients.zero_()

    def gather(self, loss: Tensor, world: int) -> tuple[float, float]:
        """Means loss and gradients over ranks in one message; returns the loss and the gradient's norm."""
        flat = self.gradients
        flat[0] = loss
        if world > 1:
            dist.all_reduce(flat)
            flat /= world
        return float(flat[0]), float(flat[1:].norm())

    def scale(self, factor: float) -> None:
        """Scales the gradients, which clipping asks for."""
        self.gradients[1:] *= factor

    def finite(self) -> bool:
        """Whether all parameters are finite, the same answer on every rank."""
        return bool(self.values.isfinite().all())

    def step(self, rate: float) -> None:
        """Moves every parameter along its gradient at a learning rate."""
        self.steps += 1
        gradient = self.gradients[1:]
        for begin, end, decay in ((0, self._plain_end, 0.0), (self._plain_end, self._adam_end, self.decay)):
            part = slice(begin, end)
            adamw(self.values[part], gradient[part], self.mean[part], self.square[part], self.steps, rate, decay)
        for begin, end, shape in self._batches:
            part = slice(begin, end)
            momentum = self.mean[part].lerp_(gradient[part], 0.05)
            update = orthogonalised(gradient[part].lerp(momentum, 0.95).view(shape))
            self.values[part].mul_(1 - rate * self.decay).sub_(update.reshape(-1), alpha=rate * muon_scale(*shape[1:]))

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter name, each of its parameter's shape: as a sharded optimizer has them too."""
        return {"steps": self.steps, "mean": self._by_name(self.mean), "square": self._by_name(self.square)}

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        found, begin = {}, 0
        for name, parameter in self.named:
            end = begin + parameter.numel()
            if end <= len(flat):
                found[name] = flat[begin:end].view_as(parameter)
            begin = end
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError when the state is that of another model or optimizer."""
        take_over(self.state_dict(), state)
        self.steps = int(state["steps"])


def take_over(own: dict[str, Any], state: dict[str, Any]) -> None:
    """Copies the moments of a state into one's own; RuntimeError when they are of another model or optimizer."""
    for kind in ("mean", "square"):
        if own[kind].keys() != state[kind].keys():
            raise RuntimeError("the optimizer's state is that of another optimizer")
        for name, kept in own[kind].items():
            kept.copy_(state[kind][name])

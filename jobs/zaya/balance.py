"""Steering of the balancing biases by name: AdamW on the load error as in ZAYA1, its sign, or nothing.

The error of an expert is its share of the global batch less 1/E, and its bias goes against it (ZAYA1 report, eq. 5).
Shares are taken over the real experts; the skip slot keeps its bias. Counts must be summed over ranks before they come
here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.config import CONTROLLERS
from jobs.zaya.model import Router
from jobs.zaya.optim import adamw


class Balancer:
    """Moves the biases of `routers` once an optimizer step. `biases` [layers, slots] holds them all, skip slot last;
    each router's buffer is a row of it, so a model's state carries the biases and this one's only the moments."""

    def __init__(self, routers: list[Router], controller: str, rate: float) -> None:
        if controller not in CONTROLLERS:
            raise ContractError(f"router.balancing must be one of {', '.join(CONTROLLERS)}, not {controller!r}")
        self.controller, self.rate, self.steps = controller, rate, 0
        self.biases = torch.stack([router.balancing_biases for router in routers])
        for router, row in zip(routers, self.biases, strict=True):
            router.balancing_biases = row
        self.mean, self.square = torch.zeros_like(self.biases), torch.zeros_like(self.biases)

    def step(self, counts_LS: Tensor) -> None:
        """counts [L, S] of the whole global batch, skip slot last."""
        experts = counts_LS[:, :-1].float()
        error = experts / experts.sum(dim=1, keepdim=True).clamp_min(1) - 1 / experts.shape[1]
        gradient = torch.nn.functional.pad(error, (0, 1))
        self.steps += 1
        if self.controller == "adamw":
            adamw(self.biases, gradient, self.mean, self.square, self.steps, self.rate, decay=0.0)
        elif self.controller == "sign":
            self.biases -= self.rate * gradient.sign()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])

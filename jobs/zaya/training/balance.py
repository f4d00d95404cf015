"""Steering of the balancing biases by name: AdamW on the load error as in ZAYA1, its sign, its sign centred, PI, PID.

The error e of an expert is its share of the global batch less 1/E, and its bias goes against it (ZAYA1 report, eq. 5).
Shares are taken over the real experts; the skip slot keeps its bias. Counts must be summed over ranks before they come
here. u is the rate:

    adamw         b ← AdamW(b) on the gradient e
    sign          Δb = −u·sign(e)
    centred-sign  Δb = −u·(sign(e) − mean sign(e)): the mean bias stays where it is
    pi, pid       b = −(Kp·e + Ki·Σe + Kd·Δe), in increments: Δb = −(Kp·Δe + Ki·e + Kd·Δ²e), so that biases that come
                  with a stage before are gone on from; the first step counts as one after no error
    none          Δb = 0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.config import CONTROLLERS
from jobs.zaya.model.network import Router
from jobs.zaya.training.optim import adamw

# What each controller remembers from step to step beside the biases, each [layers, slots].
_MEMORY = {"adamw": ("mean", "square"), "pi": ("error",), "pid": ("error", "error_before")}


class Balancer:
    """Moves the biases of `routers` once an optimizer step. `biases` [layers, slots] holds them all, skip slot last;
    each router's buffer is a row of it, so a model's state carries the biases and this one's only what the controller
    remembers. `gains` are Kp, Ki and Kd, for pi and pid alone."""

    def __init__(
        self, routers: list[Router], controller: str, rate: float, gains: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> None:
        if controller not in CONTROLLERS:
            raise ContractError(f"router.balancing must be one of {', '.join(CONTROLLERS)}, not {controller!r}")
        self.controller, self.rate, self.gains, self.steps = controller, rate, gains, 0
        self.biases = torch.stack([router.balancing_biases for router in routers])
        for router, row in zip(routers, self.biases, strict=True):
            router.balancing_biases = row
        self.memory = {name: torch.zeros_like(self.biases) for name in _MEMORY.get(self.controller, ())}

    def step(self, counts_LS: Tensor) -> None:
        """counts [L, S] of the whole global batch, skip slot last."""
        experts = counts_LS[:, :-1].float()
        error = experts / experts.sum(dim=1, keepdim=True).clamp_min(1) - 1 / experts.shape[1]
        self.steps += 1
        if self.controller == "adamw":
            gradient = torch.nn.functional.pad(error, (0, 1))
            adamw(self.biases, gradient, **self.memory, step=self.steps, rate=self.rate, decay=0.0)
        elif self.controller == "sign":
            self.biases[:, :-1] -= self.rate * error.sign()
        elif self.controller == "centred-sign":
            sign = error.sign()
            self.biases[:, :-1] -= self.rate * (sign - sign.mean(dim=1, keepdim=True))
        elif self.controller in ("pi", "pid"):
            self._proportional(error)

    def _proportional(self, error_LE: Tensor) -> None:
        """One increment of PI or PID."""
        kp, ki, kd = self.gains
        last = self.memory["error"][:, :-1]
        change = kp * (error_LE - last) + ki * error_LE
        if "error_before" in self.memory:
            before = self.memory["error_before"][:, :-1]
            change += kd * (error_LE - 2 * last + before)
            before.copy_(last)
        last.copy_(error_LE)
        self.biases[:, :-1] -= change

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, **self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError when the state is that of a controller that remembers other things."""
        for name, kept in self.memory.items():
            kept.copy_(state[name])
        self.steps = int(state["steps"])

"""NeMo Automodel: `Gate._cumulative_expert_load`, taken when the first gate's `update_bias` is called.

A gate whose bias is not updated does not count over a step; then its choices are counted here, without the tokens that
its `token_mask` leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.probe.counting import INDEX
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import AtMoment, Options, Reader, Router, bias_of, made_by, named, number_of
from agents.probe.tapping import Forward, untap


def _gates(models: Sequence[nn.Module]) -> list[Router]:
    modules = named(models)
    table = dict(modules)
    found = []
    for name, module in modules:
        if made_by(module, "nemo_automodel") and hasattr(module, "_cumulative_expert_load"):
            gate = cast(Any, module)
            bias = bias_of(name, table)
            found.append(Router(name, module, gate.n_experts, gate.n_experts, gate.topk, bias, number_of(name)))
    return found


class AutomodelLoads(AtMoment):
    """Automodel's own counters."""

    framework = "automodel"
    looks_for = "Automodel's Gate with _cumulative_expert_load"

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        gates = _gates(models)
        if not gates:
            return None
        moving = all(getattr(gate.module, "bias_update_factor", 0) > 0 for gate in gates)
        return cls(gates, options) if moving else AutomodelChoices(gates, options)

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        self.before("update_bias")

    def counter_of(self, module: nn.Module) -> Tensor | None:
        return cast("Tensor | None", cast(Any, module)._cumulative_expert_load)

    def close(self) -> None:
        for router in self.routers:
            untap(router.module)


class AutomodelChoices(Tapped):
    """Counts the gates' choices."""

    framework = "automodel"
    looks_for = AutomodelLoads.looks_for

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        for tap in self.counter.taps:
            tap.choose(INDEX, _valid)


def _valid(call: Forward) -> Tensor:
    """A gate's indices [T, K], −1 where its mask leaves a token out; it returns (weights, indices, loss), given
    (x, token_mask [T], mesh)."""
    mask = call.kwargs["token_mask"] if len(call.args) < 2 else call.args[1]
    return torch.where(mask.reshape(-1, 1).bool(), cast(Tensor, call.output[1]), -1)

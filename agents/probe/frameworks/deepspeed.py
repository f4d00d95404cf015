"""DeepSpeed: `MOELayer.exp_counts` of each forward; under AutoEP the choices of its routers.

`exp_counts` is what the gate chose before capacity drops tokens, without tokens that `used_token` leaves out.
AutoEP's own `tokens_per_expert` is not read: it is never reset, counts evaluation and recomputation too, and as a
float32 is no longer exact past 2^24 tokens an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.probe.counting import COUNTS
from agents.probe.facts import Facts, Gauge
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import Options, Reader, Router, made_by, named, number_of
from agents.probe.tapping import Forward


class DeepSpeed(Tapped):
    """Counts by taps on DeepSpeed's layers, or on AutoEP's routers."""

    framework = "deepspeed"
    looks_for = "DeepSpeed's MOELayer or AutoEPMoELayer"

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        found = []
        for name, module in named(models):
            if not made_by(module, "deepspeed"):
                continue
            layer, number = cast(Any, module), number_of(name)
            if hasattr(type(module), "_is_autoep_layer"):
                biased = module._buffers.get("expert_bias") is not None
                bias = (module._buffers, "expert_bias") if biased else None
                router = Router(f"{name}.router", layer.router, layer.num_experts, layer.num_experts, layer.top_k, bias)
                found.append(router)
            elif type(module).__name__ == "MOELayer":
                experts = layer.gate.wg.weight.shape[0]
                found.append(Router(name, module, experts, experts, layer.gate.k, None, number))
        return cls(found, options) if found else None

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        for tap, router in zip(self.counter.taps, self.routers, strict=True):
            if _is_layer(router):
                tap.choose(COUNTS, _exp_counts)

    def gauge(self, facts: Facts, router: Router) -> Gauge:
        return _Capacity(facts, router) if _is_layer(router) else super().gauge(facts, router)


class _Capacity(Gauge):
    """The copies that a MOELayer's capacity drops: of each expert those beyond it. Its logits are not seen."""

    tells = True

    def add(self, call: Forward, kept: Tensor | None) -> None:
        del kept  # exp_counts leaves out what used_token says
        if torch.compiler.is_dynamo_compiling():
            return  # there it would be traced into steps that are not measured
        gate, counts = call.module.gate, call.module.exp_counts
        copies = counts.sum()
        self.row[4] += copies
        if gate.drop_tokens:
            tokens = call.args[0].numel() // call.args[0].shape[-1]
            factor = torch.tensor(gate.capacity_factor * gate.k, device="cpu")  # float32, as theirs
            each = int(torch.ceil(tokens / len(counts) * factor))
            self.row[3] += (counts - max(each, gate.min_capacity)).clamp(min=0).sum()


def _is_layer(router: Router) -> bool:
    return type(router.module).__name__ == "MOELayer"


def _exp_counts(call: Forward) -> Tensor:
    return cast(Tensor, call.module.exp_counts)

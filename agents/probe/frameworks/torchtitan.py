"""torchtitan: `MoE.tokens_per_expert_E`, taken before its own optimizer hook moves the bias and resets them.

The hook is torch's for every optimizer, which runs before those of one optimizer, in whatever order they were added.
torchtitan counts again what activation checkpointing recomputes and halves it when it moves the bias; so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from agents.probe.counting import local
from agents.probe.frameworks.routers import (
    AtMoment,
    Options,
    Reader,
    Router,
    made_by,
    named,
    number_of,
    top_k_of,
    wrapped,
)

COUNTERS = ("tokens_per_expert_E", "tokens_per_expert")


def mixtures(models: Sequence[nn.Module], package: str, options: Options) -> list[Router]:
    """The `MoE` modules of torchtitan's pattern: a counter, perhaps a bias, and a router inside."""
    modules = named(models)
    table = dict(modules)
    found = []
    for name, module in modules:
        counter = next((one for one in COUNTERS if isinstance(module._buffers.get(one), Tensor)), None)
        if counter is None or not made_by(module, package) or ".layers." not in f".{name}":
            continue  # a multi-token-prediction head's mixtures lie elsewhere and are not balanced
        slots = module._buffers[counter].numel()  # type: ignore[union-attr]  # a tensor, two lines above
        key = "expert_bias" + counter.removeprefix("tokens_per_expert")
        bias = (module._buffers, key) if isinstance(module._buffers.get(key), Tensor) else None
        top_k = top_k_of(getattr(module, "router", module), options) or 1
        found.append(Router(name, module, slots, slots, top_k, bias, number_of(name), wrapped(name, table, True)))
    return found


def counter_of(module: nn.Module) -> Tensor | None:
    """A mixture's counter, under its new or its old name."""
    return next((buffer for one in COUNTERS if (buffer := module._buffers.get(one)) is not None), None)


class Torchtitan(AtMoment):
    """torchtitan's own counters."""

    framework = "torchtitan"
    looks_for = "torchtitan's MoE with tokens_per_expert_E"

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        super().__init__(routers, options)
        self._hook: Any = None
        self._ours = all(getattr(router.module, "load_balance_coeff", None) is None for router in routers)
        placements = getattr(counter_of(routers[0].module), "placements", ())
        mesh = getattr(counter_of(routers[0].module), "device_mesh", None)
        for place, name in zip(placements, getattr(mesh, "mesh_dim_names", None) or (), strict=False):
            if name == "tp" and place.is_replicate():
                self.duplicate = self.duplicate or cast(Any, mesh).get_local_rank("tp") > 0

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        routers = mixtures(models, "torchtitan", options)
        return cls(routers, options) if routers else None

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        self._hook = register_optimizer_step_pre_hook(lambda *_: self.moment())
        if self._ours:
            self._reset()

    def counter_of(self, module: nn.Module) -> Tensor | None:
        return counter_of(module)

    def take(self, counted: Tensor | None) -> None:
        """Without balancing torchtitan neither reads the counters nor resets them, and past 2^24 tokens a float32 does
        not count exactly: then they are reset here."""
        super().take(counted)
        if counted is not None and self._ours:
            self._reset()

    def _reset(self) -> None:
        for router in self.routers:
            counter = self.counter_of(router.module)
            if counter is not None:
                local(counter).zero_()

    def close(self) -> None:
        if self._hook is not None:
            self._hook.remove()

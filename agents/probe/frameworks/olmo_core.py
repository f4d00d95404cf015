"""OLMo-core: `MoERouter.batch_size_per_expert`, taken when the first router's `post_batch` is called.

`post_batch` comes once a batch, after its last micro batch and before the counters are reset; a dry run is left out.
The counter runs wherever gradients are on, so a wrapper that recomputes without reentrancy counts twice: halved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from agents.probe.frameworks.routers import (
    AtMoment,
    Options,
    Reader,
    Router,
    bias_of,
    made_by,
    named,
    number_of,
    wrapped,
)
from agents.probe.tapping import untap


class OlmoCore(AtMoment):
    """OLMo-core's own counters."""

    framework = "olmo_core"
    looks_for = "OLMo-core's MoERouter with batch_size_per_expert"

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        modules = named(models)
        table = dict(modules)
        routers = []
        for name, module in modules:
            if not made_by(module, "olmo_core") or not hasattr(type(module), "post_batch"):
                continue
            if not hasattr(module, "_batch_size_per_expert") or name.endswith("shared_experts_router"):
                continue
            experts, top_k = int(cast(Any, module).num_experts), int(cast(Any, module).top_k)
            doubled = wrapped(name, table, False)
            found = Router(name, module, experts, experts, top_k, bias_of(name, table), number_of(name), doubled)
            routers.append(found)
        return cls(routers, options) if routers else None

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        self.before("post_batch")

    def counter_of(self, module: nn.Module) -> Tensor | None:
        return cast(Tensor, cast(Any, module).batch_size_per_expert)

    def close(self) -> None:
        for router in self.routers:
            untap(router.module)

"""Any model whose routers are modules with a one-dimensional counter of a known name: read when `step` is called.

The trainer resets the counters, after `step`. Our own reference model is of this kind; so is a model of one's own that
counts as torchtitan does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.probe.frameworks.routers import (
    BIASES,
    Options,
    Reader,
    Router,
    exact,
    experts_of,
    named,
    number_of,
    top_k_of,
)

COUNTERS = ("tokens_per_expert", "tokens_per_expert_E", "local_tokens_per_expert", "exp_counts")


class Buffers(Reader):
    """Reads counters that the model keeps and the trainer resets."""

    framework = "buffers"
    looks_for = f"a buffer {', '.join(COUNTERS)}, with a bias {', '.join(BIASES)} or none"

    def __init__(self, routers: Sequence[Router], options: Options, counters: Sequence[str]) -> None:
        super().__init__(routers, options)
        self._places = [(router.module._buffers, name) for router, name in zip(routers, counters, strict=True)]

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        routers, counters = [], []
        for name, module in named(models):
            counter = next((one for one in COUNTERS if isinstance(module._buffers.get(one), Tensor)), None)
            buffer = module._buffers.get(counter) if counter is not None else None
            if counter is None or buffer is None or buffer.dim() != 1:
                continue
            bias = next((one for one in BIASES if isinstance(module._buffers.get(one), Tensor)), None)
            if bias is not None and module._buffers[bias].shape != buffer.shape:  # type: ignore[union-attr]  # a tensor
                continue
            exact(buffer, f"{name}.{counter}")
            experts = experts_of(module, options) or len(buffer)
            place = None if bias is None else (module._buffers, bias)
            top_k = top_k_of(module, options) or 1
            routers.append(Router(name, module, len(buffer), experts, top_k, place, number_of(name)))
            counters.append(counter)
        return cls(routers, options, counters) if routers else None

    def collect(self) -> None:
        """Counters of this moment in one stack and one copy, looked up anew: moving a model replaces its buffers."""
        counted = [table[name] for table, name in self._places]
        stacked = torch.stack(counted)  # type: ignore[arg-type]  # tensors, as found
        self.counts.copy_(exact(stacked, "the routers' counter"))

    def forget(self) -> None:
        """The trainer resets its own counters."""

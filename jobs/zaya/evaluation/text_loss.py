"""The loss on text, and how evenly the experts share it: what a gate on pretraining looks at.

The windows are the same at every evaluation, so that losses of checkpoints can be compared, and lie in the end of each
text, which no training of jobs/zaya reads (jobs/zaya/training/data.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.contract import ContractError
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.training.data import held_out

_TOGETHER = 16


def held_out_windows(source: str, length: int, count: int) -> Tensor:
    """[count, length + 1] bytes spread evenly over the part of a source's text that no training reads."""
    text = held_out()[source]
    last = len(text) - length - 1
    if last < 0:
        raise ContractError(f"train.length must be < {len(text)}, the bytes of the held-out text, not {length}")
    starts = torch.linspace(0, last, count).long()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)[starts[:, None] + torch.arange(length + 1)].long()


def _counting(into: Tensor) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that adds a router's chosen slots to counts [S]."""

    def count(_router: nn.Module, _inputs: Any, output: Any) -> None:
        into.add_(torch.bincount(output[0].flatten(), minlength=len(into)))

    return count


@torch.no_grad()
def text_metrics(model: ZayaForCausalLM, windows: Tensor, told: Callable[[], None]) -> dict[str, float]:
    """`loss`, the mean cross-entropy in nats a byte, and `max_vio` over the same bytes; windows [N, length + 1].

    MaxVio of a layer is its most chosen expert's load over the mean load, less 1, without the skip slot
    (arXiv 2408.15664); `max_vio` is the mean over layers.
    """
    routers = model.routers()
    counts = [torch.zeros(router.num_experts + 1, dtype=torch.int64) for router in routers]
    hooks = [router.register_forward_hook(_counting(into)) for router, into in zip(routers, counts, strict=True)]
    total = 0.0
    try:
        for part in torch.split(windows, _TOGETHER):
            logits = model(part[:, :-1])
            total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
            told()
    finally:
        for hook in hooks:
            hook.remove()
    loads = torch.stack(counts)[:, :-1].double()
    violation = loads.amax(dim=1) / loads.mean(dim=1).clamp_min(1) - 1
    return {"loss": total / windows[:, 1:].numel(), "max_vio": float(violation.mean())}

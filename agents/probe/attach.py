"""`attach(model)`: finds a model's routers and reads their counters once a step. The only file here that knows torch.

It fits any model whose routers are modules with two one-dimensional buffers of the same length: `tokens_per_expert`,
this rank's counts of the step, and a bias (`balancing_biases`, `expert_bias` or `e_score_correction_bias`). Frameworks
with other habits come with their own readers in agents/probe/frameworks when they land.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agents.probe.capture import Probe

_COUNTS = "tokens_per_expert"
_BIASES = ("balancing_biases", "expert_bias", "e_score_correction_bias")


class AttachError(Exception):
    """A model in which no router can be found; the message says what was looked for."""


def _layer_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `layers.10` after `layers.9`: numbers by value, words by letters."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _routers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Each router with the name of its bias, in order of depth."""
    found = []
    for name, module in sorted(model.named_modules(), key=lambda item: _layer_order(item[0])):
        buffers = dict(module.named_buffers(recurse=False))
        counts = buffers.get(_COUNTS)
        bias = next((candidate for candidate in _BIASES if candidate in buffers), None)
        if counts is None or bias is None or counts.dim() != 1 or counts.shape != buffers[bias].shape:
            continue
        if counts.is_floating_point() and counts.dtype.itemsize < 4:
            raise AttachError(f"{name}.{_COUNTS} is {counts.dtype}: too narrow to count in")
        found.append((module, bias))
    if not found:
        raise AttachError(
            f"no router found: none of the model's modules has the buffers {_COUNTS} and one of {', '.join(_BIASES)}"
        )
    if len({len(getattr(module, _COUNTS)) for module, _ in found}) > 1:
        raise AttachError("the model's routers have different numbers of slots")
    return found


class AttachedProbe:
    """A probe over a model's routers: `step` is called at the end of each optimizer step, before counters reset."""

    def __init__(self, model: nn.Module) -> None:
        self._found = _routers(model)
        module = self._found[0][0]
        layers, slots = len(self._found), len(getattr(module, _COUNTS))
        self._counts = torch.empty((layers, slots), dtype=torch.int32)
        self._bias = torch.empty((layers, slots), dtype=torch.float32)
        self._top_k = int(getattr(module, "top_k", 1))
        experts = int(getattr(module, "num_experts", slots))
        self._probe = Probe(layers=layers, slots=slots, experts=experts, top_k=self._top_k)

    def _read(self) -> None:
        """Counters and biases of this moment: one stack and one copy each, so that a device is waited for twice, not
        twice a layer. Buffers are looked up anew: moving a model to a device replaces them."""
        self._counts.copy_(torch.stack([getattr(module, _COUNTS) for module, _ in self._found]))
        self._bias.copy_(torch.stack([getattr(module, bias) for module, bias in self._found]))

    def step(self, step: int, **scalars: Any) -> None:
        """Records optimizer step `step` with its scalars: loss, grad_norm, step_seconds, learning_rate, tokens,
        data_position (see Probe.write)."""
        if not self._probe.active:
            return
        try:
            self._read()
            routed = int(self._counts[0].sum()) // self._top_k
        except RuntimeError as error:  # shapes that changed under us, a device that failed: the trainer will say so
            self._probe.drop(step, error)
            return
        self._probe.write(step, self._counts.numpy(), self._bias.numpy(), routed=routed, **scalars)

    def close(self) -> None:
        """Lets go of the ring."""
        self._probe.close()


def attach(model: nn.Module) -> AttachedProbe:
    """A probe on every router of `model`, in order of depth; raises AttachError when there is none. It is inert
    without TRIMTAB_HEARTBEAT_DIR."""
    return AttachedProbe(model)

"""What our own counting costs the training thread: `attach` on a model whose routers nobody counts.

A model of routers that do nothing but return their choice is called without a probe and with one, in turn; a step's
cost is the second less the first, `probe.step` included. With one token a layer the operations on tensors have nothing
to do, so that what is left is their dispatch: the caller's part on an asynchronous device. With 4,096 tokens the CPU
really counts. The figure is of warm caches, since taps run in between the operations of the model itself, whose code
and tensors are warm then; `swept` is the same with all caches emptied before the forward and hence with none of that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from agents.probe.attach import AttachedProbe, attach
from benchmarks.probe_caller import reader
from benchmarks.probe_rounds import CACHE_BYTES, Line, line, micros, p95_micros

DISPATCH = {(40, 16, 1): 45.0, (58, 256, 8): 70.0}
"""(layers, slots, K) -> microseconds."""
COUNTING = ((40, 16, 1), (40, 16, 8), (58, 256, 1), (58, 256, 8))
TOKENS = 4096
STEPS, COUNTING_STEPS, WARM = 300, 60, 20


class Router(nn.Module):
    """Gives the same choice of experts each time, int64 [tokens, K], in a new tensor, as a real router does."""

    def __init__(self, slots: int, top_k: int, choice: Tensor) -> None:
        super().__init__()
        self.num_experts, self.top_k, self._choice = slots, top_k, choice
        self.register_buffer("e_score_correction_bias", torch.zeros(slots))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, self._choice.clone()


class Model(nn.Module):
    """So many routers, one after the other."""

    def __init__(self, layers: int, slots: int, top_k: int, tokens: int) -> None:
        super().__init__()
        dice = torch.Generator().manual_seed(1)
        choices = [torch.randint(0, slots, (tokens, top_k), generator=dice) for _ in range(layers)]
        self.routers = nn.ModuleList(Router(slots, top_k, choice) for choice in choices)

    def forward(self, hidden: Tensor) -> None:
        for router in self.routers:
            router(hidden)


def extra(plain: Model, tapped: Model, probe: AttachedProbe, steps: int, *, sweep: bool) -> list[float]:
    """Seconds of the caller's CPU that each step of `tapped` takes more than one of `plain`."""
    cache, hidden, found = np.zeros(CACHE_BYTES if sweep else 0, np.uint8), torch.zeros(1), []
    for number in range(WARM + steps):
        cache += 1
        begun = time.thread_time()
        plain(hidden)
        without = time.thread_time() - begun
        cache += 1
        begun = time.thread_time()
        tapped(hidden)
        probe.step(number, loss=2.0, tokens=TOKENS)
        found.append(time.thread_time() - begun - without)
    return found[WARM:]


def measure(shape: tuple[int, int, int], tokens: int, steps: int) -> tuple[list[float], list[float]]:
    """The extra of one shape, with an agent that reads: with warm caches and with swept ones."""
    layers, slots, top_k = shape
    with TemporaryDirectory(prefix="trimtab-bench-") as folder, reader(Path(folder)):
        os.environ |= {"TRIMTAB_HEARTBEAT_DIR": f"{folder}/attempts/bench", "TRIMTAB_RUN_ID": "bench"}
        try:
            plain, tapped = (Model(layers, slots, top_k, tokens) for _ in range(2))
            probe = attach(tapped)
            try:
                warm = extra(plain, tapped, probe, steps, sweep=False)
                return warm, extra(plain, tapped, probe, steps // 3, sweep=True)
            finally:
                probe.close()
        finally:
            del os.environ["TRIMTAB_HEARTBEAT_DIR"], os.environ["TRIMTAB_RUN_ID"]


def run() -> list[Line]:
    """Dispatch alone, then counting."""
    torch.set_num_threads(1)
    found = []
    for shape, target in DISPATCH.items():
        found.append(_line("own hooks, dispatch", shape, 1, measure(shape, 1, STEPS), target))
    for shape in COUNTING:
        found.append(_line("own hooks, counting", shape, TOKENS, measure(shape, TOKENS, COUNTING_STEPS), None))
    return found


def _line(
    what: str, shape: tuple[int, int, int], tokens: int, taken: tuple[list[float], list[float]], target: float | None
) -> Line:
    layers, slots, top_k = shape
    warm, swept = taken
    name = f"probe caller CPU a step, {layers}x{slots} {what}, T={tokens} K={top_k}"
    facts = {"p95": p95_micros(warm), "swept": micros(swept), "T": tokens, "K": top_k}
    return line(name, micros(warm), "us", target, **facts)

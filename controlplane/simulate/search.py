"""The checkpoint interval and the number of spare nodes that lose least under the real policy, found by trying.

Every try meets the same stops, so that two differ by what was tried and not by luck. Lost is what the run loses and the
GPU-hours in which healthy spares stand by. First intervals at the closed form's spares, then spares at the best one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.runs.advice import Advice, advise
from controlplane.runs.causes import Costs
from controlplane.simulate.campaign import DAYS, Tell, months
from controlplane.simulate.month import Setup

COARSE = tuple(2.0 ** (power / 2) for power in range(-3, 4))
FINE = (2.0**-0.25, 2.0**0.25)
SPARES_AROUND = 2


@dataclass(frozen=True, slots=True)
class Tried:
    """One try: GPU-hours lost in a month, the mean, and how far it is from the best one with the doubt of that."""

    interval_steps: int
    interval_s: float
    spares: int
    ettr_percent: float
    lost_gpu_h: float
    more_gpu_h: float
    doubt_gpu_h: float
    """half of the 95 % interval of `more_gpu_h`, month by month"""


@dataclass(frozen=True, slots=True)
class Found:
    """The best that was tried, what the closed form says, and every try."""

    gpus: int
    seeds: int
    best: Tried
    closed: Advice
    tried: tuple[Tried, ...]


class _Bench:
    """Tries each pair once."""

    def __init__(self, gpus: int, costs: Costs, seeds: Sequence[int], days: float, tell: Tell) -> None:
        self._gpus, self._costs, self._seeds, self._days, self._tell = gpus, costs, seeds, days, tell
        self.lost: dict[tuple[int, int], list[float]] = {}
        self.ettr: dict[tuple[int, int], float] = {}

    def try_(self, interval: int, spares: int) -> float:
        """Mean GPU-hours lost in a month."""
        key = (max(1, interval), max(0, spares))
        if key not in self.lost:
            setup = Setup(self._gpus, key[0], key[1], self._costs, "act", self._days)
            found = list(months(setup, self._seeds))
            per_node = self._costs.gpus_per_node / 3600
            self.lost[key] = [
                (1 - one.ettr_percent / 100) * one.wall_s * self._gpus / 3600 + one.idle_node_s * per_node
                for one in found
            ]
            self.ettr[key] = statistics.fmean(one.ettr_percent for one in found)
            self._tell(f"{self._gpus:,} GPUs, each {key[0]} steps, {key[1]} spares: {self.ettr[key]:.3f} %")
        return statistics.fmean(self.lost[key])

    def tried(self) -> list[Tried]:
        """Every try, the best one first."""
        ordered = sorted(self.lost, key=lambda key: statistics.fmean(self.lost[key]))
        best = self.lost[ordered[0]]
        return [self._row(key, best) for key in ordered]

    def _row(self, key: tuple[int, int], best: Sequence[float]) -> Tried:
        more = [mine - other for mine, other in zip(self.lost[key], best, strict=True)]
        spread = statistics.stdev(more) if len(more) > 1 else math.inf
        return Tried(
            interval_steps=key[0],
            interval_s=key[0] * self._costs.step_s,
            spares=key[1],
            ettr_percent=self.ettr[key],
            lost_gpu_h=statistics.fmean(self.lost[key]),
            more_gpu_h=statistics.fmean(more),
            doubt_gpu_h=1.96 * spread / math.sqrt(len(more)),
        )


def search(gpus: int, costs: Costs, seeds: Sequence[int], days: float = DAYS, tell: Tell = lambda _: None) -> Found:
    """Tries intervals and spares around the closed form's answer."""
    closed = advise(gpus, costs, step_s=costs.step_s)
    bench = _Bench(gpus, costs, seeds, days, tell)
    begin = closed.interval_steps or 1
    for factors in (COARSE, FINE):
        begin = min((round(begin * factor) for factor in (1.0, *factors)), key=lambda n: bench.try_(n, closed.spares))
    spares = closed.spares
    while True:
        around = range(max(0, spares - SPARES_AROUND), spares + SPARES_AROUND + 1)
        better = min(around, key=lambda count: bench.try_(begin, count))
        if better == spares:
            break
        spares = better
    tried = bench.tried()
    return Found(gpus, len(seeds), tried[0], closed, tuple(tried))

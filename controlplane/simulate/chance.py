"""The stops of a simulated run, drawn once for each seed: so that intervals, spares and policies meet the same luck.

A stop comes after so many seconds in which a gang held its GPUs, not at a time of day; which node it hits is a share of
the gang, not a name. Pure: the same seed gives the same stops.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from controlplane.runs.causes import MIX, Cause

SOFTWARE_BUGS = 12
"""Different errors that a run's own software has: equal ones count as one root."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop: after how many mean times between stops, of which cause, where in the gang, which of its errors."""

    after: float
    cause: Cause
    where: float
    error: int


def stops(seed: int) -> Iterator[Stop]:
    """The stops of a seed, without end; memoryless, causes by their share of the mix."""
    chance = random.Random(f"stops/{seed}")
    weights = list(accumulate(cause.stops for cause in MIX))
    while True:
        cause = chance.choices(MIX, cum_weights=weights)[0]
        yield Stop(chance.expovariate(1.0), cause, chance.random(), chance.randrange(SOFTWARE_BUGS))

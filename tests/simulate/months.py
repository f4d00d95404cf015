"""Small virtual clusters with stops that a test writes down itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from controlplane.runs.causes import MIX, Costs
from controlplane.simulate.chance import Stop
from controlplane.simulate.month import Month, Setup

GPUS, DAY_S = 1_024, 86_400.0
NONE = Stop(1e9, MIX[0], 0.0, 0)


def named(cause: str, after_s: float, *, where: float = 0.5, error: int = 0, costs: Costs | None = None) -> Stop:
    """A stop of a cause after so many seconds in which a gang held its GPUs."""
    mtbf_s = (costs or Costs()).mtbf_s(GPUS)
    return Stop(after_s / mtbf_s, next(one for one in MIX if one.name == cause), where, error)


def luck(*stops: Stop) -> Iterator[Stop]:
    """These stops and then none."""
    return itertools.chain(stops, itertools.repeat(NONE))


def month(*stops: Stop, **changes: Any) -> Month:
    """128 nodes and three spares for a day, a checkpoint each 100 steps of 2 s."""
    values = {"gpus": GPUS, "interval": 100, "spares": 3, "costs": Costs(), "days": 1.0, **changes}
    return Month(Setup(**values), luck(*stops))


def kinds(of: Month) -> list[str]:
    """The moves without those that only follow what is seen."""
    return [name for name in of.moves if name != "Advance"]

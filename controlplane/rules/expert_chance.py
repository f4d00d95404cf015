"""What chance alone makes of each statistic of a layer: the value that perfect balance still shows. Pure.

To first order in the sampling floor f (rules.experts.sampling_floor, with correlated tokens f·√deff): loads r of even
routing are then near-normal with mean 1 and standard deviation f. A table of figures sets it beside what is measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from controlplane.rules.experts import Floats, maxvio_floor


def of_chance(floor_cv: ArrayLike, experts: int, steps: int) -> dict[str, Floats]:
    """By name, each of the shape of `floor_cv`; lag1 over a window of so many steps. Statistics that are missing have
    no such value (a bias), or it is 0 (dead experts, skipped and dropped tokens)."""
    floor = np.asarray(floor_cv, dtype=np.float64)
    spread = np.sqrt(2 * np.log(experts)) if experts > 1 else 0.0  # of the largest of E normals
    even = np.ones_like(floor)
    return {
        "cv": floor,
        "cv_floor": even,
        "maxvio": maxvio_floor(floor, experts),
        "avgvio": floor * np.sqrt(2 / np.pi),  # the mean |x| of a normal
        "entropy": even - floor**2 / (2 * np.log(experts)) if experts > 1 else even,
        "effective": np.exp(-(floor**2) / 2),
        # half the mean |x − y| of all pairs, x with itself too; counts that add up to T lean against each other
        "gini": floor * np.sqrt((experts - 1) / (experts * np.pi)),
        "min_load": np.maximum(even - floor * spread, 0.0),
        "churn": floor / np.sqrt(np.pi),  # ½·E·mean |x − y| ÷ E
        "lag1": np.full_like(floor, -1 / steps),
    }

"""Moments in a run's expert balance that people should see on its time axes: where the data mix changed.

A change of the data moves every layer at once and decays as the biases follow; it is annotated, and no alarm. Pure:
series in, indices out. Restarts are not looked for here, the store knows them.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECENT_STEPS = 16
BEFORE_STEPS = 64
LEAST_BEFORE = 16
"""So many steps must lie before a shift, or there is nothing that it shifts from."""
ONSET = 2.7
CLEAR = 1.8


def data_mix_shifts(maxvio: ArrayLike, *, onset: float = ONSET, clear: float = CLEAR) -> Integers:
    """Where the mean MaxVio over layers, a value a step [N] in order, jumps: indices, each of the first step that rose.

    A shift begins where the median of RECENT_STEPS steps exceeds `onset` times the median of the BEFORE_STEPS steps
    before them, and lasts until it is below `clear` times the same median: one shift is told once. Chosen on the
    corpus's first seeds: no healthy run exceeds 1.7, each change of text 4.4. Steps whose value is not known (NaN) are
    left out. ValueError for anything but one axis.
    """
    given = np.asarray(maxvio, dtype=np.float64)
    if given.ndim != 1:
        raise ValueError(f"a value a step is one axis, not {given.shape}")
    known = np.flatnonzero(np.isfinite(given))
    values = given[known]
    if len(values) < LEAST_BEFORE + RECENT_STEPS:
        return np.zeros(0, np.int64)
    recent = np.median(sliding_window_view(values, RECENT_STEPS), axis=1)  # [i] is of values[i : i + RECENT_STEPS]
    usual = _medians_before(values)[: len(recent)]
    found, at = [], LEAST_BEFORE
    while at < len(recent):
        risen = np.flatnonzero(recent[at:] > onset * usual[at:])
        if not len(risen):
            break
        begin = at + int(risen[0])
        base = usual[begin]
        high = values[begin : begin + RECENT_STEPS] > onset * base
        found.append(begin + int(np.argmax(high)))
        calm = np.flatnonzero(recent[begin:] < clear * base)
        if not len(calm):
            break
        at = begin + int(calm[0])
    return known[np.array(found, np.int64)] if found else np.zeros(0, np.int64)


def _medians_before(values: Floats) -> Floats:
    """[i]: the median of the up to BEFORE_STEPS values before i; NaN where there are fewer than LEAST_BEFORE."""
    medians = np.full(len(values), np.nan)
    for index in range(LEAST_BEFORE, min(BEFORE_STEPS, len(values))):
        medians[index] = np.median(values[:index])
    if len(values) > BEFORE_STEPS:
        medians[BEFORE_STEPS:] = np.median(sliding_window_view(values, BEFORE_STEPS)[:-1], axis=1)
    return medians

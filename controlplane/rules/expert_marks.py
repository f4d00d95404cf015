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
    windows = sliding_window_view(values, RECENT_STEPS)  # [i] is of values[i : i + RECENT_STEPS]
    found, at = [], 0
    for index, base in zip(*_risen(values, windows, onset), strict=True):
        if index < at:
            continue
        high = values[index : index + RECENT_STEPS] > onset * base
        found.append(index + int(np.argmax(high)))
        calm = np.flatnonzero(np.median(windows[index:], axis=1) < clear * base)
        if not len(calm):
            break
        at = index + int(calm[0])
    return known[np.array(found, np.int64)] if found else np.zeros(0, np.int64)


def _risen(values: Floats, windows: Floats, onset: float) -> tuple[list[int], list[float]]:
    """The windows whose median exceeds `onset` times the one of the steps before them, and that one.

    Medians are taken only where they can differ so much: the largest of the one exceeds so many times the smallest of
    the other. Of thousands of windows they cost far more than their ends.
    """
    count = len(windows)
    smallest = np.minimum.accumulate(values)[:-1]  # [i] of values[: i + 1]
    if len(values) > BEFORE_STEPS:
        smallest[BEFORE_STEPS - 1 :] = sliding_window_view(values, BEFORE_STEPS)[:-1].min(axis=1)
    index = LEAST_BEFORE + np.flatnonzero(
        windows[LEAST_BEFORE:].max(axis=1) > onset * smallest[LEAST_BEFORE - 1 : count - 1]
    )
    usual = np.empty(len(index))
    early = int(np.searchsorted(index, BEFORE_STEPS))
    usual[:early] = [np.median(values[:end]) for end in index[:early]]
    if early < len(index):
        before = sliding_window_view(values, BEFORE_STEPS)
        usual[early:] = np.median(before[index[early:] - BEFORE_STEPS], axis=1)
    risen = np.median(windows[index], axis=1) > onset * usual
    return index[risen].tolist(), usual[risen].tolist()

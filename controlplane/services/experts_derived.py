"""Statistics of a stretch of stored steps that are not stored: H ÷ ln E, which follows from one that is, and churn and
lag-1 autocorrelation, which take the counts of the steps before. For the export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.experts import Floats
from controlplane.services.experts_window import NOTHING_MOVED
from controlplane.store.engine import Store
from controlplane.store.expert_stretches import Stretch, Wanted, stretches

WINDOW_STEPS = 64
Integers = NDArray[np.int64]


def with_derived(store: Store, run_id: str, stretch: Stretch) -> Stretch:
    """The stretch with entropy, churn and lag1 [N, M] among its statistics, NaN where the counts are gone.

    lag1 is of the up to WINDOW_STEPS steps that end with a step and follow each other without a gap.
    """
    experts, effective = stretch.shape.experts, stretch.statistics["effective"].astype(np.float64)
    entropy = np.ones_like(effective)
    if experts > 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = 1 + np.log(effective) / np.log(experts)
    churn, lag1 = np.full((2, *effective.shape), np.nan)
    step, counts = _counts(store, run_id, stretch)
    if len(step):
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = counts / counts.sum(axis=-1, keepdims=True, dtype=np.float64)
        spacing = int(np.diff(stretch.step).min()) if len(stretch.step) > 1 else 1
        for run in np.split(np.arange(len(step)), np.flatnonzero(np.diff(step) != spacing) + 1):
            there, into = np.isin(step[run], stretch.step), np.isin(stretch.step, step[run])
            churn[into] = trailing_churn(shares[run])[there]
            lag1[into] = trailing_lag1(shares[run], WINDOW_STEPS)[there]
    derived = {"entropy": entropy, "churn": churn, "lag1": lag1}
    found = {name: values.astype(np.float32) for name, values in derived.items()}
    return replace(stretch, statistics=stretch.statistics | found)


def _counts(store: Store, run_id: str, stretch: Stretch) -> tuple[Integers, NDArray[np.uint32]]:
    """Steps [T] and counts [T, M, E] of the stretch and of the window before it, in its attempt."""
    first, last = int(stretch.step[0]) - WINDOW_STEPS + 1, int(stretch.step[-1])
    wanted = Wanted(first, last, tuple(stretch.layers.tolist()))
    parts = [
        part
        for part in stretches(store, run_id, wanted)
        if part.shape == stretch.shape and part.attempt_no == stretch.attempt_no
    ]
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, 0, 0), np.uint32)
    counts = np.concatenate([part.counts for part in parts])[..., : stretch.shape.experts]
    return np.concatenate([part.step for part in parts]), counts


def trailing_churn(shares: Floats) -> Floats:
    """½·Σ_e |p_t − p_{t−1}| [T, M] of shares [T, M, E]; NaN of the first."""
    found = np.full(shares.shape[:2], np.nan)
    found[1:] = np.abs(np.diff(shares, axis=0)).sum(axis=-1) / 2
    return found


def trailing_lag1(shares: Floats, window: int) -> Floats:
    """rules.experts.lag1_autocorrelation [T, M] of the up to `window` shares [T, M, E] that end with each, from sums
    (experts_window.MovingWindow.lag1 says how); NaN of fewer than three and where a share is not known."""
    count = len(shares)
    index = np.arange(count)
    begin = np.maximum(index - window + 1, 0)
    steps = (index - begin + 1)[:, None].astype(np.float64)
    sums, squares = _before(shares), _before(np.einsum("tme,tme->tm", shares, shares))
    products = np.zeros(shares.shape[:2])
    products[1:] = np.einsum("tme,tme->tm", shares[1:], shares[:-1])
    products = _before(products)
    mean = (sums[index + 1] - sums[begin]) / steps[..., None]
    of_mean = np.einsum("tme,tme->tm", mean, mean)
    square = squares[index + 1] - squares[begin]
    variance = square - steps * of_mean
    together = products[index + 1] - products[begin + 1]
    together += np.einsum("tme,tme->tm", mean, shares[begin] + shares) - (steps + 1) * of_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((steps >= 3) & (variance > NOTHING_MOVED * square), together / variance, np.nan)


def _before(values: Floats) -> Floats:
    """Sums over the first axis of what is before each place: [T + 1, ...]."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])

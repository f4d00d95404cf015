"""How the loads of a layer's experts repeat themselves: autocorrelation by lag. Pure numpy; it judges nothing.

A controller that overshoots shows as stripes along the lags, a load that drifts as a slow decay, balance as nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controlplane.rules.experts import deviations

Floats = NDArray[np.float64]


def autocorrelations(loads: ArrayLike, lags: int) -> Floats:
    """Autocorrelation [L, lags] of loads [W, L, E] (shares or counts) at the lags 1 … `lags`, pooled over experts.

    ρ_k = Σ_e Σ_t d_t·d_{t+k} ÷ Σ_e Σ_t d_t², d = deviation from the expert's mean over the window; at lag 1 it is
    rules.experts.lag1_autocorrelation. Of independent steps about −1/W ± 1/√(W·E). NaN where nothing moved and at lags
    of W − 1 steps or more; steps that are not known (NaN) are left out, with the pairs that they are part of.
    """
    moved = deviations(loads)
    steps, layers = moved.shape[:2]
    result = np.full((layers, lags), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.einsum("wle,wle->l", moved, moved)
        for lag in range(1, min(lags, steps - 2) + 1):
            result[:, lag - 1] = np.einsum("wle,wle->l", moved[:-lag], moved[lag:]) / variance
    return result

"""Which steps of an expert chunk still have counts and biases: of old chunks only some (see expert_thinning). Pure.

A chunk's statistics are of every step that it had. Once it is thinned an array `kept`, one byte a step, says which of
them its matrices are of, in the same order; a chunk without that array has them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.store import arrays
from controlplane.store.arrays import Arrays
from controlplane.store.compression import SMALL

_NAME = "kept"


class _Kept(Arrays):
    """The bundle of a thinned chunk as if it had only the steps with matrices; steps are every array's last axis."""

    def __init__(self, whole: Arrays) -> None:
        vars(self).update(vars(whole))  # its head is parsed once: that is most of what a bundle costs to open
        self._chosen = np.flatnonzero(super().__getitem__(_NAME))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return super().__getitem__(name)[..., self._chosen]


def with_matrices(stats: bytes) -> Arrays:
    """The statistics of those steps alone that the chunk's matrices are of."""
    whole = Arrays(stats)
    return _Kept(whole) if _NAME in whole else whole


def mask(stats: Arrays) -> NDArray[np.bool_]:
    """[S] whether each step of a chunk has its matrices."""
    return stats[_NAME].astype(np.bool_) if _NAME in stats else np.ones(len(stats["step"]), np.bool_)


def marked(stats: Arrays, kept: NDArray[np.bool_]) -> bytes:
    """The statistics with another mask, as they are stored."""
    return arrays.pack({**stats.all(), _NAME: kept.astype(np.uint8)}, level=SMALL)

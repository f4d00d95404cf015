"""The balance of each step of a run's window, kept while the window moves on: what a live frame need not compute twice.

A frame of the newest step needs the last 64 steps. Of those only the newest is new, so statistics are computed once a
step, and sums over the window are moved on by what enters and what leaves. It judges nothing and makes no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.experts import Floats, LayerStatistics, design_effect, layer_statistics
from controlplane.store.expert_records import ExpertStep

NOTHING_MOVED = 1e-12
"""A variance over the window below this part of the mean square is rounding."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What the frame needs of each step of its window."""

    share: NDArray[np.float32]
    """[L, E]"""
    cv_floor: NDArray[np.float32]
    """[L] in floors of independent tokens"""
    floor_cv: float
    effect: Floats
    freedom: Floats
    """[L] the ranks' design effect in this step, NaN unknown, and its degrees of freedom"""


def statistics_of(step: ExpertStep) -> LayerStatistics:
    """The step's statistics."""
    with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite
        return layer_statistics(step.counts, step.bias, step.shape.experts, step.shape.top_k)


def balance_of(step: ExpertStep, found: LayerStatistics) -> Balance:
    """A step with its statistics."""
    effect, freedom = _effect(step)
    share, cv_floor = found.share.astype(np.float32), found.cv_floor.astype(np.float32)
    return Balance(share, cv_floor, float(found.floor_cv), effect, freedom)


def _effect(step: ExpertStep) -> tuple[Floats, Floats]:
    spread = step.spread
    if spread is None:
        return np.full(step.shape.layers, np.nan), np.zeros(step.shape.layers)
    counts = step.counts[:, : step.shape.experts]
    return design_effect(counts, spread.squares, spread.freedom, spread.ranks, step.shape.top_k), spread.freedom


def rows_of(each: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Vectors [L] as [W, L]; numpy.stack takes several times as long for short ones."""
    return np.concatenate(each).reshape(len(each), -1)


def _known(share: NDArray[Any]) -> NDArray[Any]:
    """Shares with 0 in layers without tokens, where they are NaN."""
    missing = np.isnan(share[:, 0])
    return np.where(missing[:, None], 0, share) if missing.any() else share


@dataclass(frozen=True, slots=True)
class _Row:
    """A step of the window: [L] Σ_e share² and Σ_e share · share of the row before (of the first row: nothing)."""

    step: ExpertStep
    balance: Balance
    squares: Floats
    products: Floats


class MovingWindow:
    """The steps of one run that are looked at, in order. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._rows: deque[_Row] = deque()
        self._sums: Floats = np.zeros((0, 0))
        """[L, E] of the shares of the rows. Shares are single precision, so adding and taking away is all but exact."""
        self._newest: tuple[ExpertStep | None, LayerStatistics | None] = (None, None)

    @property
    def balances(self) -> list[Balance]:
        """Of each step."""
        return [row.balance for row in self._rows]

    @property
    def newest(self) -> LayerStatistics:
        """The newest step's statistics."""
        step, found = self._newest
        last = self._rows[-1].step
        if found is None or step is not last:
            found = statistics_of(last)
            self._newest = (last, found)
        return found

    def move(self, steps: Sequence[ExpertStep]) -> None:
        """Brings the window to these steps of one shape, not none: rows of steps that are still there stay."""
        rows = self._rows
        while rows and rows[0].step is not steps[0]:
            self._leave(rows.popleft())
        kept = next((at for at, (row, step) in enumerate(zip(rows, steps, strict=False)) if row.step is not step), None)
        while len(rows) > min(len(steps), len(rows) if kept is None else kept):
            self._leave(rows.pop())
        if not rows:
            self._sums = np.zeros((steps[0].shape.layers, steps[0].shape.experts))
        for step in steps[len(rows) :]:
            self._enter(step)

    def _leave(self, row: _Row) -> None:
        self._sums -= _known(row.balance.share)

    def _enter(self, step: ExpertStep) -> None:
        found = statistics_of(step)
        balance = balance_of(step, found)
        share = balance.share.astype(np.float64)
        before = self._rows[-1].balance.share if self._rows else balance.share
        squares, products = (np.einsum("le,le->l", share, other) for other in (share, before.astype(np.float64)))
        self._sums += _known(share)
        self._rows.append(_Row(step, balance, squares, products))
        self._newest = (step, found)

    def lag1(self) -> Floats:
        """rules.experts.lag1_autocorrelation of the window's shares: [L], from the sums.

        With m the mean over W steps: Σ_t (x_t − m)² = Σ x_t² − W·m² and
        Σ_t (x_t − m)(x_{t+1} − m) = Σ x_t·x_{t+1} + m·(x_1 + x_W) − (W + 1)·m².
        """
        steps = len(self._rows)
        if steps < 3:
            return np.full(len(self._sums), np.nan)
        mean = self._sums / steps
        ends = self._rows[0].balance.share.astype(np.float64) + self._rows[-1].balance.share
        of_mean = np.einsum("le,le->l", mean, mean)
        squares = rows_of([row.squares for row in self._rows]).sum(axis=0)
        products = rows_of([row.products for row in islice(self._rows, 1, None)]).sum(axis=0)
        variance = squares - steps * of_mean
        together = products + np.einsum("le,le->l", mean, ends) - (steps + 1) * of_mean
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(variance > NOTHING_MOVED * squares, together / variance, np.nan)
        return np.asarray(found, dtype=np.float64)

"""The balance of each step of a run's window, kept while the window moves on: what a live frame need not compute twice.

A frame of the newest step needs the last 64 steps. Of those only the newest is new, so statistics are computed once a
step, and sums over the window are moved on by what enters and what leaves. It judges nothing and makes no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.experts import Floats, Integers, LayerStatistics, design_effect, layer_statistics, mean_of_known
from controlplane.store.expert_records import ExpertStep, Shape

NOTHING_MOVED = 1e-12
"""A variance over the window below this part of the mean square is rounding."""
ROOM = 96
"""Rows that a window has place for before it is moved to the front: its 64 steps and half as many."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What the frame needs of each step of its window."""

    share: NDArray[np.float32]
    """[L, E]"""
    floor_cv: float
    figures: dict[str, NDArray[Any]]
    """[L] by the names of FIGURES"""


FIGURES = (
    *("maxvio", "avgvio", "cv", "cv_floor", "entropy", "effective", "gini", "min_load"),
    *("dead_count", "skip_share", "bias_mean", "bias_spread"),
)
"""Of LayerStatistics; cv_floor is in floors of independent tokens. Beside them stand `effect` and `freedom`, the ranks'
design effect in a step, NaN unknown, and its degrees of freedom."""
_SUMS = ("squares", "products")


def statistics_of(step: ExpertStep) -> LayerStatistics:
    """The step's statistics."""
    with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite
        return layer_statistics(step.counts, step.bias, step.shape.experts, step.shape.top_k)


def balance_of(step: ExpertStep, found: LayerStatistics) -> Balance:
    """A step with its statistics."""
    effect, freedom = _effect(step)
    figures = {name: getattr(found, name) for name in FIGURES} | {"effect": effect, "freedom": freedom}
    return Balance(found.share.astype(np.float32), float(found.floor_cv), figures)


def _effect(step: ExpertStep) -> tuple[Floats, Floats]:
    spread = step.spread
    if spread is None:
        return np.full(step.shape.layers, np.nan), np.zeros(step.shape.layers)
    counts = step.counts[:, : step.shape.experts]
    return design_effect(counts, spread.squares, spread.freedom, spread.ranks, step.shape.top_k), spread.freedom


def _known(share: NDArray[Any]) -> NDArray[Any]:
    """Shares with 0 in layers without tokens, where they are NaN."""
    missing = np.isnan(share[:, 0])
    return np.where(missing[:, None], 0, share) if missing.any() else share


class _Tape:
    """Rows of arrays that stand one behind the other in memory while rows enter at the end and leave at both: a stretch
    of them is a view, where stacking 64 matrices at each step would copy them all."""

    def __init__(self, shape: Shape) -> None:
        self.begin = self.end = 0
        wide = {"counts": np.dtype(np.uint32), "bias": np.dtype(np.float32)}
        self._rows: dict[str, NDArray[Any]] = {
            name: np.zeros((ROOM, shape.layers, shape.slots), dtype) for name, dtype in wide.items()
        }
        for name in (*FIGURES, "effect", "freedom", *_SUMS):
            self._rows[name] = np.zeros((ROOM, shape.layers))

    def add(self, values: Mapping[str, NDArray[Any]]) -> None:
        if self.end == ROOM:
            count = self.end - self.begin
            for rows in self._rows.values():
                rows[:count] = rows[self.begin : self.end].copy()
            self.begin, self.end = 0, count
        for name, rows in self._rows.items():
            rows[self.end] = values[name]
        self.end += 1

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._rows[name][self.begin : self.end]


class MovingWindow:
    """The steps of one run that are looked at, in order, fewer than ROOM. Not safe for several threads at once; views
    of it are good until it moves."""

    def __init__(self) -> None:
        self._rows: deque[tuple[ExpertStep, Balance]] = deque()
        self._tape = _Tape(Shape(0, 0, 0, 0))
        self._sums: Floats = np.zeros((0, 0))
        """[L, E] of the shares of the rows. Shares are single precision, so adding and taking away is all but exact."""
        self._counts: Floats = np.zeros((0, 0))
        """[L, S] of the counts of the rows, which are whole numbers: exact"""
        self._silent = 0
        """In how many of the rows how many layers have no tokens, all together"""
        self._newest: tuple[ExpertStep | None, LayerStatistics | None] = (None, None)

    @property
    def balances(self) -> list[Balance]:
        """Of each step."""
        return [balance for _, balance in self._rows]

    @property
    def newest(self) -> LayerStatistics:
        """The newest step's statistics."""
        step, found = self._newest
        last = self._rows[-1][0]
        if found is None or step is not last:
            found = statistics_of(last)
            self._newest = (last, found)
        return found

    def move(self, steps: Sequence[ExpertStep]) -> None:
        """Brings the window to these steps of one shape, not none: rows of steps that are still there stay."""
        rows = self._rows
        while rows and rows[0][0] is not steps[0]:
            self._leave(*rows.popleft())
            self._tape.begin += 1
        kept = next((at for at, (row, step) in enumerate(zip(rows, steps, strict=False)) if row[0] is not step), None)
        while len(rows) > min(len(steps), len(rows) if kept is None else kept):
            self._leave(*rows.pop())
            self._tape.end -= 1
        if not rows:
            shape = steps[0].shape
            self._tape = _Tape(shape)
            self._sums, self._counts = np.zeros((shape.layers, shape.experts)), np.zeros((shape.layers, shape.slots))
            self._silent = 0
        for step in steps[len(rows) :]:
            self._enter(step)

    def _leave(self, step: ExpertStep, balance: Balance) -> None:
        self._sums -= _known(balance.share)
        self._counts -= step.counts
        self._silent -= int(np.isnan(balance.figures["cv"]).sum())

    def _enter(self, step: ExpertStep) -> None:
        found = statistics_of(step)
        balance = balance_of(step, found)
        share = _known(balance.share.astype(np.float64))
        before = _known(self._rows[-1][1].share).astype(np.float64) if self._rows else share
        squares, products = (np.einsum("le,le->l", share, other) for other in (share, before))
        self._sums += share
        self._counts += step.counts
        self._silent += int(np.isnan(balance.figures["cv"]).sum())
        sums = {"squares": squares, "products": products}
        self._tape.add({"counts": step.counts, "bias": step.bias} | balance.figures | sums)
        self._rows.append((step, balance))
        self._newest = (step, found)

    def each(self, name: str) -> NDArray[Any]:
        """One of FIGURES, effect or freedom of each step [W, L]; counts or bias [W, L, S]. A view."""
        return self._tape[name]

    def mean(self, name: str) -> Floats:
        """One of FIGURES, mean over the steps that are known [L]; NaN where none is."""
        return mean_of_known(self.each(name), axis=0)

    @property
    def known_steps(self) -> Integers:
        """[L] in how many of the steps the layer's experts have tokens."""
        if not self._silent:
            return np.full(len(self._sums), len(self._rows), np.int64)
        return np.asarray((~np.isnan(self.each("cv"))).sum(axis=0), dtype=np.int64)

    @property
    def together(self) -> Floats:
        """The sum of the steps' counts [L, S]."""
        return self._counts.copy()

    def lag1(self) -> Floats:
        """rules.experts.lag1_autocorrelation of the window's shares: [L], from the sums.

        With m the mean over the W known steps, of which P pairs are neighbours, and the ends all those that begin or
        end such a stretch: Σ_t (x_t − m)² = Σ x_t² − W·m² and
        Σ_t (x_t − m)(x_{t+1} − m) = Σ x_t·x_{t+1} + m·Σ ends − (2·W − P)·m².
        """
        steps = self.known_steps
        mean = self._sums / np.maximum(steps, 1)[:, None]
        pairs, ends = self._pairs()
        of_mean = np.einsum("le,le->l", mean, mean)
        squares = self._tape["squares"].sum(axis=0)
        products = self._tape["products"][1:].sum(axis=0)
        variance = squares - steps * of_mean
        together = products + np.einsum("le,le->l", mean, ends) - (2 * steps - pairs) * of_mean
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = (steps >= 3) & (variance > NOTHING_MOVED * squares)
            found = np.where(moved, together / variance, np.nan)
        return np.asarray(found, dtype=np.float64)

    def _pairs(self) -> tuple[Integers, Floats]:
        """How many neighbours among the steps both know a layer [L], and the sum of the shares [L, E] at the ends of
        its known stretches."""
        rows = self._rows
        ends = _known(rows[0][1].share).astype(np.float64) + _known(rows[-1][1].share)
        if not self._silent:
            return np.full(len(ends), len(rows) - 1, np.int64), ends
        known = ~np.isnan(self.each("cv"))
        for step, other in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            edge = known[step] & ~known[other]
            for at in np.flatnonzero(edge.any(axis=1)):
                ends[edge[at]] += rows[int(at) + (step.start or 0)][1].share[edge[at]]
        return np.asarray((known[1:] & known[:-1]).sum(axis=0), dtype=np.int64), ends

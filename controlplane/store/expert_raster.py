"""One layer of a run over many steps, as means over columns: what the page's raster shows. Reading only.

Of merged chunks only the asked layer's bytes are read and decoded, a piece at a time: a matrix of all steps is never
made. Counts and biases are of the steps that still have theirs, statistics of every step that there was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from controlplane.rules.experts import bucket_means
from controlplane.store.arrays import Arrays
from controlplane.store.codec import COLUMNS
from controlplane.store.expert_coding import decode_layer, decode_raw_layer
from controlplane.store.expert_kept import mask
from controlplane.store.expert_records import Float32
from controlplane.store.experts import FLOORS, Integers, by_ids, current, first_steps, in_force, overlapping, shape_of
from controlplane.store.tables import ExpertChunk, ExpertLayer

Layer = tuple[NDArray[np.uint32], Float32]


@dataclass(frozen=True, slots=True)
class Raster:
    """One layer over steps, at most as many columns as asked for; E experts, C columns.

    A column is of so many steps that have their counts, and of the steps up to them of which only statistics are left.
    `step`, `attempt_no` and `at_s` [C] are its last step's; share and bias [E, C], cv_floor and skip_share [C] are
    means over those of its steps that tell it, NaN where none does: a layer without tokens has no share, one that
    nobody told no bias. `floor_cv` is the floor in force at the last step, NaN unknown.
    """

    step: Integers
    attempt_no: Integers
    at_s: NDArray[np.float64]
    share: Float32
    bias: Float32
    cv_floor: Float32
    skip_share: Float32
    floor_cv: float
    before: Integers
    mean_maxvio: Float32
    """[N] of every step (`before` are their numbers), with some before the first column"""


@dataclass(frozen=True, slots=True)
class _Stored:
    """The chunks of a stretch: their rows, statistics, and of every step of them (N) whether its counts are there."""

    rows: Sequence[Row[*tuple[Any, ...]]]
    bundles: Sequence[Arrays]
    sizes: Sequence[int]
    step: Integers
    attempt_no: Integers
    has_counts: NDArray[np.bool_]

    def of_steps(self, name: str) -> NDArray[Any]:
        return np.concatenate([bundle[name] for bundle in self.bundles])

    def of_layer(self, name: str, layer: int) -> Float32:
        found: Float32 = np.concatenate([bundle[name][layer] for bundle in self.bundles])
        return found


def read_raster(
    session: Session, run_id: str, layer: int, *, first: int, last: int, columns: int, before: int = 0
) -> Raster | None:
    """One layer of the current view over first ≤ step ≤ last; None if nothing is stored there or no such layer is.

    Steps of another shape than the newest one's are left out. `before`: how many steps before the first the series of
    mean_maxvio begins.
    """
    stored = _stored(session, run_id, layer, first - before, last)
    if stored is None:
        return None
    seen = current(stored.attempt_no, stored.step, first_steps(session, run_id), first - before, last)
    shown = seen[stored.step[seen] >= first]
    kept = shown[stored.has_counts[shown]]
    if not len(kept):
        return None
    column = np.arange(len(kept)) * columns // len(kept)
    ends = np.flatnonzero(np.append(np.diff(column) != 0, True))
    column = np.searchsorted(ends, np.arange(len(kept)))
    share, bias = _means(session, stored, layer, kept, column)
    last_of = kept[ends]
    steps = stored.step[shown]
    bounds = np.searchsorted(steps, stored.step[last_of], side="right")
    starts, covered = np.append(0, bounds[:-1]), shown[: bounds[-1]]
    floors = in_force(*(stored.of_layer(name, layer)[seen][None] for name in FLOORS))[0]
    floors = floors[len(seen) - len(shown) :][: len(covered)]
    return Raster(
        step=stored.step[last_of],
        attempt_no=stored.attempt_no[last_of],
        at_s=stored.of_steps("at_s")[last_of],
        share=share,
        bias=bias,
        cv_floor=bucket_means(floors, starts),
        skip_share=bucket_means(stored.of_layer("skip_share", layer)[covered], starts),
        floor_cv=_floor(stored, layer, int(last_of[-1]), float(floors[-1])),
        before=stored.step[seen],
        mean_maxvio=stored.of_steps("mean_maxvio")[seen],
    )


def _stored(session: Session, run_id: str, layer: int, first: int, last: int) -> _Stored | None:
    table = ExpertChunk
    query = select(
        *(table.id, table.attempt_no, table.layers, table.slots, table.experts, table.top_k),
        *(table.codec, table.stats),
    ).where(*overlapping(run_id, first, last))
    rows = session.execute(query.order_by(table.attempt_no, table.id)).all()
    rows = [row for row in rows if shape_of(row) == shape_of(rows[-1])]
    if not rows or not 0 <= layer < rows[-1].layers:
        return None
    bundles = [Arrays(row.stats) for row in rows]
    steps = [bundle["step"] for bundle in bundles]
    sizes = [len(step) for step in steps]
    return _Stored(
        rows,
        bundles,
        sizes,
        np.concatenate(steps),
        np.repeat([row.attempt_no for row in rows], sizes),
        np.concatenate([mask(bundle) for bundle in bundles]),
    )


def _floor(stored: _Stored, layer: int, at: int, floors: float) -> float:
    """The sampling floor in force at a step as a CV: its CV over its CV in floors."""
    chunk = int(np.searchsorted(np.cumsum(stored.sizes), at, side="right"))
    cv = stored.bundles[chunk]["cv"][layer][at - sum(stored.sizes[:chunk])]
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(cv) / floors)


def _means(session: Session, stored: _Stored, layer: int, kept: Integers, column: Integers) -> tuple[Float32, Float32]:
    """Share and bias [E, C], means over columns; `column` [K] says in which of them the steps `kept` [K] are."""
    experts, columns = stored.rows[-1].experts, int(column[-1]) + 1
    share, bias = np.zeros((experts, columns), np.float32), np.zeros((experts, columns), np.float32)
    shared = biased = np.bincount(column, minlength=columns).astype(np.float32)
    place = np.full(len(stored.step), -1)
    place[kept] = column
    ends = np.cumsum(stored.sizes)[:-1]
    there = zip(np.split(place, ends), np.split(stored.has_counts, ends), stored.rows, strict=True)
    wanted = [(row, places[has_counts]) for places, has_counts, row in there if (places >= 0).any()]
    pieces = _layers(session, [(row, len(places)) for row, places in wanted], layer)
    for (_, here), (counts, biases) in zip(wanted, pieces, strict=True):
        loads, leans = counts.T[:experts], biases.T[:experts]  # [E, S], as they are stored
        order = np.argsort(here, kind="stable")[np.count_nonzero(here < 0) :]
        if not np.array_equal(order, np.arange(len(here))):
            loads, leans, here = loads[:, order], leans[:, order], here[order]
        starts = np.flatnonzero(np.diff(here, prepend=-1))
        shares = loads.astype(np.float32)
        tokens = shares.sum(axis=0)
        shares /= np.maximum(tokens, 1)
        shared = shared - np.bincount(here[tokens == 0], minlength=columns)
        untold = np.isnan(leans[0])
        if untold.any():
            untold &= np.isnan(leans).all(axis=0)
            leans = np.where(untold, np.float32(0), leans)
            biased = biased - np.bincount(here[untold], minlength=columns)
        into = here[starts]
        share[:, into] += np.add.reduceat(shares, starts, axis=1)
        bias[:, into] += np.add.reduceat(leans, starts, axis=1)
    with np.errstate(invalid="ignore"):  # 0 of 0
        share /= shared.astype(np.float32)
        bias /= biased.astype(np.float32)
    return share, bias


def _layers(session: Session, rows: Sequence[tuple[Row[*tuple[Any, ...]], int]], layer: int) -> Iterator[Layer]:
    """Counts and biases [S, X] of one layer of each of the chunks; `rows` say of how many steps they are."""
    merged = [row.id for row, _ in rows if row.codec == COLUMNS]
    of_layer = select(ExpertLayer.chunk_id, ExpertLayer.counts, ExpertLayer.bias).where(ExpertLayer.layer == layer)
    frames = {one.chunk_id: (one.counts, one.bias) for one in by_ids(session, of_layer, ExpertLayer.chunk_id, merged)}
    short = [row.id for row, _ in rows if row.codec != COLUMNS]
    whole = select(ExpertChunk.id, ExpertChunk.blob)
    blobs = {one.id: one.blob for one in by_ids(session, whole, ExpertChunk.id, short)}
    for row, steps in rows:
        if row.id in frames:
            yield decode_layer(shape_of(row), frames[row.id], steps)
        else:
            yield decode_raw_layer(shape_of(row), blobs[row.id], layer, steps)

"""A run's expert records one stretch of steps after the other, in order, so that long ones are never in memory whole.

Each stretch is read in a session of its own: between two of them chunks may be merged, thinned or added to, and nothing
is read twice or left out but what was thinned away meanwhile. What is read is the current view (see experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.store.arrays import Arrays
from controlplane.store.codec import COLUMNS
from controlplane.store.engine import Store
from controlplane.store.expert_coding import Coded, decode_all, decode_layer, of_layers
from controlplane.store.expert_kept import mask, with_matrices
from controlplane.store.expert_records import Counts, Float32, Shape
from controlplane.store.experts import shape_of
from controlplane.store.tables import ExpertChunk, ExpertLayer

SPAN = 256
"""How many steps of short chunks make a stretch; a long chunk is one, unless it is four times as wide."""
NEAR_STEPS = 128
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stretch:
    """N steps of one attempt and shape, in order, and M of its layers."""

    attempt_no: int
    shape: Shape
    layers: Integers
    """[M]"""
    step: Integers
    at_s: NDArray[np.float64]
    ranks: Integers
    tokens: Integers
    """[N], as the three before"""
    counts: Counts
    bias: Float32
    """[N, M, X] both, where they were asked for; else [N, M, 0]"""
    statistics: dict[str, Float32]
    """[N, M] each"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Steps from `first` to `last`, layers (None: all), which statistics; of all steps, or (`matrices`) only of those
    that still have their counts and biases, which come along unless `values` is False.
    """

    first: int
    last: int
    layers: Sequence[int] | None = None
    matrices: bool = True
    values: bool = True
    statistics: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    attempt_no: int
    begin: int
    end: int
    rows: list[ExpertChunk]


def stretches(store: Store, run_id: str, wanted: Wanted) -> Iterator[Stretch]:
    """The stretches that have any step."""
    at = wanted.first
    while True:
        with store.read() as session:
            place = _next(session, run_id, at, wanted.last)
            if place is None:
                return
            found = _read(session, place, wanted)
        at = place.end + 1
        if len(found.step):
            yield found


def _views(session: Session, run_id: str) -> list[tuple[int, int, int]]:
    """(attempt, first step, last step) of what each attempt shows: a later one hides from its first step on."""
    table = ExpertChunk
    query = select(table.attempt_no, func.min(table.first_step)).where(table.run_id == run_id)
    rows = sorted((tuple(row) for row in session.execute(query.group_by(table.attempt_no))), reverse=True)
    views, hidden_from = [], 2**62
    for attempt_no, first in rows:
        if first < hidden_from:
            views.append((attempt_no, first, hidden_from - 1))
            hidden_from = first
    return views[::-1]


def _next(session: Session, run_id: str, at: int, last: int) -> _Place | None:
    """The next stretch from step `at` on, with the chunks that it lies in, in the order of writing."""
    table = ExpertChunk
    for attempt_no, first, shown_to in _views(session, run_id):
        begin, until = max(at, first), min(shown_to, last)
        if begin > until:
            continue
        of = (table.run_id == run_id, table.attempt_no == attempt_no)
        query = select(table.level, table.first_step, table.last_step).where(*of)
        query = query.where(table.last_step >= begin, table.first_step <= until)
        row = session.execute(query.order_by(table.first_step, table.id).limit(1)).first()
        if row is None:
            continue
        begin = max(begin, row.first_step)
        end = min(row.last_step if row.level else begin + SPAN - 1, begin + 4 * SPAN - 1, until)
        chunks = select(table).where(*of, table.last_step >= begin, table.first_step <= end)
        return _Place(attempt_no, begin, end, list(session.scalars(chunks.order_by(table.id))))
    return None


def _read(session: Session, place: _Place, wanted: Wanted) -> Stretch:
    shape = shape_of(place.rows[-1])
    rows = [row for row in place.rows if shape_of(row) == shape]
    layers = [
        layer for layer in (range(shape.layers) if wanted.layers is None else wanted.layers) if layer < shape.layers
    ]
    bundles = [with_matrices(row.stats) if wanted.matrices else Arrays(row.stats) for row in rows]
    step = np.concatenate([bundle["step"] for bundle in bundles])
    inside = np.flatnonzero((step >= place.begin) & (step <= place.end))
    order = inside[np.argsort(step[inside], kind="stable")]
    keep = order[np.append(np.diff(step[order]) != 0, True)[: len(order)]]

    def joined(name: str) -> NDArray[np.generic]:
        found: NDArray[np.generic] = np.concatenate([bundle[name] for bundle in bundles], axis=-1)[..., keep]
        return found

    def statistic(name: str) -> Float32:
        found: Float32 = np.concatenate([of_layers(bundle, name, shape.layers) for bundle in bundles], axis=-1)
        return found[..., keep].astype(np.float32)

    values = wanted.matrices and wanted.values
    slots = shape.slots if values else 0
    counts = np.zeros((len(keep), len(layers), slots), np.uint32)
    bias = np.zeros((len(keep), len(layers), slots), np.float32)
    if values and len(keep):
        sizes = [len(bundle["step"]) for bundle in bundles]
        for index, pieces in enumerate(_matrices(session, rows, sizes, layers)):
            counts[:, index] = np.concatenate([piece[0] for piece in pieces])[keep]
            bias[:, index] = np.concatenate([piece[1] for piece in pieces])[keep]
    return Stretch(
        place.attempt_no,
        shape,
        np.array(layers, np.int64),
        step[keep],
        joined("at_s").astype(np.float64),
        joined("ranks").astype(np.int64),
        joined("tokens").astype(np.int64),
        counts,
        bias,
        {name: statistic(name)[layers].T for name in wanted.statistics},
    )


def _matrices(
    session: Session, rows: Sequence[ExpertChunk], sizes: Sequence[int], layers: Sequence[int]
) -> Iterator[list[tuple[Counts, Float32]]]:
    """Of each layer the counts and biases [S, X] of every chunk; of merged ones no other layer is read."""
    table = ExpertLayer
    query = select(table.layer, table.counts, table.bias).where(table.layer.in_(layers))
    frames, whole = {}, {}
    for row, steps in zip(rows, sizes, strict=True):
        if row.codec == COLUMNS:
            of_chunk = session.execute(query.where(table.chunk_id == row.id))
            frames[row.id] = {layer: (counts, bias) for layer, counts, bias in of_chunk}
        else:
            whole[row.id] = decode_all(shape_of(row), Coded(row.codec, row.blob, row.stats), steps)
    for layer in layers:
        yield [
            decode_layer(shape_of(row), frames[row.id][layer], steps)
            if row.id in frames
            else (whole[row.id][0][:, layer], whole[row.id][1][:, layer])
            for row, steps in zip(rows, sizes, strict=True)
        ]


def nearest_kept(session: Session, run_id: str, step: int) -> int | None:
    """The step nearest to one that was thinned whose matrices are there; None if that step was not thinned."""
    view = next((view for view in _views(session, run_id) if view[1] <= step <= view[2]), None)
    if view is None:
        return None
    table = ExpertChunk
    rows = session.scalars(
        select(table.stats).where(
            *(table.run_id == run_id, table.attempt_no == view[0]),
            *(table.last_step >= step - NEAR_STEPS, table.first_step <= step + NEAR_STEPS),
        )
    )
    bundles = [Arrays(stats) for stats in rows]
    if not bundles:
        return None
    steps = np.concatenate([bundle["step"] for bundle in bundles])
    kept = steps[np.concatenate([mask(bundle) for bundle in bundles])]
    shown = kept[kept <= view[2]]
    if step not in steps or step in kept or not len(shown):
        return None
    return int(shown[np.argmin(np.abs(shown - step))])

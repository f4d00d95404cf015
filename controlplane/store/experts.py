"""Expert records as they are kept: chunks of steps, and what pages read of them. Their merging is expert_merging's.

The current view of a run shows each step as the last attempt that did it: a later attempt hides the steps of earlier
ones from its own first step on. Every attempt's own records are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, and_, func, select
from sqlalchemy.orm import Session

from controlplane.rules.experts import trailing_design_effect
from controlplane.store.arrays import Arrays
from controlplane.store.codec import COLUMNS
from controlplane.store.expert_coding import Coded, decode_all, of_layers, read_steps
from controlplane.store.expert_kept import with_matrices
from controlplane.store.expert_records import ExpertStep, Float32, Shape
from controlplane.store.tables import ExpertChunk, ExpertLayer

FLOORS = ("cv_floor", "design_effect", "spread_freedom")
Key = tuple[str, int, int]
"""Run, attempt number, step."""
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of every layer over N steps of the current view: `values[name]` is [L, N], mean_maxvio's [N]."""

    step: Integers
    attempt_no: Integers
    at_s: NDArray[np.float64]
    floor_cv: Float32
    values: dict[str, Float32]


# --- rows ------------------------------------------------------------------------------------------------------------


def shape_of(row: ExpertChunk | Row[*tuple[Any, ...]]) -> Shape:
    """The shape of a chunk's steps."""
    return Shape(row.layers, row.slots, row.experts, row.top_k)


def chunk_row(
    run_id: str, attempt_no: int, shape: Shape, coded: Coded, *, level: int, steps: tuple[int, int, int]
) -> ExpertChunk:
    """A chunk as a row; `steps` is its first step, its last, and how many it has."""
    first_step, last_step, count = steps
    return ExpertChunk(
        run_id=run_id,
        attempt_no=attempt_no,
        level=level,
        first_step=first_step,
        last_step=last_step,
        steps=count,
        layers=shape.layers,
        slots=shape.slots,
        experts=shape.experts,
        top_k=shape.top_k,
        codec=coded.codec,
        blob=coded.blob,
        stats=coded.stats,
    )


def layer_rows(chunk_id: int, coded: Coded) -> list[dict[str, Any]]:
    """The layers of a merged chunk as rows."""
    return [
        {"chunk_id": chunk_id, "layer": layer, "counts": counts, "bias": bias}
        for layer, (counts, bias) in enumerate(coded.layers)
    ]


def coded_row(session: Session, row: ExpertChunk) -> Coded:
    """A row as it was coded, its layers fetched if it is merged."""
    layers: tuple[tuple[bytes, bytes], ...] = ()
    if row.codec == COLUMNS:
        query = select(ExpertLayer.counts, ExpertLayer.bias).where(ExpertLayer.chunk_id == row.id)
        layers = tuple((counts, bias) for counts, bias in session.execute(query.order_by(ExpertLayer.layer)))
    return Coded(row.codec, row.blob, row.stats, layers)


def _of(run_id: str, attempt_no: int) -> ColumnElement[bool]:
    return and_(ExpertChunk.run_id == run_id, ExpertChunk.attempt_no == attempt_no)


def last_steps(session: Session, attempts: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The highest stored step of each attempt that has any."""
    found = {}
    for run_id, attempt_no in attempts:
        last = session.execute(select(func.max(ExpertChunk.last_step)).where(_of(run_id, attempt_no))).scalar_one()
        if last is not None:
            found[run_id, attempt_no] = int(last)
    return found


def bounds(session: Session, run_id: str) -> tuple[int, int] | None:
    """The first and the last step of a run's current view; None while it has none."""
    firsts = first_steps(session, run_id)
    if not firsts:
        return None
    newest = (run_id, max(firsts))
    return min(firsts.values()), last_steps(session, [newest])[newest]


def counted(session: Session, run_id: str) -> int:
    """How many steps of a run are stored, each attempt's own, with those of which only statistics are left.

    A step that was completed after it was written lies in two chunks until they are merged, and counts once.
    """
    table = ExpertChunk
    query = select(table.id, table.attempt_no, table.first_step, table.last_step, table.steps)
    groups: list[list[Any]] = []
    attempt_no = reach = -1
    for row in session.execute(query.where(table.run_id == run_id).order_by(table.attempt_no, table.first_step)):
        if row.attempt_no == attempt_no and row.first_step <= reach:
            groups[-1].append(row)
        else:
            groups.append([row])
            attempt_no, reach = row.attempt_no, -1
        reach = max(reach, row.last_step)
    ids = [row.id for group in groups if len(group) > 1 for row in group]
    found = by_ids(session, select(table.id, table.stats), table.id, ids)
    written = {row.id: Arrays(row.stats)["step"].tolist() for row in found}
    return sum(
        len({step for row in group for step in written.get(row.id, ())}) if len(group) > 1 else group[0].steps
        for group in groups
    )


# --- single steps ----------------------------------------------------------------------------------------------------


def _steps_of(session: Session, row: ExpertChunk) -> list[ExpertStep]:
    shape = shape_of(row)
    stats = with_matrices(row.stats)
    matrices = decode_all(shape, coded_row(session, row), len(stats["step"]))
    return read_steps(row.run_id, row.attempt_no, shape, stats, matrices)


def stored_step(session: Session, key: Key) -> ExpertStep | None:
    """One step of one attempt as it was last written."""
    run_id, attempt_no, step = key
    rows = session.scalars(
        select(ExpertChunk)
        .where(_of(run_id, attempt_no), ExpertChunk.last_step >= step, ExpertChunk.first_step <= step)
        .order_by(ExpertChunk.id.desc())
    )
    return next((one for row in rows for one in reversed(_steps_of(session, row)) if one.step == step), None)


def current_step(session: Session, run_id: str, step: int) -> ExpertStep | None:
    """One step of the current view."""
    firsts = first_steps(session, run_id)
    for attempt_no in sorted(firsts, reverse=True):
        if firsts[attempt_no] <= step:
            return stored_step(session, (run_id, attempt_no, step))
    return None


def window(session: Session, run_id: str, *, last: int, limit: int) -> list[ExpertStep]:
    """The current view's steps up to `last`, at most `limit`, in order."""
    firsts = first_steps(session, run_id)
    # twice as far back: some steps may have been lost on their way
    query = select(ExpertChunk).where(*overlapping(run_id, last - 2 * limit + 1, last))
    found: dict[int, ExpertStep] = {}
    for row in session.scalars(query.order_by(ExpertChunk.attempt_no, ExpertChunk.id)):
        hidden_from = min((first for number, first in firsts.items() if number > row.attempt_no), default=last + 1)
        found |= {one.step: one for one in _steps_of(session, row) if one.step <= last and one.step < hidden_from}
    return [found[step] for step in sorted(found)[-limit:]]


def before(session: Session, attempt: tuple[str, int], *, at_s: float, limit: int) -> list[ExpertStep]:
    """An attempt's own last steps up to a moment of its nodes' clock, at most `limit`, in order; hidden ones too."""
    query = select(ExpertChunk.id).where(_of(*attempt)).order_by(ExpertChunk.first_step, ExpertChunk.id)
    ids = list(session.scalars(query))

    def begins_s(chunk_id: int) -> float:
        stats = session.execute(select(ExpertChunk.stats).where(ExpertChunk.id == chunk_id)).scalar_one()
        return float(Arrays(stats)["at_s"][0])

    found: dict[int, ExpertStep] = {}
    for chunk_id in reversed(ids[: bisect_right(ids, at_s, key=begins_s)]):
        row = session.get_one(ExpertChunk, chunk_id)
        found = {one.step: one for one in _steps_of(session, row) if one.at_s <= at_s} | found
        if len(found) >= limit:
            break
    return [found[step] for step in sorted(found)[-limit:]]


def recent(session: Session, run_id: str, *, limit: int) -> list[ExpertStep]:
    """The last steps of a run in the current view, in order."""
    found = bounds(session, run_id)
    return [] if found is None else window(session, run_id, last=found[1], limit=limit)


def last_runs(session: Session, *, limit: int) -> list[str]:
    """The runs whose expert records were written last, oldest first."""
    newest = func.max(ExpertChunk.id)
    query = select(ExpertChunk.run_id).group_by(ExpertChunk.run_id).order_by(newest.desc()).limit(limit)
    return list(reversed(session.scalars(query).all()))


# --- the current view over many steps --------------------------------------------------------------------------------


def first_steps(session: Session, run_id: str) -> dict[int, int]:
    query = select(ExpertChunk.attempt_no, func.min(ExpertChunk.first_step)).where(ExpertChunk.run_id == run_id)
    return {row[0]: row[1] for row in session.execute(query.group_by(ExpertChunk.attempt_no))}


def overlapping(run_id: str, first: int, last: int) -> tuple[ColumnElement[bool], ...]:
    return (ExpertChunk.run_id == run_id, ExpertChunk.last_step >= first, ExpertChunk.first_step <= last)


def current(attempts: Integers, steps: Integers, firsts: dict[int, int], first: int, last: int) -> Integers:
    """Which of the stored steps are the current view's, in order of step; later written ones stand further back."""
    hidden_from = np.full(len(steps), np.iinfo(np.int64).max)
    for attempt_no in firsts:
        later = [begin for number, begin in firsts.items() if number > attempt_no]
        if later:
            hidden_from[attempts == attempt_no] = min(later)
    seen = np.flatnonzero((steps >= first) & (steps <= last) & (steps < hidden_from))
    order = seen[np.lexsort((seen, attempts[seen], steps[seen]))]
    current: Integers = order[np.append(np.diff(steps[order]) != 0, True)[: len(order)]]
    return current


def read_statistics(
    session: Session, run_id: str, names: Sequence[str], *, first: int = 0, last: int = 2**62
) -> Statistics:
    """Statistics of the current view over the steps first ≤ step ≤ last.

    `cv_floor` is what is stored, in floors of independent tokens, over √(design effect) of the trailing 64 steps read.
    Steps of another shape than the newest one's are left out.
    """
    table = ExpertChunk
    shape = (table.layers, table.slots, table.experts, table.top_k)
    query = select(table.attempt_no, table.stats, *shape).where(*overlapping(run_id, first, last))
    rows = session.execute(query.order_by(table.attempt_no, table.id)).all()
    rows = [row for row in rows if shape_of(row) == shape_of(rows[-1])]
    bundles = [Arrays(row.stats) for row in rows]
    if not bundles:
        empty = np.zeros(0)
        none = np.zeros((0, 0), np.float32)
        return Statistics(
            empty.astype(np.int64),
            empty.astype(np.int64),
            empty,
            empty.astype(np.float32),
            dict.fromkeys(names, none),
        )
    step = np.concatenate([bundle["step"] for bundle in bundles])
    attempt_no = np.repeat([row.attempt_no for row in rows], [len(bundle["step"]) for bundle in bundles])
    keep = current(attempt_no, step, first_steps(session, run_id), first, last)

    def joined(name: str) -> Float32:
        each = [of_layers(bundle, name, rows[-1].layers) for bundle in bundles]
        values: Float32 = np.concatenate(each, axis=-1)[..., keep]
        return values

    values = {name: joined(name) for name in names}
    if "cv_floor" in values:
        values["cv_floor"] = in_force(values["cv_floor"], joined("design_effect"), joined("spread_freedom"))
    return Statistics(
        step[keep],
        attempt_no[keep],
        np.concatenate([bundle["at_s"] for bundle in bundles])[keep],
        np.concatenate([bundle["floor_cv"] for bundle in bundles])[keep],
        values,
    )


def in_force(cv_floor: Float32, effects: Float32, freedom: Float32) -> Float32:
    """CV [L, N] in multiples of the floor in force, that of tokens as correlated as the ranks show."""
    return (cv_floor / np.sqrt(trailing_design_effect(effects, freedom))).astype(np.float32)


def read_scalars(session: Session, attempt: tuple[str, int], name: str, *, limit: int) -> NDArray[np.float64]:
    """A value a step (expert_coding._PLAIN) of the first `limit` stored steps of an attempt, in order of writing."""
    query = select(ExpertChunk.stats).where(_of(*attempt)).order_by(ExpertChunk.first_step, ExpertChunk.id)
    found: list[NDArray[Any]] = []
    for stats in session.scalars(query.limit(limit)):
        found.append(Arrays(stats)[name].astype(np.float64))
        if sum(map(len, found)) >= limit:
            break
    return np.concatenate(found)[:limit] if found else np.zeros(0)


def by_ids(session: Session, query: Any, column: Any, ids: Sequence[int]) -> Iterator[Any]:
    """Rows by their ids, a few hundred at a time: databases limit how many values a statement has."""
    for begin in range(0, len(ids), 500):
        yield from session.execute(query.where(column.in_(ids[begin : begin + 500])))

"""The thinning of old expert records: counts and biases of fewer steps the older they are, statistics of every step.

What is kept whole whatever its age: the beginning of a run, and the surroundings of what happened to it (an incident of
the run was opened, an attempt began or ended, the data mix changed). Thinning only ever takes matrices away; a step
that has none left shows nowhere as a matrix. It is done a chunk at a time, by its level: 1 every step, 2 every 8th, 3
every 64th.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.orm import Session

from controlplane.rules.expert_marks import data_mix_shifts
from controlplane.store.arrays import Arrays
from controlplane.store.base import insert_many
from controlplane.store.codec import decode_column, encode_column
from controlplane.store.engine import Store
from controlplane.store.expert_kept import marked, mask
from controlplane.store.expert_merging import merge
from controlplane.store.experts import read_statistics, shape_of
from controlplane.store.tables import ExpertChunk, ExpertLayer, Incident

AROUND_STEPS = 64
"""So many steps before and after an event stay: the window of the alarms."""
FIRST_STEPS = 256
EVERY = {1: 1, 2: 8, 3: 64}
"""level -> the matrices of every so many steps are kept, counted from step 0"""
CHUNKS = 256
"""How many chunks one call thins, at most."""
DAY_S = 86_400.0
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Policy:
    """Ages in days: from `raw_days` on every 8th step is kept, from `eighth_days` on every 64th."""

    raw_days: float = 7.0
    eighth_days: float = 30.0

    def level(self, at_s: float, now: float) -> int:
        """The level of a chunk whose newest step was done at `at_s`."""
        age = (now - at_s) / DAY_S
        return 3 if age >= max(self.raw_days, self.eighth_days) else 2 if age >= self.raw_days else 1


@dataclass(frozen=True, slots=True)
class _Events:
    """What happened to a run: its first step, the steps at which attempts began and ended or the data mix changed, and
    when incidents opened."""

    first_step: int
    steps: tuple[int, ...]
    at_s: tuple[float, ...]

    def kept(self, step: Integers, at_s: NDArray[np.float64], every: int) -> Bools:
        """Which of a chunk's steps keep their matrices."""
        keep: Bools = (step % every == 0) | (step < self.first_step + FIRST_STEPS)
        for event in (*self.steps, *_steps_at(self.at_s, step, at_s)):
            keep |= np.abs(step - event) <= AROUND_STEPS
        return keep


def _steps_at(moments: Sequence[float], step: Integers, at_s: NDArray[np.float64]) -> Iterator[int]:
    """The steps that were being done at some moments; outside of the chunk by the chunk's own pace."""
    pace_s = float(np.median(np.diff(at_s))) if len(at_s) > 1 else 0.0
    for moment in moments:
        begin, end = float(at_s[0]), float(at_s[-1])
        if begin <= moment <= end:
            yield int(step[np.searchsorted(at_s, moment)])
        elif pace_s > 0:
            beyond = moment - end if moment > end else moment - begin
            yield int(step[-1 if moment > end else 0] + np.clip(beyond / pace_s, -1e15, 1e15))


def thin_once(store: Store, now: float, policy: Policy, *, chunks: int = CHUNKS) -> int:
    """Thins what has grown old, at most `chunks` chunks, each in a transaction of its own; returns how many it did.

    Several servers may do it at once: who comes second finds the chunk at its new level and leaves it.
    """
    for ids in _leftovers(store, now, policy):
        merge(store, ids)
    thinned = 0
    events: dict[str, _Events] = {}
    for group in _due(store):
        for chunk_id, run_id, level in group:
            if thinned >= chunks:
                return thinned
            with store.read() as session:
                stats = session.scalars(select(ExpertChunk.stats).where(ExpertChunk.id == chunk_id)).one_or_none()
                if stats is None:
                    continue
                wanted = policy.level(float(Arrays(stats)["at_s"].max()), now)
                if wanted <= level:
                    break  # an attempt's chunks are in the order of time: the later ones are younger
                if run_id not in events:
                    events[run_id] = _events(session, run_id)
            thinned += _thin(store, chunk_id, level, wanted, events[run_id])
    return thinned


def _due(store: Store) -> list[list[tuple[int, str, int]]]:
    """(id, run, level) of the chunks that may yet be thinned: a list an attempt and level, oldest first."""
    table = ExpertChunk
    with store.read() as session:
        rows = session.execute(
            select(table.id, table.run_id, table.attempt_no, table.level)
            .where(table.level.in_((1, 2)))
            .order_by(table.run_id, table.attempt_no, table.level, table.id)
        ).all()
    groups = groupby(rows, key=lambda row: (row.run_id, row.attempt_no, row.level))
    return [[(row.id, row.run_id, row.level) for row in group] for _, group in groups]


def _leftovers(store: Store, now: float, policy: Policy) -> list[list[int]]:
    """Ids of the short chunks of each attempt that have grown old without making a long one."""
    table = ExpertChunk

    def series(row: Row[*tuple[Any, ...]]) -> tuple[Any, ...]:
        return (row.run_id, row.attempt_no, shape_of(row))

    shape = (table.layers, table.slots, table.experts, table.top_k)
    with store.read() as session:
        rows = session.execute(
            select(table.id, table.run_id, table.attempt_no, *shape)
            .where(table.level == 0)
            .order_by(table.run_id, table.attempt_no, *shape, table.id)
        ).all()
        found = [[row.id for row in group] for _, group in groupby(rows, key=series)]
        newest = {ids[-1]: session.scalars(select(table.stats).where(table.id == ids[-1])).one() for ids in found}
    return [ids for ids in found if policy.level(float(Arrays(newest[ids[-1]])["at_s"].max()), now) > 1]


def _events(session: Session, run_id: str) -> _Events:
    table = ExpertChunk
    bounds = session.execute(
        select(func.min(table.first_step), func.max(table.last_step))
        .where(table.run_id == run_id)
        .group_by(table.attempt_no)
    ).all()
    opened = session.scalars(select(Incident.opened_s).where(Incident.run_id == run_id)).all()
    steps = tuple(int(step) for row in bounds for step in row)
    series = read_statistics(session, run_id, ("mean_maxvio",))
    shifts = series.step[data_mix_shifts(series.values["mean_maxvio"])].tolist()
    return _Events(min(steps), (*steps, *shifts), tuple(opened))


def _thin(store: Store, chunk_id: int, level: int, wanted: int, events: _Events) -> int:
    """Takes the matrices that a chunk need not keep at its new level; 1, or 0 if another server was at it."""
    query = select(ExpertChunk).where(ExpertChunk.id == chunk_id, ExpertChunk.level == level)
    with store.read() as session:
        row = session.scalars(query).one_or_none()
        if row is None:
            return 0
        layers = session.execute(
            select(ExpertLayer.layer, ExpertLayer.counts, ExpertLayer.bias).where(ExpertLayer.chunk_id == chunk_id)
        ).all()
    stats = Arrays(row.stats)
    before = mask(stats)
    after = before & events.kept(stats["step"], stats["at_s"], EVERY[wanted])
    changed: dict[str, Any] = {"level": wanted}
    rows: list[dict[str, Any]] = []
    if not np.array_equal(before, after):
        changed["stats"] = marked(stats, after)
        pick = after[before]
        for layer, *frames in layers:
            counts, bias = (encode_column(decode_column(one, row.slots, len(pick))[:, pick]) for one in frames)
            rows.append({"chunk_id": chunk_id, "layer": layer, "counts": counts, "bias": bias})
    with store.write() as session:
        if session.scalars(query.with_for_update()).one_or_none() is None:
            return 0
        session.execute(update(ExpertChunk).where(ExpertChunk.id == chunk_id).values(changed))
        if rows:
            session.execute(delete(ExpertLayer).where(ExpertLayer.chunk_id == chunk_id))
            insert_many(session, ExpertLayer, rows)
    return 1


@dataclass(frozen=True, slots=True)
class Size:
    """What the chunks of one level take: their steps, bytes of counts and biases, bytes of statistics."""

    steps: int
    matrices: int
    statistics: int


def sizes(session: Session, run_id: str) -> dict[int, Size]:
    """What a run's expert records take by level: 0 as they came, 1 merged, 2 and 3 thinned; without rows or indexes."""
    table, layer = ExpertChunk, ExpertLayer
    of_layers = func.sum(func.length(layer.counts) + func.length(layer.bias))
    merged = select(layer.chunk_id, of_layers.label("bytes")).group_by(layer.chunk_id).subquery()
    matrices = func.sum(func.length(table.blob) + func.coalesce(merged.c.bytes, 0))
    query = select(table.level, func.sum(table.steps), matrices, func.sum(func.length(table.stats)))
    query = query.outerjoin(merged, merged.c.chunk_id == table.id).where(table.run_id == run_id).group_by(table.level)
    return {level: Size(*(int(size) for size in rest)) for level, *rest in session.execute(query)}

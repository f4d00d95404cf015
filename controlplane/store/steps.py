"""Step records: loss, speed and position of each rank, in chunks of an attempt's steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from agents.readings import StepRecord
from controlplane.store import arrays, chunks
from controlplane.store.compression import FAST, SMALL
from controlplane.store.engine import Store
from controlplane.store.tables import StepChunk

UNKNOWN = -1e300
"""stands for a loss, norm or rate that nobody told: finite, so that no rule takes it for a number that went wrong, and
small enough that a mean over a million ranks, one of which did not tell, still shows it"""
CODEC = "arrays1"
MERGED_RECORDS = 1024
_WHOLE = ("step", "rank", "tokens", "data_position")
_REAL = ("at_s", "loss", "grad_norm", "step_seconds", "learning_rate")


@dataclass(frozen=True, slots=True)
class StepRecords:
    """Every rank's records of one attempt, N in all, ordered by step and rank; loss in nats a token."""

    attempt_no: int
    step: NDArray[np.int64]
    rank: NDArray[np.int64]
    tokens: NDArray[np.int64]
    data_position: NDArray[np.int64]
    at_s: NDArray[np.float64]
    loss: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    step_seconds: NDArray[np.float64]
    learning_rate: NDArray[np.float64]


def is_known(value: float) -> bool:
    """Whether a number of a record, or a mean of such, was told by all."""
    return value > UNKNOWN / 1e10


def add(session: Session, records: Sequence[StepRecord]) -> None:
    """Writes records as they came, one row an attempt."""
    ordered = sorted(records, key=lambda record: (record.run_id, record.attempt_no, record.step, record.rank))
    for (run_id, attempt_no), group in groupby(ordered, key=lambda record: (record.run_id, record.attempt_no)):
        found = list(group)
        columns: dict[str, NDArray[Any]] = {
            **{name: np.array([getattr(one, name) for one in found], np.int64) for name in _WHOLE},
            **{name: np.array([getattr(one, name) for one in found], np.float64) for name in _REAL},
        }
        session.add(_row(run_id, attempt_no, 0, columns))
    session.flush()


def _row(run_id: str, attempt_no: int, level: int, columns: dict[str, NDArray[Any]]) -> StepChunk:
    return StepChunk(
        run_id=run_id,
        attempt_no=attempt_no,
        level=level,
        first_step=int(columns["step"].min()),
        last_step=int(columns["step"].max()),
        records=len(columns["step"]),
        codec=CODEC,
        blob=arrays.pack(columns, level=SMALL if level else FAST),
    )


def _joined(blobs: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    bundles = [arrays.Arrays(blob) for blob in blobs]
    return {name: np.concatenate([bundle[name] for bundle in bundles]) for name in (*_WHOLE, *_REAL)}


def read(session: Session, run_id: str, *, first: int = 0, last: int = 2**62) -> list[StepRecords]:
    """The records of each attempt, first ≤ step ≤ last; a rank's step that was sent twice counts as last sent."""
    rows = session.execute(
        select(StepChunk.attempt_no, StepChunk.blob)
        .where(StepChunk.run_id == run_id, StepChunk.last_step >= first, StepChunk.first_step <= last)
        .order_by(StepChunk.attempt_no, StepChunk.id)
    ).all()
    return _of_attempts(rows, first, last)


def read_all(session: Session, run_ids: Collection[str]) -> dict[str, list[StepRecords]]:
    """The records of each attempt of each of these runs, as `read` gives them, in one question."""
    rows: dict[str, list[Any]] = defaultdict(list)
    query = select(StepChunk.run_id, StepChunk.attempt_no, StepChunk.blob).where(StepChunk.run_id.in_(run_ids))
    for row in session.execute(query.order_by(StepChunk.attempt_no, StepChunk.id)):
        rows[row.run_id].append(row)
    return {run_id: _of_attempts(mine, 0, 2**62) for run_id, mine in rows.items()}


def _of_attempts(rows: Iterable[Any], first: int, last: int) -> list[StepRecords]:
    found = []
    for attempt_no, group in groupby(rows, key=lambda row: row.attempt_no):
        columns = _joined([row.blob for row in group])
        order = np.lexsort((columns["rank"], columns["step"]))
        step, rank = columns["step"][order], columns["rank"][order]
        newest = np.append((np.diff(step) != 0) | (np.diff(rank) != 0), True)
        order = order[newest & (step >= first) & (step <= last)]
        if len(order):
            found.append(StepRecords(attempt_no, **{name: column[order] for name, column in columns.items()}))
    return found


def last_step(session: Session, run_id: str, attempt_no: int) -> int | None:
    """The highest step that any rank of an attempt told of."""
    query = select(func.max(StepChunk.last_step)).where(StepChunk.run_id == run_id, StepChunk.attempt_no == attempt_no)
    return session.execute(query).scalar_one()


def compact_once(store: Store) -> int:
    """Merges short chunks of an attempt as soon as they make a long one; returns how many were merged away."""
    merged = 0
    for ids in _full(store):
        with store.read() as session:
            rows = list(session.scalars(select(StepChunk).where(StepChunk.id.in_(ids)).order_by(StepChunk.id)))
        if len(rows) != len(ids):
            continue
        long = _row(rows[0].run_id, rows[0].attempt_no, 1, _joined([row.blob for row in rows]))
        with store.write() as session:
            there = session.scalars(select(StepChunk.id).where(StepChunk.id.in_(ids)).with_for_update()).all()
            if len(there) == len(ids):
                session.execute(delete(StepChunk).where(StepChunk.id.in_(ids)))
                session.add(long)
                merged += len(ids)
    return merged


def _full(store: Store) -> list[list[int]]:
    """Ids of the short chunks that make up each new long one."""
    with store.read() as session:
        rows = session.execute(
            select(StepChunk.id, StepChunk.run_id, StepChunk.attempt_no, StepChunk.records)
            .where(StepChunk.level == 0)
            .order_by(StepChunk.run_id, StepChunk.attempt_no, StepChunk.id)
        ).all()
    return chunks.full(
        rows,
        series=lambda row: (row.run_id, row.attempt_no),
        size=lambda row: row.records,
        at_least=MERGED_RECORDS,
    )

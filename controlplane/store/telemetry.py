"""Samples of GPUs and NICs: chunks a node, their merging, one series out of many, the newest sample, kernel lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from agents.readings import UNKNOWN, KernelLine
from controlplane.store import codec
from controlplane.store.base import insert_many, upsert
from controlplane.store.codec import Floats, Series
from controlplane.store.engine import Store
from controlplane.store.tables import KernelLog, TelemetryChunk, TelemetryLatest

WINDOWS_S = (60.0, 300.0)
"""How long the chunks of level 1 and of level 2 are."""
_STALE_WINDOWS = 2  # a window that nothing follows is closed after so many of its lengths
_MERGES_A_TRANSACTION = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one node's samples, coded; `first_s` and `last_s` are the agent's wall time."""

    node: str
    kind: str
    first_s: float
    last_s: float
    samples: int
    codec: str
    blob: bytes


@dataclass(frozen=True, slots=True)
class Points:
    """A series for a chart, [points] each, raw values; a point without a known value is left out."""

    at_s: Floats
    low: Floats
    mean: Floats
    high: Floats
    last: Floats


def add(session: Session, chunks: Sequence[Chunk]) -> None:
    """Writes chunks as they came: level 0."""
    insert_many(session, TelemetryChunk, [_row(chunk, level=0) for chunk in chunks])


def _row(chunk: Chunk, *, level: int) -> dict[str, Any]:
    return {
        "node": chunk.node,
        "kind": chunk.kind,
        "level": level,
        "first_s": chunk.first_s,
        "last_s": chunk.last_s,
        "samples": chunk.samples,
        "codec": chunk.codec,
        "blob": chunk.blob,
    }


def put_latest(session: Session, newest: Sequence[Chunk], *, received_s: float) -> None:
    """Replaces the newest sample of each (node, kind); a chunk's last sample is what counts."""
    upsert(
        session,
        TelemetryLatest,
        [
            {
                "node": chunk.node,
                "kind": chunk.kind,
                "at_s": chunk.last_s,
                "received_s": received_s,
                "codec": chunk.codec,
                "blob": chunk.blob,
            }
            for chunk in newest
        ],
    )


def latest_chunks(session: Session) -> list[tuple[float, Chunk]]:
    """The chunk that holds the newest sample of every node and kind, with the server's time of receipt."""
    rows = session.scalars(select(TelemetryLatest).order_by(TelemetryLatest.node, TelemetryLatest.kind))
    return [(row.received_s, Chunk(row.node, row.kind, row.at_s, row.at_s, 1, row.codec, row.blob)) for row in rows]


def counted(session: Session, kind: str, node: str | None = None) -> int:
    """How many samples are stored (a sample is one moment of all of a node's devices of a kind)."""
    query = select(func.coalesce(func.sum(TelemetryChunk.samples), 0)).where(TelemetryChunk.kind == kind)
    if node is not None:
        query = query.where(TelemetryChunk.node == node)
    return int(session.execute(query).scalar_one())


# --- one series ------------------------------------------------------------------------------------------------------


def read_series(session: Session, node: str, kind: str, metric: str, *, since_s: float, until_s: float) -> list[Series]:
    """One metric of all of a node's devices, since ≤ time < until (agent's clock), in order of time.

    The list has one Series for each stretch with the same number of devices; chunks without the metric are passed over.
    """
    query = (
        select(TelemetryChunk.codec, TelemetryChunk.blob)
        .where(
            TelemetryChunk.node == node,
            TelemetryChunk.kind == kind,
            TelemetryChunk.last_s >= since_s,
            TelemetryChunk.first_s < until_s,
        )
        .order_by(TelemetryChunk.first_s, TelemetryChunk.id)
    )
    found = [series for name, blob in session.execute(query) for series in _series(name, blob, metric)]
    joined = []
    for _, group in groupby(found, key=lambda series: series.values.shape[1]):
        parts = list(group)
        at_s = np.concatenate([part.at_s for part in parts])
        values = np.concatenate([part.values for part in parts])
        order = np.argsort(at_s, kind="stable")
        order = order[(at_s[order] >= since_s) & (at_s[order] < until_s)]
        joined.append(Series(at_s[order], values[order]))
    return joined


def _series(name: str, blob: bytes, metric: str) -> Iterator[Series]:
    try:
        yield codec.decode_series(name, blob, metric)
    except codec.CodecError:
        return  # a chunk of an older agent, which did not read this metric yet


def read_points(
    session: Session, node: str, kind: str, metric: str, entity: int, *, since_s: float, until_s: float, points: int
) -> Points:
    """One metric of one device, with at most `points` points: raw values where there are few, else buckets of time."""
    stretches = read_series(session, node, kind, metric, since_s=since_s, until_s=until_s)
    with_entity = [series for series in stretches if entity < series.values.shape[1]]
    at_s = np.concatenate([np.zeros(0), *(series.at_s for series in with_entity)])
    values = np.concatenate([np.zeros(0, np.int64), *(series.values[:, entity] for series in with_entity)])
    known = values != UNKNOWN
    return downsample(at_s[known], values[known].astype(np.float64), since_s=since_s, until_s=until_s, points=points)


def downsample(at_s: Floats, values: Floats, *, since_s: float, until_s: float, points: int) -> Points:
    """Sorted samples as at most `points` equal buckets of [since, until): minimum, mean, maximum and last of each."""
    if len(at_s) <= points:
        return Points(at_s, values, values, values, values)
    bucket = ((at_s - since_s) * (points / (until_s - since_s))).astype(np.int64)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    ends = np.append(starts[1:], len(at_s))
    return Points(
        at_s[ends - 1],
        np.minimum.reduceat(values, starts),
        np.add.reduceat(values, starts) / (ends - starts),
        np.maximum.reduceat(values, starts),
        values[ends - 1],
    )


# --- merging and forgetting ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    id: int
    node: str
    kind: str
    first_s: float


def compact_once(store: Store, now: float) -> int:
    """Merges chunks whose window is over into longer ones; returns how many chunks were merged away.

    Reading and coding happen outside the write transaction, which only swaps rows, so that ingest hardly waits. A merge
    that somebody else did meanwhile is left alone.
    """
    merged = 0
    for level, window_s in enumerate(WINDOWS_S):
        groups = iter(_closed(store, level, window_s, now))
        while batch := list(islice(groups, _MERGES_A_TRANSACTION)):
            merged += _swap(store, level, [(ids, _merge(store, ids)) for ids in batch])
    return merged


def _closed(store: Store, level: int, window_s: float, now: float) -> list[list[int]]:
    """Ids of the chunks of each finished window; a window is finished when a later one began, or long after its end."""
    columns = (TelemetryChunk.id, TelemetryChunk.node, TelemetryChunk.kind, TelemetryChunk.first_s)
    with store.read() as session:
        found = session.execute(
            select(*columns)
            .where(TelemetryChunk.level == level)
            .order_by(TelemetryChunk.node, TelemetryChunk.kind, TelemetryChunk.first_s, TelemetryChunk.id)
        )
        parts = [_Part(*row) for row in found]
    groups = []
    for _, of_device in groupby(parts, key=lambda part: (part.node, part.kind)):
        windows = [
            (window, [part.id for part in group])
            for window, group in groupby(of_device, key=lambda part: int(part.first_s // window_s))
        ]
        open_from = now / window_s - _STALE_WINDOWS
        groups += [ids for window, ids in windows if window < windows[-1][0] or window < open_from]
    return groups


def _merge(store: Store, ids: Sequence[int]) -> list[Chunk]:
    """The chunks with these ids as one, or as one for each set of metrics and devices."""
    with store.read() as session:
        rows = list(
            session.scalars(
                select(TelemetryChunk)
                .where(TelemetryChunk.id.in_(ids))
                .order_by(TelemetryChunk.first_s, TelemetryChunk.id)
            )
        )
    parts = [(row, codec.decode(row.codec, row.blob)) for row in rows]
    chunks = []
    for _, group in groupby(parts, key=lambda part: (part[1].metrics, part[1].entities)):
        of_shape = list(group)
        samples = codec.concatenate([part for _, part in of_shape])
        chunks.append(
            Chunk(
                node=of_shape[0][0].node,
                kind=of_shape[0][0].kind,
                first_s=float(samples.at_s.min()),
                last_s=float(samples.at_s.max()),
                samples=len(samples.at_s),
                codec=codec.COLUMNS,
                blob=codec.encode_columns(samples),
            )
        )
    return chunks


def _swap(store: Store, level: int, merges: Sequence[tuple[list[int], list[Chunk]]]) -> int:
    swapped = 0
    with store.write() as session:
        for ids, chunks in merges:
            there = session.scalars(select(TelemetryChunk.id).where(TelemetryChunk.id.in_(ids)).with_for_update()).all()
            if len(there) != len(ids):
                continue
            session.execute(delete(TelemetryChunk).where(TelemetryChunk.id.in_(ids)))
            insert_many(session, TelemetryChunk, [_row(chunk, level=level + 1) for chunk in chunks])
            swapped += len(ids)
    return swapped


def prune_once(store: Store, *, before_s: float, rows: int = 500) -> int:
    """Forgets up to `rows` chunks and kernel lines that ended before a moment; call again until it returns 0."""
    forgotten = 0
    for table, time in ((TelemetryChunk, TelemetryChunk.last_s), (KernelLog, KernelLog.at_s)):
        with store.write() as session:
            old = session.scalars(select(table.id).where(time < before_s).order_by(time).limit(rows)).all()
            session.execute(delete(table).where(table.id.in_(old)))
            forgotten += len(old)
    return forgotten


# --- kernel lines ----------------------------------------------------------------------------------------------------


def add_kernel_lines(session: Session, node: str, lines: Sequence[KernelLine], *, received_s: float) -> None:
    """Keeps lines of a node's kernel log."""
    insert_many(
        session,
        KernelLog,
        [
            {
                "node": node,
                "at_s": line.at_s,
                "received_s": received_s,
                "priority": line.priority,
                "text": line.text,
                "pci_address": line.pci_address,
            }
            for line in lines
        ],
    )


def kernel_lines(
    session: Session, node: str, *, since_s: float = 0.0, until_s: float | None = None, limit: int = 100
) -> list[KernelLog]:
    """A node's newest kernel lines of a stretch of time, oldest first."""
    query = select(KernelLog).where(KernelLog.node == node, KernelLog.at_s >= since_s)
    if until_s is not None:
        query = query.where(KernelLog.at_s < until_s)
    return list(
        reversed(session.scalars(query.order_by(KernelLog.at_s.desc(), KernelLog.id.desc()).limit(limit)).all())
    )

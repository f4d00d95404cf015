"""The merging of expert records: short chunks of an attempt become long ones, layer by layer, in the background."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from controlplane.store import chunks
from controlplane.store.base import insert_many
from controlplane.store.engine import Store
from controlplane.store.expert_coding import merge_coded
from controlplane.store.experts import chunk_row, coded_row, layer_rows, shape_of
from controlplane.store.tables import ExpertChunk, ExpertLayer

MERGED_STEPS = 256
"""How many written steps make a merged chunk, at least."""


def compact_once(store: Store) -> int:
    """Merges short chunks of an attempt as soon as they make a long one; returns how many were merged away."""
    return sum(merge(store, ids) for ids in _full(store))


def merge(store: Store, ids: Sequence[int]) -> int:
    """Makes one chunk of short ones of an attempt and shape; returns how many were merged away: all, or none if another
    server was at them."""
    with store.read() as session:
        rows = list(session.scalars(select(ExpertChunk).where(ExpertChunk.id.in_(ids)).order_by(ExpertChunk.id)))
        parts = [(shape_of(row), coded_row(session, row), row.steps) for row in rows]
    if len(rows) != len(ids):
        return 0
    coded, count = merge_coded(parts)
    bounds = (min(row.first_step for row in rows), max(row.last_step for row in rows), count)
    long = chunk_row(rows[0].run_id, rows[0].attempt_no, shape_of(rows[0]), coded, level=1, steps=bounds)
    long.id = ids[-1]  # its place in the order of writing: what was written later goes before it
    with store.write() as session:
        there = session.scalars(select(ExpertChunk.id).where(ExpertChunk.id.in_(ids)).with_for_update()).all()
        if len(there) != len(ids):
            return 0
        session.execute(delete(ExpertChunk).where(ExpertChunk.id.in_(ids)))
        session.add(long)
        session.flush()
        insert_many(session, ExpertLayer, layer_rows(long.id, coded))
    return len(ids)


def _full(store: Store) -> list[list[int]]:
    """Ids of the short chunks that make up each new long one."""
    table = ExpertChunk
    with store.read() as session:
        rows = session.execute(
            select(
                *(table.id, table.run_id, table.attempt_no, table.steps),
                *(table.layers, table.slots, table.experts, table.top_k),
            )
            .where(table.level == 0)
            .order_by(table.run_id, table.attempt_no, table.id)
        ).all()
    return chunks.full(
        rows,
        series=lambda row: (row.run_id, row.attempt_no, shape_of(row)),
        size=lambda row: row.steps,
        at_least=MERGED_STEPS,
    )

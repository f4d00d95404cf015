"""Expert records on their way in: each node's part of a step waits in the database until all parts are there.

The parts lie in the database, not in memory: what was acknowledged is never lost, and any server of the house can
finish a step. What a whole step is, and how it is kept, is the business of expert_records and experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from controlplane.store.base import upsert
from controlplane.store.expert_coding import encode_steps, pack_part, unpack_part
from controlplane.store.expert_records import ExpertStep, summed
from controlplane.store.experts import Key, chunk_row, last_steps, stored_step
from controlplane.store.tables import ExpertPart


@dataclass(frozen=True, slots=True)
class Part:
    """One node's part of a step."""

    node: str
    record: ExpertStep


def take(
    session: Session, parts: Sequence[Part], *, expected: Callable[[str, int], int | None], now: float
) -> list[ExpertStep]:
    """Stores parts; returns the steps that they complete, summed, in order. The others wait as rows.

    `expected(run_id, attempt_no)` is the number of ranks of an attempt, or None while nobody knows it. A part of a step
    that was already given up waiting for is added to it. Parts of another shape than the first one's are left out.
    """
    if not parts:
        return []
    fresh = {(part.node, part.record.key) for part in parts}
    by_key: dict[Key, dict[str, list[ExpertStep]]] = {}
    for node, record in [*_waiting(session, {part.record.key for part in parts}), *((p.node, p.record) for p in parts)]:
        by_key.setdefault(record.key, {}).setdefault(node, []).append(record)
    written = last_steps(session, {key[:2] for key in by_key})
    complete, waiting = [], []
    for key, of_nodes in sorted(by_key.items()):
        late = key[2] <= written.get(key[:2], -1)
        before = stored_step(session, key) if late else None
        shape = next(iter(of_nodes.values()))[0].shape
        whole = summed([one for ones in of_nodes.values() for one in ones if one.shape == shape])
        wanted = expected(*key[:2])
        if before is not None and before.shape == shape:
            complete.append(summed([before, whole]))
        elif wanted is not None and whole.ranks >= wanted:
            complete.append(whole)
        else:
            waiting += [(node, summed(ones)) for node, ones in of_nodes.items() if (node, key) in fresh]
    _forget_parts(session, [step.key for step in complete])
    upsert(session, ExpertPart, [_part_row(node, part, now) for node, part in waiting])
    _write_chunks(session, complete)
    return complete


def any_older(session: Session, *, received_before_s: float) -> bool:
    """Whether a part has waited since before a moment."""
    query = select(ExpertPart.step).where(ExpertPart.received_s < received_before_s).limit(1)
    return session.execute(query).first() is not None


def flush(session: Session, *, received_before_s: float) -> list[ExpertStep]:
    """Gives up waiting for the rest of steps whose first part is that old; returns them, in order."""
    keys = session.execute(
        select(ExpertPart.run_id, ExpertPart.attempt_no, ExpertPart.step)
        .where(ExpertPart.received_s < received_before_s)
        .distinct()
    )
    found = sorted(_waiting(session, {(row[0], row[1], row[2]) for row in keys}), key=lambda pair: pair[1].key)
    steps = []
    for _, group in groupby((record for _, record in found), key=lambda record: record.key):
        parts = list(group)
        steps.append(summed([part for part in parts if part.shape == parts[0].shape]))
    _forget_parts(session, [step.key for step in steps])
    _write_chunks(session, steps)
    return steps


def _waiting(session: Session, keys: set[Key]) -> list[tuple[str, ExpertStep]]:
    if not keys:
        return []
    query = select(ExpertPart).where(
        tuple_(ExpertPart.run_id, ExpertPart.attempt_no, ExpertPart.step).in_(sorted(keys))
    )
    rows = session.scalars(query.with_for_update().execution_options(populate_existing=True))
    return [(row.node, unpack_part(row.run_id, row.attempt_no, row.step, row.blob)) for row in rows]


def _forget_parts(session: Session, keys: Sequence[Key]) -> None:
    if keys:
        columns = tuple_(ExpertPart.run_id, ExpertPart.attempt_no, ExpertPart.step)
        session.execute(delete(ExpertPart).where(columns.in_(keys)).execution_options(synchronize_session=False))


def _part_row(node: str, part: ExpertStep, now: float) -> dict[str, object]:
    return {
        "run_id": part.run_id,
        "attempt_no": part.attempt_no,
        "step": part.step,
        "node": node,
        "received_s": now,
        "blob": pack_part(part),
    }


def _write_chunks(session: Session, steps: Sequence[ExpertStep]) -> None:
    """One row for each attempt and shape among the steps, which are in order."""
    for _, group in groupby(steps, key=lambda step: (step.run_id, step.attempt_no, step.shape)):
        found = list(group)
        first = found[0]
        session.add(
            chunk_row(
                first.run_id,
                first.attempt_no,
                first.shape,
                encode_steps(found),
                level=0,
                steps=(first.step, found[-1].step, len(found)),
            )
        )
    session.flush()

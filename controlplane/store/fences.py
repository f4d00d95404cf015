"""Whose records may still be written: the epoch and the nodes of each attempt, as the controller set them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from controlplane.store.tables import Attempt


@dataclass(frozen=True, slots=True)
class Fence:
    """What an attempt's records must carry."""

    epoch: int
    nodes: frozenset[str]

    def refuses(self, epoch: int, node: str) -> str | None:
        """Why a record of this epoch from this node may not be written; None if it may."""
        if epoch != self.epoch:
            return "stale epoch"
        if self.nodes and node not in self.nodes:
            return "another node's attempt"
        return None


def of_attempts(session: Session, attempts: Collection[tuple[str, int]]) -> dict[tuple[str, int], Fence]:
    """The fences of those (run, attempt number) that exist."""
    if not attempts:
        return {}
    query = select(Attempt.run_id, Attempt.no, Attempt.epoch, Attempt.nodes)
    rows = session.execute(query.where(tuple_(Attempt.run_id, Attempt.no).in_(sorted(attempts))))
    return {(run_id, no): Fence(epoch, frozenset(nodes)) for run_id, no, epoch, nodes in rows}

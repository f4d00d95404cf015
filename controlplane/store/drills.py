"""Fault drills on simulated nodes: asked for by a person, handed to the node's agent once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from agents.drills import DRILLS
from controlplane.ids import uuid7
from controlplane.store.tables import Drill


def add(session: Session, *, node: str, kind: str, gpu: int, now: float, created_by: str) -> Drill:
    """Asks for a drill. ValueError for a kind that no simulated device knows."""
    if kind not in DRILLS:
        raise ValueError(f"{kind!r} is no drill; there are {', '.join(DRILLS)}")
    drill = Drill(id=uuid7(now), node=node, kind=kind, gpu=gpu, created_s=now, created_by=created_by)
    session.add(drill)
    session.flush()
    return drill


_WAITING = (
    select(Drill)
    .where(Drill.node.in_(bindparam("nodes", expanding=True)), Drill.delivered_s.is_(None))
    .order_by(Drill.created_s, Drill.id)
    .with_for_update(skip_locked=True)
)


def take(session: Session, nodes: Sequence[str], *, now: float) -> dict[str, list[Drill]]:
    """The drills that wait for these nodes, oldest first, marked delivered: nobody takes them again."""
    taken: dict[str, list[Drill]] = {}
    for drill in session.scalars(_WAITING, {"nodes": nodes}):
        drill.delivered_s = now
        taken.setdefault(drill.node, []).append(drill)
    return taken


def listed(session: Session, node: str, *, limit: int = 50) -> list[Drill]:
    """A node's newest drills."""
    query = select(Drill).where(Drill.node == node).order_by(Drill.created_s.desc(), Drill.id.desc()).limit(limit)
    return list(session.scalars(query))

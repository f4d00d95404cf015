"""How long nodes were out of service within the last day, read off the timeline: a part of Now's GPU-hours lost.

Why it exists: a node that waits for a person costs its GPUs by the hour, and no run's ledger has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.store import events
from controlplane.store.engine import Session
from controlplane.store.tables import Node

Json = dict[str, Any]
CAUSE = "out of service"
_LEFT, _BACK = ("node_quarantined", "node_cordoned", "node_drained"), "node_returned"


def rows(session: Session, fleet: Sequence[Node], *, since: float, now: float) -> list[Json]:
    """A row a node and time that it was out, as {from_s, to_s, cause, gpu_h, incident}: what was not there for runs."""
    lines: dict[str, list[tuple[float, str]]] = {}
    for name, kind, at_s in events.of_nodes(session, (*_LEFT, _BACK), since_s=since):
        lines.setdefault(name, []).append((at_s, kind))
    found = []
    for node in fleet:
        for begin, end in _spans(node, lines.get(node.name, ()), since, now):
            lost = gpus(node) * (end - begin) / 3600
            found.append({"from_s": begin, "to_s": end, "cause": CAUSE, "gpu_h": lost, "incident": None})
    return found


def _spans(node: Node, lines: Sequence[tuple[float, str]], since: float, now: float) -> list[tuple[float, float]]:
    """When a node was out. One whose first line is its return had left before the day began."""
    found: list[tuple[float, float]] = []
    left: float | None = None
    for at_s, kind in lines:
        if kind != _BACK:
            left = at_s if left is None else left
        elif left is not None or not found:
            found.append((since if left is None else left, at_s))
            left = None
    if node.cordoned or node.state in OUT_OF_SERVICE:
        found.append((max(node.state_since_s, since) if left is None else left, now))
    return found


def gpus(node: Node) -> int:
    """How many GPUs a node says that it has."""
    return len((node.facts or {}).get("gpus", ()))


def whole(fleet: Sequence[Node], *, since: float, now: float) -> Json:
    """What the fleet had to give, as {gpu_h, gpus}: each node's GPU-hours from when it was first heard."""
    heard_s = {node.name: max(0.0, now - max(node.first_seen_s, since)) for node in fleet}
    return {"gpu_h": sum(gpus(node) * heard_s[node.name] for node in fleet) / 3600, "gpus": sum(map(gpus, fleet))}

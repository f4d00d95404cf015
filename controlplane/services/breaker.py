"""The one place where a node leaves service by itself, and the breaker that holds it back.

More nodes than the breaker lets through within its window are left to a person: it is likelier then that a rule, an
agent or we are wrong than that so much hardware broke at once. Called inside the controller's guarded transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.runs.ledger import QUARANTINE_WINDOW_S, may_quarantine
from controlplane.store import nodes
from controlplane.store.engine import Session
from controlplane.store.tables import Node

HELD = "quarantine_held"


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one node, as a line of the timeline."""

    node: str
    kind: str
    level: str
    sentence: str


def recent(fleet: Sequence[Node], now: float) -> int:
    """How many nodes left service within the breaker's window."""
    return sum(one.state == "quarantined" and now - one.state_since_s < QUARANTINE_WINDOW_S for one in fleet)


def closed(fleet: Sequence[Node], share: float, now: float) -> bool:
    """Whether no further node may leave service by itself now."""
    return not may_quarantine(recent(fleet, now), len(fleet), share)


def take_out(session: Session, reasons: Mapping[str, str], *, but: str, share: float, now: float) -> Iterator[Taken]:
    """Quarantines those of these nodes that are in service, each for its reason; says of each what became of it.

    `but` of one that is held back. The fleet is read once: this runs inside a transaction that others wait for.
    """
    fleet = nodes.listed(session)
    taken, count = {one.name for one in fleet if one.state == "quarantined"}, recent(fleet, now)
    for name, reason in reasons.items():
        if name in taken:
            continue
        if may_quarantine(count, len(fleet), share):
            count += 1
            nodes.quarantine(session, name, reason=reason, now=now)
            yield Taken(name, "node_quarantined", "warn", f"{name} is out of service until a person returns it.")
        else:
            sentence = (
                f"{name} stays in service, {but}: {count} nodes were taken out within "
                f"{QUARANTINE_WINDOW_S / 60:.0f} minutes, and more than that a person decides."
            )
            yield Taken(name, HELD, "fault", sentence)

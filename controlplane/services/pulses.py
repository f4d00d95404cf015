"""A second opinion about nodes whose agents are silent: when their kubelets last renewed their leases.

It does not travel through the agent, so it may turn silence into evidence. The nodes' loop asks, the rules read what it
found: a slow API server never holds up a rule. What cannot be asked is unknown; leases count as stale only while those
of other nodes are fresh, for an API server that was away has let them all grow old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from controlplane.backends.base import LEASE_FRESH_S, LEASE_STALE_S, Backend, BackendUnavailable, NodeStatus
from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.store import nodes
from controlplane.store.engine import Store

QUIET_S = 8.0
"""Seconds without a batch after which a node's lease is worth a call."""
KEPT_S = 10.0
"""How long an answer counts when the next look brought none."""
ASKED, WITNESSES = 16, 2
_log = structlog.get_logger()


class Pulses:
    """What the platforms last said of silent nodes. One loop looks, another reads."""

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._backends = tuple(backends)
        self._renewed: Mapping[str, float] = {}
        self._looked_s = float("-inf")

    def look(self, store: Store, now: float) -> None:
        """Asks for the leases of the nodes that fell silent last, and of a few that are heard, if any is silent."""
        with store.read() as session:
            fleet = [one for one in nodes.machines(session) if one.state not in OUT_OF_SERVICE]
        newest = sorted(fleet, key=lambda one: one.last_seen_s, reverse=True)
        silent = [one.name for one in newest if now - one.last_seen_s > QUIET_S][:ASKED]
        witnesses = [one.name for one in newest if now - one.last_seen_s <= QUIET_S][:WITNESSES]
        if not silent:
            self._renewed = {}
            return
        found: dict[str, NodeStatus] = {}
        for backend in self._backends:
            unknown = [name for name in (*silent, *witnesses) if name not in found]
            try:
                found |= backend.node_status(unknown, leases=True)
            except BackendUnavailable as error:
                _log.info("leases cannot be asked for", backend=backend.name, error=str(error))
        ages = {name: one.lease_age_s for name, one in found.items() if one.lease_age_s is not None}
        if any(ages.get(name, LEASE_FRESH_S) < LEASE_FRESH_S for name in witnesses):
            self._renewed = {name: now - ages[name] for name in silent if name in ages}
            self._looked_s = now

    def stopped(self, now: float) -> dict[str, str]:
        """Silent nodes whose leases are stale as well; by node, the clause that says so."""
        if now - self._looked_s > KEPT_S:
            return {}
        ages = {name: now - renewed_s for name, renewed_s in self._renewed.items()}
        return {
            name: f"its kubelet has not renewed its lease for {age:.0f} s"
            for name, age in ages.items()
            if age > LEASE_STALE_S
        }


def no_pulse(_now: float) -> dict[str, str]:
    """No second opinion: what a server without a platform has."""
    return {}

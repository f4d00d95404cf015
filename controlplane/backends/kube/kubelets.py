"""What the cluster knows of its kubelets: when each last renewed its lease.

Kubernetes itself calls a node not ready only after `node-monitor-grace-period` (50 s); the lease says it sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import structlog

from controlplane.backends.base import LEASE_FRESH_S, LEASE_STALE_S, BackendUnavailable
from controlplane.backends.kube.api import Forbidden, KubeApi, Refused
from controlplane.clock import Clock

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_log = structlog.get_logger()


class Kubelets:
    """Reads kubelets' leases, one call each."""

    def __init__(self, api: KubeApi, clock: Clock) -> None:
        self._api, self._clock = api, clock

    def lease_age_s(self, node: str) -> float | None:
        """None when there is no lease, or it cannot be read: that says nothing of the node."""
        try:
            lease = self._api.get(f"{_LEASES}/{node}")
        except Forbidden as error:
            _log.warning("a kubelet's lease may not be read; install the reader's role", error=str(error))
            return None
        except (Refused, BackendUnavailable):
            return None
        renewed = (lease.get("spec") or {}).get("renewTime")
        return self._clock.now() - datetime.fromisoformat(renewed).timestamp() if renewed else None

    def silent(self, nodes: Iterable[str], witness: str) -> frozenset[str]:
        """Those whose lease is stale while the witness's is fresh: an API server that was away made all of them old."""
        ages = {node: self.lease_age_s(node) for node in nodes}
        stale = frozenset(node for node, age in ages.items() if age is not None and age > LEASE_STALE_S)
        if not stale:
            return stale
        age = self.lease_age_s(witness)
        return stale if age is not None and age < LEASE_FRESH_S else frozenset()

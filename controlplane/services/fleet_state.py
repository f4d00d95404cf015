"""What a GPU is doing, in one word, and why: pure, for the fleet's frame, its list and its node pages alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.readings import UNKNOWN
from controlplane.store.codec import Samples

STATES = ("training", "idle", "warning", "fault", "drained", "nodata")
"""A state's number in a frame is its place here."""
BLIND_AFTER_S = 15.0
"""Seconds without a sample after which a node's devices are unknown (TELEMETRY: no telemetry)."""
BUSY_PERCENT = 10
"""Graphics activity from which on a GPU counts as training."""
_UNCORRECTABLE = ("ecc_hbm_uncorrectable_total", "ecc_other_uncorrectable_total", "ecc_xgmi_uncorrectable_total")
OUT_OF_SERVICE = frozenset({"quarantined", "drained", "remediating", "validating", "retired"})


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What the store knows of a node: out of service or not, its firing faults as (entity, severity), and its run."""

    name: str
    drained: bool
    faults: tuple[tuple[str, str], ...]
    run: str = ""

    def worst(self, entity: str) -> str | None:
        """ "fault" or "warning" if one fires on the entity; "warning" if one fires on the node or its host."""
        severities = {severity for found, severity in self.faults if found == entity}
        if severities - {"warning"}:
            return "fault"
        on_node = any(found in ("node", "host") for found, _ in self.faults)
        return "warning" if severities or on_node else None


def gpu_state(status: NodeStatus, gpu: int, *, age_s: float | None, activity_percent: float | None) -> str:
    """One of STATES. Not knowing comes first, then a fault of its own, then service, then what it does."""
    if age_s is None or age_s > BLIND_AFTER_S:
        return "nodata"
    worst = status.worst(f"gpu{gpu}")
    if worst == "fault":
        return "fault"
    if status.drained:
        return "drained"
    if worst == "warning":
        return "warning"
    if activity_percent is None:
        return "nodata"
    return "training" if activity_percent >= BUSY_PERCENT else "idle"


def newest(samples: Samples | None, metric: str) -> NDArray[np.float64]:
    """The metric's newest raw value of each device, NaN where it is unknown; empty without a sample of it."""
    if samples is None or metric not in samples.metrics:
        return np.zeros(0)
    raw = samples.values[samples.metrics.index(metric), -1]
    return np.where(raw == UNKNOWN, np.nan, raw)


def known(values: NDArray[np.float64], index: int) -> float | None:
    """One of the values; None if there is no such device or it is not known."""
    return float(values[index]) if index < len(values) and np.isfinite(values[index]) else None


def uncorrectable(samples: Samples) -> NDArray[np.float64]:
    """Each GPU's uncorrectable errors since driver load, all blocks; NaN where no block's are known."""
    counts = [column for name in _UNCORRECTABLE if len(column := newest(samples, name))]
    if not counts:
        return np.zeros(0)
    stacked = np.stack(counts)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))


def statuses(
    nodes: Iterable[tuple[str, str, bool]],
    faults: Iterable[tuple[str, str, str]],
    runs: Mapping[str, str] | None = None,
) -> dict[str, NodeStatus]:
    """Statuses by node from (name, state, cordoned), the firing faults' (node, entity, severity), and their runs."""
    by_node: dict[str, list[tuple[str, str]]] = {}
    for node, entity, severity in faults:
        by_node.setdefault(node, []).append((entity, severity))
    return {
        name: NodeStatus(
            name, cordoned or state in OUT_OF_SERVICE, tuple(by_node.get(name, ())), (runs or {}).get(name, "")
        )
        for name, state, cordoned in nodes
    }

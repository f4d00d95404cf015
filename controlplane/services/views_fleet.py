"""What pages show of nodes: rows of the fleet, one node with its history, one metric over time.

States and newest values come from memory (live), everything else from the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from agents.drills import DRILLS
from agents.readings import METRICS, Metric
from controlplane.services import views_devices
from controlplane.services.fleet_state import NodeStatus, gpu_state, known, newest, uncorrectable
from controlplane.services.live import Live, LiveNode
from controlplane.store import events, faults, nodes, telemetry, watch
from controlplane.store.codec import Samples
from controlplane.store.engine import Session
from controlplane.store.tables import Event, Fault, Node

MAX_POINTS = 2000
TIMELINE_S = 24 * 3600.0
_METRICS: dict[str, tuple[str, Metric]] = {
    metric.name: (kind, metric) for kind, metrics in METRICS.items() for metric in metrics
}
_LEVELS = {"warning": "warn", "error": "fault", "critical": "fault"}


class UnknownSeries(LookupError):
    """A metric or device that no node has."""


def node_rows(session: Session, live: Live, *, now: float) -> list[dict[str, Any]]:
    """A NodeRow for every node, by name. API: nodes."""
    firing: dict[str, list[Fault]] = {}
    for fault in faults.firing(session):
        firing.setdefault(fault.node, []).append(fault)
    numbers = _incident_numbers(session, (fault for group in firing.values() for fault in group))
    runs = {node: attempt.run_id for attempt in watch.live_attempts(session) for node in attempt.nodes}
    seen, statuses = live.nodes(), live.statuses()
    return [
        {
            **_row(node, seen.get(node.name), statuses.get(node.name), now),
            "run": runs.get(node.name),
            "findings": [finding(fault, numbers, now) for fault in firing.get(node.name, ())],
        }
        for node in nodes.listed(session)
    ]


def node_view(session: Session, live: Live, name: str, *, now: float) -> dict[str, Any] | None:
    """A NodeView; None if there is no such node. API: nodes/{node}."""
    row = next((row for row in node_rows(session, live, now=now) if row["name"] == name), None)
    node = nodes.get(session, name)
    if row is None or node is None:
        return None
    told = faults.of_node(session, name, since_s=now - TIMELINE_S)
    numbers = _incident_numbers(session, told)
    lines = telemetry.kernel_lines(session, name)
    seen, until_s = live.node(name), now - node.clock_offset_s
    return {
        **row,
        "facts": node.facts,
        "agent_version": node.agent_version,
        "boot_id": node.boot_id,
        "clock_offset_s": node.clock_offset_s,
        "first_seen_s": node.first_seen_s,
        "state_since_s": node.state_since_s,
        "faults": [finding(fault, numbers, now) for fault in told],
        "timeline": _timeline(told, events.listed(session, node=name, since_s=now - TIMELINE_S, limit=100)),
        "nics_detail": views_devices.ports(seen, node.facts),
        "metrics": views_devices.metrics(seen),
        "budgets": views_devices.budgets(seen),
        "throttling": views_devices.throttling(session, name, until_s),
        "links": views_devices.links(session, seen, name, until_s),
        "unlike": views_devices.unlike(name, node.facts, _peers(session, name)),
        "users": node.users,
        "drills": [{"kind": kind, "title": of.title} for kind, of in DRILLS.items()] if node.simulated else [],
        "kernel": [{"at_s": line.at_s, "priority": line.priority, "text": line.text} for line in lines],
    }


def series(
    session: Session, node: str, metric: str, entity: int, *, since_s: float, until_s: float, points: int = 300
) -> dict[str, Any]:
    """One metric of one device over time, in its unit: gauges as means with low and high, counters as last values.

    API: nodes/{node}/series. UnknownSeries for a metric that nothing reads.
    """
    if metric not in _METRICS:
        raise UnknownSeries(f"no device has a metric {metric}; there are {', '.join(_METRICS)}")
    kind, described = _METRICS[metric]
    found = telemetry.read_points(
        session,
        node,
        kind,
        metric,
        entity,
        since_s=since_s,
        until_s=until_s,
        points=min(max(points, 1), MAX_POINTS),
    )
    values = found.last if described.kind == "counter" else found.mean
    scale = described.resolution
    return {
        "t": found.at_s.tolist(),
        "v": (values * scale).tolist(),
        "low": (found.low * scale).tolist(),
        "high": (found.high * scale).tolist(),
        "unit": described.unit,
        "kind": described.kind,
        "metric": metric,
        "entity": entity,
    }


def stored(session: Session) -> dict[str, int]:
    """How many values of telemetry are kept: moments times devices are counted, metrics are not."""
    return {f"{kind}_samples": telemetry.counted(session, kind) for kind in ("gpu", "nic")}


# --- parts -----------------------------------------------------------------------------------------------------------


def _row(node: Node, seen: LiveNode | None, status: NodeStatus | None, now: float) -> dict[str, Any]:
    age_s = None if seen is None else max(0.0, now - seen.sampled_s)
    nics = None if seen is None else seen.newest("nic")
    return {
        "name": node.name,
        "state": node.state,
        "cordoned": node.cordoned,
        "state_reason": node.state_reason,
        "age_s": max(0.0, now - node.last_seen_s) if age_s is None else age_s,
        "simulated": node.simulated,
        "source": node.source,
        "gpus": _gpus(None if seen is None else seen.newest("gpu"), status, age_s),
        "nics_up": int(np.nansum(newest(nics, "link_up"))),
        "nics": 0 if nics is None else nics.entities,
    }


def _gpus(samples: Samples | None, status: NodeStatus | None, age_s: float | None) -> list[dict[str, Any]]:
    if samples is None:
        return []
    shown = ("gfx_activity_percent", "power_w", "temperature_hotspot_c", "vram_used_mib", "xgmi_links_up")
    activity, power, hotspot, used, links = (newest(samples, name) for name in shown)
    errors = uncorrectable(samples)
    found = []
    for gpu in range(samples.entities):
        state = "nodata"
        if status is not None:
            state = gpu_state(status, gpu, age_s=age_s, activity_percent=known(activity, gpu))
        vram = known(used, gpu)
        found.append(
            {
                "index": gpu,
                "state": state,
                "power_w": known(power, gpu),
                "temperature_hotspot_c": known(hotspot, gpu),
                "activity_percent": known(activity, gpu),
                "ecc_uncorrectable": known(errors, gpu),
                "vram_used_gib": None if vram is None else round(vram / 1024, 1),
                "xgmi_links_up": known(links, gpu),
            }
        )
    return found


def _peers(session: Session, name: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, facts) of the nodes that a node is compared with: those of its job, or those of no job."""
    job = {node: attempt.run_id for attempt in watch.live_attempts(session) for node in attempt.nodes}
    return [(node.name, node.facts) for node in nodes.listed(session) if job.get(node.name) == job.get(name)]


def finding(fault: Fault, numbers: dict[str, int], now: float) -> dict[str, Any]:
    """A fault as pages show it; `numbers` are incident numbers by incident id."""
    gpu = fault.entity.removeprefix("gpu")
    return {
        "id": fault.id,
        "rule": fault.rule,
        "severity": fault.severity,
        "action": fault.action,
        "state": fault.state,
        "entity": fault.entity,
        "gpu": int(gpu) if fault.entity.startswith("gpu") and gpu.isdigit() else None,
        "onset_s": fault.onset_s,
        "since_s": max(0.0, now - fault.onset_s),
        "cleared_s": fault.cleared_s,
        "sentence": fault.sentence,
        "value": fault.value,
        "threshold": fault.threshold,
        "run": fault.run_id or None,
        "incident": numbers.get(fault.incident_id or ""),
    }


def _incident_numbers(session: Session, found: Iterable[Fault]) -> dict[str, int]:
    return faults.incident_numbers(session, {fault.incident_id for fault in found if fault.incident_id})


def _timeline(told: Sequence[Fault], lines: Sequence[Event]) -> list[dict[str, Any]]:
    """Faults and events of a node in one order, as the shared timeline block takes them."""
    rows: list[dict[str, Any]] = [
        {
            "at_s": fault.onset_s,
            "lane": "hardware",
            "kind": "fault",
            "sentence": fault.sentence,
            "detail": fault.rule,
            "level": _LEVELS.get(fault.severity, "warn"),
            "link": None,
        }
        for fault in told
    ]
    rows += [
        {
            "at_s": event.at_s,
            "lane": "run" if event.run_id else "rule" if event.incident_id else "hardware",
            "kind": event.kind,
            "sentence": event.sentence,
            "detail": "",
            "level": "info",
            "link": {"kind": "run", "id": event.run_id} if event.run_id else None,
        }
        for event in lines
        if event.kind != "fault"  # its fault stands here already
    ]
    return sorted(rows, key=lambda row: float(row["at_s"]))

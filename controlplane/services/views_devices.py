"""What a node's agent knows of its devices, for the node's drawer: every metric, budgets, throttling, links, ports.

Newest values come from memory, shares and rates from the last minute in the store. Unknown is None, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.readings import METRICS, UNKNOWN
from controlplane.rules import peers
from controlplane.rules.peers import NodeMade
from controlplane.services.fleet_state import known, newest
from controlplane.services.live import LiveNode
from controlplane.services.peers import made_of
from controlplane.store import telemetry
from controlplane.store.engine import Session

RATE_S, SHARE_S = 15.0, 60.0
THROTTLES = {
    "power": "throttle_ppt_ticks",
    "heat": "throttle_thermal_ticks",
    "HBM heat": "throttle_hbm_ticks",
    "regulator heat": "throttle_vr_ticks",
    "processor hot": "throttle_prochot_ticks",
}
GPUS = 8
Json = dict[str, Any]


def metrics(seen: LiveNode | None) -> list[Json]:
    """Every metric of every device, in its unit: {scope, name, unit, help, values}, a value a device."""
    found = []
    for scope, columns in METRICS.items():
        samples = None if seen is None else seen.newest(scope)
        for column in columns:
            raw = newest(samples, column.name)
            if not len(raw):
                continue
            values = [None if np.isnan(one) else round(float(one) * column.resolution, 3) for one in raw]
            found.append(
                {"scope": scope, "name": column.name, "unit": column.unit, "help": column.help, "values": values}
            )
    return found


def budgets(seen: LiveNode | None) -> list[Json]:
    """Each GPU's errors by kind, and how many of the memory pages that it may retire it has."""
    samples = None if seen is None else seen.newest("gpu")
    if samples is None:
        return []
    wanted = {
        "correctable": "ecc_hbm_correctable_total",
        "uncorrectable": "ecc_hbm_uncorrectable_total",
        "deferred": "ecc_hbm_deferred_total",
        "elsewhere": "ecc_other_uncorrectable_total",
        "xgmi": "ecc_xgmi_uncorrectable_total",
        "bad_pages": "bad_pages_total",
        "may_retire": "bad_page_threshold",
    }
    columns = {name: newest(samples, metric) for name, metric in wanted.items()}
    return [
        {"gpu": gpu, **{name: known(column, gpu) for name, column in columns.items()}}
        for gpu in range(samples.entities)
    ]


def throttling(session: Session, node: str, until_s: float) -> list[Json]:
    """Share of the last minute, in percent, for which each GPU was held down, by what; until_s by the node's clock."""
    of = _grown(session, node, "accumulation_ticks", SHARE_S, until_s)
    shares = {why: _grown(session, node, name, SHARE_S, until_s) for why, name in THROTTLES.items()}
    return [
        {"gpu": gpu, **{why: _percent(grown, of, gpu) for why, grown in shares.items()}}
        for gpu in range(0 if of is None else len(of))
    ]


def links(session: Session, seen: LiveNode | None, node: str, until_s: float) -> Json | None:
    """The XGMI matrix: gb_per_s[from][to] over the last seconds, None where nothing is known or of a GPU to itself;
    up[from][to] is whether the link reports up. None if no GPU tells of its links."""
    samples = None if seen is None else seen.newest("gpu")
    masks = newest(samples, "xgmi_up_mask")
    if samples is None or not np.isfinite(masks).any():
        return None
    rates = [_grown(session, node, f"xgmi_link_{peer}_kb", RATE_S, until_s) for peer in range(GPUS)]
    spans = _span(session, node, until_s)
    flow: list[list[float | None]] = []
    up: list[list[bool | None]] = []
    for gpu in range(samples.entities):
        mask = known(masks, gpu)
        row: list[float | None] = []
        for peer in range(GPUS):
            grown = rates[peer]
            value = None if grown is None or peer == gpu or not spans else known(grown, gpu)
            row.append(None if value is None else round(value * 1024 / spans / 1e9, 2))
        flow.append(row)
        up.append([None if mask is None or peer == gpu else bool(int(mask) >> peer & 1) for peer in range(GPUS)])
    return {"gb_per_s": flow, "up": up}


def ports(seen: LiveNode | None, facts: Mapping[str, Any]) -> list[Json]:
    """Each port: who it is, its link, and what went wrong on it since its driver was loaded."""
    samples = None if seen is None else seen.newest("nic")
    if samples is None:
        return []
    named = {nic["index"]: nic for nic in facts.get("nics", ())}
    wanted = {
        "rate_gbps": "rate_gbps",
        "carrier_changes": "carrier_changes_total",
        "retries": "rdma_retry_exceeded_total",
        "sent_again": "retransmits_total",
        "packets": "packets_total",
        "congestion": "cnp_received_total",
        "out_of_order": "out_of_order_total",
    }
    columns = {name: newest(samples, metric) for name, metric in wanted.items()}
    up = newest(samples, "link_up")
    return [
        {
            "index": nic,
            "name": named.get(nic, {}).get("name") or f"nic{nic}",
            "pci_address": named.get(nic, {}).get("pci_address", ""),
            "firmware": named.get(nic, {}).get("firmware", ""),
            "up": None if known(up, nic) is None else bool(known(up, nic)),
            **{name: known(column, nic) for name, column in columns.items()},
        }
        for nic in range(samples.entities)
    ]


def unlike(name: str, facts: Mapping[str, Any], others: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Json]:
    """What the node is made of that most of `others` (name, facts) are not; its job's nodes, or the free ones."""
    made = [NodeMade(other, "peers", made_of(of)) for other, of in others if of and other != name]
    return peers.odd_of(NodeMade(name, "peers", made_of(facts)), made) if facts else []


# --- parts -----------------------------------------------------------------------------------------------------------


def _grown(session: Session, node: str, metric: str, seconds: float, until_s: float) -> NDArray[np.float64] | None:
    """How much a counter of each GPU grew; NaN where it is unknown or went back; None without samples."""
    found = telemetry.read_series(session, node, "gpu", metric, since_s=until_s - seconds, until_s=until_s + 1)
    if not found or len(found[-1].at_s) < 2:
        return None
    first, last = found[-1].values[0], found[-1].values[-1]
    unknown = (first == UNKNOWN) | (last == UNKNOWN) | (last < first)
    return np.where(unknown, np.nan, (last - first).astype(np.float64))


def _span(session: Session, node: str, until_s: float) -> float:
    """Seconds that the samples of a rate span."""
    found = telemetry.read_series(session, node, "gpu", "present", since_s=until_s - RATE_S, until_s=until_s + 1)
    return float(found[-1].at_s[-1] - found[-1].at_s[0]) if found and len(found[-1].at_s) > 1 else 0.0


def _percent(grown: NDArray[np.float64] | None, of: NDArray[np.float64] | None, gpu: int) -> float | None:
    part, whole = (None if column is None else known(column, gpu) for column in (grown, of))
    return None if part is None or not whole else round(100.0 * part / whole, 1)

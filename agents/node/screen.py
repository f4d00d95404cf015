"""What a person on a node sees: the devices of one sample as a table for the terminal, or as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.readings import INDEX, METRICS, UNKNOWN, Fault, NodeFacts, NodeSample

GPU_COLUMNS = (
    ("°C", "temperature_hotspot_c", 0),
    ("HBM °C", "temperature_hbm_c", 0),
    ("W", "power_w", 0),
    ("busy %", "gfx_activity_percent", 0),
    ("MHz", "gfx_clock_mhz", 0),
    ("HBM MiB", "vram_used_mib", 0),
    ("ECC unc.", "ecc_hbm_uncorrectable_total", 0),
    ("bad pages", "bad_pages_total", 0),
    ("XGMI", "xgmi_links_up", 0),
    ("lanes", "pcie_width_lanes", 0),
    ("users", "processes", 0),
    ("read ms", "read_ms", 0),
)
NIC_COLUMNS = (
    ("link", "link_up", 0),
    ("Gb/s", "rate_gbps", 0),
    ("downs", "carrier_changes_total", 0),
    ("retries", "rdma_retry_exceeded_total", 0),
    ("sent again", "retransmits_total", 0),
    ("out of order", "out_of_order_total", 0),
)
HOST_COLUMNS = (
    ("memory MiB", "memory_available_mib", 0),
    ("disk free %", "disk_free_percent", 1),
    ("load", "load_1m", 1),
    ("NVMe", "nvme_devices", 0),
    ("memory errors", "edac_uncorrectable_total", 0),
    ("clock ms", "clock_offset_ms", 0),
)
COLUMNS = {"gpu": GPU_COLUMNS, "nic": NIC_COLUMNS, "host": HOST_COLUMNS}


def value(scope: str, metric: str, row: tuple[int, ...]) -> float | None:
    """A metric of a row in its unit; None where it is unknown."""
    at = INDEX[scope][metric]
    return None if row[at] == UNKNOWN else row[at] * METRICS[scope][at].resolution


def _cells(scope: str, row: tuple[int, ...]) -> list[str]:
    found = []
    for _, metric, digits in COLUMNS[scope]:
        known = value(scope, metric, row)
        found.append("?" if known is None else f"{known:.{digits}f}")
    return found


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(text) for text in column) for column in zip(heads, *rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in (heads, *rows)]


def table(facts: NodeFacts, sample: NodeSample, faults: Sequence[Fault]) -> str:
    """The node as text: its devices, what fires, what cannot be read. `?` is unknown, never zero."""
    kind = "simulated" if facts.simulated else facts.source
    lines = [f"{facts.hostname} ({kind}): {facts.gpu_model}, driver {facts.driver or '?'}", ""]
    names = {"gpu": [gpu.pci_address or gpu.serial for gpu in facts.gpus], "nic": [nic.name for nic in facts.nics]}
    for scope, title in (("gpu", "GPU"), ("nic", "NIC"), ("host", "host")):
        rows = sample.rows(scope)
        if not rows:
            continue
        heads = [title, "", *(name for name, _, _ in COLUMNS[scope])]
        named = names.get(scope, [])
        body = [
            ["" if scope == "host" else str(at), named[at] if at < len(named) else "", *_cells(scope, row)]
            for at, row in enumerate(rows)
        ]
        lines += [*_table(heads, body), ""]
    lines += [f"{fault.severity}: {fault.sentence} ({fault.rule}, {fault.action})" for fault in faults]
    lines += [] if faults else ["no rule fires"]
    return "\n".join([*lines, *(f"blind: {part}" for part in facts.blind)])


def document(facts: NodeFacts, sample: NodeSample, faults: Sequence[Fault]) -> dict[str, Any]:
    """The same as plain data: every metric by its name and in its unit, null for what is unknown."""
    return {
        "node": facts.hostname,
        "source": facts.source,
        "simulated": facts.simulated,
        "at_s": sample.at_s,
        **{
            f"{scope}s": [
                {metric.name: value(scope, metric.name, row) for metric in METRICS[scope]} for row in sample.rows(scope)
            ]
            for scope in ("gpu", "nic", "host")
        },
        "kernel": [line.text for line in sample.kernel],
        "faults": [
            {
                "rule": fault.rule,
                "entity": fault.entity,
                "severity": fault.severity,
                "action": fault.action,
                "sentence": fault.sentence,
            }
            for fault in faults
        ],
        "blind": list(facts.blind),
    }

"""The nouns of the node: what one sample, one fault and one training step's records are, with the unit in each name.

Standard library only: a node agent, a training process and the control plane all import this. It holds no behaviour
beyond construction; `agents.wire` carries these values, `agents.rules` judges them.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

UNKNOWN: int = -(2**63)
"""A column's value for "not known". Never zero: a sensor that cannot be read has no value."""

Severity = Literal["warning", "error", "critical"]
Action = Literal["alert", "drain", "restart", "rma"]
FaultState = Literal["firing", "clear"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a sample: `value = raw * resolution`, in `unit`; a counter only grows between resets."""

    name: str
    unit: str
    kind: Literal["gauge", "counter"]
    resolution: float
    help: str


def _gauge(name: str, unit: str, help_: str, resolution: float = 1.0) -> Metric:
    return Metric(name, unit, "gauge", resolution, help_)


def _counter(name: str, unit: str, help_: str, resolution: float = 1.0) -> Metric:
    return Metric(name, unit, "counter", resolution, help_)


GPU_METRICS: tuple[Metric, ...] = (
    _gauge("present", "", "1 when the device answered this read"),
    _gauge("power_w", "W", "current socket power"),
    _counter("energy_j", "J", "energy since driver load", 15.259e-6),
    _gauge("temperature_hotspot_c", "°C", "hotspot temperature"),
    _gauge("temperature_hbm_c", "°C", "memory temperature"),
    _gauge("temperature_vr_c", "°C", "voltage regulator temperature"),
    _gauge("gfx_activity_percent", "%", "graphics engine activity"),
    _gauge("umc_activity_percent", "%", "memory controller activity"),
    _gauge("gfx_clock_mhz", "MHz", "mean graphics clock of the accelerator dies"),
    _gauge("umc_clock_mhz", "MHz", "memory clock"),
    _gauge("vram_used_mib", "MiB", "memory in use"),
    _gauge("vram_total_mib", "MiB", "memory in all"),
    _counter("throttle_ppt_ticks", "ticks", "residency of the power limit"),
    _counter("throttle_prochot_ticks", "ticks", "residency of the processor-hot signal"),
    _counter("throttle_thermal_ticks", "ticks", "residency of the socket's thermal limit"),
    _counter("throttle_vr_ticks", "ticks", "residency of the voltage regulator's thermal limit"),
    _counter("throttle_hbm_ticks", "ticks", "residency of the memory's thermal limit"),
    _counter("accumulation_ticks", "ticks", "the firmware's accumulation counter: a still one is a frozen SMU"),
    _gauge("xgmi_links_up", "links", "XGMI links that report up, of 7"),
    _counter("xgmi_read_kb", "KB", "read over XGMI, all links"),
    _counter("xgmi_write_kb", "KB", "written over XGMI, all links"),
    _gauge("pcie_width_lanes", "lanes", "PCIe link width"),
    _gauge("pcie_speed_gtps", "GT/s", "PCIe link speed", 0.1),
    _counter("pcie_replay_total", "", "PCIe replays"),
    _counter("ecc_hbm_correctable_total", "", "correctable errors of the memory controllers"),
    _counter("ecc_hbm_uncorrectable_total", "", "uncorrectable errors of the memory controllers"),
    _counter("ecc_hbm_deferred_total", "", "deferred errors of the memory controllers"),
    _counter("ecc_other_correctable_total", "", "correctable errors of every other block"),
    _counter("ecc_other_uncorrectable_total", "", "uncorrectable errors of every other block"),
    _counter("ecc_xgmi_correctable_total", "", "correctable errors of XGMI/WAFL"),
    _counter("ecc_xgmi_uncorrectable_total", "", "uncorrectable errors of XGMI/WAFL"),
    _counter("bad_pages_total", "pages", "retired memory pages"),
    _gauge("bad_page_threshold", "pages", "retired pages at which the card must be replaced"),
)

NIC_METRICS: tuple[Metric, ...] = (
    _gauge("link_up", "", "1 when the port's link is up"),
    _gauge("rate_gbps", "Gb/s", "port rate"),
    _counter("rx_bytes_total", "B", "bytes received"),
    _counter("tx_bytes_total", "B", "bytes sent"),
    _counter("carrier_changes_total", "", "times the carrier went down"),
    _counter("rdma_retry_exceeded_total", "", "RDMA retries exceeded"),
    _counter("retransmits_total", "", "packets sent again"),
    _counter("packets_total", "", "packets sent"),
)

GPU_INDEX: dict[str, int] = {metric.name: index for index, metric in enumerate(GPU_METRICS)}
NIC_INDEX: dict[str, int] = {metric.name: index for index, metric in enumerate(NIC_METRICS)}


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One line of the kernel log that concerns a device."""

    at_s: float
    priority: int
    text: str
    pci_address: str | None = None


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One moment of one node: raw values in the order of GPU_METRICS and NIC_METRICS."""

    at_s: float
    monotonic_s: float
    gpus: tuple[tuple[int, ...], ...]
    nics: tuple[tuple[int, ...], ...]
    kernel: tuple[KernelLine, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What does not change about a GPU while its driver is loaded."""

    index: int
    serial: str
    uuid: str
    pci_address: str
    vram_total_mib: int
    partition: str


@dataclass(frozen=True, slots=True)
class NicFacts:
    """What does not change about a network port."""

    index: int
    name: str
    driver: str
    rate_gbps: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node's identity and inventory; `simulated` is said here and shown on every page."""

    hostname: str
    source: str
    simulated: bool
    gpu_model: str
    driver: str
    firmware: str
    gpus: tuple[GpuFacts, ...]
    nics: tuple[NicFacts, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a node saw. It is sent when it begins to fire and again, with the same id, when it clears.

    `onset_s` is the first sample or line that satisfies the rule, `last_clean_s` the last one before it that did not.
    """

    id: str
    rule: str
    severity: Severity
    action: Action
    node: str
    entity: str
    state: FaultState
    onset_s: float
    last_clean_s: float
    observed_s: float
    value: float
    threshold: float
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    attempt_no: int = 0
    rank: int = -1


def fault_id(node: str, boot_id: str, rule: str, entity: str, onset_s: float) -> str:
    """The id of a fault: the same onset seen twice is one fault."""
    text = f"{node}|{boot_id}|{rule}|{entity}|{round(onset_s * 1000)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One optimizer step's expert load of `ranks` ranks of one node: counts and biases, `[layers, slots]` row major.

    Slots from `experts` on are skip slots. `tokens` is the number of routed tokens that the counts stand for, a layer.
    `dropped` counts the ranks' records that the node's agent came too late for since the record before.
    """

    run_id: str
    attempt_no: int
    epoch: int
    step: int
    at_s: float
    ranks: int
    layers: int
    slots: int
    experts: int
    top_k: int
    tokens: int
    dropped: int
    counts: array[int]
    bias: array[float]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step's scalars of one rank; loss in nats a token."""

    run_id: str
    attempt_no: int
    epoch: int
    rank: int
    step: int
    at_s: float
    loss: float
    grad_norm: float
    step_seconds: float
    tokens: int
    learning_rate: float
    data_position: int


@dataclass(frozen=True, slots=True)
class HeartbeatFile:
    """A heartbeat as the agent found it: bytes that only the control plane decodes (jobs.contract)."""

    path: str
    modified_s: float
    size: int
    body: bytes

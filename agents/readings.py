"""The nouns of the node: what one sample, one fault and one training step's records are, with the unit in each name.

Standard library only: a node agent, a training process and the control plane all import this. It holds no behaviour
beyond construction; `agents.wire` carries these values, `agents.rules` judges them.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

UNKNOWN: int = -(2**63)
"""A column's value for "not known". Never zero: a sensor that cannot be read has no value."""

Severity = Literal["warning", "error", "critical"]
Action = Literal["alert", "drain", "restart", "rma"]
FaultState = Literal["firing", "clear"]

LAYER_FACTS = ("z_loss", "margin", "dropped_share")
"""What may be told of a step's layers beside their counts: mean squared log-sum-exp of the router's logits; mean
distance from the last chosen score to the first one not chosen; share of token copies that an expert's capacity
dropped."""


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
    _counter("ecc_other_deferred_total", "", "deferred errors of every other block"),
    _counter("pcie_nak_sent_total", "", "PCIe negative acknowledgements sent"),
    _counter("pcie_nak_received_total", "", "PCIe negative acknowledgements received"),
    _counter("pcie_recovery_total", "", "times the PCIe link went from L0 to recovery"),
    _gauge("processes", "", "processes that hold the device open"),
    _gauge("read_ms", "ms", "how long the last read of the device took; of one that still waits, how long so far"),
    _gauge("xgmi_up_mask", "", "bit i is set while the XGMI link to GPU i is up"),
    *(_counter(f"xgmi_link_{peer}_kb", "KB", f"read and written over the link to GPU {peer}") for peer in range(8)),
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
    _counter("packets_received_total", "", "packets received"),
    _counter("ack_timeout_total", "", "acknowledgements that did not come in time"),
    _counter("cnp_received_total", "", "congestion notification packets received"),
    _counter("ecn_received_total", "", "packets received with the mark of congestion"),
    _counter("out_of_order_total", "", "packets received out of order; normal where packets are sprayed over paths"),
)

HOST_METRICS: tuple[Metric, ...] = (
    _gauge("memory_available_mib", "MiB", "memory that programs may still have"),
    _gauge("memory_total_mib", "MiB", "memory in all"),
    _counter("oom_kills_total", "", "processes that the kernel ended for want of memory"),
    _gauge("disk_free_percent", "%", "free space of the fullest watched file system, checkpoints' among them", 0.1),
    _counter("edac_correctable_total", "", "correctable errors of the host's memory"),
    _counter("edac_uncorrectable_total", "", "uncorrectable errors of the host's memory"),
    _gauge("nvme_devices", "", "NVMe controllers that are live"),
    _gauge("clock_offset_ms", "ms", "the kernel's estimate of the clock's error"),
    _gauge("load_1m", "", "runnable processes, mean of a minute", 0.01),
)

GPU_INDEX: dict[str, int] = {metric.name: index for index, metric in enumerate(GPU_METRICS)}
NIC_INDEX: dict[str, int] = {metric.name: index for index, metric in enumerate(NIC_METRICS)}
HOST_INDEX: dict[str, int] = {metric.name: index for index, metric in enumerate(HOST_METRICS)}
METRICS: dict[str, tuple[Metric, ...]] = {"gpu": GPU_METRICS, "nic": NIC_METRICS, "host": HOST_METRICS}
INDEX: dict[str, dict[str, int]] = {"gpu": GPU_INDEX, "nic": NIC_INDEX, "host": HOST_INDEX}
"""Both by scope, the kind of device."""


def entity_of(scope: str, number: int) -> str:
    """What a fault is on: gpu3, nic0, or host, of which a node has one."""
    return scope if scope == "host" else f"{scope}{number}"


def device_of(entity: str) -> tuple[str, int] | None:
    """The kind of device and the number that an entity names; None of a run, a rank, a node or the fleet."""
    if entity == "host":
        return entity, 0
    scope, number = entity[:3], entity[3:]
    return (scope, int(number)) if scope in METRICS and number.isdecimal() else None


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One line of the kernel log that concerns a device, or one record of a GPU's own error log.

    `kind` is what the classifier takes it for (agents/rules/kernel.toml, or `afid-20`), "" where it means nothing.
    """

    at_s: float
    priority: int
    text: str
    pci_address: str | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One moment of one node: raw values in the order of GPU_METRICS, NIC_METRICS and HOST_METRICS."""

    at_s: float
    monotonic_s: float
    gpus: tuple[tuple[int, ...], ...]
    nics: tuple[tuple[int, ...], ...]
    kernel: tuple[KernelLine, ...] = ()
    host: tuple[tuple[int, ...], ...] = ()
    """one row, or none where nothing reads the host"""

    def rows(self, scope: str) -> tuple[tuple[int, ...], ...]:
        """The rows of a kind of device."""
        return self.gpus if scope == "gpu" else self.nics if scope == "nic" else self.host


@dataclass(frozen=True, slots=True)
class GpuUser:
    """A process that holds a GPU open, and whose it is as far as the node can tell."""

    gpu: int
    pid: int
    command: str
    vram_mib: int
    pod: str = ""
    container: str = ""
    run_id: str = ""
    rank: int = -1
    inner_pid: int = 0
    """its number in its own namespace, by which a trainer calls itself"""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What does not change about a GPU while its driver is loaded."""

    index: int
    serial: str
    uuid: str
    pci_address: str
    vram_total_mib: int
    partition: str
    nic: str = ""
    """the port that shares its PCIe switch"""
    power_cap_w: int = 0
    hotspot_limit_c: int = 0
    hbm_limit_c: int = 0


@dataclass(frozen=True, slots=True)
class NicFacts:
    """What does not change about a network port."""

    index: int
    name: str
    driver: str
    rate_gbps: int
    pci_address: str = ""
    interface: str = ""
    firmware: str = ""


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
    vbios: str = ""
    kernel: str = ""
    blind: tuple[str, ...] = ()
    """what cannot be read here, a sentence each: the rest is read all the same"""


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

    What may be unknown: `start_bias` 0, `route_mismatch` NaN (share of choices unlike the rollout's, mean over ranks),
    `facts` empty (float32 [3, layers], LAYER_FACTS, means over ranks), `spread` empty. That is
    float64 [2, layers]: between this node's ranks, the sum of squares of the experts' counts about their mean, and how
    many ranks routed in the layer. The squares are told now and then only and are NaN between; where then every rank
    routed in every layer, nothing is told.
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
    expert_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    start_bias: int = 0
    route_mismatch: float = math.nan
    facts: array[float] = field(default_factory=lambda: array("f"))
    spread: array[float] = field(default_factory=lambda: array("d"))


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

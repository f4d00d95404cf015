"""A node that does not exist: eight MI300X and eight NICs with plausible physics. It says so (`simulated`) everywhere.

Power follows activity, temperature follows power with a lag, counters grow with what the devices do. Activity follows
the real step rate of the rank placed on this node, so a stopped rank looks stopped. Time comes from the caller: hours
can pass in milliseconds. A drill changes registers here and nothing else; what follows is found as it would be on
hardware.

Noise model (committed, all at the hardware's resolution): power σ = 6 W, activity σ = 1.5 %, clock σ = 12 MHz, each GPU
with a fixed offset of its own (power ± 2 %, cooling ± 6 %), drawn from the node's name; a correctable memory error in
20 hours and a PCIe replay in 10 a GPU, as healthy devices have them. A GPU whose cooling fails (the thermal drill) is
held at its limit by throttling: residency, clock and power are what that takes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from agents.readings import GPU_METRICS, NIC_METRICS, UNKNOWN, GpuFacts, KernelLine, NicFacts, NodeFacts, NodeSample

GPUS = NICS = 8
IDLE_W, FULL_W = 168.0, 712.0
AMBIENT_C, HOTSPOT_C_PER_W, LAG_S = 30.0, 0.066, 18.0
LIMIT_C, FAILED_COOLING = 105.0, 8.0
CORRECTABLE_PER_S, REPLAYS_PER_S = 1 / 72_000, 1 / 36_000
VRAM_TOTAL_MIB, VRAM_TRAIN_MIB, VRAM_IDLE_MIB = 196_592, 151_000, 283
IDLE_MHZ, BOOST_MHZ = 132.0, 2_100.0
TICKS_PER_S = 1_000
XGMI_KB_PER_S = 46_000_000
NIC_BYTES_PER_S = 38e9
ENERGY_J_PER_TICK = 15.259e-6
PCIE_SPEED_TENTHS = 320
DRILLS = (
    "hbm-uncorrectable",
    "other-uncorrectable",
    "xgmi-uncorrectable",
    "xgmi-degraded",
    "gpu-lost",
    "gpu-reset",
    "thermal",
    "smu-frozen",
    "nic-down",
    "clear",
)


LOST = (0, *[UNKNOWN] * (len(GPU_METRICS) - 1))
"""A device that does not answer: `present` is the first metric, and the only one known."""


@dataclass
class _Gpu:
    """The state of one device: slow variables, counters, and what a drill did to it."""

    power_bias: float
    cooling: float
    hotspot_c: float = AMBIENT_C + 12
    energy_j: float = 0.0
    ticks: float = 0.0
    thermal_ticks: float = 0.0
    xgmi_kb: float = 0.0
    replays: int = 0
    ecc: dict[str, int] = field(default_factory=dict)
    bad_pages: int = 0
    links_up: int = 7
    lost: bool = False
    frozen: bool = False
    hot: bool = False


@dataclass
class _Nic:
    up: bool = True
    sent_bytes: float = 0.0
    carrier_changes: int = 0


class SimulatedSource:
    """`node` seeds the noise: the same name gives the same node."""

    name = "simulated"
    simulated = True

    def __init__(self, node: str, at_s: float) -> None:
        self.node = node
        self._random = random.Random(node)
        draw = self._random.uniform
        self._gpus = [_Gpu(draw(0.98, 1.02), draw(0.94, 1.06)) for _ in range(GPUS)]
        self._nics = [_Nic() for _ in range(NICS)]
        self._kernel: list[KernelLine] = []
        self._activity = 0.0
        self._wanted = 0.0
        self._resident = False
        self._at_s = at_s

    def facts(self) -> NodeFacts:
        gpus = tuple(
            GpuFacts(i, f"SIM-{self.node}-{i}", f"sim-{self.node}-{i}", self._address(i), VRAM_TOTAL_MIB, "SPX/NPS1")
            for i in range(GPUS)
        )
        nics = tuple(NicFacts(i, f"ionic_{i}", "ionic (simulated)", 400) for i in range(NICS))
        return NodeFacts(
            self.node, "simulated", True, "MI300X (simulated)", "6.16.6 (simulated)", "24.12 (simulated)", gpus, nics
        )

    @staticmethod
    def _address(gpu: int) -> str:
        return f"0000:{0x05 + 0x20 * gpu:02x}:00.0"

    def follow(self, step_rate: float | None) -> None:
        """Any steps at all keep a training GPU busy; none, and it idles with its memory full. None: no rank is here."""
        self._wanted = 0.96 if step_rate is not None and step_rate > 0 else 0.0
        self._resident = step_rate is not None

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        elapsed = min(max(at_s - self._at_s, 0.0), 600.0)
        self._at_s = at_s
        self._activity += (self._wanted - self._activity) * (1 - math.exp(-elapsed / 1.5))
        gpus = tuple(self._read_gpu(gpu, elapsed) for gpu in self._gpus)
        nics = tuple(self._read_nic(nic, elapsed) for nic in self._nics)
        kernel, self._kernel = tuple(self._kernel), []
        return NodeSample(at_s, monotonic_s, gpus, nics, kernel)

    def _read_gpu(self, gpu: _Gpu, elapsed: float) -> tuple[int, ...]:
        noise = self._random.gauss
        activity = min(1.0, max(0.0, self._activity + (noise(0, 0.015) if self._activity > 0.05 else 0.0)))
        wanted_w = max(120.0, (IDLE_W + (FULL_W - IDLE_W) * activity) * gpu.power_bias + noise(0, 6))
        throttled = self._heat(gpu, wanted_w, elapsed)
        power = max(120.0, wanted_w * (1 - throttled))
        gpu.energy_j += power * elapsed
        if not gpu.frozen:
            gpu.ticks += TICKS_PER_S * elapsed
            gpu.thermal_ticks += throttled * TICKS_PER_S * elapsed
        gpu.xgmi_kb += XGMI_KB_PER_S * activity * elapsed * gpu.links_up / 7
        gpu.replays += self._random.random() < REPLAYS_PER_S * elapsed
        if self._random.random() < CORRECTABLE_PER_S * elapsed:
            gpu.ecc["hbm_correctable"] = gpu.ecc.get("hbm_correctable", 0) + 1
        if gpu.lost:
            return LOST
        clock = IDLE_MHZ + (BOOST_MHZ - IDLE_MHZ) * activity * (1 - throttled) + noise(0, 12) * activity
        ecc = gpu.ecc.get
        values = {
            "present": 1,
            "power_w": power,
            "energy_j": gpu.energy_j / ENERGY_J_PER_TICK,
            "temperature_hotspot_c": gpu.hotspot_c,
            "temperature_hbm_c": gpu.hotspot_c - 7 * activity - 2,
            "temperature_vr_c": gpu.hotspot_c - 4,
            "gfx_activity_percent": 100 * activity,
            "umc_activity_percent": 62 * activity,
            "gfx_clock_mhz": clock,
            "umc_clock_mhz": 1300 if activity > 0.05 else 900,
            "vram_used_mib": VRAM_TRAIN_MIB if self._resident else VRAM_IDLE_MIB,
            "vram_total_mib": VRAM_TOTAL_MIB,
            "throttle_thermal_ticks": gpu.thermal_ticks,
            "accumulation_ticks": gpu.ticks,
            "xgmi_links_up": gpu.links_up,
            "xgmi_read_kb": gpu.xgmi_kb,
            "xgmi_write_kb": gpu.xgmi_kb * 0.98,
            "pcie_width_lanes": 16,
            "pcie_speed_gtps": PCIE_SPEED_TENTHS,
            "pcie_replay_total": gpu.replays,
            "ecc_hbm_correctable_total": ecc("hbm_correctable", 0),
            "ecc_hbm_uncorrectable_total": ecc("hbm_uncorrectable", 0),
            "ecc_other_uncorrectable_total": ecc("other_uncorrectable", 0),
            "ecc_xgmi_uncorrectable_total": ecc("xgmi_uncorrectable", 0),
            "bad_pages_total": gpu.bad_pages,
            "bad_page_threshold": 128,
        }
        return tuple(int(values.get(metric.name, 0)) for metric in GPU_METRICS)

    @staticmethod
    def _heat(gpu: _Gpu, power_w: float, elapsed: float) -> float:
        """Moves the temperature towards what the power wants, at most to the limit; returns the share of time that
        the firmware throttles to stay there."""
        rise = power_w * HOTSPOT_C_PER_W * gpu.cooling * (FAILED_COOLING if gpu.hot else 1.0)
        allowed = LIMIT_C - AMBIENT_C
        gpu.hotspot_c += (AMBIENT_C + rise - gpu.hotspot_c) * (1 - math.exp(-elapsed / LAG_S))
        if gpu.hotspot_c < LIMIT_C:
            return 0.0
        gpu.hotspot_c = LIMIT_C
        return max(0.0, 1 - allowed / rise)

    def _read_nic(self, nic: _Nic, elapsed: float) -> tuple[int, ...]:
        if nic.up:
            nic.sent_bytes += NIC_BYTES_PER_S * self._activity * elapsed * self._random.uniform(0.95, 1.05)
        values = {
            "link_up": nic.up,
            "rate_gbps": 400 if nic.up else 0,
            "rx_bytes_total": nic.sent_bytes,
            "tx_bytes_total": nic.sent_bytes,
            "carrier_changes_total": nic.carrier_changes,
            "packets_total": nic.sent_bytes / 4096,
        }
        return tuple(int(values.get(metric.name, 0)) for metric in NIC_METRICS)

    def apply_drill(self, kind: str, gpu: int) -> str:
        """Changes registers of one device, as the fault named would."""
        if kind not in DRILLS:
            return f"{kind} is not a drill; there are {', '.join(DRILLS)}"
        if not 0 <= gpu < GPUS:
            return f"there is no GPU {gpu}; GPUs are 0 to {GPUS - 1}"
        device = self._gpus[gpu]
        if kind.endswith("-uncorrectable"):
            register = kind.replace("-", "_")
            device.ecc[register] = device.ecc.get(register, 0) + self._random.randint(3, 40)
            device.bad_pages += kind.startswith("hbm")
        elif kind == "xgmi-degraded":
            device.links_up = 5
        elif kind == "gpu-lost":
            device.lost = True
        elif kind == "gpu-reset":
            text = f"amdgpu {self._address(gpu)}: amdgpu: GPU reset begin!"
            self._kernel.append(KernelLine(self._at_s, 6, text, self._address(gpu)))
            device.energy_j = device.ticks = device.thermal_ticks = device.xgmi_kb = 0.0
            device.replays = 0
        elif kind == "thermal":
            device.hot = True
        elif kind == "smu-frozen":
            device.frozen = True
        elif kind == "nic-down":
            self._nics[gpu].up, self._nics[gpu].carrier_changes = False, self._nics[gpu].carrier_changes + 1
        else:
            self._repair(gpu)
        return ""

    def _repair(self, gpu: int) -> None:
        """What a reset or a replacement would do: counters start anew, links come up."""
        old = self._gpus[gpu]
        self._gpus[gpu] = _Gpu(old.power_bias, old.cooling, hotspot_c=old.hotspot_c)
        self._nics[gpu].up = True

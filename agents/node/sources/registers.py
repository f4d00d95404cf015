"""The registers of devices that do not exist: what they hold, and how they move with work, heat and time.

Power follows activity, temperature follows power with a lag, counters grow with what the devices do. All state is here
and plain, so that a drill can change it (agents/node/sources/drills.py) and nothing else need know of drills.

Noise model (committed, all at the hardware's resolution): power σ = 6 W, activity σ = 1.5 %, clock σ = 12 MHz, each GPU
with a fixed offset of its own (power ± 2 %, cooling ± 6 %); a correctable memory error in 20 hours and a PCIe replay in
10 a GPU, 8 % of packets out of order (they are sprayed), one in a million sent again, one in ten thousand marked for
congestion, as on healthy devices. A GPU whose cooling fails is held at its limit by throttling: residency, clock and
power are what that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from agents.readings import GPU_METRICS, HOST_METRICS, NIC_METRICS, UNKNOWN

GPUS = NICS = 8
IDLE_W, FULL_W, CAP_W = 168.0, 712.0, 750
AMBIENT_C, HOTSPOT_C_PER_W, LAG_S = 30.0, 0.066, 18.0
LIMIT_C, FAILED_COOLING = 105.0, 8.0
CORRECTABLE_PER_S, REPLAYS_PER_S = 1 / 72_000, 1 / 36_000
VRAM_TOTAL_MIB, VRAM_TRAIN_MIB, VRAM_IDLE_MIB = 196_592, 151_000, 283
IDLE_MHZ, BOOST_MHZ = 132.0, 2_100.0
PROCHOT_CLOCK, HUNG_W = 0.4, 250.0
TICKS_PER_S = 1_000
XGMI_KB_PER_S = 46_000_000
NIC_BYTES_PER_S, PACKET_BYTES = 38e9, 4096
ENERGY_J_PER_TICK = 15.259e-6
PCIE_LANES, PCIE_SPEED_TENTHS = 16, 320
HANG_MS = 1000.0
LOST = (0, *[UNKNOWN] * (len(GPU_METRICS) - 1))
"""A device that does not answer: `present` is the first metric, and the only one known."""
_GPU_NAMES = tuple(metric.name for metric in GPU_METRICS)
_NIC_NAMES = tuple(metric.name for metric in NIC_METRICS)
_HOST_NAMES = tuple(metric.name for metric in HOST_METRICS)


@dataclass
class Gpu:
    """The state of one device: slow variables, counters, and what a drill did to it."""

    number: int
    power_bias: float
    cooling: float
    hotspot_c: float = AMBIENT_C + 12
    energy_j: float = 0.0
    ticks: float = 0.0
    thermal_ticks: float = 0.0
    prochot_ticks: float = 0.0
    ppt_ticks: float = 0.0
    link_kb: list[float] = field(default_factory=lambda: [0.0] * GPUS)
    link_speed: list[float] = field(default_factory=lambda: [1.0] * GPUS)
    links_down: set[int] = field(default_factory=set)
    replays: int = 0
    ecc: dict[str, int] = field(default_factory=dict)
    bad_pages: int = 0
    lanes: int = PCIE_LANES
    speed_tenths: int = PCIE_SPEED_TENTHS
    correctable_per_s: float = CORRECTABLE_PER_S
    deferred_every_s: float = 0.0
    deferred_wait_s: float = 0.0
    clock_factor: float = 1.0
    cap_share: float = 0.0
    leaked_mib: int = 0
    stuck_mhz: float | None = None
    hung_call_s: float | None = None
    lost: bool = False
    frozen: bool = False
    hot: bool = False
    prochot: bool = False
    spinning: bool = False

    def count(self, register: str, errors: int) -> None:
        """Adds errors to one of the counters of the device's blocks."""
        self.ecc[register] = self.ecc.get(register, 0) + errors

    def reset(self) -> None:
        """What a reset does to counters that do not outlive it."""
        self.energy_j = self.ticks = self.thermal_ticks = self.prochot_ticks = self.ppt_ticks = 0.0
        self.link_kb = [0.0] * GPUS
        self.replays = 0

    def step(self, activity: float, resident: bool, elapsed: float, random: Random) -> tuple[int, ...]:
        """Lets time pass and reads the device; UNKNOWN where it cannot be read."""
        share = min(1.0, max(0.0, activity + (random.gauss(0, 0.015) if activity > 0.05 else 0.0)))
        share = 1.0 if self.spinning else share
        wanted_w = max(120.0, (IDLE_W + (FULL_W - IDLE_W) * share) * self.power_bias + random.gauss(0, 6))
        throttled = self._heat(wanted_w, elapsed)
        power = HUNG_W if self.spinning else max(120.0, wanted_w * (1 - throttled) * self.clock_factor)
        self.energy_j += power * elapsed
        self._count(share, throttled, elapsed, random)
        if self.hung_call_s is not None:
            self.hung_call_s += elapsed
            row = [UNKNOWN] * len(GPU_METRICS)
            row[_GPU_NAMES.index("read_ms")] = int(self.hung_call_s * 1000)
            return tuple(row)
        if self.lost:
            return LOST
        clock = IDLE_MHZ + (BOOST_MHZ * self.clock_factor - IDLE_MHZ) * share * (1 - throttled)
        clock = clock * (PROCHOT_CLOCK if self.prochot else 1.0) + random.gauss(0, 12) * share
        values = self._gauges(share, resident) | {"power_w": power, "gfx_clock_mhz": clock} | self._counters()
        if self.stuck_mhz is not None:
            values["gfx_clock_mhz"] = self.stuck_mhz
        values[f"xgmi_link_{self.number}_kb"] = UNKNOWN
        return tuple(int(values.get(name, 0)) for name in _GPU_NAMES)

    def _count(self, share: float, throttled: float, elapsed: float, random: Random) -> None:
        if not self.frozen:
            self.ticks += TICKS_PER_S * elapsed
            self.thermal_ticks += throttled * TICKS_PER_S * elapsed
            self.prochot_ticks += self.prochot * TICKS_PER_S * elapsed
            self.ppt_ticks += self.cap_share * TICKS_PER_S * elapsed
        flow = 0.0 if self.spinning else XGMI_KB_PER_S * share * elapsed / (GPUS - 1)
        for peer in range(GPUS):
            if peer != self.number and peer not in self.links_down:
                self.link_kb[peer] += flow * self.link_speed[peer]
        self.replays += random.random() < REPLAYS_PER_S * elapsed
        if random.random() < self.correctable_per_s * elapsed:
            self.count("hbm_correctable", max(1, round(self.correctable_per_s * elapsed)))
        if self.deferred_every_s:
            self.deferred_wait_s -= elapsed
            if self.deferred_wait_s <= 0:
                self.deferred_wait_s = self.deferred_every_s
                self.count("hbm_deferred", 1)

    def _gauges(self, share: float, resident: bool) -> dict[str, float]:
        mask = sum(1 << peer for peer in range(GPUS) if peer != self.number and peer not in self.links_down)
        return {
            "present": 1,
            "temperature_hotspot_c": self.hotspot_c,
            "temperature_hbm_c": self.hotspot_c - 7 * share - 2,
            "temperature_vr_c": self.hotspot_c - 4,
            "gfx_activity_percent": 100 * share,
            "umc_activity_percent": 62 * share,
            "umc_clock_mhz": 1300 if share > 0.05 else 900,
            "vram_used_mib": self.leaked_mib + (VRAM_TRAIN_MIB if resident else VRAM_IDLE_MIB),
            "vram_total_mib": VRAM_TOTAL_MIB,
            "xgmi_links_up": GPUS - 1 - len(self.links_down),
            "xgmi_up_mask": mask,
            "pcie_width_lanes": self.lanes,
            "pcie_speed_gtps": self.speed_tenths,
            "processes": int(resident),
            "bad_pages_total": self.bad_pages,
            "bad_page_threshold": 128,
            "read_ms": 1,
        }

    def _counters(self) -> dict[str, float]:
        moved = sum(self.link_kb)
        errors = {f"ecc_{name}_total": float(count) for name, count in self.ecc.items()}
        links = {f"xgmi_link_{peer}_kb": self.link_kb[peer] * 1.98 for peer in range(GPUS)}
        return (
            errors
            | links
            | {
                "energy_j": self.energy_j / ENERGY_J_PER_TICK,
                "throttle_thermal_ticks": self.thermal_ticks,
                "throttle_prochot_ticks": self.prochot_ticks,
                "throttle_ppt_ticks": self.ppt_ticks,
                "accumulation_ticks": self.ticks,
                "xgmi_read_kb": moved,
                "xgmi_write_kb": moved * 0.98,
                "pcie_replay_total": self.replays,
            }
        )

    def _heat(self, power_w: float, elapsed: float) -> float:
        """Moves the temperature towards what the power wants, at most to the limit; returns the share of time that
        the firmware throttles to stay there."""
        rise = power_w * HOTSPOT_C_PER_W * self.cooling * (FAILED_COOLING if self.hot else 1.0)
        allowed = LIMIT_C - AMBIENT_C
        self.hotspot_c += (AMBIENT_C + rise - self.hotspot_c) * (1 - math.exp(-elapsed / LAG_S))
        if self.hotspot_c < LIMIT_C:
            return 0.0
        self.hotspot_c = LIMIT_C
        return max(0.0, 1 - allowed / rise)


@dataclass
class Nic:
    """A port: what went over it, and the shares of it that went wrong."""

    up: bool = True
    sent_bytes: float = 0.0
    carrier_changes: int = 0
    retries: int = 0
    flaps_left: int = 0
    flap_wait_s: float = 0.0
    again_share: float = 1e-6
    marked_share: float = 1e-4
    disordered_share: float = 0.08
    again: float = 0.0
    marked: float = 0.0
    disordered: float = 0.0

    def step(self, activity: float, elapsed: float, random: Random) -> tuple[int, ...]:
        """Lets time pass and reads the port."""
        self._flap(elapsed)
        moved = 0.0
        if self.up:
            moved = NIC_BYTES_PER_S * activity * elapsed * random.uniform(0.95, 1.05)
        packets = moved / PACKET_BYTES
        self.sent_bytes += moved
        self.again += packets * self.again_share
        self.marked += packets * self.marked_share
        self.disordered += packets * self.disordered_share
        values = {
            "link_up": float(self.up),
            "rate_gbps": 400.0 if self.up else 0.0,
            "rx_bytes_total": self.sent_bytes,
            "tx_bytes_total": self.sent_bytes,
            "carrier_changes_total": float(self.carrier_changes),
            "packets_total": self.sent_bytes / PACKET_BYTES,
            "packets_received_total": self.sent_bytes / PACKET_BYTES,
            "retransmits_total": self.again,
            "rdma_retry_exceeded_total": float(self.retries),
            "cnp_received_total": self.marked,
            "out_of_order_total": self.disordered,
        }
        return tuple(int(values.get(name, 0)) for name in _NIC_NAMES)

    def _flap(self, elapsed: float) -> None:
        """A link that goes and comes: down for 2 s, up for 18."""
        if not self.flaps_left:
            return
        self.flap_wait_s -= elapsed
        if self.up and self.flap_wait_s <= 0:
            self.up, self.carrier_changes, self.flap_wait_s = False, self.carrier_changes + 1, 2.0
        elif not self.up and self.flap_wait_s <= 0:
            self.up, self.flap_wait_s = True, 18.0
            self.flaps_left -= 1


@dataclass
class Host:
    """The machine around the devices."""

    memory_available_mib: int = 2_050_000
    disk_free_percent: float = 62.0
    edac_correctable: int = 0
    edac_uncorrectable: int = 0
    oom_kills: int = 0
    nvme: int = 8
    clock_offset_ms: float = 0.0

    def step(self, activity: float, elapsed: float, random: Random) -> tuple[int, ...]:
        """Lets time pass and reads the host."""
        self.edac_correctable += random.random() < elapsed / 36_000
        values = {
            "memory_available_mib": self.memory_available_mib,
            "memory_total_mib": 2_321_000,
            "oom_kills_total": self.oom_kills,
            "disk_free_percent": self.disk_free_percent * 10,
            "edac_correctable_total": self.edac_correctable,
            "edac_uncorrectable_total": self.edac_uncorrectable,
            "nvme_devices": self.nvme,
            "clock_offset_ms": self.clock_offset_ms,
            "load_1m": 100 * (2 + 30 * activity),
        }
        return tuple(int(values[name]) for name in _HOST_NAMES)

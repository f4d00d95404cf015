"""A node that does not exist: eight MI300X and eight NICs with plausible physics. It says so (`simulated`) everywhere.

Activity follows the real step rate of the rank placed on this node, so a stopped rank looks stopped. Time comes from
the caller: hours can pass in milliseconds. A drill changes registers (agents/node/sources/drills.py) and nothing else;
what follows is found as it would be on hardware.
"""

from __future__ import annotations

import math
import random

from agents.node.sources import drills
from agents.node.sources.base import Quality
from agents.node.sources.drills import Registers
from agents.node.sources.registers import CAP_W, GPUS, NICS, VRAM_TOTAL_MIB
from agents.readings import GpuFacts, GpuUser, KernelLine, NicFacts, NodeFacts, NodeSample
from agents.rules import kernel

DRIVER, FIRMWARE, VBIOS = "6.16.6 (simulated)", "24.12 (simulated)", "113-M3000100-102 (simulated)"
OTHER_DRIVER = "6.14.14 (simulated)"
LINES = 200
"""Kernel lines that are kept for a look that comes late."""


class SimulatedSource:
    """`node` seeds the noise: the same name gives the same node."""

    name = "simulated"
    simulated = True

    def __init__(self, node: str, at_s: float) -> None:
        self.node = node
        self._random = random.Random(node)
        self.registers = Registers(self._random)
        self._activity = 0.0
        self._wanted = 0.0
        self._resident = False
        self._at_s = self._begun_s = at_s
        self._devices = {drills.address(at): drills.address(at) for at in range(GPUS)}
        self._devices |= {drills.nic_address(at): drills.nic_address(at) for at in range(NICS)}

    def facts(self) -> NodeFacts:
        partition, driver = "SPX/NPS1", OTHER_DRIVER if self.registers.drifted else DRIVER
        gpus = tuple(
            GpuFacts(
                index=at,
                serial=f"SIM-{self.node}-{at}",
                uuid=f"sim-{self.node}-{at}",
                pci_address=drills.address(at),
                vram_total_mib=VRAM_TOTAL_MIB,
                partition=partition,
                nic=f"ionic_{at}",
                power_cap_w=CAP_W,
                hotspot_limit_c=110,
                hbm_limit_c=105,
            )
            for at in range(GPUS)
        )
        nics = tuple(
            NicFacts(
                at, f"ionic_{at}", "ionic (simulated)", 400, drills.nic_address(at), f"enp{at}s0np0", "1.117.5-a-56"
            )
            for at in range(NICS)
        )
        model = "MI300X (simulated)"
        return NodeFacts(self.node, "simulated", True, model, driver, FIRMWARE, gpus, nics, VBIOS, "6.8.0 (simulated)")

    def follow(self, step_rate: float | None) -> None:
        """Any steps at all keep a training GPU busy; none, and it idles with its memory full. None: no rank is here."""
        self._wanted = 0.96 if step_rate is not None and step_rate > 0 else 0.0
        self._resident = step_rate is not None

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        elapsed = min(max(at_s - self._at_s, 0.0), 600.0)
        self._at_s = at_s
        self._activity += (self._wanted - self._activity) * (1 - math.exp(-elapsed / 1.5))
        held, activity, draw = self.registers, self._activity, self._random
        gpus = tuple(gpu.step(activity, self._resident, elapsed, draw) for gpu in held.gpus)
        nics = tuple(nic.step(activity, elapsed, draw) for nic in held.nics)
        return NodeSample(at_s, monotonic_s, gpus, nics, self.lines(), (held.host.step(activity, elapsed, draw),))

    def lines(self) -> tuple[KernelLine, ...]:
        """What the kernel and the firmware have printed since the last look, classified as a real one's would be."""
        said, self.registers.said = self.registers.said[:LINES], []
        return tuple(
            KernelLine(
                self._at_s, priority, text, kernel.device_of(text, self._devices), kind or kernel.table().kind_of(text)
            )
            for priority, text, kind in said
        )

    def users(self) -> tuple[GpuUser, ...]:
        """The simulated ranks: nothing is known of them but that they are there."""
        if not self._resident:
            return ()
        return tuple(GpuUser(at, 0, "python (simulated)", 150_700) for at in range(GPUS))

    def wakes(self) -> tuple[int, ...]:
        """None: its lines come with the samples."""
        return ()

    def driver_load(self) -> str:
        """Each start of the simulation: its counters begin at zero."""
        return f"simulated-{self._begun_s}"

    def quality(self) -> Quality:
        """Nothing fails here."""
        return Quality()

    def marks(self) -> dict[str, int]:
        """None: a simulated node has no log but its own."""
        return {}

    def close(self) -> None:
        """Nothing is held open."""

    def apply_drill(self, kind: str, gpu: int) -> str:
        """Changes registers of one device, as the fault named would."""
        return drills.apply(self.registers, kind, gpu)

"""The fault drills: what a person may ask of a node that does not exist, and the rule that must find it.

A drill changes registers of a simulated device, or has its driver say something, and nothing else; no later code can
tell it from a fault. A node that exists refuses all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DrillKind:
    """One drill: the rule that must find it ("" for the repair of all), what it does, in words, and to what.

    `part`: gpu, nic (the port beside the GPU of that number) or host (whatever the number).
    """

    rule: str
    title: str
    part: Literal["gpu", "nic", "host"] = "gpu"


DRILLS: dict[str, DrillKind] = {
    "gpu-lost": DrillKind("gpu-lost", "the GPU no longer answers"),
    "gpu-gone": DrillKind("gpu-gone", "the GPU leaves the bus"),
    "gpu-reset": DrillKind("gpu-reset", "the driver resets the GPU"),
    "hbm-uncorrectable": DrillKind("hbm-uncorrectable", "uncorrectable memory errors"),
    "hbm-poison": DrillKind("hbm-poison", "poisoned memory is used"),
    "hbm-failed": DrillKind("hbm-failed", "the firmware says that the memory has failed"),
    "hbm-deferred": DrillKind("hbm-deferred", "a deferred memory error"),
    "hbm-deferred-often": DrillKind("hbm-deferred-often", "a deferred memory error each 70 s"),
    "hbm-poison-created": DrillKind("hbm-deferred-told", "poison is created, nobody uses it"),
    "hbm-correctable": DrillKind("hbm-correctable", "180 correctable memory errors an hour"),
    "bad-pages-half": DrillKind("bad-pages-half", "half of the spare memory pages are used"),
    "bad-pages-near": DrillKind("bad-pages-near", "nine tenths of the spare memory pages are used"),
    "bad-pages-full": DrillKind("bad-pages-full", "all spare memory pages are used"),
    "other-uncorrectable": DrillKind("other-uncorrectable", "uncorrectable errors elsewhere on the GPU"),
    "hardware-assertion": DrillKind("other-told", "a hardware assertion in the firmware's log"),
    "xgmi-uncorrectable": DrillKind("xgmi-uncorrectable", "uncorrectable errors on an XGMI link"),
    "xgmi-failed": DrillKind("xgmi-told", "the firmware says that an XGMI link has failed"),
    "xgmi-degraded": DrillKind("xgmi-degraded", "two XGMI links go down"),
    "xgmi-slow": DrillKind("xgmi-slow", "one XGMI link carries a third"),
    "pcie-width": DrillKind("pcie-width", "the PCIe link loses half of its lanes"),
    "pcie-speed": DrillKind("pcie-speed", "the PCIe link runs at half its speed"),
    "pcie-fatal": DrillKind("pcie-fatal", "a fatal PCIe error"),
    "thermal": DrillKind("thermal", "the cooling fails"),
    "prochot": DrillKind("thermal-prochot", "the processor-hot signal holds the clock down"),
    "clock-stuck": DrillKind("clock-stuck", "the clock stays at idle under load"),
    "gpu-hang": DrillKind("gpu-hang", "the GPU spins; found once its trainer is silent too"),
    "page-fault": DrillKind("page-fault", "a program's page fault"),
    "ring-timeout": DrillKind("page-fault", "a ring of the GPU times out"),
    "smu-frozen": DrillKind("smu-frozen", "the firmware's counters stand still"),
    "smu-hang": DrillKind("smu-hang", "the firmware does not answer its driver"),
    "call-hung": DrillKind("call-hung", "a read of the GPU never returns"),
    "vram-leak": DrillKind("vram-leak", "4 GiB stay in use; found once no process is left"),
    "power-cap": DrillKind("power-cap", "power capping unlike the job's other GPUs"),
    "straggler": DrillKind("straggler", "a clock of 80 % unlike the job's other GPUs"),
    "drift": DrillKind("drift", "another driver version than the job's other nodes", "host"),
    "nic-down": DrillKind("nic-down", "the port beside the GPU loses its link", "nic"),
    "nic-flap": DrillKind("nic-flap", "that port's link goes and comes three times", "nic"),
    "rdma-retry": DrillKind("rdma-retry", "that port gives up on transfers", "nic"),
    "retransmits": DrillKind("nic-retransmits", "that port sends 0.03 % of its packets again", "nic"),
    "retransmits-severe": DrillKind("nic-retransmits-severe", "that port sends 2 % of its packets again", "nic"),
    "congestion": DrillKind("nic-congestion", "2 % of that port's packets tell of congestion", "nic"),
    "out-of-order": DrillKind("nic-out-of-order", "60 % of that port's packets are out of order", "nic"),
    "host-mce": DrillKind("host-mce", "a machine check of the host", "host"),
    "host-memory": DrillKind("host-memory", "an uncorrectable error of the host's memory", "host"),
    "host-lockup": DrillKind("host-lockup", "the host's kernel locks up", "host"),
    "host-nvme": DrillKind("host-nvme", "an NVMe device does not answer", "host"),
    "host-nvme-missing": DrillKind("host-nvme-missing", "an NVMe device is missing", "host"),
    "host-oom": DrillKind("host-oom", "the host runs out of memory", "host"),
    "host-disk": DrillKind("host-disk", "a file system is nearly full", "host"),
    "host-clock": DrillKind("host-clock", "the host's clock is wrong", "host"),
    "clear": DrillKind("", "end all drills of this GPU, its port and its host"),
}
"""`page-fault` and `gpu-reset` once more make the rules on what comes again fire."""


def told(kind: str, number: int) -> str:
    """A drill and where it acts: hbm-uncorrectable on GPU 3, nic-down on NIC 3, host-oom. One not known is its name."""
    part = DRILLS[kind].part if kind in DRILLS else "host"
    return kind if part == "host" else f"{kind} on {part.upper()} {number}"

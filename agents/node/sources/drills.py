"""What each drill does to the registers of a simulated node, or has its kernel say: one line a drill.

The names, and the rules that must follow, stand in agents/drills.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from agents.node.sources.registers import GPUS, NICS, Gpu, Host, Nic


def address(gpu: int) -> str:
    """The PCI address of a simulated GPU."""
    return f"0000:{0x05 + 0x20 * gpu:02x}:00.0"


def nic_address(nic: int) -> str:
    """The PCI address of a simulated port, on the same switch as its GPU."""
    return f"0000:{0x06 + 0x20 * nic:02x}:00.0"


@dataclass
class Registers:
    """Everything that a simulated node holds; `said` is what its kernel and firmware have printed since the last look.

    A line is (priority, text, kind): the kind of a record of the firmware's own log, "" for a line of the kernel's.
    """

    random: Random
    gpus: list[Gpu] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=lambda: [Nic() for _ in range(NICS)])
    host: Host = field(default_factory=Host)
    said: list[tuple[int, str, str]] = field(default_factory=list)
    drifted: bool = False

    def __post_init__(self) -> None:
        draw = self.random.uniform
        self.gpus = self.gpus or [Gpu(at, draw(0.98, 1.02), draw(0.94, 1.06)) for at in range(GPUS)]

    def line(self, gpu: int, text: str, priority: int = 6) -> None:
        """The driver of a GPU prints something."""
        self.said.append((priority, f"amdgpu {address(gpu)}: amdgpu: {text}", ""))

    def record(self, gpu: int, afid: int) -> None:
        """The firmware of a GPU files an error record with an AMD field identifier."""
        self.said.append((3, f"CPER of {address(gpu)}: AFID {afid}", f"afid-{afid}"))

    def repair(self, number: int) -> None:
        """What a reset or a replacement would do: counters start anew, links come up, the host is well."""
        old = self.gpus[number]
        self.gpus[number] = Gpu(number, old.power_bias, old.cooling, hotspot_c=old.hotspot_c)
        nic = self.nics[number]
        self.nics[number] = Nic(sent_bytes=nic.sent_bytes, carrier_changes=nic.carrier_changes, retries=nic.retries)
        self.nics[number].again, self.nics[number].marked = nic.again, nic.marked
        self.nics[number].disordered = nic.disordered
        self.host = Host(oom_kills=self.host.oom_kills)
        self.drifted = False


def _set(part: str, **values: object) -> Callable[[Registers, int], None]:
    """A drill that sets fields of a GPU, of its port or of the host."""

    def change(node: Registers, number: int) -> None:
        target: object = node.host if part == "host" else (node.gpus if part == "gpu" else node.nics)[number]
        for name, value in values.items():
            setattr(target, name, value)

    return change


def _count(register: str, most: int = 40) -> Callable[[Registers, int], None]:
    """A drill that makes a counter of errors grow."""

    def change(node: Registers, number: int) -> None:
        gpu = node.gpus[number]
        gpu.count(register, node.random.randint(3, most) if most > 1 else 1)
        gpu.bad_pages += register == "hbm_uncorrectable"

    return change


def _say(text: str, priority: int = 6) -> Callable[[Registers, int], None]:
    """A drill in which the driver of the GPU prints a line."""
    return lambda node, number: node.line(number, text, priority)


def _host_says(text: str, priority: int = 0) -> Callable[[Registers, int], None]:
    return lambda node, _number: node.said.append((priority, text, ""))


def _record(afid: int) -> Callable[[Registers, int], None]:
    return lambda node, number: node.record(number, afid)


def _reset(node: Registers, number: int) -> None:
    node.line(number, "GPU reset begin!. Source:  3")
    node.gpus[number].reset()


def _peer(number: int) -> int:
    return (number + 1) % GPUS


def _links_down(node: Registers, number: int) -> None:
    node.gpus[number].links_down = {_peer(number), _peer(number + 1)}


def _link_slow(node: Registers, number: int) -> None:
    node.gpus[number].link_speed[_peer(number)] = 0.3


def _nic_down(node: Registers, number: int) -> None:
    nic = node.nics[number]
    nic.up, nic.carrier_changes = False, nic.carrier_changes + 1


def _retry(node: Registers, number: int) -> None:
    node.nics[number].retries += 2


def _fatal(node: Registers, number: int) -> None:
    text = f"pcieport 0000:00:01.1: AER: Uncorrectable (Fatal) error message received from {address(number)}"
    node.said.append((3, text, ""))


def _drift(node: Registers, _number: int) -> None:
    node.drifted = True


def _one_less(node: Registers, _number: int) -> None:
    node.host.nvme -= 1


def _host_error(node: Registers, _number: int) -> None:
    node.host.edac_uncorrectable += 1


def _oom(node: Registers, _number: int) -> None:
    node.host.oom_kills += 1


CHANGES: dict[str, Callable[[Registers, int], None]] = {
    "gpu-lost": _set("gpu", lost=True),
    "gpu-gone": _say("device lost from bus!", 3),
    "gpu-reset": _reset,
    "hbm-uncorrectable": _count("hbm_uncorrectable"),
    "hbm-poison": _say("{9}RAS poison consumption, fall back to gpu reset flow: client id 27", 4),
    "hbm-failed": _record(20),
    "hbm-deferred": _count("hbm_deferred", 1),
    "hbm-deferred-often": _set("gpu", deferred_every_s=70.0),
    "hbm-poison-created": _say("{7} RAS poison is created, no user action is needed."),
    "hbm-correctable": _set("gpu", correctable_per_s=0.05),
    "bad-pages-half": _set("gpu", bad_pages=64),
    "bad-pages-near": _set("gpu", bad_pages=116),
    "bad-pages-full": _set("gpu", bad_pages=128),
    "other-uncorrectable": _count("other_uncorrectable"),
    "hardware-assertion": _record(26),
    "xgmi-uncorrectable": _count("xgmi_uncorrectable"),
    "xgmi-failed": _record(16),
    "xgmi-degraded": _links_down,
    "xgmi-slow": _link_slow,
    "pcie-width": _set("gpu", lanes=8),
    "pcie-speed": _set("gpu", speed_tenths=160),
    "pcie-fatal": _fatal,
    "thermal": _set("gpu", hot=True),
    "prochot": _set("gpu", prochot=True),
    "clock-stuck": _set("gpu", stuck_mhz=132.0),
    "gpu-hang": _set("gpu", spinning=True),
    "page-fault": _say("[gfxhub0] no-retry page fault (src_id:0 ring:40 vmid:8 pasid:32776, for process python)", 3),
    "ring-timeout": _say("ring sdma0 timeout, signaled seq=11425, emitted seq=11427", 3),
    "smu-frozen": _set("gpu", frozen=True),
    "smu-hang": _say("SMU: I'm not done with your previous command: SMN_C2PMSG_66:0x0000001B", 3),
    "call-hung": _set("gpu", hung_call_s=0.0),
    "vram-leak": _set("gpu", leaked_mib=4096),
    "power-cap": _set("gpu", cap_share=0.4),
    "straggler": _set("gpu", clock_factor=0.8),
    "drift": _drift,
    "nic-down": _nic_down,
    "nic-flap": _set("nic", flaps_left=3, flap_wait_s=0.0),
    "rdma-retry": _retry,
    "retransmits": _set("nic", again_share=3e-4),
    "retransmits-severe": _set("nic", again_share=2e-2),
    "congestion": _set("nic", marked_share=2e-2),
    "out-of-order": _set("nic", disordered_share=0.6),
    "host-mce": _host_says("mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 4: b200000000070f0f"),
    "host-memory": _host_error,
    "host-lockup": _host_says("watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [kworker/3:1:1042]"),
    "host-nvme": _host_says("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff", 4),
    "host-nvme-missing": _one_less,
    "host-oom": _oom,
    "host-disk": _set("host", disk_free_percent=2.0),
    "host-clock": _set("host", clock_offset_ms=900.0),
    "clear": Registers.repair,
}


def apply(node: Registers, kind: str, number: int) -> str:
    """Does what a drill does to a node; "" or why not."""
    change = CHANGES.get(kind)
    if change is None:
        return f"{kind} is not a drill; there are {', '.join(CHANGES)}"
    if not 0 <= number < GPUS:
        return f"there is no GPU {number}; GPUs are 0 to {GPUS - 1}"
    change(node, number)
    return ""

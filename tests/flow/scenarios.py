"""What is done to a node for each rule of the fault table, and what is just not enough. Used by test_scenarios.

Everything is done to registers, or said by the kernel, behind the stand-in of AMD's library and real file formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agents.stub.node import StubNode

GPU = 3
Act = Callable[[StubNode, int], None]
"""Called before each second, with the seconds since the scenario began."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A rule, what makes it fire within `most` seconds and not before `least`, what is just below, how it is undone.

    `stops`: the trainer is gone when it begins. `silent`: the trainer's heartbeat is old. `clear_s`: how long after the
    repair it may take to be over.
    """

    rule: str
    act: Act
    below: Act
    least: int = 1
    most: int = 2
    stops: bool = False
    silent: bool = False
    clear_s: int = 1_300
    quiet_s: int = 0
    """how long `below` is watched, where a window is longer than what the rule needs"""


def drill(kind: str) -> Act:
    """A drill when the scenario begins."""

    def act(node: StubNode, second: int) -> None:
        if second == 0:
            assert node.drill(kind, GPU) == ""

    return act


def repeated(kind: str, *at: int) -> Act:
    """A drill at each of these seconds."""

    def act(node: StubNode, second: int) -> None:
        if second in at:
            assert node.drill(kind, GPU) == ""

    return act


def registers(until: int | None = None, nic: bool = False, host: bool = False, **values: object) -> Act:
    """Fields of the GPU, its port or the host set; with `until`, put back at that second."""

    def act(node: StubNode, second: int) -> None:
        held = node.source.registers
        target: object = held.host if host else (held.nics if nic else held.gpus)[GPU]
        if second == 0:
            for name, value in values.items():
                setattr(target, name, value)
        elif until is not None and second == until:
            node.drill("clear", GPU)

    return act


def counted(register: str, errors: int) -> Act:
    def act(node: StubNode, second: int) -> None:
        if second == 0:
            node.source.registers.gpus[GPU].count(register, errors)

    return act


def said(text: str, priority: int = 6, facility: int = 0) -> Act:
    """The kernel prints a line once; `{gpu}` is the device's address."""

    def act(node: StubNode, second: int) -> None:
        if second == 0:
            node.say(priority, text.format(gpu=node.facts.gpus[GPU].pci_address), facility)

    return act


def record(afid: int) -> Act:
    def act(node: StubNode, second: int) -> None:
        if second == 0:
            node.source.registers.record(GPU, afid)

    return act


def _host(name: str, by: int) -> Act:
    def act(node: StubNode, second: int) -> None:
        if second == 0:
            host = node.source.registers.host
            setattr(host, name, getattr(host, name) + by)

    return act


def _links(speed: float) -> Act:
    def act(node: StubNode, second: int) -> None:
        node.source.registers.gpus[GPU].link_speed[4] = speed

    return act


NOTHING_OF_IT = said("amdgpu {gpu}: amdgpu: 0 uncorrectable hardware errors detected in umc block")
A_PROGRAM_SAYS_SO = said("amdgpu {gpu}: amdgpu: GPU reset begin!. Source:  3", facility=1)
PORT = "pcieport 0000:64:01.0"
"""The port above the GPU: what it says is said of the GPU."""

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("gpu-lost", drill("gpu-lost"), registers(2, lost=True), 3, 4),
    Scenario(
        "gpu-gone", said(f"{PORT}: pciehp: Slot(21): Card not present"), said(f"{PORT}: pciehp: Slot(21): Card present")
    ),
    Scenario("gpu-lost-again", repeated("gpu-gone", 0, 310), repeated("gpu-gone", 0, 200), 310, 312),
    Scenario("gpu-reset", drill("gpu-reset"), A_PROGRAM_SAYS_SO),
    Scenario("gpu-reset-again", repeated("gpu-reset", 0, 70), repeated("gpu-reset", 0, 30), 70, 72),
    Scenario("hbm-uncorrectable", drill("hbm-uncorrectable"), counted("hbm_correctable", 40)),
    Scenario("hbm-poison", drill("hbm-poison"), NOTHING_OF_IT),
    Scenario("hbm-failed", record(21), record(19), most=4),
    Scenario("other-uncorrectable", drill("other-uncorrectable"), counted("other_correctable", 40)),
    Scenario("other-told", record(30), record(28), most=4),
    Scenario("other-again", repeated("hardware-assertion", 0, 910), repeated("hardware-assertion", 0, 600), 910, 914),
    Scenario("hbm-deferred", drill("hbm-deferred"), counted("hbm_correctable", 3)),
    Scenario("hbm-deferred-told", drill("hbm-poison-created"), said("amdgpu {gpu}: amdgpu: RAS poison is supported")),
    Scenario("hbm-deferred-often", drill("hbm-deferred-often"), repeated("hbm-deferred", 0, 70), 141, 142, quiet_s=300),
    Scenario(
        *("hbm-correctable", drill("hbm-correctable"), registers(correctable_per_s=0.02)),
        least=10_000,
        most=11_600,
        clear_s=3_900,
        quiet_s=11_600,
    ),
    Scenario("bad-pages-half", drill("bad-pages-half"), registers(bad_pages=63), most=62),
    Scenario("bad-pages-near", drill("bad-pages-near"), registers(bad_pages=115), most=62),
    Scenario("bad-pages-full", drill("bad-pages-full"), registers(bad_pages=127), most=62),
    Scenario("xgmi-uncorrectable", drill("xgmi-uncorrectable"), counted("xgmi_correctable", 40)),
    Scenario("xgmi-told", record(18), record(17), most=4),
    Scenario("xgmi-degraded", drill("xgmi-degraded"), registers(2, links_down={4}), 3, 4),
    Scenario("xgmi-slow", drill("xgmi-slow"), _links(0.6), 10, 31, quiet_s=60),
    Scenario("pcie-width", drill("pcie-width"), registers(4, lanes=8), 5, 6),
    Scenario("pcie-speed", drill("pcie-speed"), registers(4, speed_tenths=160), 5, 6),
    Scenario(
        "pcie-fatal",
        drill("pcie-fatal"),
        said(f"{PORT}: AER: Uncorrectable (Non-Fatal) error message received from {{gpu}}"),
    ),
    Scenario("thermal", drill("thermal"), registers(cooling=1.66), 3, 61, quiet_s=120),
    Scenario("thermal-severe", drill("thermal"), registers(cooling=1.9), 60, 301, quiet_s=400),
    Scenario("thermal-prochot", drill("prochot"), registers(prochot=True, stuck_mhz=1_200.0), 10, 12, quiet_s=60),
    Scenario("clock-stuck", drill("clock-stuck"), registers(stuck_mhz=320.0), 60, 62, quiet_s=90),
    Scenario("gpu-hang", drill("gpu-hang"), registers(spinning=False), 60, 62, silent=True, quiet_s=90),
    Scenario("page-fault", drill("page-fault"), said("amdgpu {gpu}: amdgpu: [gfxhub0] retry page fault (src_id:0)")),
    Scenario("smu-frozen", drill("smu-frozen"), registers(2, frozen=True), 3, 4),
    Scenario("smu-hang", drill("smu-hang"), said("amdgpu {gpu}: amdgpu: SMU is initialized successfully!")),
    Scenario("call-hung", drill("call-hung"), registers(8, hung_call_s=0.0), 10, 13),
    Scenario("vram-leak", drill("vram-leak"), registers(leaked_mib=1_500), 60, 68, stops=True, quiet_s=90),
    Scenario("nic-down", drill("nic-down"), registers(nic=True, again_share=1e-5)),
    Scenario("nic-down-long", drill("nic-down"), registers(9, nic=True, up=False), 9, 11),
    Scenario("nic-flap", drill("nic-flap"), registers(nic=True, flaps_left=2), 38, 46, clear_s=2_200, quiet_s=90),
    Scenario("rdma-retry", drill("rdma-retry"), registers(nic=True, again_share=1e-5), 29, 32),
    Scenario("nic-retransmits", drill("retransmits"), registers(nic=True, again_share=5e-5), 60, 301),
    Scenario(
        "nic-retransmits-severe", drill("retransmits-severe"), registers(nic=True, again_share=5e-3), 20, 62, quiet_s=90
    ),
    Scenario("nic-congestion", drill("congestion"), registers(nic=True, marked_share=5e-3), 60, 301),
    Scenario(
        "nic-out-of-order", drill("out-of-order"), registers(nic=True, disordered_share=0.45), 60, 301, quiet_s=400
    ),
    Scenario("host-mce", drill("host-mce"), said("mce: [Hardware Error]: Machine check events logged", 6)),
    Scenario("host-memory", drill("host-memory"), _host("edac_correctable", 50), most=7),
    Scenario("host-lockup", drill("host-lockup"), said("INFO: task kworker/u5:2:4711 blocked for more than 120 s.", 3)),
    Scenario("host-nvme", drill("host-nvme"), said("nvme nvme0: 128/0/0 default/read/poll queues")),
    Scenario("host-nvme-missing", drill("host-nvme-missing"), registers(5, host=True, nvme=7), 10, 17),
    Scenario("host-oom", drill("host-oom"), registers(host=True, memory_available_mib=900), most=7),
    Scenario("host-disk", drill("host-disk"), registers(host=True, disk_free_percent=5.5), 30, 37, quiet_s=60),
    Scenario("host-clock", drill("host-clock"), registers(host=True, clock_offset_ms=450.0), 60, 67, quiet_s=90),
)
"""One a rule of agents/rules/faults.toml but `page-fault-again`, which needs two jobs."""

"""A node that does not exist, below a folder: what AMD's library answers, and the trees that the kernel would show.

The registers are those of the simulated source; here they are written where the real agent reads, so that every byte
goes through the real `amdsmi` package and the real file formats. A drill that the agent was asked for lies beside the
library's state, and is done with the next beat.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from agents.node.sources import drills
from agents.node.sources.registers import GPUS
from agents.node.sources.simulated import VBIOS, SimulatedSource
from agents.readings import HOST_INDEX, NIC_INDEX, KernelLine, NodeSample
from agents.stub import library, state

VERSION = (26, 0, 2)
KFD_NUMBERS = tuple(40_000 + at for at in range(GPUS))
TRAINER_PID = 4711
PACKETS = os.O_DIRECT if hasattr(os, "O_DIRECT") else 0


def use(package: Path, cache: Path, at: Path) -> None:
    """Makes this process's `amdsmi` the one in the folder `package`, over a stand-in that answers from below `at`."""
    os.environ["ROCM_PATH"] = str(library.build(package, cache))
    os.environ["TRIMTAB_STUB_STATE"] = str(at / "state")
    if str(package.parent) not in sys.path:
        sys.path.append(str(package.parent))


class StubNode:
    """The keeper of one such node. `use` comes first; `beat` lets time pass and writes everything."""

    def __init__(self, at: Path, name: str, at_s: float = 0.0) -> None:
        self.at, self.name, self.tree = at, name, at / "host"
        self.tree.mkdir(parents=True, exist_ok=True)
        self.source = SimulatedSource(name, at_s)
        self.facts = self.source.facts()
        self.state = state.State(at / "state")
        self.records: dict[int, list[int]] = {gpu: [] for gpu in range(GPUS)}
        self.disk_free_tenths, self.clock_ms = 620, 0
        self._sequence, self._at_s = 0, at_s
        self._written: dict[str, str] = {}
        self._files: dict[str, int] = {}
        self._say_library()
        self._wrapper: Any = importlib.import_module("amdsmi.amdsmi_wrapper")
        self._say_identity()
        self._make_trees()
        self._log = self._open_log()
        self.beat(at_s)

    def _say_library(self) -> None:
        """Before the package is there its structures cannot be made; the few answers of its import need none."""
        self.state.put(state.Answer("amdsmi_init"))
        self.state.write()

    def _say_identity(self) -> None:
        for answer in state.of_library(self._wrapper, GPUS, VERSION):
            self.state.put(answer)
        for gpu in self.facts.gpus:
            for answer in state.of_identity(self._wrapper, gpu, KFD_NUMBERS[gpu.index], self.facts.driver, VBIOS):
                self.state.put(answer)
            self.state.put(state.of_records(self._wrapper, gpu.index, self.records[gpu.index]))

    # --- the trees ---------------------------------------------------------------------------------------------------

    def put(self, name: str, text: str) -> None:
        """A small file of the host's, if it changed."""
        if self._written.get(name) == text:
            return
        if name not in self._files:
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        body = f"{text}\n".encode()
        os.pwrite(self._files[name], body, 0)
        os.ftruncate(self._files[name], len(body))
        self._written[name] = text

    def _link(self, name: str, to: str) -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(os.path.relpath(self.tree / to, path.parent))

    def _make_trees(self) -> None:
        for nic in self.facts.nics:
            at = nic.index
            bus = 0x04 + 0x20 * at  # one switch, with a port for the GPU and one for its NIC
            switch = f"sys/devices/pci0000:{at:02x}/0000:{bus - 1:02x}:00.0"
            for port, address in ((1, drills.address(at)), (2, drills.nic_address(at))):
                place = f"{switch}/0000:{bus:02x}:{port:02x}.0/{address}"
                self.put(f"{place}/vendor", "0x1002" if port == 1 else "0x1dd8")
                self._link(f"sys/bus/pci/devices/{address}", place)
            device = f"{switch}/0000:{bus:02x}:02.0/{nic.pci_address}"
            self._link(f"sys/class/infiniband/{nic.name}/device", device)
            self.put(f"sys/class/infiniband/{nic.name}/fw_ver", nic.firmware)
            self.put(f"{device}/net/{nic.interface}/speed", "400000")
            (self.tree / "sys/bus/pci/drivers/ionic").mkdir(parents=True, exist_ok=True)
            self._link(f"{device}/driver", "sys/bus/pci/drivers/ionic")
        self.put("proc/sys/kernel/osrelease", self.facts.kernel)
        (self.tree / "sys/class/kfd/kfd/proc").mkdir(parents=True, exist_ok=True)
        self.put("dev/kfd", "")

    def _open_log(self) -> int:
        """The kernel log: a pipe in which each write is a record of its own."""
        path = self.tree / "dev/kmsg"
        if not path.exists():
            os.mkfifo(path)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | PACKETS)
        return descriptor

    def say(self, priority: int, text: str, facility: int = 0) -> None:
        """The kernel, or with another facility a program, prints a line."""
        self._sequence += 1
        passed_s = self._at_s - (time.time() - time.monotonic())  # since boot, at the time that the node has
        micros = int((passed_s if passed_s > 0 else time.monotonic()) * 1e6)
        record = f"{facility << 3 | priority},{self._sequence},{micros},-;{text}\n"
        os.write(self._log, record.encode())

    # --- time --------------------------------------------------------------------------------------------------------

    def beat(self, at_s: float) -> NodeSample:
        """Lets time pass to `at_s`; everything that is read from outside is then as the registers are."""
        self._at_s = at_s
        self._asked_drills()
        self._load_driver()
        sample = self.source.sample(at_s, at_s)
        for number, row in enumerate(sample.gpus):
            for answer in state.of_row(self._wrapper, row, number, GPUS):
                self.state.put(answer)
        for line in sample.kernel:
            self._print(line)
        self.state.write()
        for number, row in enumerate(sample.nics):
            self._put_port(number, row)
        self._put_host(sample.host[0])
        self._put_trainer()
        return sample

    def _load_driver(self) -> None:
        """Another driver than before is loaded anew, and its device node with it."""
        facts = self.source.facts()
        if facts.driver == self.facts.driver:
            return
        self.facts = facts
        self._say_identity()
        os.close(self._files.pop("dev/kfd"))
        del self._written["dev/kfd"]
        (self.tree / "dev/kfd").unlink()
        self.put("dev/kfd", "")

    def _print(self, line: KernelLine) -> None:
        gpu = next((one.index for one in self.facts.gpus if one.pci_address == line.pci_address), 0)
        if line.kind.startswith("afid-"):
            self.records[gpu].append(int(line.kind.removeprefix("afid-")))
            self.state.put(state.of_records(self._wrapper, gpu, self.records[gpu]))
        else:
            self.say(line.priority, line.text)

    def drill(self, kind: str, number: int) -> str:
        """Changes registers, as a drill of a simulated node does; seen with the next beat."""
        return self.source.apply_drill(kind, number)

    def _asked_drills(self) -> None:
        """Drills that the agent left beside the library's state."""
        asked = Path(f"{self.state.path}.drills")
        if asked.exists():
            lines = asked.read_text().splitlines()
            asked.unlink()
            for line in lines:
                kind, _, number = line.partition(" ")
                self.drill(kind, int(number))

    def _put_port(self, number: int, row: tuple[int, ...]) -> None:
        nic = self.facts.nics[number]
        port, up = f"sys/class/infiniband/{nic.name}/ports/1", bool(row[NIC_INDEX["link_up"]])
        self.put(f"{port}/state", "4: ACTIVE" if up else "1: DOWN")
        self.put(f"{port}/phys_state", "5: LinkUp" if up else "3: Disabled")
        self.put(f"{port}/rate", "400 Gb/sec (4X NDR)")
        interface = f"sys/class/infiniband/{nic.name}/device/net/{nic.interface}"
        self.put(f"{interface}/carrier", str(int(up)))
        self.put(f"{interface}/carrier_down_count", str(row[NIC_INDEX["carrier_changes_total"]]))
        for metric, name in _COUNTERS.items():
            self.put(f"{port}/hw_counters/{name}", str(row[NIC_INDEX[metric]]))

    def _put_host(self, row: tuple[int, ...]) -> None:
        values = {name: row[at] for name, at in HOST_INDEX.items()}
        memory = {"MemTotal": "memory_total_mib", "MemAvailable": "memory_available_mib"}
        lines = [f"{name}: {values[metric] << 10:>12} kB" for name, metric in memory.items()]
        self.put("proc/meminfo", "\n".join(lines))
        self.put("proc/vmstat", f"pgfault 12345\noom_kill {values['oom_kills_total']}")
        self.put("proc/loadavg", f"{values['load_1m'] / 100:.2f} 1.00 1.00 2/2048 99")
        self.put("sys/devices/system/edac/mc/mc0/ce_count", str(values["edac_correctable_total"]))
        self.put("sys/devices/system/edac/mc/mc0/ue_count", str(values["edac_uncorrectable_total"]))
        for at in range(8):
            self.put(f"sys/class/nvme/nvme{at}/state", "live" if at < values["nvme_devices"] else "dead")
        self.disk_free_tenths, self.clock_ms = values["disk_free_percent"], values["clock_offset_ms"]

    def _put_trainer(self) -> None:
        """A process on all GPUs while a rank is here; its group, so that its pod is known."""
        own = f"sys/class/kfd/kfd/proc/{TRAINER_PID}"
        if not self.source.users():
            if (self.tree / own).exists():
                shutil.rmtree(self.tree / own)
                for name in [name for name in self._files if name.startswith(own)]:
                    os.close(self._files.pop(name))
                    del self._written[name]
            return
        for number in KFD_NUMBERS:
            self.put(f"{own}/vram_{number}", str(150_700 << 20))
        self.put(f"proc/{TRAINER_PID}/comm", "python")
        self.put(f"proc/{TRAINER_PID}/status", f"Name:\tpython\nNSpid:\t{TRAINER_PID}\t7")
        uid, container = "0f3e2d1c_aaaa_bbbb_cccc_0123456789ab", "c" * 64
        group = f"0::/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{container}.scope"
        self.put(f"proc/{TRAINER_PID}/cgroup", group)

    def close(self) -> None:
        """Lets go of the log's pipe and of the files."""
        for descriptor in (self._log, *self._files.values()):
            os.close(descriptor)
        self._files.clear()


_COUNTERS = {
    "rx_bytes_total": "rx_rdma_ucast_bytes",
    "tx_bytes_total": "tx_rdma_ucast_bytes",
    "packets_total": "tx_rdma_ucast_pkts",
    "packets_received_total": "rx_rdma_ucast_pkts",
    "retransmits_total": "tx_rdma_retx_pkts",
    "rdma_retry_exceeded_total": "req_tx_retry_excd_err",
    "ack_timeout_total": "tx_rdma_ack_timeout",
    "cnp_received_total": "rx_rdma_cnp_pkts",
    "ecn_received_total": "rx_rdma_ecn_pkts",
    "out_of_order_total": "resp_rx_outouf_seq",
}

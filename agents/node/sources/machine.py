"""The node that is there: its GPUs through AMD's library, its ports, its kernel log, its host, and who uses what.

Each part may be blind, for want of a right or a file: it says so, and the others go on. Only the GPUs are needed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.node.sources.amd.binding import Binding
from agents.node.sources.amd.gpus import AmdGpus
from agents.node.sources.base import Quality, SourceError
from agents.node.sources.files import Tree, below_ports, nearest
from agents.node.sources.host import Host, clock_offset_ms, free_tenths
from agents.node.sources.kfd import Processes
from agents.node.sources.kmsg import KernelLog
from agents.node.sources.nic import Nics
from agents.node.sources.pods import PodResources
from agents.readings import GPU_INDEX, GpuUser, KernelLine, NodeFacts, NodeSample

POD_SOCKET = "var/lib/kubelet/pod-resources/kubelet.sock"
LOG_MARK = "kernel log"


@dataclass(frozen=True)
class Places:
    """Where the machine is looked at: the root of its file systems, and paths whose file systems must have room."""

    tree: Tree
    watched: tuple[Path, ...] = ()
    rocm: Path | None = None
    free: Callable[[Path], int] = free_tenths
    clock: Callable[[], int] = clock_offset_ms
    monotonic: Callable[[], float] = time.monotonic


class MachineSource:
    """`marks` are the positions of an earlier agent on the same boot. SourceError if there is no GPU to read."""

    name = "amd"

    def __init__(
        self, node: str, places: Places, marks: Mapping[str, int], read_log: Callable[[], bytes] | None = None
    ) -> None:
        self.node, self._places = node, places
        tree = places.tree
        self._open_gpus(marks)
        self.simulated = self._binding.stub
        self._nics = Nics(tree)
        self._host = Host(tree, places.watched, places.free, places.clock)
        self._pods = PodResources(tree.path(POD_SOCKET))
        devices = below_ports(tree, [one for one in [*self._addresses, *self._nic_addresses()] if one])
        self._log_blind = ""
        self._log = self._open_log(devices, marks.get(LOG_MARK), read_log)
        self._facts = self._read_facts()
        self._users: tuple[GpuUser, ...] = ()
        self._drills = Path(f"{self._binding.stub_state()}.drills") if self.simulated else None

    def _open_gpus(self, marks: Mapping[str, int]) -> None:
        """The library anew, and what it says once of each GPU. SourceError."""
        self._load = self.driver_load()
        self._binding = Binding(self._places.rocm)
        self._gpus = AmdGpus(self._binding, marks, self._places.monotonic)
        numbers = {one.kfd_id: one.gpu.index for one in self._gpus.identities if one.kfd_id}
        self._counted = frozenset(numbers.values())
        self._processes = Processes(self._places.tree, numbers)
        self._addresses = [one.gpu.pci_address for one in self._gpus.identities]

    def _follow_driver(self) -> None:
        """A driver that was loaded anew, as by an update, knows none of the old handles: all of it is opened again."""
        load = self.driver_load()
        if load in ("", self._load):
            return
        before = self._gpus
        self._binding.close()
        try:
            self._open_gpus(dict.fromkeys(before.marks(), 0))  # the error logs begin anew, and all in them is news
        except SourceError:
            self._load = ""  # not ready yet: tried again with the next sample
            return
        before.close()
        self._facts = self._read_facts()

    def _nic_addresses(self) -> list[str]:
        return [port.address for port in self._nics.ports]

    def _open_log(
        self, devices: Mapping[str, str], after: int | None, read: Callable[[], bytes] | None
    ) -> KernelLog | None:
        try:
            return KernelLog(None if read else self._places.tree.path("dev/kmsg"), devices, after, read)
        except OSError as error:
            self._log_blind = f"the kernel log cannot be read ({error.strerror}): it needs CAP_SYSLOG and /dev/kmsg"
            return None

    def _read_facts(self) -> NodeFacts:
        first = self._gpus.identities[0]
        tree = self._places.tree
        names = {port.address: port.name for port in self._nics.ports if port.address}
        gpus = tuple(
            replace(one.gpu, nic=names.get(nearest(tree, one.gpu.pci_address, list(names)), ""))
            for one in self._gpus.identities
        )
        stub = " (stub library)" if self.simulated else ""
        return NodeFacts(
            hostname=self.node,
            source=self.name,
            simulated=self.simulated,
            gpu_model=first.model + stub,
            driver=first.driver,
            firmware=first.firmware,
            gpus=gpus,
            nics=tuple(port.facts() for port in self._nics.ports),
            vbios=first.vbios,
            kernel=tree.read("proc/sys/kernel/osrelease"),
            blind=self.blind(),
        )

    def blind(self) -> tuple[str, ...]:
        """What cannot be read here, a sentence each."""
        parts = (self._gpus.blind, self._nics.blind, self._log_blind, self._host.blind, self._processes.blind)
        return tuple(part for part in (*parts, self._pods.blind) if part)

    def facts(self) -> NodeFacts:
        if self._facts.blind != (blind := self.blind()):
            self._facts = replace(self._facts, blind=blind)
        return self._facts

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        self._follow_driver()
        gpus = self._gpus.sample(at_s, monotonic_s)
        self._users = self._look_at_users(monotonic_s)
        counts = [0] * len(gpus)
        for user in self._users:
            counts[user.gpu] += 1
        if not self._processes.blind:
            at = GPU_INDEX["processes"]
            gpus = tuple(
                (*row[:at], counts[number], *row[at + 1 :]) if number in self._counted else row
                for number, row in enumerate(gpus)
            )
        return NodeSample(at_s, monotonic_s, gpus, self._nics.sample(), self.lines(), self._host.sample(monotonic_s))

    def lines(self) -> tuple[KernelLine, ...]:
        records = self._gpus.take_lines()
        if self._log is not None:
            records += self._log.lines(time.time() - time.monotonic())
        return tuple(records)

    def _look_at_users(self, monotonic_s: float) -> tuple[GpuUser, ...]:
        pods = self._pods.known(monotonic_s)
        found = []
        for held in self._processes.held(monotonic_s):
            pod, container = pods.get(self._addresses[held.gpu], (held.pod_uid, held.container[:12]))
            found.append(
                GpuUser(held.gpu, held.pid, held.command, held.vram_mib, pod, container, inner_pid=held.inner_pid)
            )
        return tuple(found)

    def users(self) -> tuple[GpuUser, ...]:
        return self._users

    def wakes(self) -> Sequence[int]:
        return () if self._log is None or self._log.descriptor < 0 else (self._log.descriptor,)

    def driver_load(self) -> str:
        """Which load of the driver this is, by what it makes anew: its device node, or where that is not shown, as in a
        pod, its folder below /sys. "" where neither can be seen."""
        for name, part in (("dev/kfd", "st_mtime_ns"), ("sys/class/kfd/kfd", "st_ino")):
            with contextlib.suppress(OSError):
                return f"kfd-{getattr(os.stat(self._places.tree.path(name)), part)}"
        return ""

    def quality(self) -> Quality:
        log = (0, 0) if self._log is None else (self._log.lines_read, self._log.overruns)
        return Quality(self._gpus.errors(), *log)

    def marks(self) -> dict[str, int]:
        """How far the kernel log and the GPUs' error logs have been read."""
        log = {} if self._log is None or self._log.sequence < 0 else {LOG_MARK: self._log.sequence}
        return {**self._gpus.marks(), **log}

    def follow(self, step_rate: float | None) -> None:
        """Nothing: what the devices do is measured."""

    def apply_drill(self, kind: str, gpu: int) -> str:
        """A stub's keeper finds the drill beside its state and changes registers; a device that exists refuses."""
        if self._drills is None:
            return "drills are for simulated nodes only"
        with self._drills.open("a") as file:
            file.write(f"{kind} {gpu}\n")
        return ""

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._gpus.close()
        self._binding.close()

"""Who holds the GPUs open: the compute driver's own list of processes, and each one's control group.

Half a millisecond a look, and nothing is opened that the driver would count: /dev/kfd is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agents.node.sources.files import Tree

EVERY_S = 2.0
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_CONTAINER = re.compile(r"([0-9a-f]{64})")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Holder:
    """A process on a GPU: its number on this host and in its own namespace, and the pod that its group belongs to."""

    gpu: int
    pid: int
    inner_pid: int
    command: str
    vram_mib: int
    pod_uid: str
    container: str


def group_of(text: str) -> tuple[str, str]:
    """(pod uid, container id) of a process's /proc/<pid>/cgroup; "" for what it does not name."""
    pod, container = _POD.search(text), _CONTAINER.findall(text)
    return (pod[1].replace("_", "-") if pod else "", container[-1] if container else "")


class Processes:
    """`gpus` maps the compute driver's number of each GPU to ours."""

    def __init__(self, tree: Tree, gpus: Mapping[int, int]) -> None:
        self._tree, self._gpus = tree, gpus
        there = tree.path("sys/class/kfd/kfd/proc").is_dir()
        self.blind = "" if there else "the compute driver's list of processes is not readable (/sys/class/kfd)"
        self._held: list[Holder] = []
        self._due_s = 0.0

    def held(self, monotonic_s: float) -> list[Holder]:
        """Every process on every GPU, looked up each two seconds."""
        if not self.blind and monotonic_s >= self._due_s:
            self._due_s = monotonic_s + EVERY_S
            self._held = self._look()
        return self._held

    def _look(self) -> list[Holder]:
        found = []
        for folder in self._tree.listed("sys/class/kfd/kfd/proc"):
            if not folder.name.isdecimal():
                continue
            on = {}
            for file in folder.glob("vram_*"):
                number = file.name.removeprefix("vram_")
                gpu = self._gpus.get(int(number)) if number.isdecimal() else None
                used = self._number(file.relative_to(self._tree.root).as_posix())
                if gpu is not None and used > 0:
                    on[gpu] = used // _MIB
            if on:
                found += self._named(int(folder.name), on)
        return found

    def _named(self, pid: int, on: Mapping[int, int]) -> list[Holder]:
        read = self._tree.read
        pod, container = group_of(read(f"proc/{pid}/cgroup"))
        command = read(f"proc/{pid}/comm")
        inner = next((line.split()[-1] for line in read(f"proc/{pid}/status").splitlines() if line[:6] == "NSpid:"), "")
        own = int(inner) if inner.isdecimal() else pid
        return [Holder(gpu, pid, own, command, mib, pod, container) for gpu, mib in sorted(on.items())]

    def _number(self, name: str) -> int:
        text = self._tree.read(name)
        return int(text) if text.isdecimal() else 0

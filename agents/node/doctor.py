"""What an agent lacks on this node, and how to get it: one line a check, each with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from agents.node.opening import ROCM_LIBRARY, rocm_root
from agents.node.sources.base import SourceError
from agents.node.sources.files import Tree
from agents.node.sources.host import clock_offset_ms
from agents.readings import UNKNOWN

NEEDED, WANTED = "needed", "wanted"

RENDER_NODES = Path("/dev/dri")
"""where AMD's library opens them, whatever root the host's files are under"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `why` says what is missing and how to get it; "" if it is there."""

    name: str
    kind: str
    why: str
    found: str = ""

    @property
    def ok(self) -> bool:
        return not self.why


def checks(root: Path = Path("/")) -> Iterator[Check]:
    """Every check on this node; nothing is changed, and no check depends on another's success."""
    tree = Tree(root)
    yield _packages()
    yield _library()
    yield _gpus()
    yield _devices()
    yield _ports(tree)
    yield _log(tree)
    yield _processes(tree)
    yield _pods(tree)
    yield _clock()


def _packages() -> Check:
    """Another package installs a top-level `agents` as well; whichever is first on the path wins."""
    try:
        other = metadata.version("openai-agents")
    except metadata.PackageNotFoundError:
        return Check("Python packages", NEEDED, "", "no other package has a folder `agents`")
    why = f"openai-agents {other} is installed beside Trimtab, and both are imported as `agents`: give one its own venv"
    return Check("Python packages", NEEDED, why)


def _library() -> Check:
    at = rocm_root() / ROCM_LIBRARY
    missing = f"{at} is not there: install ROCm's amd-smi-lib, or set ROCM_PATH to where ROCm is"
    return Check("AMD's library", NEEDED, "" if at.exists() else missing, str(at))


def _gpus() -> Check:
    from agents.node.sources.amd.binding import Binding
    from agents.node.sources.amd.gpus import AmdGpus

    try:
        binding = Binding()
    except SourceError as error:
        return Check("binding", NEEDED, str(error))
    version = f"amdsmi {binding.version} over library {'.'.join(map(str, binding.library_version))}"
    try:
        gpus = AmdGpus(binding, {})
        rows = gpus.sample(0.0, 0.0)
    except SourceError as error:
        return Check("GPUs", NEEDED, str(error), version)
    records = f"; {gpus.blind}" if gpus.blind else ""
    return Check("GPUs", NEEDED, "", f"{len(rows)} answer, {version}{records}")


def _devices() -> Check:
    nodes = sorted(RENDER_NODES.glob("renderD*"))
    shut = [node.name for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    how = (
        "a GPU's serial, VBIOS and memory in use may be unknown. Add the agent's user to the groups render and video; "
        "in a pod, let the runtime give it the devices (deploy/node/trimtab-cdi.yaml)"
    )
    why = f"no /dev/dri/renderD*: {how}" if not nodes else f"{', '.join(shut)} cannot be opened: {how}" if shut else ""
    return Check("device access", WANTED, why, f"{len(nodes)} render nodes")


def _ports(tree: Tree) -> Check:
    ports = tree.listed("sys/class/infiniband")
    counted = [port for port in ports if (port / "ports/1/hw_counters").is_dir()]
    why = ""
    if not ports:
        why = "no RDMA port: load the ionic_rdma driver, or mount the host's /sys read-only"
    elif len(counted) < len(ports):
        why = f"{len(ports) - len(counted)} ports show no hw_counters: a newer ionic driver has them"
    return Check("NIC counters", WANTED, why, f"{len(ports)} ports")


def _log(tree: Tree) -> Check:
    try:
        os.close(os.open(tree.path("dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return Check("kernel log", WANTED, f"/dev/kmsg: {error.strerror}: give the agent CAP_SYSLOG and the device")
    return Check("kernel log", WANTED, "", "readable")


def _processes(tree: Tree) -> Check:
    there = tree.path("sys/class/kfd/kfd/proc").is_dir()
    why = "" if there else "/sys/class/kfd/kfd/proc is not there: load amdgpu, or mount the host's /sys read-only"
    return Check("processes on GPUs", WANTED, why)


def _pods(tree: Tree) -> Check:
    socket = tree.path("var/lib/kubelet/pod-resources/kubelet.sock")
    why = (
        "" if socket.exists() else f"{socket} is not there: on Kubernetes, mount its folder; elsewhere it is not needed"
    )
    return Check("kubelet", WANTED, why)


def _clock() -> Check:
    offset = clock_offset_ms()
    why = "nothing steers the clock: start chrony or systemd-timesyncd" if offset == UNKNOWN else ""
    return Check("clock", WANTED, why, "" if why else f"within {offset} ms")


def report(found: list[Check], say: Callable[[str], None]) -> int:
    """Says each check; 0 if nothing that is needed is missing."""
    width = max(len(check.name) for check in found)
    for check in found:
        mark = "ok" if check.ok else "MISSING" if check.kind == NEEDED else "blind"
        say(f"{check.name.ljust(width)}  {mark.ljust(7)}  {check.why or check.found}")
    return int(any(not check.ok and check.kind == NEEDED for check in found))

"""Which source an agent reads: the node that is there, one that is simulated, or one that was recorded."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path

from agents.node.sources.base import Source, SourceError
from agents.node.sources.files import Tree
from agents.node.sources.replay import ReplaySource
from agents.node.sources.simulated import SimulatedSource

SOURCES = ("auto", "amd", "simulated", "replay")
ROCM_LIBRARY = "lib/libamd_smi.so"


def machine_boot(tree: Tree | None = None) -> str:
    """The kernel's id of this boot."""
    return (tree or Tree()).read("proc/sys/kernel/random/boot_id") or "unknown-boot"


def rocm_root() -> Path:
    """Where ROCm is installed, by its own variables or its own default."""
    return Path(os.environ.get("ROCM_HOME") or os.environ.get("ROCM_PATH") or "/opt/rocm")


def has_library() -> bool:
    """Whether AMD's library, or its binding, is on this machine."""
    return (rocm_root() / ROCM_LIBRARY).exists() or importlib.util.find_spec("amdsmi") is not None


def open_source(
    name: str,
    node: str,
    *,
    root: Path = Path("/"),
    watched: tuple[Path, ...] = (),
    marks: Mapping[str, int] | None = None,
    recording: Path | None = None,
) -> Source:
    """The source by name; raises SourceError with what is missing. `auto` is the node that is there."""
    if name == "simulated":
        return SimulatedSource(node, time.time())
    if name == "replay":
        if recording is None:
            raise SourceError("--source replay needs --recording FILE, made by `trimtab-agent capture FILE`")
        return ReplaySource(recording)
    if not has_library():
        raise SourceError(
            f"--source {name}: neither AMD's library ({rocm_root() / ROCM_LIBRARY}) nor the amdsmi package is on this "
            "machine. Install ROCm's amd-smi-lib, say where it is with ROCM_PATH, or use --source simulated to see the "
            "whole path. `trimtab-agent doctor` says what else is missing."
        )
    # late: it loads AMD's library
    from agents.node.sources.machine import MachineSource, Places

    return MachineSource(node, Places(Tree(root), watched), marks or {})

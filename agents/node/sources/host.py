"""The machine around the GPUs: memory, ends for want of it, disk space, memory errors, NVMe, the clock."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from agents.node.sources.files import KernelFile, Tree
from agents.readings import HOST_INDEX, HOST_METRICS, UNKNOWN

SLOW_EVERY_S = 5.0
_UNSYNCHRONISED, _NANOSECONDS = 0x0040, 0x2000
LONGEST_ERROR_US = 16_000_000
"""What the kernel says of a clock that nothing steers."""


class _Timex(ctypes.Structure):
    """The head of the kernel's struct timex, and room for the rest."""

    _fields_ = [  # ctypes wants a plain list here
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def clock_offset_ms() -> int:
    """How wrong the kernel takes its clock to be, in ms; UNKNOWN while nothing steers it."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return UNKNOWN
    if state < 0 or timex.status & _UNSYNCHRONISED:
        return UNKNOWN
    offset_us = abs(timex.offset) // (1000 if timex.status & _NANOSECONDS else 1)
    estimated_us = timex.esterror if timex.esterror < LONGEST_ERROR_US else 0
    return int(max(offset_us, estimated_us)) // 1000


def free_tenths(path: Path) -> int:
    """Tenths of a percent that programs may still use of the file system below a path; UNKNOWN if it is not there."""
    try:
        found = os.statvfs(path)
    except OSError:
        return UNKNOWN
    return round(1000 * found.f_bavail / found.f_blocks) if found.f_blocks else UNKNOWN


class Host:
    """`watched` are the paths whose file systems must have room: checkpoints', the spool's. `free` and `clock` are what
    no file tells: tenths of a percent that are free below a path, and how wrong the clock is in ms."""

    def __init__(
        self,
        tree: Tree,
        watched: Sequence[Path],
        free: Callable[[Path], int] = free_tenths,
        clock: Callable[[], int] = clock_offset_ms,
    ) -> None:
        self._tree, self._watched, self._free_below, self._clock = tree, list(watched), free, clock
        self._meminfo, self._vmstat = KernelFile(tree.path("proc/meminfo")), KernelFile(tree.path("proc/vmstat"))
        self._load = KernelFile(tree.path("proc/loadavg"))
        self._slow: dict[str, int] = {}
        self._due_s = 0.0
        self.blind = "" if self._meminfo.text() else "the host's /proc is not mounted here"

    def sample(self, monotonic_s: float) -> tuple[tuple[int, ...], ...]:
        """One row of HOST_METRICS."""
        row = [UNKNOWN] * len(HOST_METRICS)
        if monotonic_s >= self._due_s:
            self._due_s = monotonic_s + SLOW_EVERY_S
            self._slow = self._read_slow()
        values = {**self._slow, **self._memory(), "load_1m": self._load_1m()}
        for name, value in values.items():
            row[HOST_INDEX[name]] = value
        return (tuple(row),)

    def _memory(self) -> dict[str, int]:
        wanted = {"MemTotal:": "memory_total_mib", "MemAvailable:": "memory_available_mib"}
        found = {}
        for line in (self._meminfo.text() or "").splitlines()[:6]:
            name, _, rest = line.partition(" ")
            if name in wanted and rest.split() and rest.split()[0].isdecimal():
                found[wanted[name]] = int(rest.split()[0]) >> 10
        return found

    def _load_1m(self) -> int:
        text = (self._load.text() or "").split()
        try:
            return round(float(text[0]) * 100) if text else UNKNOWN
        except ValueError:
            return UNKNOWN

    def _read_slow(self) -> dict[str, int]:
        return {
            "oom_kills_total": self._oom_kills(),
            "disk_free_percent": self._free(),
            "edac_correctable_total": self._edac("ce_count"),
            "edac_uncorrectable_total": self._edac("ue_count"),
            "nvme_devices": self._nvme(),
            "clock_offset_ms": self._clock(),
        }

    def _oom_kills(self) -> int:
        for line in (self._vmstat.text() or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdecimal():
                return int(value)
        return UNKNOWN

    def _free(self) -> int:
        """Of the fullest file system."""
        known = [share for path in self._watched if (share := self._free_below(path)) != UNKNOWN]
        return min(known, default=UNKNOWN)

    def _edac(self, name: str) -> int:
        counts = [
            KernelFile(folder / name).number() for folder in self._tree.listed("sys/devices/system/edac/mc", "mc*")
        ]
        return sum(counts) if counts and UNKNOWN not in counts else UNKNOWN

    def _nvme(self) -> int:
        folders = self._tree.listed("sys/class/nvme", "nvme*")
        if not self._tree.path("sys/class/nvme").is_dir():
            return UNKNOWN
        return sum(KernelFile(folder / "state").text() == "live" for folder in folders)

"""Small files of the kernel's, read again and again: kept open, since opening costs more than reading.

`Tree` is where the host's /sys, /proc and /dev are: the machine's own, or where a pod or a test has them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from agents.readings import UNKNOWN

_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
MOST_BYTES = 65536


class KernelFile:
    """One file of sysfs or procfs. What cannot be read has no value; it is opened anew the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def text(self) -> str | None:
        """Its contents without the newline; None if it cannot be read."""
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, MOST_BYTES, 0).decode(errors="replace").strip()
        except OSError:
            self.close()
            return None

    def number(self) -> int:
        """The number that it starts with, UNKNOWN if there is none."""
        text = self.text()
        try:
            return int(text.split()[0]) if text else UNKNOWN
        except (ValueError, IndexError):
            return UNKNOWN

    def close(self) -> None:
        """Lets go of the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


class Tree:
    """The host's file systems below a folder, / by default."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """A path of the host as it is called here: `sys/class/nvme`."""
        return self.root / name

    def read(self, name: str) -> str:
        """The contents of a small file, "" if it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def listed(self, folder: str, pattern: str = "*") -> list[Path]:
        """What a folder holds, in order of name."""
        return sorted(self.path(folder).glob(pattern))

    def upstream(self, address: str) -> list[str]:
        """The PCI addresses on the way from the root to a device, itself last; [] if it is not there."""
        try:
            found = os.path.realpath(self.path(f"sys/bus/pci/devices/{address}"), strict=True)
        except OSError:
            return []
        return [part for part in found.split("/") if _ADDRESS.fullmatch(part)]


def below_ports(tree: Tree, addresses: list[str]) -> dict[str, str]:
    """Each device's address, and that of each port with only one of the devices below it, to the device's address."""
    ways = {address: tree.upstream(address) for address in addresses}
    found: dict[str, str] = {}
    shared: set[str] = set()
    for address, way in ways.items():
        for port in way:
            if port in found and found[port] != address:
                shared.add(port)
            found[port] = address
    return {port: address for port, address in found.items() if port not in shared} | {one: one for one in addresses}


def nearest(tree: Tree, address: str, others: list[str]) -> str:
    """Of other devices the one that shares the longest way from the root; "" if none shares more than the root."""
    way = tree.upstream(address)

    def common(other: str) -> int:
        return sum(1 for one, two in zip(way, tree.upstream(other), strict=False) if one == two)

    best = max(others, key=common, default="")
    return best if best and common(best) else ""

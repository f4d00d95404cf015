"""What a line of the kernel log means, by a table of data; and of which device of the node it speaks. Pure.

A line names its device by PCI address; one of a port speaks of the one device below it. Lines are told apart by text
alone: amdgpu prints the gravest of them as mere information, so the severity says nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DEFAULT_PATH = Path(__file__).with_name("kernel.toml")
VERSION = 1
DEVICES = ("gpu", "nic", "host")
_NEEDED = ("kind", "pattern", "examples", "source")
_ADDRESS = re.compile(r"\b([0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\b")


class KernelTableError(ValueError):
    """A table that cannot be used; the message lists every problem."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One row: lines that match are of this kind and speak of this sort of device."""

    kind: str
    device: str
    pattern: re.Pattern[str]
    examples: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Table:
    """The rows in order, of which the first that matches counts, and lines that must match none."""

    rows: tuple[Pattern, ...]
    quiet: tuple[str, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind that a line can be of."""
        return frozenset(row.kind for row in self.rows)

    def kind_of(self, text: str) -> str:
        """What a line means; "" if nothing."""
        return next((row.kind for row in self.rows if row.pattern.search(text)), "")


def parse(text: str) -> Table:
    """The table of a TOML text; KernelTableError with everything that is wrong."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KernelTableError(f"the table is not TOML: {error}") from error
    if found.get("version") != VERSION:
        raise KernelTableError(f"the table has version {found.get('version')}, {VERSION} is read here")
    rows, problems = [], []
    for number, row in enumerate(found.get("line", [])):
        name = row.get("kind", f"line {number}")
        if row.get("device") not in DEVICES or not all(row.get(key) for key in _NEEDED):
            problems.append(f"{name}: kind, device ({', '.join(DEVICES)}), pattern, examples and source are needed")
            continue
        try:
            pattern = re.compile(row["pattern"])
        except re.error as error:
            problems.append(f"{name}: pattern: {error}")
            continue
        rows.append(Pattern(row["kind"], row["device"], pattern, tuple(row["examples"]), row["source"]))
    if problems:
        raise KernelTableError("; ".join(problems))
    return Table(tuple(rows), tuple(found.get("quiet", {}).get("lines", ())))


@cache
def table() -> Table:
    """The shipped table."""
    return parse(DEFAULT_PATH.read_text(encoding="utf-8"))


def addresses(text: str) -> list[str]:
    """The PCI addresses in a line, the last first: a port that reports for a device names the device after itself."""
    return _ADDRESS.findall(text)[::-1]


def device_of(text: str, devices: Mapping[str, str], hint: str = "") -> str | None:
    """The PCI address of the node's device that a line speaks of, None if of none.

    `devices` maps the address of each device, and of each port that only one device is below, to the device's address;
    `hint` is the address that the kernel gives beside the text.
    """
    return next((devices[one] for one in [*addresses(text), hint] if one in devices), None)

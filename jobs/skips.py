"""Ranges of data indices to leave out: how they are written in TRIMTAB_SKIP_STEPS, and which step then reads what.

Without any, optimizer step n reads data index n. Import the names from `jobs.contract`, the front of the contract.
Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.manifest import ContractError

Ranges = tuple[tuple[int, int], ...]
"""(first, last) each, both left out."""


def parse_ranges(text: str) -> Ranges:
    """Reads `120-140,300-310`; raises ContractError naming the part that is no range."""
    found = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)-(\d+)", part.strip())
        if match is None or int(match[2]) < int(match[1]):
            raise ContractError(f"TRIMTAB_SKIP_STEPS: {part!r} is not a range like 120-140")
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def format_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """As TRIMTAB_SKIP_STEPS has it; empty for none."""
    return ",".join(f"{first}-{last}" for first, last in ranges)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same indices in as few ranges as there can be, in order."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def data_index(step: int, skipped: Ranges) -> int:
    """The data index that optimizer step `step` (from 1) reads, when these ranges of indices are left out."""
    index = step
    for first, last in merged((max(first, 1), last) for first, last in skipped if last > 0):
        if first <= index:
            index += last - first + 1
    return index

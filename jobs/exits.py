"""How a rank ended: exit codes, the record it leaves, and an error's fingerprint. Standard library only.

Import the names from `jobs.contract`, the front of the contract; this file is its last page.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path

from jobs.manifest import as_text, is_finite, is_whole, write_json


class Exit(IntEnum):
    """What a job's exit code tells its controller; any other code is an error of the job's own."""

    DONE = 0
    SAVED = 75
    NUMERICS = 76
    BAD_NODE = 77
    CONFIG = 78
    UNSAVED = 143


@dataclass(frozen=True)
class ExitRecord:
    """Why a rank ended, written by the rank itself before it exits."""

    rank: int
    code: int
    phase: str
    step: int | None
    error_type: str
    error_message: str
    traceback: str
    at_s: float


def write_exit_record(directory: Path, record: ExitRecord) -> None:
    """Leaves the record where the launcher finds it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"exit-rank-{record.rank}.json", asdict(record), durable=True)


def read_exit_records(directory: Path) -> list[ExitRecord]:
    """The records of a directory, earliest first; one that cannot be read is left out."""
    records = []
    for path in directory.glob("exit-rank-*.json"):
        try:
            record = ExitRecord(**json.loads(path.read_bytes()))
        except (ValueError, TypeError, OSError, RecursionError):
            continue
        words = (record.phase, record.error_type, record.error_message, record.traceback)
        if not all(isinstance(one, str) for one in words):
            continue
        if is_whole(record.rank) and is_whole(record.code) and is_finite(record.at_s):
            phase, error_type, message, trace = map(as_text, words)
            records.append(replace(record, phase=phase, error_type=error_type, error_message=message, traceback=trace))
    return sorted(records, key=lambda record: record.at_s)


_ACCIDENTS = (
    (re.compile(r"\w+://[^\s'\"\])>,]+"), "<host>"),
    (re.compile(r"(/[\w.\-]+)+/?"), "<path>"),
    (re.compile(r"\[?\b\d{1,3}(\.\d{1,3}){3}\b\]?(:\d+)?"), "<host>"),
    (re.compile(r"\[?(?<!\w)[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}(?!\w)\]?(:\d+)?"), "<host>"),
    (re.compile(r"\b[\w\-]+(\.[\w\-]+)*\.(local|internal|lan|svc|com|net|org|io)\b(:\d+)?"), "<host>"),
    (re.compile(r"\b[\w\-]+(\.[\w\-]+)*:\d+\b"), "<host>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"), "<hex>"),
    (re.compile(r"\d+(\.\d+)?"), "<n>"),
)


def fingerprint(error_type: str, message: str) -> str:
    """An error without its accidents: numbers, hexadecimal, paths and hosts removed, so that repeats look alike."""
    text = message
    for pattern, word in _ACCIDENTS:
        text = pattern.sub(word, text)
    return f"{error_type}: {' '.join(text.split())}"[:300]

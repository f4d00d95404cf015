"""What a job found out, in one file that the controller reads when the job is done: metrics, and which checkpoint
they are of. Standard library only.

An evaluation's metrics pass or refuse a gate, and only for the checkpoint whose hash stands beside them. The file lies
in the attempt's own directory, so an attempt that was superseded cannot speak for the one after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.manifest import ContractError, is_finite, is_text, write_json

RESULT = "result.json"
RESULT_VERSION = 1


@dataclass(frozen=True)
class Result:
    """Metrics by name, each a finite number, of the checkpoint with this hash ("" where the job looked at none).

    `details` is for people: anything JSON, shown and never judged.
    """

    metrics: Mapping[str, float]
    checkpoint_hash: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    version: int = RESULT_VERSION


def write_result(checkpoint_dir: Path, result: Result) -> Path:
    """Writes an attempt's result whole or not at all; ContractError for a metric that is not a finite number."""
    _refuse(result, "the result")
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    path = checkpoint_dir / RESULT
    write_json(path, asdict(result), durable=True)
    return path


def read_result(checkpoint_dir: Path) -> Result | None:
    """The result that an attempt left, None where it left none; ContractError when it cannot be trusted."""
    try:
        found = json.loads((checkpoint_dir / RESULT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ContractError(f"the result in {checkpoint_dir.name} cannot be read: {error}") from error
    try:
        result = Result(**found)
    except TypeError as error:
        raise ContractError(f"the result in {checkpoint_dir.name} cannot be read: {error}") from error
    _refuse(result, f"the result in {checkpoint_dir.name}")
    return result


def _refuse(result: Result, what: str) -> None:
    if result.version != RESULT_VERSION:
        raise ContractError(f"{what} has version {result.version}, {RESULT_VERSION} is read here")
    if not isinstance(result.metrics, Mapping) or not isinstance(result.details, Mapping):
        raise ContractError(f"{what} does not hold its metrics and details as mappings")
    for name, value in result.metrics.items():
        if not is_text(name) or not is_finite(value):
            raise ContractError(f"{what} gives {name!r} as {value!r}, which is not a finite number")
    if not is_text(result.checkpoint_hash):
        raise ContractError(f"{what} lacks its checkpoint's hash as text")

"""The metric adapters by the name that a job's spec gives. No heavy import: jobs.spec checks names against it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from jobs.manifest import ContractError
from jobs.meters.base import FileMeter, LogMeter
from jobs.meters.printed import Megatron, Torchtitan
from jobs.meters.tensorboard import ROLL, SLIME, TensorBoard
from jobs.meters.verl import Verl

_FILES: tuple[FileMeter, ...] = (
    TensorBoard(),
    TensorBoard("roll", ROLL, counts_from=0, replays=True),
    TensorBoard("slime", SLIME, counts_from=0),
    Verl(),
)
_LOGS: tuple[LogMeter, ...] = (Megatron(), Torchtitan())
FILE_METERS: Mapping[str, FileMeter] = {meter.name: meter for meter in _FILES}
LOG_METERS: Mapping[str, LogMeter] = {meter.name: meter for meter in _LOGS}


def check(name: str) -> None:
    """ContractError for a name that no metric adapter has."""
    names = sorted([*FILE_METERS, *LOG_METERS])
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ContractError(f"{name!r} is no meter{hint}; there are {', '.join(names)}")

"""What a batch must be before it may reach the store: types, sizes, text; and its samples coded as chunks.

Pure, and run by the caller of ingest, so that the one writing thread only writes. A batch that is wrong as a whole is
refused; a heartbeat or expert record that is wrong by itself is left out and named, and the rest is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from types import NoneType
from typing import Any, TypeVar

from agents import readings
from agents.wire import Batch, Columns
from controlplane.store import codec
from controlplane.store.expert_records import ExpertStep
from controlplane.store.nodes import Greeting
from controlplane.store.telemetry import Chunk
from jobs import contract

MAX_NAME = 253
_LARGEST = 2**63 - 1
Record = TypeVar("Record")
Timed = TypeVar("Timed", readings.KernelLine, contract.Heartbeat)


class BatchRefused(ValueError):
    """A batch that the store will not take, however often it is sent. `code` is stable."""

    def __init__(self, message: str, code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Admitted:
    """A batch ready to be written; `complaints` are sentences on what of it was left out."""

    greeting: Greeting
    chunks: tuple[Chunk, ...]
    faults: tuple[readings.Fault, ...]
    kernel: tuple[readings.KernelLine, ...]
    experts: tuple[tuple[int, ExpertStep], ...]
    """each with its epoch"""
    steps: tuple[readings.StepRecord, ...]
    heartbeats: tuple[contract.Heartbeat, ...]
    samples: int
    """values in all: devices times metrics times moments"""
    complaints: tuple[str, ...]


def admit(batch: Batch, received_s: float, behind: int = 0) -> Admitted:
    """Checks and prepares a batch behind which `behind` more wait at its sender; raises BatchRefused."""
    complaints: list[str] = []
    try:
        chunks = tuple(
            chunk for kind, columns in batch.samples.items() if (chunk := _chunk(batch.node, kind, columns)) is not None
        )
        return Admitted(
            greeting=_greeting(batch, received_s, behind),
            chunks=chunks,
            faults=tuple(_fault(fault, batch.node) for fault in batch.faults),
            kernel=tuple(_timed(line) for line in batch.kernel),
            experts=tuple(_experts(batch.experts, complaints)),
            steps=tuple(_checked(step) for step in batch.steps),
            heartbeats=tuple(_heartbeats(batch.heartbeats, complaints)),
            samples=sum(len(column) for columns in batch.samples.values() for column in columns.values),
            complaints=tuple(complaints),
        )
    except (TypeError, OverflowError, RecursionError, UnicodeError) as error:
        raise BatchRefused(f"the batch cannot be read: {error}") from error


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise BatchRefused(f"{what} must be 1 to {MAX_NAME} printable characters")
    return value


def _finite(what: str, value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BatchRefused(f"{what} must be a finite number")
    return float(value)


def _greeting(batch: Batch, received_s: float, behind: int) -> Greeting:
    if not 0 <= batch.sequence <= _LARGEST:
        raise BatchRefused("a sequence number is not negative and has 64 bits")
    return Greeting(
        name=_name("the node", batch.node),
        boot_id=_name("the boot id", batch.boot_id),
        sequence=batch.sequence,
        source=_text(str(batch.source)),
        simulated=bool(batch.simulated),
        agent_version=_text(str(batch.agent_version)),
        sent_s=_finite("sent_s", batch.sent_s),
        sent_monotonic_s=_finite("sent_monotonic_s", batch.sent_monotonic_s),
        received_s=received_s,
        facts=None if batch.facts is None else _plain(asdict(batch.facts)),
        users=None if batch.users is None else [_plain(asdict(_checked(user))) for user in batch.users],
        behind=behind,
        in_order=not _of_faults_alone(batch),
    )


def _of_faults_alone(batch: Batch) -> bool:
    """Whether a batch may overtake: a fault is told by its id, so that hearing of it early or twice changes nothing."""
    others = (batch.samples, batch.facts, batch.users, batch.kernel, batch.experts, batch.steps, batch.heartbeats)
    return bool(batch.faults) and not any(others)


def _chunk(node: str, kind: str, columns: Columns) -> Chunk | None:
    moments = len(columns.at_s)
    if moments == 0 or columns.entities == 0:
        return None
    if len(set(columns.metrics)) != len(columns.metrics) or len(columns.monotonic_s) != moments:
        raise BatchRefused(f"the {kind} columns need one name a metric and one time a sample")
    if any(not name or "\n" in name for name in columns.metrics):
        raise BatchRefused(f"a {kind} metric's name must be text without line breaks")
    if any(len(column) != moments * columns.entities for column in columns.values):
        raise BatchRefused(f"a {kind} column must hold one value a sample and device")
    if not all(map(math.isfinite, columns.at_s)):
        raise BatchRefused(f"a {kind} sample lacks its time")
    blob = codec.encode_raw(
        columns.metrics,
        columns.entities,
        columns.at_s.tobytes(),
        columns.monotonic_s.tobytes(),
        [memoryview(column).cast("B") for column in columns.values],
    )
    return Chunk(node, kind, min(columns.at_s), max(columns.at_s), moments, codec.RAW, blob)


def _fault(fault: readings.Fault, node: str) -> readings.Fault:
    checked = _checked(fault)
    if checked.node != node:
        raise BatchRefused(f"{node} tells of a fault of {checked.node}", "foreign_fault")
    for name in ("onset_s", "last_clean_s", "observed_s"):
        _finite(f"a fault's {name}", getattr(checked, name))
    if checked.state not in ("firing", "clear"):
        raise BatchRefused(f"{checked.state!r} is no state of a fault")
    return checked


def _experts(records: Sequence[readings.ExpertRecord], complaints: list[str]) -> list[tuple[int, ExpertStep]]:
    found = []
    for record in records:
        try:
            found.append((_checked(record).epoch, ExpertStep.of(_checked(record))))
        except ValueError as error:
            complaints.append(f"an expert record was left out: {error}")
    return found


def _heartbeats(files: Sequence[readings.HeartbeatFile], complaints: list[str]) -> list[contract.Heartbeat]:
    found = []
    for file in files:
        try:
            found.append(_timed(contract.Heartbeat.from_json(file.body)))
        except (contract.ContractError, BatchRefused) as error:
            complaints.append(f"the heartbeat {_text(str(file.path))} was left out: {error}")
    return found


# --- types and text --------------------------------------------------------------------------------------------------


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "dict[str, Any]": (dict,),
    **dict.fromkeys(("Severity", "Action", "FaultState"), (str,)),
    **{f"{name} | None": (kind, NoneType) for name, kind in (("str", str), ("int", int))},
    "float | None": (float, int, NoneType),
}


@cache
def _accepted(record: type) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """Which plain types each field of a record may have, by its annotation; arrays are the wire's business."""
    return tuple((field.name, _TYPES[str(field.type)]) for field in fields(record) if str(field.type) in _TYPES)


def _checked(record: Record) -> Record:
    """The record, its text cleaned; BatchRefused if a field has a type or size that no column holds."""
    changed: dict[str, Any] = {}
    kind: Any = type(record)
    for name, types in _accepted(kind):
        value = getattr(record, name)
        if not isinstance(value, types):
            raise BatchRefused(f"{kind.__name__}.{name} cannot be {value!r:.60}")
        if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
            raise BatchRefused(f"{kind.__name__}.{name} does not fit 64 bits")
        clean = _plain(value)
        if clean is not value:
            changed[name] = clean
    if not changed:
        return record
    values = {field.name: getattr(record, field.name) for field in fields(kind)}
    checked: Record = kind(**{**values, **changed})
    return checked


def _timed(record: Timed) -> Timed:
    """As _checked, for records whose time is a column."""
    _finite(f"{type(record).__name__}.at_s", record.at_s)
    return _checked(record)


def _text(value: str) -> str:
    """Text that both databases hold: no NUL, no lone surrogates."""
    if "\0" not in value and value.isascii():
        return value
    return value.replace("\0", "").encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""The batch that an agent sends: binary, versioned, in columns. The only schema that both sides share.

Layout, little endian: magic `TTB1`, version u16, flags u16 (none yet: 0), body length u32 (as sent), plain length u32,
CRC-32 of the body as sent u32, then the zlib'd body: a length-prefixed JSON head and the raw arrays it describes, in
order. Columns keep whole arrays (`int64`, `uint32`, `float32`, `float64`) so that a server never loops over values. It
is not a store format: the control plane codes chunks its own way.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from dataclasses import asdict, dataclass, fields
from typing import Any

from agents.readings import (
    LAYER_FACTS,
    ExpertRecord,
    Fault,
    GpuFacts,
    GpuUser,
    HeartbeatFile,
    KernelLine,
    NicFacts,
    NodeFacts,
    StepRecord,
)

WIRE_VERSION = 1
MAX_BATCH_BYTES = 8 << 20
MAX_PLAIN_BYTES = 64 << 20
MAX_HEAD_BYTES = 4 << 20
"""JSON grows twentyfold in memory; the bulk of a batch is in its arrays, so its head is held short."""
CONTENT_TYPE = "application/vnd.trimtab.batch"
WAITING_HEADER = "Trimtab-Waiting"
"""How many batches the sender has after this one: a server hurries through a backlog, and sets no clock by it."""
COLUMNS = ("gpu", "nic", "host")
"""The kinds of device whose samples a batch carries."""
_MAGIC = b"TTB1"
_HEADER = struct.Struct("<4sHHIII")
_LENGTH = struct.Struct("<I")
_SWAP = sys.byteorder == "big"


class WireError(Exception):
    """A batch that cannot be read. `code` is stable; the message says what was wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Columns:
    """Samples of one kind of entity: `values[m][s * entities + e]` is metric m of entity e in sample s, raw."""

    metrics: tuple[str, ...]
    entities: int
    at_s: array[float]
    monotonic_s: array[float]
    values: tuple[array[int], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything that a node says at once. `sequence` grows by one a batch within a `boot_id`."""

    node: str
    boot_id: str
    sequence: int
    source: str
    simulated: bool
    agent_version: str
    sent_s: float
    sent_monotonic_s: float
    gpu: Columns | None = None
    nic: Columns | None = None
    host: Columns | None = None
    facts: NodeFacts | None = None
    users: tuple[GpuUser, ...] | None = None
    """who holds the GPUs open; None says that it is as it was"""
    faults: tuple[Fault, ...] = ()
    kernel: tuple[KernelLine, ...] = ()
    experts: tuple[ExpertRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    heartbeats: tuple[HeartbeatFile, ...] = ()

    @property
    def samples(self) -> dict[str, Columns]:
        """The columns that it carries, by kind of device."""
        return {kind: found for kind in COLUMNS if (found := getattr(self, kind)) is not None}


@dataclass(frozen=True, slots=True)
class Drill:
    """A change to a simulated device's registers, asked for by a person."""

    id: str
    kind: str
    gpu: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answers once a batch is durable."""

    acknowledged: int
    drills: tuple[Drill, ...]
    server_s: float

    def to_json(self) -> bytes:
        """The reply as the server sends it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Reply:
        """The reply as the agent reads it; raises WireError("malformed")."""
        try:
            found = json.loads(body)
            drills = tuple(Drill(str(d["id"]), str(d["kind"]), int(d["gpu"])) for d in found["drills"])
            return cls(int(found["acknowledged"]), drills, float(found["server_s"]))
        except (ValueError, KeyError, TypeError) as error:
            raise WireError("malformed", f"the server's reply cannot be read: {error}") from error


class _Writer:
    """Collects arrays behind a JSON head; each `put` returns the array's place as [typecode, items]."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def put(self, values: array[Any]) -> list[Any]:
        if _SWAP:
            values = values[:]
            values.byteswap()
        self.parts.append(values.tobytes())
        return [values.typecode, len(values)]

    def blob(self, body: bytes) -> int:
        self.parts.append(body)
        return len(body)


class _Reader:
    """Takes the arrays in the order in which they were put; a short body is malformed, never an IndexError."""

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.at = 0

    def take(self, size: int) -> memoryview:
        if size < 0 or self.at + size > len(self.body):
            raise WireError("malformed", "an array reaches past the end of the batch")
        part = self.body[self.at : self.at + size]
        self.at += size
        return part

    def get(self, place: Any, typecode: str, items: int | None = None) -> array[Any]:
        found, count = place
        if found != typecode or (items is not None and count != items) or not isinstance(count, int):
            raise WireError("malformed", f"expected {items} items of type {typecode}, found {count} of {found}")
        values = array(typecode)
        values.frombytes(self.take(count * values.itemsize))
        if _SWAP:
            values.byteswap()
        return values


def _within(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise WireError("oversized", f"{what} of {size} bytes is over the limit of {limit}")


def _put_columns(writer: _Writer, columns: Columns | None) -> dict[str, Any] | None:
    if columns is None:
        return None
    return {
        "metrics": columns.metrics,
        "entities": columns.entities,
        "at": writer.put(columns.at_s),
        "monotonic": writer.put(columns.monotonic_s),
        "values": [writer.put(column) for column in columns.values],
    }


def _get_columns(reader: _Reader, head: dict[str, Any] | None) -> Columns | None:
    if head is None:
        return None
    at = reader.get(head["at"], "d")
    monotonic = reader.get(head["monotonic"], "d", len(at))
    entities = int(head["entities"])
    metrics = tuple(str(name) for name in head["metrics"])
    if len(head["values"]) != len(metrics) or entities < 0:
        raise WireError("malformed", "as many columns as metrics are needed, for no less than no devices")
    values = tuple(reader.get(place, "q", len(at) * entities) for place in head["values"])
    return Columns(metrics, entities, at, monotonic, values)


def _plain(record: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in without}


_EXPERT_ARRAYS = ("counts", "bias", "facts", "spread")
_ENCODED = (*COLUMNS, "facts", "users", "faults", "kernel", "experts", "steps", "heartbeats")


def encode(batch: Batch) -> bytes:
    """The batch as bytes; raises WireError("oversized") over any of the limits above."""
    writer = _Writer()
    head = {
        **_plain(batch, _ENCODED),
        **{kind: _put_columns(writer, getattr(batch, kind)) for kind in COLUMNS},
        "facts": asdict(batch.facts) if batch.facts else None,
        "users": None if batch.users is None else [_plain(user) for user in batch.users],
        "faults": [_plain(fault) for fault in batch.faults],
        "kernel": [_plain(line) for line in batch.kernel],
        "experts": [
            {**_plain(e, _EXPERT_ARRAYS), **{name: writer.put(getattr(e, name)) for name in _EXPERT_ARRAYS}}
            for e in batch.experts
        ],
        "steps": [_plain(step) for step in batch.steps],
        "heartbeats": [{**_plain(h, ("body",)), "body": writer.blob(h.body)} for h in batch.heartbeats],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    plain = b"".join([_LENGTH.pack(len(text)), text, *writer.parts])
    body = zlib.compress(plain, 1)
    _within("a batch's head", len(text), MAX_HEAD_BYTES)
    _within("an unpacked batch", len(plain), MAX_PLAIN_BYTES)
    _within("a batch", len(body) + _HEADER.size, MAX_BATCH_BYTES)
    return _HEADER.pack(_MAGIC, WIRE_VERSION, 0, len(body), len(plain), zlib.crc32(body)) + body


def _unpack(data: bytes) -> memoryview:
    """The plain body behind the header, with every check that does not need its contents."""
    _within("a batch", len(data), MAX_BATCH_BYTES)
    if data[:4] != _MAGIC[: len(data[:4])] or not data:
        raise WireError("bad_magic", "this is not a Trimtab batch")
    if len(data) < _HEADER.size:
        raise WireError("truncated", "the batch ends inside its header")
    _, version, flags, length, plain_length, checksum = _HEADER.unpack_from(data)
    if version != WIRE_VERSION or flags:
        raise WireError("wrong_version", f"wire version {version} with flags {flags} is not spoken here")
    body = data[_HEADER.size :]
    if len(body) < length:
        raise WireError("truncated", f"the batch has {len(body)} bytes of the {length} it announces")
    if len(body) > length or zlib.crc32(body) != checksum:
        raise WireError("bad_checksum", "the batch was changed on its way")
    _within("an unpacked batch", plain_length, MAX_PLAIN_BYTES)
    unzip = zlib.decompressobj()
    try:
        plain = unzip.decompress(body, plain_length + 1)
    except zlib.error as error:
        raise WireError("malformed", f"the batch cannot be decompressed: {error}") from error
    if len(plain) != plain_length or not unzip.eof:
        raise WireError("malformed", "the batch is not as long as it says")
    return memoryview(plain)


def _get_facts(found: dict[str, Any] | None) -> NodeFacts | None:
    if found is None:
        return None
    gpus = tuple(GpuFacts(**gpu) for gpu in found["gpus"])
    nics = tuple(NicFacts(**nic) for nic in found["nics"])
    return NodeFacts(**{**found, "gpus": gpus, "nics": nics, "blind": tuple(found["blind"])})


def _get_expert(reader: _Reader, found: dict[str, Any]) -> ExpertRecord:
    items = found["layers"] * found["slots"]
    counts, bias = reader.get(found["counts"], "I", items), reader.get(found["bias"], "f", items)
    facts, spread = reader.get(found["facts"], "f"), reader.get(found["spread"], "d")
    if len(facts) not in (0, len(LAYER_FACTS) * found["layers"]) or len(spread) not in (0, 2 * found["layers"]):
        raise WireError("malformed", "a record's facts and spread have rows of its layers, or are empty")
    return ExpertRecord(**{**found, "counts": counts, "bias": bias, "facts": facts, "spread": spread})


def _build(head: dict[str, Any], reader: _Reader) -> Batch:
    columns = {kind: _get_columns(reader, head[kind]) for kind in COLUMNS}
    experts = tuple(_get_expert(reader, found) for found in head["experts"])
    heartbeats = tuple(HeartbeatFile(**{**h, "body": bytes(reader.take(h["body"]))}) for h in head["heartbeats"])
    batch = Batch(
        **{
            **head,
            **columns,
            "facts": _get_facts(head["facts"]),
            "users": None if head["users"] is None else tuple(GpuUser(**user) for user in head["users"]),
            "faults": tuple(Fault(**fault) for fault in head["faults"]),
            "kernel": tuple(KernelLine(**line) for line in head["kernel"]),
            "experts": experts,
            "steps": tuple(StepRecord(**step) for step in head["steps"]),
            "heartbeats": heartbeats,
        }
    )
    if not isinstance(batch.node, str) or not isinstance(batch.sequence, int) or not isinstance(batch.boot_id, str):
        raise WireError("malformed", "node, boot_id and sequence must be text, text and a number")
    return batch


def decode(data: bytes) -> Batch:
    """The batch in `data`; raises WireError with code bad_magic, wrong_version, truncated, bad_checksum, oversized
    or malformed, and nothing else, whatever the bytes are."""
    plain = _unpack(data)
    reader = _Reader(plain)
    try:
        (length,) = _LENGTH.unpack(reader.take(_LENGTH.size))
        _within("a batch's head", length, MAX_HEAD_BYTES)
        head = json.loads(bytes(reader.take(length)))
        return _build(head, reader)
    except WireError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, OverflowError) as error:
        raise WireError("malformed", f"the batch's head cannot be read: {error}") from error

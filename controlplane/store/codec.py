"""How samples become bytes: exact 64-bit columns, each readable without the others. Pure; it knows no database.

Two codecs. RAW is written the moment a batch arrives: whole arrays behind one zstd frame, cheap to make. COLUMNS is
what chunks are merged into: one zstd frame a column, small to keep and to read from.

A column is an int64 matrix [entities, samples]. Its unknown values leave it as a bitmap and are bridged by the value
before; then it is stored either as values or as first differences, whichever has the smaller numbers, less each
entity's minimum (frame of reference), cut into byte planes, so that zstd sees the noisy low bytes and the constant high
bytes apart. All arithmetic is modulo 2^64: differences that overflow come back exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.readings import UNKNOWN
from controlplane.store.compression import FAST, SMALL, CompressionError, compress, decompress

RAW = "raw1"
COLUMNS = "columns1"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_HEAD = struct.Struct("<IHHI")  # samples, entities, metrics, bytes of the metrics' names
_COLUMN = struct.Struct("<BBB")  # order of differences, bytes a number, whether a bitmap of unknowns follows
_TIMES = 2  # the columns before the metrics: wall time and monotonic time, as the bits of their doubles


class CodecError(ValueError):
    """Bytes that this code did not write, or a metric that a chunk does not have."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw values [metrics, samples, entities] with the agent's wall and monotonic time of each sample, in seconds."""

    metrics: tuple[str, ...]
    at_s: Floats
    monotonic_s: Floats
    values: Ints

    @property
    def entities(self) -> int:
        return int(self.values.shape[2])

    def last(self) -> Samples:
        """The newest sample alone."""
        return Samples(self.metrics, self.at_s[-1:], self.monotonic_s[-1:], self.values[:, -1:])


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of every entity: raw values [samples, entities] at the agent's wall time."""

    at_s: Floats
    values: Ints


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Samples of one node's devices, one stretch after the other. ValueError unless the columns agree."""
    if len({(part.metrics, part.entities) for part in parts}) != 1:
        raise ValueError("only samples of the same metrics and entities can be joined")
    return Samples(
        parts[0].metrics,
        np.concatenate([part.at_s for part in parts]),
        np.concatenate([part.monotonic_s for part in parts]),
        np.concatenate([part.values for part in parts], axis=1),
    )


def _plain(frame: bytes | memoryview) -> bytes:
    try:
        return decompress(frame)
    except CompressionError as error:
        raise CodecError(str(error)) from error


# --- whole arrays, as they arrive ------------------------------------------------------------------------------------


def encode_raw(
    metrics: Sequence[str], entities: int, at_s: bytes, monotonic_s: bytes, columns: Iterable[bytes | memoryview]
) -> bytes:
    """A RAW chunk from little-endian arrays: doubles of time and one int64 column [samples, entities] a metric."""
    names = "\n".join(metrics).encode()
    head = _HEAD.pack(len(at_s) // 8, entities, len(metrics), len(names))
    return compress(b"".join((head, names, at_s, monotonic_s, *columns)), FAST)


def decode_raw(blob: bytes) -> Samples:
    """Samples of a RAW chunk."""
    plain = _plain(blob)
    samples, entities, metrics, length = _HEAD.unpack_from(plain)
    at = _HEAD.size + length
    if len(plain) != at + 16 * samples + 8 * metrics * samples * entities:
        raise CodecError("the chunk is not as long as its head says")
    times = np.frombuffer(plain, "<f8", 2 * samples, at)
    values = np.frombuffer(plain, "<i8", metrics * samples * entities, at + 16 * samples)
    return Samples(_names(plain, length), times[:samples], times[samples:], values.reshape(metrics, samples, entities))


def _names(plain: bytes, length: int) -> tuple[str, ...]:
    text = plain[_HEAD.size : _HEAD.size + length].decode()
    return tuple(text.split("\n")) if text else ()


# --- one column ------------------------------------------------------------------------------------------------------


def _bridge(values: Ints, unknown: NDArray[np.bool_]) -> Ints:
    """The values [entities, samples] with each unknown one replaced by the known one before it, else by 0."""
    positions = np.where(unknown, 0, np.arange(values.shape[1]))
    filled = np.take_along_axis(values, np.maximum.accumulate(positions, axis=1), axis=1)
    return np.where(filled == UNKNOWN, 0, filled)


def _weight(numbers: NDArray[np.uint64]) -> float:
    return float(np.log2(1.0 + numbers.astype(np.float64)).sum())


def _above_minimum(values: Ints) -> tuple[Ints, NDArray[np.uint64]]:
    """Each entity's minimum [entities], and how far above it every value lies (exact modulo 2^64)."""
    if values.shape[1] == 0:
        return np.zeros(values.shape[0], np.int64), values.view(np.uint64)
    base = values.min(axis=1)
    return base, values.view(np.uint64) - base.view(np.uint64)[:, None]


def encode_column(values: Ints) -> bytes:
    """One column [entities, samples] of int64, UNKNOWN included, as a frame of its own."""
    values = np.ascontiguousarray(values, np.int64)
    unknown = values == UNKNOWN
    bitmap = np.packbits(unknown).tobytes() if unknown.any() else b""
    if bitmap:
        values = _bridge(values, unknown)
    order, first = 0, b""
    base, numbers = _above_minimum(values)
    if values.shape[1] > 1 and numbers.any():
        steps = np.ascontiguousarray(np.diff(values.view(np.uint64), axis=1)).view(np.int64)
        step_base, step_numbers = _above_minimum(steps)
        if _weight(step_numbers) < _weight(numbers):
            order, first = 1, values[:, 0].astype("<i8").tobytes()
            base, numbers = step_base, step_numbers
    largest = int(numbers.max()) if numbers.size else 0
    width = (largest.bit_length() + 7) // 8
    planes = numbers.astype("<u8").view(np.uint8).reshape(*numbers.shape, 8)[..., :width]
    body = b"".join((bitmap, first, base.astype("<i8").tobytes(), np.moveaxis(planes, 2, 0).tobytes()))
    return _COLUMN.pack(order, width, bool(bitmap)) + compress(body, SMALL)


@dataclass(frozen=True, slots=True)
class _Column:
    """A frame taken apart: first values [entities] if it holds differences, minima [entities], byte planes."""

    unknown: NDArray[np.uint8]
    first: NDArray[np.uint64] | None
    base: NDArray[np.uint64]
    planes: NDArray[np.uint8]
    """[width, entities, samples or one less]"""

    @classmethod
    def of(cls, frame: bytes | memoryview, entities: int, samples: int) -> _Column:
        order, width, has_bitmap = _COLUMN.unpack_from(frame)
        plain = _plain(frame[_COLUMN.size :])
        bitmap = (entities * samples + 7) // 8 if has_bitmap else 0
        columns = samples - order
        at = bitmap + 8 * entities * order
        if len(plain) != at + 8 * entities + width * entities * columns:
            raise CodecError("a column is not as long as its head says")
        planes = np.frombuffer(plain, np.uint8, width * entities * columns, at + 8 * entities)
        return cls(
            np.frombuffer(plain, np.uint8, bitmap),
            np.frombuffer(plain, "<u8", entities, bitmap) if order else None,
            np.frombuffer(plain, "<u8", entities, at),
            planes.reshape(width, entities, columns),
        )


def decode_column(frame: bytes | memoryview, entities: int, samples: int) -> Ints:
    """The column [entities, samples] of a frame."""
    found = _Column.of(frame, entities, samples)
    order = 0 if found.first is None else 1
    numbers = np.empty((entities, samples), np.uint64)
    numbers[:, order:] = found.base[:, None]
    for place, plane in enumerate(found.planes):
        numbers[:, order:] += plane if place == 0 else plane.astype(np.uint64) << np.uint64(8 * place)
    if found.first is not None:
        numbers[:, 0] = found.first
        np.cumsum(numbers, axis=1, out=numbers)
    values = numbers.view(np.int64)
    if len(found.unknown):
        bits = np.unpackbits(found.unknown, count=entities * samples)
        values[bits.reshape(entities, samples).astype(bool)] = UNKNOWN
    return values


def decode_low(frame: bytes | memoryview, entities: int, samples: int) -> NDArray[np.uint32]:
    """The low 32 bits of a column's values [entities, samples]: exact for values of that width, as all arithmetic is
    modulo a power of two, and twice as fast. CodecError if any is UNKNOWN, which has no such form."""
    found = _Column.of(frame, entities, samples)
    if len(found.unknown):
        raise CodecError("a column with unknown values has no short form")
    order = 0 if found.first is None else 1
    numbers = np.empty((entities, samples), np.uint32)
    body = numbers[:, order:]
    body[:] = found.base.astype(np.uint32)[:, None]
    room = np.empty(body.shape, np.uint32)
    for place, plane in enumerate(found.planes[:4]):
        if place:
            np.left_shift(plane, np.uint32(8 * place), out=room, dtype=np.uint32)
            body += room
        else:
            body += plane
    if found.first is not None:
        numbers[:, 0] = found.first.astype(np.uint32)
        np.cumsum(numbers, axis=1, out=numbers, dtype=np.uint32)
    return numbers


# --- a merged chunk --------------------------------------------------------------------------------------------------


def _bits(times: Floats) -> Ints:
    """Doubles as integers that can be differenced: their bits, one row."""
    return np.ascontiguousarray(times, np.float64).view(np.int64)[None, :]


def encode_columns(samples: Samples) -> bytes:
    """A COLUMNS chunk: head, names, where each column ends, columns."""
    names = "\n".join(samples.metrics).encode()
    frames = [encode_column(_bits(samples.at_s)), encode_column(_bits(samples.monotonic_s))]
    frames += [encode_column(column.T) for column in samples.values]
    head = _HEAD.pack(len(samples.at_s), samples.entities, len(samples.metrics), len(names))
    ends = np.cumsum([len(frame) for frame in frames], dtype="<u4").tobytes()
    return b"".join((head, names, ends, *frames))


class ColumnsChunk:
    """A COLUMNS chunk that is read in place, a column at a time."""

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEAD.size:
            raise CodecError("the chunk ends inside its head")
        self.samples, self.entities, count, length = _HEAD.unpack_from(blob)
        self.metrics = _names(blob, length)
        at = _HEAD.size + length
        frames = count + _TIMES
        self._start = at + 4 * frames
        if len(self.metrics) != count or len(blob) < self._start:
            raise CodecError("the chunk's head is damaged")
        self._ends = np.frombuffer(blob, "<u4", frames, at)
        self._blob = memoryview(blob)

    def _frame(self, index: int) -> memoryview:
        begin = int(self._ends[index - 1]) if index else 0
        return self._blob[self._start + begin : self._start + int(self._ends[index])]

    def _times(self, index: int) -> Floats:
        times: Floats = decode_column(self._frame(index), 1, self.samples)[0].view(np.float64)
        return times

    def series(self, metric: str) -> Series:
        """One metric of all entities; no other metric is decoded. CodecError if the chunk does not have it."""
        if metric not in self.metrics:
            raise CodecError(f"the chunk has no metric {metric}")
        column = decode_column(self._frame(_TIMES + self.metrics.index(metric)), self.entities, self.samples)
        return Series(self._times(0), column.T)

    def all(self) -> Samples:
        """Everything."""
        columns = [
            decode_column(self._frame(_TIMES + index), self.entities, self.samples).T
            for index in range(len(self.metrics))
        ]
        values = np.stack(columns) if columns else np.zeros((0, self.samples, self.entities), np.int64)
        return Samples(self.metrics, self._times(0), self._times(1), values)


def decode(codec: str, blob: bytes) -> Samples:
    """Every sample of a chunk. CodecError if the codec is unknown or the bytes are damaged."""
    if codec == RAW:
        return decode_raw(blob)
    if codec == COLUMNS:
        return ColumnsChunk(blob).all()
    raise CodecError(f"no codec is called {codec!r}")


def decode_series(codec: str, blob: bytes, metric: str) -> Series:
    """One metric of a chunk. CodecError if the chunk does not have it."""
    if codec == COLUMNS:
        return ColumnsChunk(blob).series(metric)
    samples = decode(codec, blob)
    if metric not in samples.metrics:
        raise CodecError(f"the chunk has no metric {metric}")
    return Series(samples.at_s, samples.values[samples.metrics.index(metric)])

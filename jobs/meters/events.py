"""TensorBoard's event files, scalars alone: a record's frame with its checksums, and the few fields of its message.

A frame is the length (8 bytes, little-endian), its masked CRC-32C, the bytes, theirs; a message is a protocol buffer
(Event: wall_time 1, step 2, summary 5; Summary: value 1; Value: tag 1, simple_value 2, tensor 8). A file that is
written to ends within a frame; one whose checksum is wrong is not read on. It needs neither TensorBoard nor protobuf.
Source: tensorflow/core/lib/io/record_writer.h, tensorboard/compat/proto/{event,summary,tensor}.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 64 << 10
"""bytes of a record that is looked into: a scalar has a hundred, and texts, graphs and pictures are passed over"""
_HEAD, _TAIL = 12, 4
_POLYNOMIAL = 0x82F63B78
_TYPES = {1: ("f", 4), 2: ("d", 8)}  # DT_FLOAT, DT_DOUBLE


class BrokenRecord(ValueError):
    """A frame whose checksum is wrong; the message says where."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number under a tag, of a step."""

    tag: str
    step: int
    at_s: float
    value: float


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ _POLYNOMIAL if byte & 1 else byte >> 1
        found.append(byte)
    return tuple(found)


_CRC = _table()


def masked_crc(body: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TensorFlow's records have it."""
    value = 0xFFFFFFFF
    for byte in body:
        value = _CRC[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(end, bytes) of each whole record of a file's part that begins with one; large ones have no bytes.

    BrokenRecord for a checksum that is wrong, with nothing of that record or after it.
    """
    at = 0
    while at + _HEAD <= len(body):
        length, checksum = struct.unpack_from("<QI", body, at)
        if masked_crc(body[at : at + 8]) != checksum:
            raise BrokenRecord(f"the record at byte {at} has a wrong checksum of its length")
        end = at + _HEAD + length + _TAIL
        if end > len(body):
            return
        data = body[at + _HEAD : end - _TAIL] if length <= LARGEST else b""
        if data and masked_crc(data) != struct.unpack_from("<I", body, end - _TAIL)[0]:
            raise BrokenRecord(f"the record at byte {at} has a wrong checksum")
        yield end, data
        at = end


def length_of(body: bytes) -> int | None:
    """The bytes of the record that a file's part begins with, its frame included; None while its head is not there."""
    return None if len(body) < _HEAD else struct.unpack_from("<Q", body)[0] + _HEAD + _TAIL


def scalars(record: bytes) -> list[Scalar]:
    """The scalars of a record; none of one that is no event, or that has none."""
    try:
        return list(_scalars(record))
    except (struct.error, IndexError, UnicodeDecodeError, TypeError):
        return []


def _scalars(record: bytes) -> Iterator[Scalar]:
    at_s, step, summaries = 0.0, 0, []
    for number, value in _fields(record):
        if number == 1 and isinstance(value, bytes):
            (at_s,) = struct.unpack("<d", value)
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, found = _value(value)
                if tag and found is not None:
                    yield Scalar(tag, step, at_s, found)


def _value(body: bytes) -> tuple[str, float | None]:
    tag, found = "", None
    for number, value in _fields(body):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode()
        elif number == 2:
            (found,) = struct.unpack("<f", value)
        elif number == 8:
            found = _tensor(value)
    return tag, found


def _tensor(body: bytes) -> float | None:
    """A tensor's one number; None for more of them, and for types that no scalar has."""
    kind, packed = 0, b""
    for number, value in _fields(body):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):  # tensor_content, float_val, double_val
            packed = value
    letter, size = _TYPES.get(kind, ("", -1))
    return float(struct.unpack(f"<{letter}", packed)[0]) if len(packed) == size else None


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields; fixed ones as bytes."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(body, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(body, at)
        else:
            size = {1: 8, 5: 4}[kind] if kind in (1, 5) else -1
        if size < 0 or at + size > len(body):
            raise IndexError("a field ends beyond its message")
        yield number, body[at : at + size]
        at += size


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError("a number is too long")

"""A ring of fixed slots in a memory-mapped file: the trainer writes, the node agent reads, neither waits for the other.

Each slot carries a sequence word (a seqlock): odd while it is being written, 2 * (n + 1) once record n is whole. A
reader copies a slot that was whole and takes the copy only if the word is still the same after it. When the reader is
slow or gone the writer goes round and the reader counts what it missed. The writer holds an exclusive flock on the file
for as long as its process lives, so a reader knows a dead trainer from a slow one without trusting a process id, which
may belong to another namespace or be in use again. Nothing but the standard library; one writer a file.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.readings import LAYER_FACTS

MAGIC = b"TTRING2\n"
PAGE = 4096
SLOTS = 64
_HEAD = struct.Struct("<8sIIQ")  # magic, slots, slot bytes, records written
_WRITTEN = struct.Struct("<Q")
_WRITTEN_AT = 16
_LENGTH = struct.Struct("<I")
_META_AT = 64
_SEQUENCE = struct.Struct("<Q")
# sequence, step, wall s, loss, gradient norm, seconds, learning rate, tokens, data position, routed tokens a layer,
# share of routes that differ from the rollout's
RECORD = struct.Struct("<QqdddddqqQd")

UNWRITABLE = (TypeError, ValueError, IndexError, BufferError, struct.error)
"""What RingWriter.write raises of values, counts or biases that do not fit."""


class RingError(Exception):
    """A file that is not a ring, or not of this version."""


@dataclass(frozen=True)
class RingMeta:
    """Whose records a ring holds, and their shape. `created_ns` tells a ring from a later one of the same name.

    A pipeline's stages all write the whole model's shape, rows of NaN biases where a layer is another stage's. The
    three `…_parallel` are sizes of the trainer's groups, 1 without; `tensor_parallel` is that of the experts, since
    they say on which ranks experts lie: stage rank ÷ (world ÷ pipeline), and in it the block of experts
    (rank mod (world ÷ pipeline)) ÷ tensor mod expert, with layers in even, contiguous shares. `start_bias` is the head
    of the SHA-256 of the biases at the trainer's start, 0 if it does not know.
    """

    run_id: str
    attempt_no: int
    epoch: int
    rank: int
    world: int
    layers: int
    slots: int
    experts: int
    top_k: int
    pid: int
    local_world: int = 1
    created_ns: int = 0
    expert_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    start_bias: int = 0

    @property
    def array_bytes(self) -> int:
        """Of counts or of biases: four bytes each."""
        return self.layers * self.slots * 4

    @property
    def facts_bytes(self) -> int:
        """Of the layers' facts: four bytes each."""
        return len(LAYER_FACTS) * self.layers * 4

    @property
    def record_bytes(self) -> int:
        """Of one whole record."""
        return RECORD.size + 2 * self.array_bytes + self.facts_bytes


@dataclass(frozen=True, slots=True)
class RingRecord:
    """One optimizer step as the trainer wrote it; counts are uint32 and biases float32 bytes of [layers, slots], facts
    float32 of [len(LAYER_FACTS), layers], NaN where unknown; all of them empty if none is known."""

    step: int
    at_s: float
    loss: float
    grad_norm: float
    step_seconds: float
    learning_rate: float
    tokens: int
    data_position: int
    routed: int
    route_mismatch: float
    counts: bytes
    bias: bytes
    facts: bytes = b""


class RingWriter:
    """Makes the file and writes records into it. `write` costs three packs and two copies; it never blocks.

    Raises OSError where the file cannot be made: its room is taken from the disk here, because a full disk under a
    mapping would otherwise end the trainer with a bus error later. The directory belongs on a file system in memory
    (/run, /dev/shm): on a disk's, the kernel may make a write wait for its journal.
    """

    def __init__(self, path: Path, meta: RingMeta, slots: int = SLOTS) -> None:
        self.meta, self.slots = meta, slots
        self.array_bytes = meta.array_bytes
        self._no_facts = struct.pack("<f", math.nan) * (meta.facts_bytes // 4)
        self.slot_bytes = (meta.record_bytes + 63) // 64 * 64
        text = json.dumps(asdict(meta)).encode()
        if len(text) > PAGE - _META_AT - _LENGTH.size:
            raise RingError("the ring's description does not fit its page")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, PAGE + slots * self.slot_bytes)
            fcntl.flock(file, fcntl.LOCK_EX)  # on the open file, which the mapping keeps open
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._map[: _HEAD.size] = _HEAD.pack(MAGIC, slots, self.slot_bytes, 0)
        self._map[_META_AT : _META_AT + _LENGTH.size + len(text)] = _LENGTH.pack(len(text)) + text
        temporary.replace(path)
        for at in range(PAGE + RECORD.size + 2 * self.array_bytes, len(self._map), self.slot_bytes):
            self._map[at : at + len(self._no_facts)] = self._no_facts
        self._has_facts = bytearray(slots)
        self._view = memoryview(self._map)
        self.written = 0

    def write(self, values: tuple[Any, ...], counts: Any, bias: Any, facts: Any = None) -> None:
        """Writes one record. `values` are RECORD's fields after the sequence; counts and bias offer the buffer protocol
        with exactly `array_bytes` bytes each, facts with `facts_bytes`, C-contiguous; anything else is one of
        UNWRITABLE and leaves a slot that no reader takes."""
        # between a trainer's steps the caches are cold: what counts is how little code and memory this touches
        number, whole = self.written, self._map
        slot = number % self.slots
        at = PAGE + slot * self.slot_bytes
        RECORD.pack_into(self._view, at, 2 * number + 1, *values)
        middle = at + RECORD.size + self.array_bytes
        end = middle + self.array_bytes
        whole[at + RECORD.size : middle] = counts
        whole[middle:end] = bias
        if facts is not None:
            self._has_facts[slot] = 1
            whole[end : end + len(self._no_facts)] = facts
        elif self._has_facts[slot]:
            whole[end : end + len(self._no_facts)] = self._no_facts
            self._has_facts[slot] = 0
        _SEQUENCE.pack_into(self._view, at, 2 * number + 2)
        self.written = number + 1
        _WRITTEN.pack_into(self._view, _WRITTEN_AT, self.written)

    def close(self) -> None:
        """Lets go of the mapping and with it of the lock; the file stays for the reader."""
        self._view.release()
        self._map.close()


class RingReader:
    """Reads what is new since the last call. `missed` counts records that were overwritten before they were read.

    It reads with pread, not through a mapping: a file that somebody cuts short is then an error and not a bus error.
    """

    def __init__(self, path: Path) -> None:
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._read_head(path.name)
            self.inode = os.fstat(self._file).st_ino
        except (OSError, ValueError, TypeError, struct.error) as error:
            raise RingError(f"{path.name} cannot be read as a ring: {error}") from error
        self.next = 0
        self.missed = 0

    def _read_head(self, name: str) -> None:
        page = self._at(0, PAGE)
        magic, self.slots, self.slot_bytes, _ = _HEAD.unpack_from(page)
        if magic != MAGIC:
            raise RingError(f"{name} is not a ring of this version")
        (length,) = _LENGTH.unpack_from(page, _META_AT)
        self.meta = RingMeta(**json.loads(page[_META_AT + _LENGTH.size :][:length]))
        shape = (self.meta.layers, self.meta.slots, self.meta.experts, self.meta.top_k)
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise RingError(f"{name} holds records of an impossible shape {shape}")
        self.array_bytes = self.meta.array_bytes
        size = os.fstat(self._file).st_size
        if self.slot_bytes < self.meta.record_bytes or size < PAGE + self.slots * self.slot_bytes:
            raise RingError(f"{name} is shorter than it says")
        if self.slots < 1:
            raise RingError(f"{name} has no slots")
        self._no_facts = struct.pack("<f", math.nan) * (self.meta.facts_bytes // 4)

    def _at(self, offset: int, size: int) -> bytes:
        return os.pread(self._file, size, offset)

    @property
    def written_by_living(self) -> bool:
        """Whether the writer's process still holds the file; ask before `read`, or its last record may be lost."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def read(self) -> Iterator[RingRecord]:
        """Whole records in order; a record that changes under the copy is counted as missed, never returned torn.
        Raises RingError if the file was cut short."""
        word = self._at(_WRITTEN_AT, _WRITTEN.size)
        if len(word) < _WRITTEN.size:
            raise RingError("the ring was cut short")
        (written,) = _WRITTEN.unpack(word)
        if written - self.next > self.slots:
            self.missed += written - self.slots - self.next
            self.next = written - self.slots
        while self.next < written:
            record = self._take(self.next)
            self.next += 1
            if record is None:
                self.missed += 1
            else:
                yield record

    def _take(self, number: int) -> RingRecord | None:
        at = PAGE + (number % self.slots) * self.slot_bytes
        body = self._at(at, self.meta.record_bytes)
        # the record was whole before the copy began and its word never comes back: the word after the copy settles it
        after = self._at(at, _SEQUENCE.size)
        if after != _SEQUENCE.pack(2 * number + 2) or len(body) < self.meta.record_bytes:
            return None
        _, step, at_s, loss, norm, seconds, rate, tokens, position, routed, mismatch = RECORD.unpack_from(body)
        start, middle = RECORD.size, RECORD.size + self.array_bytes
        end = middle + self.array_bytes
        facts = body[end:]
        known = b"" if facts == self._no_facts else facts
        arrays = body[start:middle], body[middle:end], known
        return RingRecord(step, at_s, loss, norm, seconds, rate, tokens, position, routed, mismatch, *arrays)

    def close(self) -> None:
        """Lets go of the file; nothing can be read after it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()

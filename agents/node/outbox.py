"""What is not acknowledged stays on disk: a bounded spool of encoded batches, sent in order, thinned oldest first.

One file a batch, named by its number and class. Faults overtake everything else, since an hour of samples may wait.
Under pressure raw telemetry goes before training records, those before facts, and faults last. A new start of the agent
is a new generation, so a sequence number is never used twice. Files are whole or absent after a kill (written aside and
renamed) but not forced to the platter: a node that loses power loses its last seconds. While the disk takes nothing,
the newest batches wait in memory instead.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

TELEMETRY, RECORDS, FACTS, FAULTS = "t", "r", "i", "f"
_ORDER = (TELEMETRY, RECORDS, FACTS, FAULTS)
DEFAULT_BYTES = 1 << 30
MEMORY_BYTES = 4 << 20


class OutboxError(Exception):
    """A spool that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class Spooled:
    """A batch that waits: its place in the order, its class and its size."""

    generation: int
    sequence: int
    kind: str
    bytes: int

    @property
    def file(self) -> str:
        return f"{self.generation:06d}-{self.sequence:012d}-{self.kind}.batch"


class Outbox:
    """The spool of one agent. `put` and `take` may be called from different threads. Raises OutboxError or OSError."""

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_BYTES, memory_bytes: int = MEMORY_BYTES) -> None:
        self.directory, self.limit_bytes, self.memory_bytes = directory, limit_bytes, memory_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = self._claim()
        self._waiting: OrderedDict[Spooled, None] = OrderedDict.fromkeys(self._found())
        self._urgent = OrderedDict.fromkeys(item for item in self._waiting if item.kind == FAULTS)
        self._in_memory: dict[Spooled, bytes] = {}
        self._bytes = sum(item.bytes for item in self._waiting)
        self.generation = self._next_generation()
        self._sequence = 0
        self.dropped = 0
        self.trouble = ""
        self._changed = threading.Condition()

    def _claim(self) -> int:
        """Two agents on one spool would send each other's batches: the second is refused."""
        lock = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise OutboxError(f"another agent uses the spool {self.directory}: give each its own") from error
        return lock

    def close(self) -> None:
        """Lets another agent have the spool; batches stay on disk."""
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    def __del__(self) -> None:
        if hasattr(self, "_lock_file"):
            self.close()

    def _found(self) -> list[Spooled]:
        items = []
        for left in self.directory.glob("*.new"):  # half written when an agent was killed
            left.unlink(missing_ok=True)
        for path in self.directory.glob("*-*-?.batch"):
            generation, sequence, kind = path.stem.split("-")
            size = path.stat().st_size
            if size and kind in _ORDER and generation.isdigit() and sequence.isdigit():
                items.append(Spooled(int(generation), int(sequence), kind, size))
            else:
                path.unlink()  # the node lost its power before the file had contents
        return sorted(items)

    def _next_generation(self) -> int:
        """One more than the last; where that was lost, the time, which is more than any count of starts."""
        file = self.directory / "generation"
        newest = max((item.generation for item in self._waiting), default=0)
        try:
            last = int(file.read_text()) if file.exists() else 0
        except ValueError:
            last = int(time.time())
        generation = max(last, newest) + 1
        self._write(file, str(generation).encode())
        return generation

    @staticmethod
    def _write(file: Path, body: bytes) -> None:
        temporary = file.with_suffix(".new")
        try:
            temporary.write_bytes(body)
            temporary.replace(file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def next_sequence(self) -> int:
        """The number of the next batch; the caller encodes it into the batch and puts that."""
        with self._changed:
            self._sequence += 1
            return self._sequence

    def put(self, sequence: int, kind: str, body: bytes) -> None:
        """Keeps a batch until it is acknowledged, making room if it must. Never raises for a sick disk."""
        item = Spooled(self.generation, sequence, kind, len(body))
        with self._changed:
            self._make_room(len(body), self.limit_bytes)
            try:
                self._write(self.directory / item.file, body)
                self.trouble = ""
            except OSError as error:
                self.trouble = f"the spool takes no more, batches wait in memory: {error}"
                self._in_memory[item] = body
            self._waiting[item] = None
            if kind == FAULTS:
                self._urgent[item] = None
            self._bytes += item.bytes
            self._thin_memory()
            self._changed.notify()

    def _make_room(self, wanted: int, limit: int) -> None:
        for kind in _ORDER:
            while self._bytes + wanted > limit:
                victim = next((item for item in self._waiting if item.kind == kind), None)
                if victim is None:
                    break
                self._remove(victim)
                self.dropped += 1

    def _thin_memory(self) -> None:
        while sum(item.bytes for item in self._in_memory) > self.memory_bytes:
            victim = min(self._in_memory, key=lambda item: (_ORDER.index(item.kind), item.sequence))
            self._remove(victim)
            self.dropped += 1

    def _remove(self, item: Spooled) -> None:
        if item not in self._waiting:
            return
        del self._waiting[item]
        self._urgent.pop(item, None)
        self._bytes -= item.bytes
        if self._in_memory.pop(item, None) is not None:
            return
        try:
            (self.directory / item.file).unlink(missing_ok=True)
        except OSError as error:  # it will be sent again by the next start, and known there
            self.trouble = f"the spool cannot be emptied: {error}"

    def take(self, timeout_s: float) -> tuple[Spooled, bytes] | None:
        """The oldest fault, else the oldest batch, without removing it; None when there is none within the time."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            if not self._waiting:
                return None
            item = next(iter(self._urgent or self._waiting))
            try:
                return item, self._in_memory.get(item) or (self.directory / item.file).read_bytes()
            except OSError:
                self._remove(item)
                self.dropped += 1
                return None

    def done(self, item: Spooled) -> None:
        """The batch is durable at the server, or will never be taken."""
        with self._changed:
            self._remove(item)

    def wake(self) -> None:
        """Ends a waiting `take` early, at a stop."""
        with self._changed:
            self._changed.notify_all()

    @property
    def waiting(self) -> tuple[int, int]:
        """(batches, bytes) not acknowledged yet."""
        with self._changed:
            return len(self._waiting), self._bytes

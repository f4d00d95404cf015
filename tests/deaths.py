"""A process that can be made to die at any point of a story, and which of its deaths differ; not a test itself.

A controller dies before and after each commit and call. What it had in mind is gone, so a death after one commit and a
death before the next are the same death, unless a file was written, a call made or time passed between the two: then
one of them is enough. Its successor can tell them apart by nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.store.engine import Session, Store


class Killed(BaseException):
    """The process is gone: no handler of the controller may see this as an error to go on from."""


class Points:
    """Counts the points at which a death would leave something new, and dies at the one that it is told to.

    `look` says what a death now would leave. Points of other threads than the maker's are none: they die with it.
    """

    def __init__(self, fatal: int = 0) -> None:
        self.fatal, self.seen, self.where = fatal, 0, ""
        self.look: Callable[[], object] = object  # until it is set, each point is new
        self._last: object = None
        self._thread = threading.get_ident()

    def reach(self, where: str) -> None:
        if threading.get_ident() != self._thread:
            return
        now = self.look()
        if now == self._last:
            return
        self._last = now
        self.seen += 1
        if self.seen == self.fatal:
            self.where = where
            raise Killed(where)


class MortalStore:
    """A store whose commits are points."""

    def __init__(self, store: Store, points: Points) -> None:
        self._store, self._points = store, points
        self.read = store.read

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._store.write() as session:
            yield session
            self._points.reach("before a commit")
        self._points.reach("after a commit")


def files_of(folder: Path) -> str:
    """A hash of every file that a death now would leave, and with them of what was committed of a SQLite store.

    SQLite writes no page of an open transaction as long as it fits the cache; its -shm file is an index for readers.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith("-shm"):
            found.update(f"\0{path.relative_to(folder)}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()

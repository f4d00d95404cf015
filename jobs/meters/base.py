"""What a metric adapter answers: the steps that a trainer told of in files of its own, or in its log.

It reads what came since the last look and keeps nothing between looks: where it stopped is a mark that its caller
holds. Numbers of steps are those of completed steps: a trainer that counts from 0 has one added. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.steps import StepScalars

MOST_BYTES = 8 << 20
"""what is read of one file at one look; the rest comes with the next"""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file was read: the file, told by its inode, and the bytes done with."""

    inode: int = 0
    offset: int = 0
    broken: str = ""
    """why nothing more of it is read, as a clause"""


Marks = Mapping[str, Mark]
"""By path."""


class FileMeter(Protocol):
    """Steps from files below an attempt's directory."""

    @property
    def name(self) -> str: ...

    @property
    def replays(self) -> bool:
        """Whether a resumed trainer tells its old steps again."""
        ...

    def read(self, attempt_dir: Path, marks: Marks) -> tuple[list[StepScalars], Marks]:
        """The steps told since the marks, in the order told, and the new marks. OSError."""
        ...


class LogMeter(Protocol):
    """Steps from the lines that a trainer prints; `last_member`: whether its last rank prints them, not its first."""

    name: str
    last_member: bool

    def steps(self, text: str) -> list[StepScalars]:
        """The steps that the lines tell of, in order."""
        ...


def fresh(path: Path, mark: Mark) -> tuple[bytes, Mark]:
    """What came to a file since the mark, and the mark at its beginning: 0 if the file is another or was cut."""
    with path.open("rb") as file:
        found = path.stat()
        offset = mark.offset if mark.inode == found.st_ino and mark.offset <= found.st_size else 0
        file.seek(offset)
        return file.read(MOST_BYTES), Mark(found.st_ino, offset)


def lines(path: Path, mark: Mark) -> tuple[list[bytes], Mark]:
    """The whole lines that came to a file since the mark; one without its end waits for it."""
    body, begun = fresh(path, mark)
    end = body.rfind(b"\n") + 1
    if not end and len(body) == MOST_BYTES:  # no line is as long: it is passed over
        end = len(body)
    return body[:end].splitlines(), Mark(begun.inode, begun.offset + end)


def below(folder: Path, pattern: str) -> Sequence[Path]:
    """Files below a folder by name, in order; none where there is no folder."""
    return sorted(_files(folder, pattern))


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    for path in folder.rglob(pattern):
        if path.is_file():
            yield path

"""What a checkpoint adapter answers: the steps that lie in an attempt's directory, and how one is resumed.

A framework that writes no manifest has its own way to lay out a checkpoint and its own mark of a finished one. An
adapter reads names, sizes and small text files; it writes nothing, loads no tensor and unpickles nothing. It decides
nothing: whether a checkpoint may be used is the controller's affair. Standard library only.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_FILES = 500_000
_LARGEST_STEP = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file of a checkpoint; `name` is relative to the checkpoint's parent, with slashes."""

    path: Path
    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """A step on the disk. `step` counts completed optimizer steps, or rollouts where a framework counts those.

    `directory` is what RESUME_FROM names. `files` may lie beside it: whatever the framework needs to resume.
    """

    directory: Path
    step: int
    files: tuple[SeenFile, ...]
    unfinished: str = ""
    """why it is not finished, as a clause; empty when it is"""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def begun_at_s(self) -> float:
        """When its oldest file was last written: the state in it is not younger (Unix seconds by the disk's clock)."""
        return min((file.modified_ns for file in self.files), default=0) / 1e9

    @property
    def written_at_s(self) -> float:
        """When its newest file was last written."""
        return max((file.modified_ns for file in self.files), default=0) / 1e9

    @property
    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Equal for two looks between which nothing was written."""
        return tuple((file.name, file.bytes, file.modified_ns) for file in self.files)


class Layout(ABC):
    """One framework's checkpoints.

    `pattern`: the name of a step's directory, its number as group 1. `counts_from`: the number of the first step, so
    that steps are counted as completed. `nested`: whether they may lie one level below an attempt's directory.
    """

    name: str
    pattern: re.Pattern[str]
    counts_from = 1
    nested = True

    def of_world(self, ranks: int) -> Layout:
        """The same layout for a job of so many ranks, where a checkpoint's names do not tell how many belong to it."""
        del ranks
        return self

    def steps(self, attempt_dir: Path) -> list[tuple[Path, int]]:
        """The directories of an attempt's steps with the steps, in order; they are listed, not looked into. OSError."""
        found = []
        for folder in (attempt_dir, *(_folders(attempt_dir) if self.nested else ())):
            for path in _folders(folder):
                match = self.pattern.fullmatch(path.name)
                step = int(match[1]) + 1 - self.counts_from if match else 0
                if 0 < step <= _LARGEST_STEP:
                    found.append((path, step))
        return sorted(found, key=lambda one: (one[1], str(one[0])))

    def inspect(self, directory: Path, step: int) -> SeenCheckpoint:
        """Whether a step's directory is finished, and its files. One that vanishes is being deleted. OSError."""
        number = step - 1 + self.counts_from
        try:
            why = self.unfinished(directory, number)
            files = tuple(_listed(directory, self.beside(directory, number)))
        except FileNotFoundError:
            return SeenCheckpoint(directory, step, (), "it is being deleted")
        return SeenCheckpoint(directory, step, files, why or ("" if files else "it is empty"))

    def look(self, attempt_dir: Path) -> list[SeenCheckpoint]:
        """Every step in an attempt's directory, finished or not. OSError."""
        return [self.inspect(directory, step) for directory, step in self.steps(attempt_dir)]

    @abstractmethod
    def unfinished(self, directory: Path, number: int) -> str:
        """Why a step's directory is not finished, as a clause; empty when it is. FileNotFoundError while it goes."""

    def beside(self, directory: Path, number: int) -> Iterable[Path]:
        """Files outside of the directory that belong to the step."""
        del directory, number
        return ()

    @abstractmethod
    def resume(self, directory: Path) -> tuple[str, ...]:
        """The words of a command that make the framework go on from exactly this directory, never from its latest."""


def _listed(directory: Path, beside: Iterable[Path]) -> Iterator[SeenFile]:
    paths = [path for path in _walk(directory) if path.is_file()]
    for path in sorted([*paths, *(path for path in beside if path.is_file())]):
        found = path.stat()
        yield SeenFile(path, path.relative_to(directory.parent).as_posix(), found.st_size, found.st_mtime_ns)


def _walk(directory: Path) -> list[Path]:
    """Every file below; a directory is opened once. OSError past MOST_FILES."""
    found: list[Path] = []
    for folder, _, names in os.walk(directory, onerror=_raise):
        found += [Path(folder, name) for name in names]
        if len(found) > MOST_FILES:
            raise OSError(f"{directory} has more than {MOST_FILES} files")
    return found


def _raise(error: OSError) -> None:
    raise error


def _folders(path: Path) -> Sequence[Path]:
    """The directories in a directory; none where there is no directory (yet)."""
    try:
        return sorted(Path(one.path) for one in os.scandir(path) if one.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def tracked(folder: Path, name: str = "latest_checkpointed_iteration.txt") -> int | None:
    """The step that a tracker file names; None when there is none, or it is being written, or names no step.

    Trackers are written in place, after the step that they name: a step beyond it is not finished.
    """
    try:
        text = (folder / name).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"\d{1,10}", text) else None


def missing(directory: Path, names: Iterable[str]) -> list[str]:
    """Those of the names that are no file with content in a directory."""
    return [name for name in names if not _filled(directory / name)]


def _filled(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def first(names: Sequence[str]) -> str:
    """Some names in a few words."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

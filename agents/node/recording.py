"""A node's samples and kernel lines in a file, and back: one JSON line a second behind a line of facts, gzipped.

Values stand as they were read, null for what was unknown; times are relative to the first. Metrics are named in the
head, so that a recording of an older agent is still read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from agents.readings import METRICS, UNKNOWN, GpuFacts, KernelLine, NicFacts, NodeFacts, NodeSample

VERSION = 1
SCOPES = ("gpu", "nic", "host")


class RecordingError(ValueError):
    """A file that is no recording, or not of this version."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One second of a recording; `after_s` counts from its first."""

    after_s: float
    rows: dict[str, tuple[tuple[int, ...], ...]]
    kernel: tuple[KernelLine, ...]

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        """It, as if it had been taken at another time; lines keep their distance from it."""
        shift = at_s - self.after_s
        lines = tuple(
            KernelLine(one.at_s + shift, one.priority, one.text, one.pci_address, one.kind) for one in self.kernel
        )
        return NodeSample(at_s, monotonic_s, self.rows["gpu"], self.rows["nic"], lines, self.rows["host"])


class Recorder:
    """Writes a recording; `add` each sample in order, `close` it."""

    def __init__(self, path: Path, facts: NodeFacts) -> None:
        self._file: TextIO = gzip.open(path, "wt", encoding="utf-8", compresslevel=6)  # noqa: SIM115  # till close()
        metrics = {scope: [metric.name for metric in METRICS[scope]] for scope in SCOPES}
        self._put({"recording": VERSION, "facts": asdict(facts), "metrics": metrics})
        self._begun_s: float | None = None

    def _put(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def add(self, sample: NodeSample) -> None:
        """One second of the node."""
        if self._begun_s is None:
            self._begun_s = sample.at_s
        rows = {
            scope: [[None if value == UNKNOWN else value for value in row] for row in sample.rows(scope)]
            for scope in SCOPES
        }
        kernel = [
            [round(line.at_s - self._begun_s, 3), line.priority, line.text, line.pci_address, line.kind]
            for line in sample.kernel
        ]
        self._put({"t": round(sample.at_s - self._begun_s, 3), **rows, "kernel": kernel})

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


class Recording:
    """A recording that is read from its beginning; RecordingError for what is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: TextIO = gzip.open(path, "rt", encoding="utf-8")  # noqa: SIM115  # till close()
            head = json.loads(self._file.readline())
            if head["recording"] != VERSION:
                raise RecordingError(f"{path} is a recording of version {head['recording']}, {VERSION} is read here")
            found = head["facts"]
            gpus = tuple(GpuFacts(**gpu) for gpu in found["gpus"])
            nics = tuple(NicFacts(**nic) for nic in found["nics"])
            self.facts = NodeFacts(**{**found, "gpus": gpus, "nics": nics, "blind": tuple(found["blind"])})
            self._places = {scope: [list(head["metrics"][scope]), METRICS[scope]] for scope in SCOPES}
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, RecordingError):
                raise
            raise RecordingError(f"{path} is no recording of an agent: {error}") from error

    def __iter__(self) -> Iterator[Moment]:
        """Its seconds, in order; RecordingError where the file is broken off."""
        try:
            for text in self._file:
                row = json.loads(text)
                rows = {scope: tuple(self._row(scope, values) for values in row[scope]) for scope in SCOPES}
                lines = tuple(KernelLine(*line) for line in row["kernel"])
                yield Moment(float(row["t"]), rows, lines)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise RecordingError(f"the recording is broken off: {error}") from error

    def _row(self, scope: str, values: list[int | None]) -> tuple[int, ...]:
        """The values in the order of today's metrics; what was not recorded then is unknown."""
        names, metrics = self._places[scope]
        known = dict(zip(names, values, strict=True))
        return tuple(UNKNOWN if (value := known.get(metric.name)) is None else int(value) for metric in metrics)

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

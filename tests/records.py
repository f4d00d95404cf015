"""What a probe recorded, read back as the agent reads it: for the tests of `attach`, with and without frameworks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.probe.attach import AttachedProbe
from agents.probe.ring import RingReader, RingRecord
from agents.readings import LAYER_FACTS


class Records:
    """The rings of one attempt. `rows` gives a rank's new records, `counts` and `bias` one as a matrix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._readers: dict[int, RingReader] = {}

    def reader(self, rank: int = 0) -> RingReader:
        if rank not in self._readers:
            self._readers[rank] = RingReader(self.folder / f"ring-rank-{rank}.bin")
        return self._readers[rank]

    def rows(self, rank: int = 0) -> list[RingRecord]:
        return list(self.reader(rank).read())

    def last(self, rank: int = 0) -> RingRecord:
        return self.rows(rank)[-1]

    def counts(self, record: RingRecord, rank: int = 0) -> NDArray[np.uint32]:
        return np.frombuffer(record.counts, np.uint32).reshape(self.reader(rank).meta.layers, -1)

    def bias(self, record: RingRecord, rank: int = 0) -> NDArray[np.float32]:
        return np.frombuffer(record.bias, np.float32).reshape(self.reader(rank).meta.layers, -1)

    def facts(self, record: RingRecord, rank: int = 0) -> NDArray[np.float32]:
        """[len(LAYER_FACTS), layers]"""
        return np.frombuffer(record.facts, np.float32).reshape(len(LAYER_FACTS), self.reader(rank).meta.layers)


class Page:
    """The lines of docs/attach.md under a heading, run as they stand there: first those that attach, then `step`."""

    def __init__(self, heading: str, number: int = 0, **names: Any) -> None:
        text = (Path(__file__).resolve().parents[1] / "docs" / "attach.md").read_text()
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        block = section.split("```python\n")[number + 1].split("```")[0]
        self._attach, step = block.split("probe.step(")
        self._step = "probe.step(" + step
        self.names = names

    def attach(self) -> AttachedProbe:
        exec(self._attach, self.names)
        probe: AttachedProbe = self.names["probe"]
        return probe

    def step(self, step: int, loss: float = 1.0) -> None:
        exec(self._step, self.names | {"step": step, "loss": loss})


def attempt_folder(tmp_path: Path) -> Path:
    """Where the agent looks for the rings of attempt `run-1`."""
    folder = tmp_path / "attempts" / "run-1"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """The environment of an attempt on one rank, and what is recorded in it."""
    folder = attempt_folder(tmp_path)
    monkeypatch.setenv("TRIMTAB_HEARTBEAT_DIR", str(folder))
    monkeypatch.setenv("TRIMTAB_RUN_ID", "run")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    made = Records(folder)
    yield made
    for reader in made._readers.values():
        reader.close()

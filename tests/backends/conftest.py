"""The backends under test, and everything that they started ended afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.backends.memory import MemoryBackend
from tests.backends.benching import Bench, local, made


@pytest.fixture(params=["memory", "local"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield from made(MemoryBackend(["node-0", "node-1", "node-2"]) if request.param == "memory" else local(tmp_path))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Bench]:
    """The local backend only: what it does to real processes."""
    yield from made(local(tmp_path))

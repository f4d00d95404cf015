"""Pilots for the tests of runs and lifecycles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.store.engine import Store
from tests.runs.conducting import Conducting


@pytest.fixture
def walk(sqlite_url: str, tmp_path: Path) -> Iterator[Conducting]:
    """Lifecycles on a scripted cluster; nothing of it has to survive a power cut."""
    store = Store(sqlite_url, synchronous="OFF")
    yield Conducting(store, tmp_path)
    store.close()

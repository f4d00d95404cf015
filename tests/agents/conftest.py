"""A node behind a stand-in of AMD's library: the real `amdsmi` package, real file formats, registers a test sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.node.sources.files import Tree
from agents.node.sources.machine import MachineSource, Places
from agents.stub.node import StubNode, use

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "stub"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubNode]:
    """Eight GPUs and ports, idle, at time 0."""
    named = os.environ.get("TRIMTAB_AMDSMI")
    if not named:
        pytest.skip("TRIMTAB_AMDSMI names no folder with the amdsmi package")
    monkeypatch.setenv("ROCM_PATH", "")
    monkeypatch.setenv("TRIMTAB_STUB_STATE", "")
    CACHE.mkdir(parents=True, exist_ok=True)
    use(Path(named) / "amdsmi", CACHE, tmp_path)
    node = StubNode(tmp_path, "node-a")
    yield node
    node.close()


@pytest.fixture
def machine(stub: StubNode) -> Iterator[MachineSource]:
    """The real agent's source over that node."""
    source = MachineSource("node-a", places(stub), {})
    yield source
    source.close()


def places(stub: StubNode) -> Places:
    """Where the stub's host is; what no file tells comes from its registers."""
    return Places(
        Tree(stub.tree), (stub.at,), free=lambda _path: stub.disk_free_tenths, clock=lambda: int(stub.clock_ms)
    )

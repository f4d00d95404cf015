"""Which framework's tests run: those of the environment that `make test-frameworks` made, and none elsewhere.

Each file needs one framework's real classes. tools/frameworks.py names the group of an environment in
TRIMTAB_FRAMEWORK; in the project's own environment none is named, so `make test` collects nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.records import records

__all__ = ["records"]

collect_ignore_glob = ["test_*.py"]
if os.environ.get("TRIMTAB_FRAMEWORK"):
    collect_ignore_glob = []


def pytest_ignore_collect(collection_path: object) -> bool | None:
    """Leaves out what is of another group."""
    name = str(collection_path)
    group = os.environ.get("TRIMTAB_FRAMEWORK", "")
    return True if "test_frameworks_" in name and f"test_frameworks_{group}" not in name else None


@pytest.fixture
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group with only this process in it, for one test: the next may want another."""
    import torch.distributed as dist

    place = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()

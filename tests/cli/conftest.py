"""A server without its dashboard, one a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trimtab_process import Served, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = serve(tmp_path_factory.mktemp("a server") / "with a space")
    yield found
    assert found.end() == 0

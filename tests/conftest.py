"""Databases for every room's tests: a fresh, migrated store on SQLite and on a real PostgreSQL.

`store` runs a test on both, `sqlite_store` and `postgresql_store` on one; `database_url` and `open_store` are for tests
that open a database more than once or from another process.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.store.engine import Store
from tests.postgres import MISSING, Postgres, find_programs


def pytest_collection_finish(session: pytest.Session) -> None:
    """Says what is missing before any test has run."""
    wanted = any(
        "postgresql" in item.nodeid or "postgres" in getattr(item, "fixturenames", ()) for item in session.items
    )
    if wanted and find_programs() is None and not os.environ.get("TRIMTAB_ALLOW_SKIPS"):
        pytest.exit(MISSING, returncode=3)


@pytest.fixture(scope="module", autouse=True)
def _own_path() -> Iterator[None]:
    """The search path as a module's tests found it: an agent puts AMD's binding there, with which Ray does not load."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server a session (with xdist: one a worker)."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server, and TRIMTAB_ALLOW_SKIPS is set")
    server = Postgres(programs)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store.db"
    made = Store(f"sqlite:///{path}")
    made.migrate()
    made.close()
    return path


@pytest.fixture(scope="session")
def _migrated_database(postgres: Postgres) -> str:
    name = postgres.create()
    made = Store(postgres.url(name))
    made.migrate()
    made.close()
    return name


@pytest.fixture
def sqlite_url(_migrated_file: Path, tmp_path: Path) -> str:
    """A migrated SQLite file of this test's own."""
    path = tmp_path / "store.db"
    shutil.copy(_migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres: Postgres, _migrated_database: str) -> Iterator[str]:
    """A migrated PostgreSQL database of this test's own."""
    name = postgres.create(_migrated_database)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database, one kind after the other."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def open_store() -> Iterator[Callable[[str], Store]]:
    """Opens stores by URL and closes them after the test."""
    opened: list[Store] = []

    def open_one(url: str) -> Store:
        opened.append(Store(url))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(database_url: str, open_store: Callable[[str], Store]) -> Store:
    """A fresh store; the test runs once on SQLite and once on PostgreSQL."""
    return open_store(database_url)


@pytest.fixture
def sqlite_store(sqlite_url: str, open_store: Callable[[str], Store]) -> Store:
    """A fresh store on SQLite only, for tests that are not about the database."""
    return open_store(sqlite_url)


@pytest.fixture
def postgresql_store(postgresql_url: str, open_store: Callable[[str], Store]) -> Store:
    """A fresh store on PostgreSQL only."""
    return open_store(postgresql_url)

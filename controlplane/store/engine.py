"""One door to the database: sessions for reading and for writing, and its schema brought up to date.

SQLite is the embedded default, PostgreSQL (psycopg 3) the one for scale; nothing above this file asks which. A write
session is one transaction: it commits when its block ends and rolls back when the block raises.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.resources import files
from typing import Any, Protocol

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session as Session
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

_MIGRATION_LOCK = 7_421_837  # any number, as long as every server asks PostgreSQL for the same one
_WRITES = "trimtab_writes"
CACHE = "cache_size=-32768"
"""KiB of pages a connection may keep: a raster reads 20 MB, and SQLite's own 2 MB are read from the file each time"""


class SchemaNewer(RuntimeError):
    """The database was written by a newer trimtab than this one."""


class SchemaOlder(RuntimeError):
    """The database has not been brought up to this trimtab's schema."""


class StoreUnavailable(RuntimeError):
    """The database cannot be reached, is sick, or stayed locked for too long: the same call may succeed later."""


class StoreConflict(RuntimeError):
    """What was to be written contradicts what is there: a key is taken, or a row that is pointed to is missing."""


class StoreRejected(ValueError):
    """A value that the database cannot hold."""


class UnknownCursor(LookupError):
    """A list is to go on after a row that is not there."""


@contextmanager
def _translated() -> Iterator[None]:
    """The drivers' errors in the store's own words, for callers who know no SQL library."""
    try:
        yield
    except IntegrityError as error:
        raise StoreConflict(str(error.orig)) from error
    except PoolTimeout as error:
        raise StoreUnavailable(str(error)) from error
    except StatementError as error:
        if _of_a_value(error):
            raise StoreRejected(str(error.orig or error)) from error
        raise StoreUnavailable(str(error)) from error
    except OverflowError as error:
        if "SQLite" in str(error):  # its driver's word for an integer beyond 64 bits, which SQLAlchemy lets through
            raise StoreRejected(str(error)) from error
        raise


def _of_a_value(error: StatementError) -> bool:
    """Whether a value that was to be written is at fault, and not the database that was to hold it."""
    if isinstance(error, ProgrammingError):  # both drivers' word for a type that they know no column for
        return "binding parameter" in str(error.orig) or "cannot adapt type" in str(error.orig)
    return isinstance(error, DataError) or not isinstance(error, DBAPIError)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def to_json(value: Any) -> str:
    """JSON as both databases take it: what is not a finite number becomes null, as JSON has no word for it."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


class Sessions(Protocol):
    """What a service asks of a store: a session to read with, and a transaction to write in."""

    def read(self) -> AbstractContextManager[Session]: ...

    def write(self) -> AbstractContextManager[Session]: ...


class Joined:
    """A transaction that the caller began and will end, given to a service in a store's place.

    What the service writes is committed with the rest of it or not at all; an error must leave it, to undo everything.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """The transaction itself."""
        yield self._session

    write = read


class Store:
    """A database by its URL: `sqlite:////path/to/file.db` or `postgresql://user@host/name`.

    synchronous: SQLite's durability, FULL unless a benchmark says otherwise (FULL: a commit survives a power cut).
    busy_timeout_s: how long a SQLite writer waits for another process's transaction before it gives up.
    """

    def __init__(self, url: str, *, synchronous: str = "FULL", busy_timeout_s: float = 10.0) -> None:
        self.url = make_url(url)
        if self.url.get_backend_name() == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        elif self.url.get_backend_name() != "sqlite" or not self.url.database or self.url.database == ":memory:":
            raise ValueError(f"a store is a SQLite file or a PostgreSQL database, not {url!r}")
        self.embedded = self.url.get_backend_name() == "sqlite"
        self._engine = self._connect(synchronous, busy_timeout_s)
        self._writing = self._engine.execution_options(**{_WRITES: True})
        # PostgreSQL's default lets each statement see what was committed meanwhile: a chunk, and others' layers of it
        snapshot: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        reading = self._engine if self.embedded else self._engine.execution_options(**snapshot)
        self._read = sessionmaker(reading, autoflush=False, expire_on_commit=False)
        self._write = sessionmaker(self._writing, expire_on_commit=False)
        # writers of this process queue here in order, instead of polling SQLite's file lock against each other
        self._turn = threading.RLock()

    def _connect(self, synchronous: str, busy_timeout_s: float) -> Engine:
        if not self.embedded:
            return create_engine(self.url, json_serializer=to_json, pool_pre_ping=True, pool_size=8, max_overflow=24)
        if synchronous not in ("FULL", "NORMAL", "OFF", "EXTRA"):
            raise ValueError(f"SQLite knows no synchronous={synchronous!r}")
        engine = create_engine(
            self.url, json_serializer=to_json, connect_args={"timeout": busy_timeout_s, "check_same_thread": False}
        )

        def prepare(connection: Any, _: ConnectionPoolEntry) -> None:
            connection.isolation_level = None  # the driver would begin transactions by itself, and too late
            for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"synchronous={synchronous}", CACHE):
                connection.execute(f"PRAGMA {pragma}")

        def begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get(_WRITES, False)
            # a deferred transaction that starts by reading cannot wait for the lock later: it fails at once
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", begin)
        return engine

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session over one consistent state; rows stay readable after it. What it is asked to write is not kept.

        Raises StoreUnavailable if the database cannot be reached.
        """
        with _translated(), self._read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is one transaction; on SQLite it holds the write lock from its first statement on.

        Raises StoreUnavailable, StoreConflict or StoreRejected; then nothing was written.
        """
        with _translated(), self._turn if self.embedded else nullcontext(), self._write.begin() as session:
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Brings the schema up (or, for tests, down) to `revision` in one transaction. SchemaNewer if it is unknown."""
        with self._writing.begin() as connection:
            if not self.embedded:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config = self._alembic(connection)
            self._refuse_newer(connection, ScriptDirectory.from_config(config))
            found = self._revision(connection)
            if revision == "base" or (found is not None and revision < found):  # revisions are numbered: 0001, 0002
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)

    def check(self) -> None:
        """Raises SchemaNewer or SchemaOlder unless the database has exactly this code's schema."""
        with self._engine.connect() as connection:
            scripts = ScriptDirectory.from_config(self._alembic(connection))
            self._refuse_newer(connection, scripts)
            found, wanted = self._revision(connection), scripts.get_current_head()
            if found != wanted:
                raise SchemaOlder(f"the database is at revision {found or 'none'}, this trimtab needs {wanted}")

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    @staticmethod
    def _alembic(connection: Connection) -> Config:
        config = Config()
        config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
        config.attributes["connection"] = connection
        return config

    @staticmethod
    def _revision(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    def _refuse_newer(self, connection: Connection, scripts: ScriptDirectory) -> None:
        found = self._revision(connection)
        if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
            raise SchemaNewer(
                f"the database is at revision {found}, which this trimtab does not know: a newer one wrote it. "
                "Run that version, or restore a backup made before the upgrade."
            )

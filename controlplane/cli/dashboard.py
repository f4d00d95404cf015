"""The dashboard as a process of its own, started by module name, since nothing here may import it.

`trimtab serve` owns it: it is started again with back-off when it dies, and ended with the server. What it shows is its
own affair.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from urllib.parse import urlsplit

import structlog

from controlplane.settings import Settings

_log = structlog.get_logger()


def address(settings: Settings, port: int) -> str:
    """The URL of one of our ports, as this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


class Dashboard:
    """The dashboard's process: started by module name, started again with back-off when it dies, ended with us."""

    def __init__(self, api: str, settings: Settings) -> None:
        given = {
            "--api": api,
            "--host": settings.host,
            "--port": str(settings.dashboard_port),
            "--tls-cert": settings.tls_cert,
            "--tls-key": settings.tls_key,
            "--ca-file": settings.tls_ca,
            "--allow-host": urlsplit(settings.public_url).hostname or "",
        }
        self.command = [sys.executable, "-m", "dashboards"]
        self.command += [word for flag, value in given.items() if value for word in (flag, value)]
        self._settings, self.port = settings, settings.dashboard_port
        self._stop = threading.Event()
        self.ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def address(self) -> str:
        """Where it answers; empty before it has said so."""
        return address(self._settings, self.port) if self.ready.is_set() else ""

    def link(self) -> str:
        """Under which address people find the pages, also before they answer; empty where nobody knows."""
        named = self._settings.dashboard_url.rstrip("/")
        known = self._settings.dashboard and self.port
        return named or (address(self._settings, self.port) if known else "")

    def _run(self) -> None:
        wait_s = 1.0
        while not self._stop.is_set():
            self._process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            first = self._process.stdout.readline() if self._process.stdout else ""
            if first.startswith("dashboard on "):
                self.port = int(first.strip().rsplit(":", 1)[1])
                self.ready.set()
                wait_s = 1.0
            self._process.wait()
            if not self._stop.wait(wait_s):
                _log.warning("the dashboard ended and is started again", code=self._process.returncode, wait_s=wait_s)
                wait_s = min(30.0, wait_s * 2)

    def stop(self) -> None:
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()

"""`trimtab` run as a person runs it: commands, and a server of its own process. Not a test of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

TRIMTAB = [sys.executable, "-m", "controlplane.cli.main"]


def trimtab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command under this environment and no other TRIMTAB_ variable."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")}
    return subprocess.run(
        [*TRIMTAB, *arguments], capture_output=True, text=True, timeout=60, env={**clean, **environment}, check=False
    )


@dataclass
class Served:
    """A running `trimtab serve`."""

    process: subprocess.Popen[str]
    url: str
    token: str
    ready: str

    def run(self, *arguments: str, token: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        own = self.token if token is None else token
        return trimtab(*arguments, TRIMTAB_URL=self.url, TRIMTAB_TOKEN=own, **more)

    def leads(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            return "trimtab_leader 1.0" in answer.read().decode()

    def end(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=20)
        return self.process.returncode


def serve(data: Path, *options: str) -> Served:
    """A server on free ports, without its dashboard unless `options` say otherwise."""
    process = subprocess.Popen(
        [*TRIMTAB, "serve", "--data", str(data), "--port", "0", *(options or ("--no-dashboard",))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("trimtab ready: ") and " http://127.0.0.1:" in ready, ready
    return Served(process, ready.split()[-1], (data / "admin-token").read_text(), ready)

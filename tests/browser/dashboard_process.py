"""The dashboard as its own process, as `trimtab serve` starts it, in front of any API address."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def dashboard(api_url: str) -> Iterator[str]:
    """`python -m dashboards` on a free loopback port; yields its address and ends that one process."""
    command = [sys.executable, "-m", "dashboards", "--api", api_url, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, f"the dashboard did not start: {line!r}"
        yield line[line.index("http://") :].strip()
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()

"""What Prometheus' own linter says of an exposition: the check of `promtool check metrics`."""

from __future__ import annotations

import subprocess

from tests.built import built


def lint(exposition: bytes) -> list[str]:
    """One line for each problem. A linter that is not built is a failure, not a skip."""
    linter = built("promlint")
    assert linter.exists(), f"{linter} is missing: make kube"
    done = subprocess.run([linter], input=exposition, capture_output=True, timeout=60, check=False)
    assert done.returncode in (0, 3), done.stderr.decode()
    return done.stdout.decode().splitlines()

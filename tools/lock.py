"""Writes requirements/*.txt anew: hash-pinned, one file a role, without index addresses.

torch and what only it brings stay apart (tools/install.py installs it). A lock file that lists download addresses would
tie the project to one registry; these list names, versions and hashes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from frameworks import FROM_THE_PROJECT
from install import ROOT, find_uv, uv_environment

ROLES = {
    "agent": ["pods"],
    "gpu": ["gpu"],
    "server": ["server", "postgres", "kube"],
    "ui": ["ui"],
    "dev": ["server", "ui", "postgres", "kube", "ray", "problems", "release", "train", "dev"],
    "bench": ["server", "ui", "postgres", "kube", "ray", "problems", "release", "train", "dev", "bench"],
}
BESIDE = {"ui": "server"}
"""role -> role whose versions it takes, since one image holds both"""


def lock(role: str, extras: list[str]) -> None:
    """Resolves one role for every platform on Python 3.11 and newer."""
    command = [str(find_uv()), "pip", "compile", "-q", "pyproject.toml", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"]
    for extra in extras:
        command += ["--extra", extra]
    if role in BESIDE:
        command += ["--constraint", f"requirements/{BESIDE[role]}.txt"]
    output = Path("requirements") / f"{role}.txt"
    command += ["-o", str(output)]
    subprocess.run(command, cwd=ROOT, env=uv_environment(), check=True)
    lines = (ROOT / output).read_text().splitlines()
    found = {line.split("==")[0] for line in lines if "==" in line and not line.startswith(" ")}
    ours = [name for name in sorted(found) if name in FROM_THE_PROJECT or name.startswith("nvidia-")]
    if ours:  # accelerate asks for torch
        command += [word for name in ours for word in ("--no-emit-package", name)]
        subprocess.run(command, cwd=ROOT, env=uv_environment(), check=True)


def main() -> int:
    for role, extras in ROLES.items():
        lock(role, extras)
    return 0


if __name__ == "__main__":
    sys.exit(main())

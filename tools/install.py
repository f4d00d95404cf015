"""Set-up of a checkout: one virtual environment in `.venv`, filled from the pinned requirement files, then torch.

Standard library only, since it runs on the bare interpreter. It passes pip's index, find-links and certificate settings
on to uv, so that a machine that can `pip install` can also `make setup`. It is not a package manager: uv is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TOOLS = ROOT / ".cache" / "tools"
TORCH = "torch>=2.13,<2.14"
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_DOWNLOAD = "about 2.2 GB to download and 4.6 GB on disk"


class SetupError(Exception):
    """A step that cannot go on; its message says what to do."""


def say(sentence: str) -> None:
    print(f"setup: {sentence}", file=sys.stderr, flush=True)


def pip_settings() -> dict[str, str]:
    """pip's own configuration as uv environment variables: index, extra indexes, find-links, certificate."""
    found: dict[str, str] = {}
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2].strip("'\" :")
        found[name.replace("_", "-")] = value.strip().strip("'")
    for name in ("index-url", "extra-index-url", "find-links", "cert"):
        value = os.environ.get("PIP_" + name.replace("-", "_").upper())
        if value:
            found[name] = value
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    settings = {uv: " ".join(found[pip].split()) for pip, uv in names.items() if found.get(pip)}
    return {name: value for name, value in settings.items() if name not in os.environ}


def uv_environment() -> dict[str, str]:
    """The environment of each uv call. A cache on another disk would double the space, so it then moves in here."""
    environment = {**os.environ, **pip_settings()}
    environment.setdefault("UV_SYSTEM_CERTS", "1")
    environment.setdefault("UV_HTTP_TIMEOUT", "180")
    environment.pop("VIRTUAL_ENV", None)
    cache = Path(environment.get("UV_CACHE_DIR") or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"))
    while not cache.exists():
        cache = cache.parent
    if "UV_CACHE_DIR" not in environment and cache.stat().st_dev != ROOT.stat().st_dev:
        environment["UV_CACHE_DIR"] = str(ROOT / ".cache" / "uv")
    return environment


def find_uv() -> Path:
    """uv by $UV, the PATH, or a small environment of its own; raises SetupError with the command to run."""
    named = os.environ.get("UV")
    if named:
        if shutil.which(named):
            return Path(named)
        raise SetupError(f"$UV names {named}, which is not a program. Unset it, or name uv's path.")
    on_path = shutil.which("uv")
    if on_path:
        return Path(on_path)
    uv = TOOLS / "bin" / "uv"
    if uv.exists():
        return uv
    say("bringing uv, the installer")
    TOOLS.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (["-m", "venv", str(TOOLS)], ["-m", "venv", "--without-pip", str(TOOLS)]):
        made = subprocess.run([sys.executable, *attempt], capture_output=True, text=True, check=False)
        if made.returncode == 0:
            break
    python = TOOLS / "bin" / "python"
    if python.exists():  # without the venv module there is none
        subprocess.run([python, "-m", "ensurepip", "--upgrade"], capture_output=True, check=False)
        subprocess.run([python, "-m", "pip", "install", "-q", "uv>=0.9,<1"], check=False)
    if not uv.exists():
        raise SetupError(
            "uv could not be installed. Install it yourself (pip install uv) or name it: make setup UV=/path/to/uv"
        )
    return uv


def stamp(requirements: Path) -> str:
    text = requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(text + sys.version.encode()).hexdigest()


def install_torch(uv: Path, environment: dict[str, str]) -> None:
    """A CPU build where the index offers one, else the default build, with its size said first."""
    if subprocess.run([str(PYTHON), "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        return
    base = [str(uv), "pip", "install", "-q", "--python", str(PYTHON)]
    offered = subprocess.run([*base, "--dry-run", TORCH_CPU], env=environment, capture_output=True, check=False)
    wanted = TORCH_CPU if offered.returncode == 0 else TORCH
    if wanted == TORCH:
        say(f"no CPU build of torch on this index: taking the default one, {TORCH_DOWNLOAD}")
    subprocess.run([*base, wanted], env=environment, check=True)


def install(requirements: Path, torch: bool) -> None:
    """Brings `.venv` to what the requirement file says; does nothing when it already is."""
    wanted = stamp(requirements) + str(torch)
    mark = VENV / "trimtab.stamp"
    if mark.exists() and mark.read_text() == wanted:
        return
    if sys.version_info < (3, 11):
        raise SetupError(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make setup PYTHON=python3.11"
        )
    uv, environment = find_uv(), uv_environment()
    if not PYTHON.exists():
        subprocess.run([str(uv), "venv", "-q", "--python", sys.executable, str(VENV)], env=environment, check=True)
    say(f"installing {requirements.relative_to(ROOT)} into .venv")
    base = [str(uv), "pip", "install", "-q", "--python", str(PYTHON)]
    # --no-deps: the list is whole but for torch, which accelerate asks for and which comes next
    exact = ["--no-deps", "--require-hashes", "-r", str(requirements)]
    subprocess.run([*base, *exact], env=environment, check=True)
    if torch:
        install_torch(uv, environment)
    subprocess.run([*base, "--no-deps", "-e", str(ROOT)], env=environment, check=True)
    mark.write_text(wanted)
    say("ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements" / "dev.txt")
    parser.add_argument("--no-torch", action="store_true", help="leave the training workload's torch out")
    options = parser.parse_args()
    try:
        install(options.requirements.resolve(), not options.no_torch)
    except SetupError as error:
        say(str(error))
        return 1
    except subprocess.CalledProcessError as error:
        say(f"this command failed with {error.returncode}: {' '.join(map(str, error.cmd))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

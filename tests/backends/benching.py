"""A backend on the bench: commands that do something simple, and what a test needs to move an attempt."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from controlplane.backends.base import AttemptPlan, Backend, Observation
from controlplane.backends.local import LocalBackend
from controlplane.backends.memory import MemoryBackend

SLEEP = ("{python}", "-S", "-c", "import time; time.sleep(300)")
EXIT = {code: ("{python}", "-S", "-c", f"raise SystemExit({code})") for code in (0, 3)}
INDEX = (
    "{python}",
    "-S",
    "-c",
    "import os, time; print('this is', os.environ['JOB_COMPLETION_INDEX'], flush=True); time.sleep(300)",
)
HANDLER = (
    "{python}",
    "-S",
    "-c",
    (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)"
    ),
)
# a child and a grandchild in sessions of their own, the last one without a parent
FAMILY = (
    "{python}",
    "-S",
    "-c",
    (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.execvp('sleep', ['sleep', '300'])\n"
        "    os._exit(0)\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)"
    ),
)
_numbers = itertools.count(1)


def until(question: Callable[[], object], seconds: float = 60.0) -> None:
    """Asks until it is true; the test fails when it never is."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class Bench:
    """A backend with what a test needs to move it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.names: list[str] = []

    def plan(self, command: tuple[str, ...] = SLEEP, nodes: tuple[str, ...] = ("node-0", "node-1")) -> AttemptPlan:
        number = next(_numbers)
        name = f"contract-{os.getpid()}-{number}"
        self.names.append(name)
        environment = {"TRIMTAB_ATTEMPT_NAME": name}
        return AttemptPlan(name, f"uid-{number}", 1, "hash", nodes, 1, command, environment)

    def places(self, found: Observation) -> tuple[str, ...]:
        """Where members are, by the names that `plan` was given, in the order in which the platform must keep them."""
        return found.nodes

    def capacity(self, nodes: tuple[str, ...]) -> dict[str, bool]:
        """Whether each of these nodes is free, by the same names; those that cannot be used are left out."""
        return {one.node: one.free for one in self.backend.capacity(nodes)}

    def look(self, name: str) -> Observation:
        return self.backend.observe([name], 5.0)[name]

    def reaches(self, name: str, state: str) -> Observation:
        """Waits for a state; a scripted cluster is told to get there."""
        if isinstance(self.backend, MemoryBackend):
            found = self.backend.attempts[name]
            if state == "running":
                self.backend.run(name)
            elif state in ("failed", "succeeded") and found.state not in ("failed", "succeeded"):
                self.backend.end(name, "failed" if state == "failed" else "succeeded")
        until(lambda: self.look(name).state == state)
        return self.look(name)


_opened: list[LocalBackend] = []


def local(folder: Path) -> LocalBackend:
    """A server's backend on a folder; several may be opened on one, as after a restart."""
    for name in ("node-0", "node-1", "node-2"):
        (folder / "runtime" / name).mkdir(parents=True, exist_ok=True)
    _opened.append(LocalBackend(folder / "attempts", folder / "runtime"))
    return _opened[-1]


def made(backend: Backend, bench: Bench | None = None) -> Iterator[Bench]:
    """A bench, and what it started ended after the test."""
    bench = bench or Bench(backend)
    yield bench
    for name in bench.names:
        backend.stop(name, mode="kill")
        until(lambda name=name: backend.fenced(name))
    while _opened:
        for child in _opened.pop()._children.values():
            child.wait(20)


def launchers(name: str) -> list[psutil.Process]:
    return [one for one in carriers(name) if "jobs.launch" in one.cmdline()]


def carriers(name: str) -> list[psutil.Process]:
    """Every process of this machine that bears an attempt's name."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TRIMTAB_ATTEMPT_NAME") == name:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def ready(bench: Bench, name: str, nodes: int) -> None:
    until(lambda: all(b"ready" in bench.backend.read_logs(name, index) for index in range(nodes)))

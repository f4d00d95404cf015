"""One measured caller in a process of its own, round by round: what a step costs the thread that calls.

The caller's own thread clock and the wall are read around each step. Before each step the caches are swept, as a real
step's work would sweep them: a hot loop flatters. Callers wait for their turn on stdin, so that rounds of several
callers alternate and none shares an interpreter, a lock or threads with another.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CACHE_BYTES = 48 << 20
Line = dict[str, Any]
Step = Callable[[int], None]
Maker = Callable[[Path, int, int], Step]
"""From a folder, layers and slots to a step that hands over as many counts and biases."""


@dataclass
class Taken:
    """Seconds a step: the caller's CPU and the wall."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, other: Taken) -> None:
        """Another round."""
        self.cpu += other.cpu
        self.wall += other.wall

    def cpu_us(self) -> float:
        """Microseconds of the caller's CPU a step, the median."""
        return micros(self.cpu)


def micros(seconds: Sequence[float]) -> float:
    """The median, in microseconds."""
    return round(1e6 * statistics.median(seconds), 1)


def p95_micros(seconds: Sequence[float]) -> float:
    """The 95th percentile, in microseconds; the largest of fewer than 20."""
    return round(1e6 * (statistics.quantiles(seconds, n=20)[-1] if len(seconds) >= 20 else max(seconds)), 1)


def take(step: Step, first: int, steps: int, cache: Any | None) -> Taken:
    """Calls so many steps, numbered from `first` on, the caches swept before each if there is something to sweep."""
    taken = Taken()
    for number in range(first, first + steps):
        if cache is not None:
            cache += 1
        wall, cpu = time.perf_counter(), time.thread_time()
        step(number)
        taken.cpu.append(time.thread_time() - cpu)
        taken.wall.append(time.perf_counter() - wall)
    return taken


def serve(make: Maker, folder: Path) -> None:
    """The caller's side: a round for each line on stdin, its times as a line on stdout."""
    cache = np.zeros(CACHE_BYTES, np.uint8)
    made: dict[tuple[int, int], Step] = {}
    numbers: dict[tuple[int, int], int] = {}
    answers, sys.stdout = sys.stdout, sys.stderr  # what a logger prints is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        layers, slots, steps, sweep = json.loads(line)
        shape = (layers, slots)
        if shape not in made:
            made[shape] = make(folder / f"{layers}x{slots}", layers, slots)
        first = numbers.get(shape, 0)
        numbers[shape] = first + steps
        taken = take(made[shape], first, steps, cache if sweep else None)
        print(json.dumps([taken.cpu, taken.wall]), file=answers, flush=True)


class Caller:
    """Our end of a caller's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _read(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"a measured caller ended: {self._process.args}")
        return line.strip()

    def ready(self) -> None:
        """Waits until it is there; a real logger takes seconds to import."""
        if self._read() != "ready":
            raise RuntimeError(f"a measured caller is not ready: {self._process.args}")

    def round(self, layers: int, slots: int, steps: int, *, sweep: bool = True) -> Taken:
        """One round."""
        if self._process.stdin is None:
            raise RuntimeError("a measured caller has no stdin")
        print(json.dumps([layers, slots, steps, sweep]), file=self._process.stdin, flush=True)
        return Taken(*json.loads(self._read()))


@contextmanager
def caller(
    module: str, *arguments: str, python: str = sys.executable, env: dict[str, str] | None = None
) -> Iterator[Caller]:
    """Starts `python -m module arguments`, which calls `serve`, and ends it."""
    command = [python, "-m", module, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Caller(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def line(name: str, value: float | None, unit: str, target: float | None, **more: Any) -> Line:
    """One figure; lower is better for all of them."""
    base = {"name": name, "value": value, "unit": unit, "target": target, "better": "lower"}
    return {**base, "peer": None, "peer_value": None, **more}

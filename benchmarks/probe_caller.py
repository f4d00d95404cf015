"""What the probe costs the training thread when the framework has already counted, whatever the agent does.

Each step hands the probe a counts and a bias matrix. The agent is stood for by a process that listens for the taps and
reads the ring, and is alive, hung (stopped while its socket is full), dead (killed, its socket left behind) or absent
(never there). The four alternate, round by round, in the same run.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from agents.probe.capture import Probe
from benchmarks.probe_rounds import ROOT, Caller, Line, Step, Taken, caller, line, micros, p95_micros, serve

TARGETS = {(40, 16): 40.0, (58, 256): 60.0}
TOP_K = {(40, 16): 1, (58, 256): 8}
TOKENS = 4096
STATES = ("alive", "hung", "dead", "absent")
STEPS, ROUNDS, FILL = 150, 3, 64

READER = """
import select, sys, time
from pathlib import Path
from agents.node.rings import RuntimeDirectory
from agents.probe import wake
runtime, taps = RuntimeDirectory(Path(sys.argv[1])), wake.listen(Path(sys.argv[1]))
print("listening", flush=True)
while True:
    if select.select([taps], [], [], 0.2)[0]:
        taps.recv(16)
    runtime.sweep(time.time())
"""


@contextmanager
def reader(runtime: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that does with the rings below a runtime directory what the agent does; killed at the end."""
    runtime.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", READER, str(runtime)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "listening\n":
                raise RuntimeError("the reader of the ring did not start")
            yield process
        finally:
            process.kill()


def probe_step(folder: Path, layers: int, slots: int) -> Step:
    """A step that writes one record through a real probe; the runtime directory is the folder above."""
    env = {"TRIMTAB_HEARTBEAT_DIR": str(folder.parent / "attempts" / folder.name), "TRIMTAB_RUN_ID": "bench"}
    probe = Probe(layers=layers, slots=slots, experts=slots, top_k=1, env=env)
    if not probe.active:
        raise RuntimeError("the probe has no ring")
    counts = np.arange(layers * slots, dtype=np.uint32).reshape(layers, slots)
    bias = np.linspace(-1, 1, layers * slots, dtype=np.float32).reshape(layers, slots)

    def step(number: int) -> None:
        probe.write(number, counts, bias, routed=TOKENS, loss=2.0, grad_norm=1.0, step_seconds=0.3, tokens=TOKENS)

    return step


@contextmanager
def states(folder: Path) -> Iterator[dict[str, Caller]]:
    """A caller for each state of the agent, each on a runtime directory of its own, warm and in that state."""
    with ExitStack() as stack:
        readers = {state: stack.enter_context(reader(folder / state)) for state in STATES if state != "absent"}
        callers = {
            state: stack.enter_context(caller("benchmarks.probe_caller", str(folder / state))) for state in STATES
        }
        for one in callers.values():
            one.ready()
            for shape in TARGETS:
                one.round(*shape, steps=FILL, sweep=False)
        readers["hung"].send_signal(signal.SIGSTOP)
        readers["dead"].kill()
        readers["dead"].wait()
        for one in callers.values():  # a socket takes some ten datagrams, a ring 64 records
            for shape in TARGETS:
                one.round(*shape, steps=2 * FILL, sweep=False)
        yield callers


def counted_line(shape: tuple[int, int], state: str, taken: Taken, **more: object) -> Line:
    """The figure of one shape and state."""
    name = f"probe caller CPU a step, {shape[0]}x{shape[1]} counted, agent {state}"
    facts = {"p95": p95_micros(taken.cpu), "wall": micros(taken.wall), "T": TOKENS, "K": TOP_K[shape]}
    return line(name, taken.cpu_us(), "us", TARGETS[shape], **facts, **more)


def run(shapes: Sequence[tuple[int, int]] = tuple(TARGETS)) -> list[Line]:
    """One line a shape and state, without peers."""
    taken = {(shape, state): Taken() for shape in shapes for state in STATES}
    with TemporaryDirectory(prefix="trimtab-bench-") as folder, states(Path(folder)) as callers:
        for _ in range(ROUNDS):
            for shape, state in taken:
                taken[shape, state].add(callers[state].round(*shape, steps=STEPS))
    return [counted_line(shape, state, one) for (shape, state), one in taken.items()]


if __name__ == "__main__":
    serve(probe_step, Path(sys.argv[1]))

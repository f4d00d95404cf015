"""What the probe costs the training thread: CPU a step for loads that the framework has already counted.

Each step hands the probe a counts and a bias matrix and is timed on the caller's own thread clock. Between steps the
caches are swept, as a real step's work would sweep them: a hot loop, printed as `hot`, flatters. A second process
listens for the taps and reads the ring meanwhile. The peer in the same run is TensorBoard's `add_tensor` of the same
two matrices, swept caches too (extra `bench`); rounds alternate A-B-A.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.probe.capture import Probe

SHAPES = {(40, 16): 60.0, (58, 256): 100.0}
STEPS, PEER_STEPS, ROUNDS = 300, 60, 3
CACHE_BYTES = 48 << 20
Step = Callable[[int], None]

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


def caller_seconds(step: Step, steps: int, cache: NDArray[np.uint8] | None) -> list[float]:
    """Thread CPU seconds of each step, the caches swept before it if there is something to sweep them with."""
    taken = []
    for number in range(steps):
        if cache is not None:
            cache += 1
        begun = time.thread_time()
        step(number)
        taken.append(time.thread_time() - begun)
    return taken


def probe_step(folder: Path, layers: int, slots: int) -> tuple[Step, Probe]:
    """A step that writes one record through a real probe."""
    env = {"TRIMTAB_HEARTBEAT_DIR": str(folder), "TRIMTAB_RUN_ID": "bench"}
    probe = Probe(layers=layers, slots=slots, experts=slots, top_k=1, env=env)
    counts = np.arange(layers * slots, dtype=np.uint32).reshape(layers, slots)
    bias = np.linspace(-1, 1, layers * slots, dtype=np.float32).reshape(layers, slots)

    def step(number: int) -> None:
        probe.write(number, counts, bias, routed=4096, loss=2.0, grad_norm=1.0, step_seconds=0.3, tokens=4096)

    return step, probe


def tensorboard_step(folder: Path, layers: int, slots: int) -> tuple[Step, Any]:
    """A step that hands the same two matrices to TensorBoard's writer, which packs here and writes in a thread."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    counts = torch.arange(layers * slots, dtype=torch.int32).reshape(layers, slots)
    bias = torch.linspace(-1, 1, layers * slots).reshape(layers, slots)

    def step(number: int) -> None:
        writer.add_tensor("experts/counts", counts, number)
        writer.add_tensor("experts/bias", bias, number)

    return step, writer


def measure(folder: Path, layers: int, slots: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds a step of the probe, of the probe in a hot loop, and of the peer (empty when it is not installed)."""
    cache = np.zeros(CACHE_BYTES, np.uint8)
    step, probe = probe_step(folder / "attempts" / "bench", layers, slots)
    peer = tensorboard_step(folder / "tensorboard", layers, slots) if find_spec("tensorboard") else None
    ours: list[float] = []
    hot: list[float] = []
    theirs: list[float] = []
    try:
        for _ in range(ROUNDS):
            ours += caller_seconds(step, STEPS, cache)
            hot += caller_seconds(step, STEPS, None)
            if peer is not None:
                theirs += caller_seconds(peer[0], PEER_STEPS, cache)
    finally:
        probe.close()
        if peer is not None:
            peer[1].close()
    return ours, hot, theirs


def run() -> list[dict[str, Any]]:
    """One line a shape: microseconds of the caller's thread a step, the median."""
    lines = []
    for (layers, slots), target in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, "-c", READER, name]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
                try:
                    if reader.stdout is None or reader.stdout.readline() != "listening\n":
                        raise RuntimeError("the reader of the ring did not start")
                    ours, hot, theirs = measure(Path(name), layers, slots)
                finally:
                    reader.kill()
        peer_us = round(1e6 * statistics.median(theirs), 1) if theirs else None
        lines.append(
            {
                "name": f"probe caller CPU a step, {layers}x{slots} counted",
                "value": round(1e6 * statistics.median(ours), 1),
                "unit": "us",
                "target": target,
                "better": "lower",
                "hot": round(1e6 * statistics.median(hot), 1),
                "p95": round(1e6 * statistics.quantiles(ours, n=20)[-1], 1),
                "peer": "TensorBoard add_tensor" if theirs else "TensorBoard is not installed (extra: bench)",
                "peer_value": peer_us,
            }
        )
    return lines


def main() -> int:
    """Prints the lines; 1 if a target is missed."""
    lines = run()
    for line in lines:
        print(json.dumps(line), flush=True)
    return 0 if all(line["value"] <= line["target"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

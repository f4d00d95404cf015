"""A training process of any shape that only routes: it writes counts and biases through the probe, at a steady pace.

Not a model: the bench needs the records of 58 layers of 256 experts at a real pace, and no such model trains here. It
writes down when each step ended, as a line of JSON.

    python benchmarks/probe_trainer.py LAYERS SLOTS TOP_K STEPS SECONDS_A_STEP FILE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from agents.probe.capture import Probe

TOKENS = 4096


def main() -> int:
    """Trains."""
    layers, slots, top_k, steps = (int(word) for word in sys.argv[1:5])
    seconds, told = float(sys.argv[5]), Path(sys.argv[6])
    probe = Probe(layers=layers, slots=slots, experts=slots, top_k=top_k)
    if not probe.active:
        raise RuntimeError("the probe has no ring")
    dice, even = np.random.default_rng(1), np.full(slots, 1 / slots)
    bias = np.zeros((layers, slots), np.float32)
    begun = time.monotonic()
    with told.open("w") as file:
        for step in range(steps):
            counts = dice.multinomial(TOKENS * top_k, even, size=layers).astype(np.uint32)
            bias += dice.normal(0, 1e-3, bias.shape).astype(np.float32)
            time.sleep(max(0.0, begun + step * seconds - time.monotonic()))
            ended_s = time.time()
            facts = {"loss": 2.0, "grad_norm": 1.0, "step_seconds": seconds, "tokens": TOKENS}
            probe.write(step, counts, bias, routed=TOKENS, **facts)
            print(json.dumps([step, ended_s]), file=file, flush=True)
    probe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

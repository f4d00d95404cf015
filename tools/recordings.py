"""agents/recordings/*.gz anew: short recordings of drills on a simulated node, for `trimtab-agent replay`."""

from __future__ import annotations

import sys
from pathlib import Path

from agents.node.recording import Recorder
from agents.node.sources.simulated import SimulatedSource

ROOT = Path(__file__).resolve().parent.parent
BEFORE_S = 10
DRILLS = {"hbm-uncorrectable": 10, "gpu-reset": 10, "xgmi-degraded": 15, "nic-flap": 50}
"""Seconds that are recorded after each."""


def record(drill: str, after_s: int) -> None:
    """One file: a node at work, and the drill on its GPU 3."""
    source = SimulatedSource(f"recorded-{drill}", 0.0)
    source.follow(3.0)
    for second in range(1, 31):
        source.sample(float(second), float(second))
    recorder = Recorder(ROOT / "agents" / "recordings" / f"{drill}.gz", source.facts())
    for second in range(31, 31 + BEFORE_S + after_s):
        if second == 31 + BEFORE_S:
            source.apply_drill(drill, 3)
        recorder.add(source.sample(float(second), float(second)))
    recorder.close()


def main() -> int:
    for drill, after_s in DRILLS.items():
        record(drill, after_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())

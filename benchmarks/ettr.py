"""ETTR under Llama 3's failure mix at 1,024 and 8,192 GPUs: 200 simulated months each, driven by the real policy.

`make bench NAME=ettr ARGS=FILE` takes the restart times of a file (docs/ettr.md); the peer is the same month with
a human on call instead of the policy. Times are inputs here: what is measured is what the policy makes of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlplane.cli.output import hint
from controlplane.runs.causes import Costs, measured_from, restart_from
from controlplane.simulate.campaign import DAYS, GOALS, SEEDS, Summary, run, scenarios

Line = dict[str, Any]


def figure(found: Summary, peer: Summary, inputs: dict[str, Any]) -> Line:
    """One scenario at one size: the lower end of the mean's 95 % interval is what counts. Higher is better."""
    return {
        "name": f"ETTR, {found.gpus:,} GPUs, {found.scenario}, lower end of 95 %",
        "value": round(found.low_percent, 3),
        "unit": "%",
        "target": found.goal_percent,
        "better": "higher",
        "peer": peer.scenario,
        "peer_value": round(peer.low_percent, 3),
        "mean": round(found.ettr_percent, 3),
        "interval": [round(found.low_percent, 3), round(found.high_percent, 3)],
        "months": found.seeds,
        "checkpoint_each_s": found.interval_s,
        "spares": found.spares,
        "stops": round(found.stops, 2),
        "waits_for_a_node": round(found.waits, 3),
        "lost_gpu_h": round(found.lost_gpu_h, 1),
        "lost_by_cause_gpu_h": {name: round(value, 1) for name, value in found.lost_by_cause_gpu_h.items()},
        "lost_by_phase_gpu_h": {name: round(value, 1) for name, value in found.lost_by_phase_gpu_h.items()},
        "inputs": inputs,
    }


def size(gpus: int, costs: Costs, seeds: Sequence[int], days: float = DAYS) -> list[Line]:
    """Every scenario at one size."""
    told = [
        (one, run(one, gpus, seeds, days, lambda words, name=one.name: hint(f"{name}: {words}")))
        for one in scenarios(costs)
    ]
    peer = told[-1][1]
    return [figure(found, peer, scenario.costs.as_dict()) for scenario, found in told]


def main(arguments: Sequence[str]) -> int:
    """One JSON line a figure; 1 if a target is missed."""
    measured = measured_from(Path(arguments[0]).read_text()) if arguments else {}
    missed = 0
    for gpus in GOALS:
        costs = Costs(restart=restart_from(measured, Costs().nodes(gpus)))
        for one in size(gpus, costs, range(SEEDS)):
            print(json.dumps(one), flush=True)
            missed += one["target"] is not None and one["value"] < one["target"]
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

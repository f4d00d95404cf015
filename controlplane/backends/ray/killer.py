"""The Ray job that ends an attempt at once: Ray's Jobs API can only ask with SIGTERM, and then members would save.

It speaks to the members' actors by name, not to the driver, so that a driver that hangs holds nothing up. Where no
actor answers, it looks on the node itself for whatever bears the attempt's name. What it has cleared stands in its
output: that is how the control plane knows that nothing there can write any more.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controlplane.backends import processes
from controlplane.backends.ray.words import KILL, NAMESPACE, said

ANSWER_S = 10.0
PASSES = 20


def clear(name: str) -> int:
    """Kills all of the attempt on the node that this runs on; how many processes of it are left."""
    for _ in range(PASSES):
        processes.kill(name, ())
        left = processes.everything(name, ())
        if not left:
            return 0
        psutil.wait_procs(left, timeout=ANSWER_S / PASSES)  # what was killed dies in its own time
    return len(processes.everything(name, ()))


def kill(name: str, nodes: list[str]) -> None:
    """Ends every member. `nodes`: the Ray id of each one's node, by index."""
    answers: dict[Any, int] = {}
    for index in range(len(nodes)):
        try:
            actor: Any = ray.get_actor(f"{name}.{index}")
        except ValueError:  # Ray knows none of this name: it is gone
            continue
        answers[actor.kill.remote()] = index
        answers[actor.wait.remote()] = index
    asked = list(answers)
    ready = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)[0] if asked else []
    silent = set(range(len(nodes))) - _answered(ready, answers)
    here = {one["NodeID"] for one in ray.nodes() if one["Alive"]}  # type: ignore[no-untyped-call]  # Ray's, untyped
    sweeps = {}
    for node in sorted({nodes[index] for index in silent} & here):
        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        sweeps[ray.remote(clear).options(num_cpus=0, scheduling_strategy=pinned).remote(name)] = node
    for answer, node in sweeps.items():
        try:
            left = ray.get(answer)
        except ray.exceptions.RayError as error:
            print(f"{node} could not be cleared: {error}", flush=True)
            continue
        if left:
            print(f"{node}: {left} processes of {name} do not die", flush=True)
        else:
            print(said("cleared", node_id=node), flush=True)


def _answered(ready: list[Any], answers: dict[Any, int]) -> set[int]:
    """The members of which every answer is there and says so."""
    found = dict.fromkeys(answers.values(), 0)
    for one in ready:
        try:
            ray.get(one)
        except ray.exceptions.RayError:
            continue
        found[answers[one]] += 1
    return {index for index, count in found.items() if count == 2}


def main() -> int:
    """Kills the attempt that the environment names."""
    asked = json.loads(os.environ[KILL])
    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    kill(str(asked["name"]), [str(one) for one in asked["nodes"]])
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

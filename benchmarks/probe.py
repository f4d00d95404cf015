"""The probe and what becomes of its records: the trainer's cost, the reads, the bytes, the pixels.

Caller's CPU a step in three cases, each with its T (tokens a layer) and K (choices a token): (a) the framework has
counted already, with the agent alive, hung, dead and absent, beside other loggers in alternating rounds; (b) our own
hooks, dispatch alone; (c) our own hooks, really counting. Then the last heatmap, a raster, bytes a step on disk, and
the time from a step to its pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import probe_hooks, probe_pixel, probe_store
from benchmarks.probe_caller import ROUNDS, STATES, STEPS, TARGETS, counted_line, states
from benchmarks.probe_peers import PEERS, peers, title
from benchmarks.probe_rounds import Caller, Line, Taken, line, micros, p95_micros

PEER_STEPS = {(40, 16): 20, (58, 256): 5}
MLFLOW_STEPS = {(40, 16): 3, (58, 256): 1}
Shape = tuple[int, int]


def steps_of(peer: str, shape: Shape) -> int:
    """How many steps a round of a peer has: MLflow takes seconds for one."""
    return (MLFLOW_STEPS if peer.startswith("mlflow") else PEER_STEPS)[shape]


def rounds(ours: dict[str, Caller], theirs: dict[str, Caller]) -> dict[tuple[Shape, str], Taken]:
    """Every caller in turn, several times; the first round of a peer, in which it sets itself up, does not count."""
    taken: dict[tuple[Shape, str], Taken] = {}
    for shape in TARGETS:
        for one in theirs.values():
            one.round(*shape, steps=1)
        for _ in range(ROUNDS):
            for state, one in ours.items():
                taken.setdefault((shape, state), Taken()).add(one.round(*shape, steps=STEPS))
            for peer, one in theirs.items():
                taken.setdefault((shape, peer), Taken()).add(one.round(*shape, steps=steps_of(peer, shape)))
        taken[shape, "hot"] = ours["alive"].round(*shape, steps=STEPS, sweep=False)
    return taken


def counted() -> Iterator[Line]:
    """Case (a) and its peers."""
    with TemporaryDirectory(prefix="trimtab-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with peers(folder) as theirs, states(folder) as ours:
            taken = rounds(ours, theirs)
    for shape in TARGETS:
        least = min((taken[shape, peer].cpu_us(), peer) for peer in theirs if not peer.endswith("summary"))
        beside = {"peer": title(least[1]), "peer_value": least[0], "hot": taken[shape, "hot"].cpu_us()}
        for state in STATES:
            yield counted_line(shape, state, taken[shape, state]) | beside
        for peer in theirs:
            yield peer_line(shape, peer, taken[shape, peer], taken[shape, "alive"])


def peer_line(shape: Shape, peer: str, taken: Taken, ours: Taken) -> Line:
    """What a peer's caller pays, the probe beside it."""
    facts = {"p95": p95_micros(taken.cpu), "wall": micros(taken.wall), "samples": len(taken.cpu), "given": PEERS[peer]}
    name = f"peer caller CPU a step, {shape[0]}x{shape[1]} counted, {title(peer)}"
    base = line(name, taken.cpu_us(), "us", None, **facts)
    return base | {"peer": "the probe, agent alive", "peer_value": ours.cpu_us()}


def run() -> Iterator[Line]:
    """Every figure."""
    yield from counted()
    yield from probe_hooks.run()
    yield from probe_store.run()
    yield from probe_pixel.run()


def main() -> int:
    """One JSON line a figure; 1 if a target is missed."""
    missed = 0
    for figure in run():
        print(json.dumps(figure), flush=True)
        target, value = figure["target"], figure["value"]
        missed += target is not None and (value is None or value > target)
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main())

"""From a fault to a running gang on a real Kubernetes control plane with 1,024 simulated nodes and spares.

A fault enters through ingest as an agent's batch (benchmarks/kube_server.py); the clock starts at the first sample that
satisfies the rule. Peers are taken in the same run (benchmarks/kube_peers.py): a failed pod restarted by a Job's own
backoffLimit, and the eviction of a dead node's pod, each from the fault to the gang running whole again.

`--quick` uses few nodes and small gangs: to try the bench, not to publish it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import kube_peers
from benchmarks.kube_server import JOBS, OURS, Bench, say, until

Line = dict[str, Any]
SPARES = 8
BACKOFF = "a Job's own backoffLimit, one failed pod"
BARE = "a bare Job of that size, suspended and let go again"
EVICTION = "Kubernetes' dead-node eviction, its own defaults"
STAGES = {
    "incident": "incident",
    "cordon": "cordon",
    "fenced": "old attempt fenced",
    "created": "all new pods created",
    "running": "all new pods running",
}


@dataclass(frozen=True)
class Plan:
    """How large and how often."""

    nodes: int
    gangs: tuple[tuple[int, int], ...]
    """size and tries; six hardware faults an hour are a run's own limit, so no more tries than that"""
    storm: int
    """nodes that err at once"""
    storm_gang: int
    dead_gang: int


FULL = Plan(1024, ((128, 5), (128, 5), (1024, 5)), 150, 128, 16)
QUICK = Plan(40, ((8, 2), (32, 2)), 12, 8, 4)


def line(name: str, value: float | None, target: float | None, unit: str = "s", **more: Any) -> Line:
    """One figure; lower is better for all of them."""
    rounded = None if value is None else round(value, 3)
    base = {"name": name, "value": rounded, "unit": unit, "target": target, "better": "lower"}
    return {**base, "peer": None, "peer_value": None, **more}


def spread(name: str, values: list[float], target: float | None, **more: Any) -> Line:
    """The p95 of some tries as the figure, median and maximum beside it."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    middle, most = round(statistics.median(ordered), 3), round(ordered[-1], 3)
    return line(f"{name}, p95", p95, target, p50=middle, max=most, tries=len(ordered), **more)


class Cost:
    """CPU and memory of this process, controller and all, from here on."""

    def __init__(self) -> None:
        self.me = psutil.Process()
        self.cpu_s, self.began = sum(self.me.cpu_times()[:2]), time.monotonic()

    def percent(self) -> float:
        """Of one core."""
        return 100 * (sum(self.me.cpu_times()[:2]) - self.cpu_s) / (time.monotonic() - self.began)

    def lines(self, name: str, nodes: int) -> list[Line]:
        """Both figures."""
        memory = self.me.memory_info().rss / 2**20
        return [
            line(f"controller CPU, {name}", self.percent(), None, "% of a core", nodes=nodes),
            line(f"controller memory, {name}", memory, None, "MiB", nodes=nodes),
        ]


def at_rest(bench: Bench, name: str, seconds: float = 15.0) -> list[Line]:
    """What watching costs while nothing happens."""
    cost = Cost()
    time.sleep(seconds)
    return cost.lines(name, len(bench.names))


def followed(bench: Bench, run_id: str, no: int, size: int, at: float, victim: str) -> dict[str, float]:
    """A fault on a running gang, followed to the next gang running; seconds from the fault, and what it cost."""
    cost, calls, after = Cost(), sum(bench.api.calls.values()), f"{run_id}-{no + 1}"
    cordoned = until(lambda: bench.cordoned(victim), 120, f"{victim} is cordoned")
    created = until(lambda: len(bench.pods(after)) >= size, 300, "all pods are created")
    running = until(lambda: bench.running(after) >= size, 600, "all pods run")
    if victim in {pod["spec"]["nodeName"] for pod in bench.pods(after)}:
        raise RuntimeError(f"a pod of {after} runs on {victim}")
    moments = {
        "incident": bench.moment("incident_opened", at) or at,
        "cordon": cordoned,
        "fenced": bench.attempt(run_id, no).ended_s,
        "created": created,
        "running": running,
    }
    found = {name: moment - at for name, moment in moments.items()}
    return {**found, "calls": float(sum(bench.api.calls.values()) - calls), "cpu": cost.percent()}


def restarts(bench: Bench, size: int, tries: int) -> list[dict[str, float]]:
    """Restarts of a new gang of `size` nodes, one after the other."""
    run_id, found = bench.submit(size), []
    for no in range(1, tries + 1):
        nodes = bench.training(run_id, no, size)
        time.sleep(1.5)
        victim = bench.unhurt(nodes, 1)[0]
        found.append(followed(bench, run_id, no, size, bench.hit(victim), victim))
        say(f"gang of {size}, try {no}: " + ", ".join(f"{name} {value:.2f}" for name, value in found[-1].items()))
        bench.admin.delete(f"{JOBS}/{run_id}-{no}")
    bench.training(run_id, tries + 1, size)
    bench.clear(run_id, tries + 1)
    return found


def gang_lines(size: int, found: list[dict[str, float]], backoff_s: float, bare_s: float) -> list[Line]:
    """The figures of a gang size; `backoff_s` and `bare_s` are the peers'."""
    targets = {"incident": 3.0, "cordon": 4.0, "created": 8.0 if size <= 128 else 15.0}
    peers = {
        "created": {"peer": BARE, "peer_value": round(bare_s, 3)},
        "running": {"peer": BACKOFF, "peer_value": round(backoff_s, 3)},
    }
    lines = [
        spread(f"gang of {size}: fault to {words}", [one[key] for one in found], targets.get(key), **peers.get(key, {}))
        for key, words in STAGES.items()
    ]
    for key, words, unit in (
        ("calls", "API requests a restart", "requests"),
        ("cpu", "controller CPU while it restarts", "% of a core"),
    ):
        lines.append(line(f"gang of {size}: {words}", statistics.median(one[key] for one in found), None, unit))
    return lines


def whole(bench: Bench, run_id: str, size: int, victims: Iterable[str]) -> bool:
    """Whether an attempt after the first runs with all its pods, none of them on a faulty node."""
    no = bench.newest(run_id)
    placed = {pod["spec"].get("nodeName") for pod in bench.pods(f"{run_id}-{no}")}
    return no > 1 and bench.running(f"{run_id}-{no}") >= size and not placed & set(victims)


def storm(bench: Bench, count: int, size: int) -> list[Line]:
    """So many nodes err at once, an eighth of them under a training gang; the breaker is set to allow it."""
    run_id = bench.submit(size)
    nodes = bench.training(run_id, 1, size)
    time.sleep(1.5)
    inside = bench.unhurt(nodes, max(1, count // 8))
    others = bench.unhurt(sorted(set(bench.names) - set(nodes)), count - len(inside))
    victims = [*inside, *others]
    cost, at = Cost(), bench.hit(*victims)
    cordoned = until(lambda: all(bench.cordoned(name) for name in victims), 300, "all are cordoned") - at
    lines = cost.lines(f"while {count} nodes err at once", len(bench.names))
    # Nodes err while a restart is placed, so more than one may be needed: the newest attempt is the one that counts.
    running = until(lambda: whole(bench, run_id, size, victims), 600, "a later attempt runs without them") - at
    say(f"{count} faults at once: cordoned {cordoned:.2f}, the gang of {size} runs {running:.2f}")
    no = bench.newest(run_id)
    bench.training(run_id, no, size)
    bench.clear(run_id, no)
    return [
        line(f"{count} simultaneous faults to all nodes cordoned", cordoned, 15.0),
        line(f"{count} simultaneous faults to the gang of {size} running without them", running, None, restarts=no - 1),
        *lines,
    ]


def dead_node(bench: Bench, size: int) -> list[Line]:
    """Two nodes die at once, one under our gang, one under a bare Job of the same size; both have one spare each."""
    ours, theirs = bench.mortal
    living = bench.unhurt([name for name in bench.names if name not in bench.mortal], 2 * size)
    near, far = living[: size - 1], living[size - 1 : 2 * size - 2]
    pools = {**dict.fromkeys(bench.names, "none"), **dict.fromkeys([*near, ours], OURS)}
    bench.pool({**pools, **dict.fromkeys([*far, theirs], kube_peers.PEER)})
    run_id = bench.submit(size)
    bench.training(run_id, 1, size)
    with kube_peers.bare_job(bench, size, kube_peers.PEER) as peer:
        bench.pool({living[-2]: OURS, living[-1]: kube_peers.PEER})
        lost = peer.pod_on(theirs)
        at = bench.die(ours, theirs)
        suspect = until(lambda: bench.state(ours) != "healthy", 120, f"{ours} is suspect") - at
        found = followed(bench, run_id, 1, size, at, ours)
        say(f"a dead node: suspect {suspect:.2f}, the gang of {size} runs {found['running']:.2f}")
        evicted = peer.whole(without=lost, patience_s=600) - at
        say(f"a dead node: the bare Job of {size} runs {evicted:.2f}")
    return [
        line("dead node to suspect", suspect, 20.0),
        line(f"dead node to the gang of {size} running without it", found["running"], None)
        | {"peer": EVICTION, "peer_value": round(evicted, 3)},
    ]


def measured(bench: Bench, plan: Plan) -> Iterable[Line]:
    """Every figure, as soon as it is known."""
    kube_peers.prepare(bench)
    bench.start()
    yield from at_rest(bench, "idle")
    sizes: dict[int, list[dict[str, float]]] = {}
    for size, tries in plan.gangs:
        sizes.setdefault(size, []).extend(restarts(bench, size, tries))
    for size, found in sizes.items():
        yield from gang_lines(size, found, *kube_peers.restarts(bench, size, 1 if size > 512 else 3, OURS))
    yield from storm(bench, plan.storm, plan.storm_gang)
    yield from dead_node(bench, plan.dead_gang)


def main() -> int:
    """One JSON line a figure; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few nodes, small gangs")
    plan = QUICK if parser.parse_args().quick else FULL
    missed = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever stops it must not leave a control plane behind
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        bench = Bench(Path(folder), plan.nodes + SPARES, mortal=2)
        try:
            for figure in measured(bench, plan):
                print(json.dumps(figure), flush=True)
                missed += figure["target"] is not None and figure["value"] > figure["target"]
        finally:
            bench.stop()
    return min(1, missed)


if __name__ == "__main__":
    sys.exit(main())

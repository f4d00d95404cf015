"""Why training stops unasked, how often, and what each stop takes from a run: the mix and the durations, as data.

The mix is Llama 3's (The Llama 3 Herd of Models, arXiv 2407.21783, table 5: 419 unplanned stops in 54 days on 16,384
GPUs; no public table of MI300X exists). How each is seen here is the rule book's. Estimates and simulations share both.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from controlplane.runs.decide import KILL_AFTER_S
from controlplane.runs.leaving import stuck_after_s

GPU_HOURS_PER_STOP = 54 * 24 * 16_384 / 419
"""50,677 GPU-hours from one unplanned stop to the next."""

Effect = Literal["stuck", "corrupts", "exits", "slow", "silent"]
"""stuck: ranks wait in a collective and cannot save · corrupts: they stop, and what they hold cannot be trusted ·
exits: they end by themselves · slow: they go on and can save · silent: they go on, computing wrongly"""


@dataclass(frozen=True, slots=True)
class Cause:
    """One kind of stop: `stops` of Llama 3's 419, the rule that sees it, seconds until that rule holds.

    `window_s` None: as long as a hang takes to be one (`Costs.hang_s`). `node`: a node is blamed and goes to repair.
    """

    name: str
    stops: int
    effect: Effect
    rule: str
    window_s: float | None = 0.0
    node: bool = True


MIX = (
    Cause("GPU", 148, "stuck", "gpu-lost", 3.0),
    Cause("HBM", 72, "corrupts", "hbm-uncorrectable"),
    Cause("software", 54, "exits", "", node=False),
    Cause("switch, cable", 35, "stuck", "nic-down-long", 10.0),
    Cause("host", 32, "stuck", "no-telemetry", None),
    Cause("SRAM", 19, "corrupts", "other-uncorrectable"),
    Cause("system processor", 17, "stuck", "smu-frozen", 3.0),
    # the table's SSD 3, power supply 3, chassis 2, IO board 2, CPU 2, memory 2
    Cause("host part", 14, "stuck", "no-telemetry", None),
    Cause("NIC", 7, "stuck", "nic-down-long", 10.0),
    Cause("watchdog", 7, "stuck", "hang", None, node=False),
    Cause("silent corruption", 6, "silent", "silent-corruption"),
    Cause("thermal", 6, "slow", "thermal-severe", 300.0),
    Cause("dependency", 2, "exits", "", node=False),
)
STOPS = sum(cause.stops for cause in MIX)


@dataclass(frozen=True, slots=True)
class Restart:
    """What the controller and its backend take of a restart, in seconds; `source` says where that was measured.

    detect: a rule holds → its incident · decide: incident, or an attempt's end, → decision · fence: told to end, and
    not saving → no process is left · place: that → every process of the next attempt runs. The defaults are what the
    demo's memory error took (0.022, 0.020, 0.103 and 0.0 s), rounded up to tenths.
    """

    detect_s: float = 0.1
    decide_s: float = 0.1
    fence_s: float = 0.2
    place_s: float = 0.1
    source: str = "the local backend with two processes; not a cluster"


@dataclass(frozen=True, slots=True)
class Costs:
    """The durations that a simulation or an estimate takes as given; each is printed with its result."""

    blocking_s: float = 2.0
    """ranks wait so long for a checkpoint"""
    write_s: float = 0.0
    """and it can be resumed from so long after that"""
    load_s: float = 180.0
    """a running process → ready for its first step: initialisation and loading"""
    hang_s: float = 60.0
    step_s: float = 2.0
    grace_s: float = 30.0
    repair_s: float = 24 * 3600.0
    spare_share: float = 0.02
    silent_s: float = 2 * 3600.0
    """silent corruption is found after"""
    person_s: float = 20 * 60.0
    """a person is called → acts"""
    gpus_per_node: int = 8
    gpu_hours_per_stop: float = GPU_HOURS_PER_STOP
    restart: Restart = field(default_factory=Restart)

    def nodes(self, gpus: int) -> int:
        """Whole nodes that so many GPUs are."""
        return -(-gpus // self.gpus_per_node)

    def spares(self, gpus: int) -> int:
        """Spare nodes, to the nearest whole one."""
        return round(self.spare_share * self.nodes(gpus))

    def mtbf_s(self, gpus: int) -> float:
        """Seconds from one unplanned stop of so many GPUs to the next."""
        return self.gpu_hours_per_stop / gpus * 3600.0

    def window_s(self, cause: Cause) -> float:
        """From the fault to the moment at which its rule holds."""
        return self.hang_s if cause.window_s is None else cause.window_s

    def as_dict(self) -> dict[str, Any]:
        """For printing: names with their units, those of the restart among them."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "restart"}
        return {**own, **{one.name: getattr(self.restart, one.name) for one in fields(self.restart)}}


_BENCH = re.compile(r"gang of (\d+): fault to (incident|cordon|old attempt fenced|all new pods running), p95")


def measured_from(text: str) -> dict[str, Any]:
    """What `restart_from` takes, from its own JSON object or from the JSON lines of `make bench NAME=kube`. ValueError.

    The bench's figures are p95s from the fault on, so the times between them are taken as their differences.
    """
    try:
        told = json.loads(text)
    except ValueError:
        return _of_bench([json.loads(line) for line in text.splitlines() if line.startswith("{")])
    if not isinstance(told, dict):
        raise ValueError("must be one JSON object, or a bench's lines")
    return _of_bench([told]) if "name" in told else told


def _of_bench(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    marks: dict[str, dict[str, float]] = {}
    for line in lines:
        found = _BENCH.fullmatch(str(line.get("name")))
        if found and _is_time(line.get("value")):
            marks.setdefault(found[1], {})[found[2]] = float(line["value"])
    gangs = {}
    for size, at in marks.items():
        if len(at) < 4:
            raise ValueError(f"the gang of {size} has no figure for each of incident, cordon, fenced and running")
        ordered = [0.0, at["incident"], at["cordon"], at["old attempt fenced"], at["all new pods running"]]
        spent = [max(0.0, after - before) for before, after in itertools.pairwise(ordered)]
        gangs[size] = dict(zip(("detect_s", "decide_s", "fence_s", "place_s"), spent, strict=True))
    if not gangs:
        raise ValueError("holds no figures of restarts")
    return {"source": "bench kube, p95", "gangs": gangs}


def restart_from(measured: Mapping[str, Any], nodes: int) -> Restart:
    """Restart times of a file: {"source": …, "detect_s": …, …}, what a gang size changes under "gangs": {"128": {…}}.

    The smallest gang that holds `nodes` counts, else the largest; what is not named keeps its default. ValueError.
    """
    gangs = {int(size): values for size, values in dict(measured.get("gangs") or {}).items()}
    fitting = [size for size in sorted(gangs) if size >= nodes] or sorted(gangs)[-1:]
    chosen = gangs[fitting[0]] if fitting else {}
    known = {one.name for one in fields(Restart)}
    values = {**{name: value for name, value in measured.items() if name != "gangs"}, **chosen}
    if wrong := sorted(set(values) - known):
        raise ValueError(f"{', '.join(wrong)}: not a restart time; known are {', '.join(sorted(known))} and gangs")
    if bad := [name for name, value in values.items() if name != "source" and not _is_time(value)]:
        raise ValueError(f"{', '.join(bad)}: must be seconds, 0 or more")
    return Restart(**values)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def back_s(cause: Cause, costs: Costs) -> float:
    """Seconds from the end of useful work to the next attempt's first step; what is run again is not counted."""
    restart = costs.restart
    again = restart.decide_s + restart.fence_s + restart.place_s + costs.load_s
    if cause.effect == "stuck":
        told = costs.window_s(cause) + restart.detect_s + restart.decide_s
        stands = min(stuck_after_s(costs.step_s), told + costs.grace_s + KILL_AFTER_S)
        return again - restart.decide_s + max(told + KILL_AFTER_S, stands)
    if cause.effect == "corrupts":
        return again + costs.window_s(cause) + restart.detect_s
    # slow: it saves and stops; exits and silent: nothing is waited for
    return again - restart.decide_s + costs.blocking_s if cause.effect == "slow" else again


def mean_back_s(costs: Costs) -> float:
    """`back_s` over the mix."""
    return sum(cause.stops * back_s(cause, costs) for cause in MIX) / STOPS


def share(*, effect: Effect | None = None, node: bool | None = None) -> float:
    """The part of all stops that has this effect, or takes a node out of service."""
    kept = (one for one in MIX if effect in (None, one.effect) and node in (None, one.node))
    return sum(one.stops for one in kept) / STOPS

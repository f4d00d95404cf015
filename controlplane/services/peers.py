"""What the rules on peers are asked: a live job's GPUs over five minutes, and what its nodes are made of.

Reading the windows is the costly part, so each job's are read anew twice a minute; in between the last word stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.readings import UNKNOWN
from controlplane.rules import peers
from controlplane.rules.book import RuleBook
from controlplane.rules.findings import Judgement
from controlplane.rules.peers import GpuSeen, JobSeen, NodeMade
from controlplane.services.fleet_state import OUT_OF_SERVICE
from controlplane.store import steps, tables, telemetry
from controlplane.store.engine import Session
from controlplane.store.watch import LiveAttempt

WINDOW_S, EVERY_S, DRIFT_EVERY_S = 300.0, 30.0, 5.0
LEAST_SHARE = 0.8
"""of a window's seconds must be known, or nothing is said of the GPU"""
LAST_STEPS = 64
_GAUGES = ("gfx_activity_percent", "gfx_clock_mhz", "power_w")
_COUNTERS = ("throttle_ppt_ticks", "accumulation_ticks")
Values = NDArray[np.int64]


class Comparison:
    """The verdicts on each live job's GPUs, and when they were made. One loop owns it."""

    def __init__(self, book: RuleBook) -> None:
        self._book = book
        self._said: dict[tuple[str, int], tuple[float, Judgement]] = {}
        self._drift: tuple[float, Judgement] = (-math.inf, Judgement())

    def judge(
        self,
        session: Session,
        attempts: Sequence[LiveAttempt],
        everyone: Sequence[tables.Node],
        offsets: Mapping[str, float],
        now: float,
    ) -> Judgement:
        """Everything that peers show now."""
        live = {(one.run_id, one.no): one for one in attempts if one.nodes}
        self._said = {key: said for key, said in self._said.items() if key in live}
        if now - self._drift[0] >= DRIFT_EVERY_S:
            self._drift = now, peers.drift(_made(everyone, attempts), self._book, now)
        judgement = self._drift[1]
        for key, attempt in live.items():
            said = self._said.get(key)
            if said is None or now - said[0] >= EVERY_S:
                job = _job(session, attempt, offsets, now)
                found = peers.power_cap(job, self._book, now) + peers.straggler(job, self._book, now)
                said = self._said[key] = now, found
            judgement += said[1]
        return judgement


def _made(everyone: Sequence[tables.Node], attempts: Sequence[LiveAttempt]) -> list[NodeMade]:
    """Nodes in service that have said what they are made of; a job's nodes are compared with each other."""
    job = {node: f"run {one.run_id}" for one in attempts for node in one.nodes}
    return [
        NodeMade(node.name, job.get(node.name, "free"), made_of(node.facts))
        for node in everyone
        if node.facts and node.state not in OUT_OF_SERVICE
    ]


def made_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a node is made of, by the names that people use for it."""
    gpus = facts.get("gpus") or ()
    partitions = sorted({str(gpu.get("partition") or "") for gpu in gpus})
    return {
        "driver": str(facts.get("driver") or ""),
        "VBIOS": str(facts.get("vbios") or ""),
        "firmware": str(facts.get("firmware") or ""),
        "partition": ", ".join(partitions),
        "number of GPUs": str(len(gpus)),
        "number of ports": str(len(facts.get("nics") or ())),
    }


def _job(session: Session, attempt: LiveAttempt, offsets: Mapping[str, float], now: float) -> JobSeen:
    seen = [one for node in attempt.nodes for one in _gpus(session, node, now - offsets.get(node, 0.0))]
    return JobSeen(attempt.run_id, attempt.run_name, attempt.no, tuple(seen), _slow(session, attempt))


def _gpus(session: Session, node: str, until_s: float) -> list[GpuSeen]:
    """Each GPU of a node over the window, by the node's own clock."""
    read = {
        name: telemetry.read_series(session, node, "gpu", name, since_s=until_s - WINDOW_S, until_s=until_s)
        for name in (*_GAUGES, *_COUNTERS)
    }
    if any(len(series) != 1 for series in read.values()):
        return []  # no samples, or another number of GPUs than before
    values = {name: series[0].values for name, series in read.items()}
    found = []
    for gpu in range(values["power_w"].shape[1]):
        known = {name: column[:, gpu][column[:, gpu] != UNKNOWN] for name, column in values.items()}
        full = {name: len(one) >= LEAST_SHARE * WINDOW_S for name, one in known.items()}
        gauges = {name: float(np.mean(known[name])) if full[name] else None for name in _GAUGES}
        clock = float(np.median(known["gfx_clock_mhz"])) if full["gfx_clock_mhz"] else None
        capped = _share(known["throttle_ppt_ticks"], known["accumulation_ticks"]) if all(full.values()) else None
        found.append(GpuSeen(node, gpu, gauges["gfx_activity_percent"], clock, gauges["power_w"], capped))
    return found


def _share(ticks: Values, of: Values) -> float | None:
    """A counter's growth in percent of another's; None if either went back, as after a reset."""
    grown = int(of[-1] - of[0])
    if grown <= 0 or ticks[-1] < ticks[0]:
        return None
    return 100.0 * float(ticks[-1] - ticks[0]) / grown


def _slow(session: Session, attempt: LiveAttempt) -> dict[str, float]:
    """By node, how much longer its ranks' steps took than the median rank's, in percent, over the last steps.

    Ranks are placed in order of the attempt's nodes.
    """
    last = steps.last_step(session, attempt.run_id, attempt.no)
    if last is None:
        return {}
    records = [
        one for one in steps.read(session, attempt.run_id, first=last - LAST_STEPS + 1) if one.attempt_no == attempt.no
    ]
    if not records:
        return {}
    ranks, seconds = records[-1].rank, records[-1].step_seconds
    world = int(ranks.max()) + 1
    means = [float(np.mean(seconds[ranks == rank])) if np.any(ranks == rank) else np.nan for rank in range(world)]
    known = np.array(means)[np.isfinite(means)]  # a trainer need not tell how long its steps take
    if not len(known) or np.median(known) <= 0 or world % len(attempt.nodes):
        return {}
    of_nodes = np.array(means).reshape(len(attempt.nodes), -1)
    return {
        node: 100.0 * (float(np.nanmax(times)) / float(np.median(known)) - 1.0)
        for node, times in zip(attempt.nodes, of_nodes, strict=True)
        if np.isfinite(times).any()
    }

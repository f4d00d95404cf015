"""Rules on peers: the odd one out is found, just below is not, too few peers and too little knowledge say nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.rules import book, peers
from controlplane.rules.findings import Subject
from controlplane.rules.peers import GpuSeen, JobSeen, NodeMade

BOOK = book.load()
GPUS = tuple(GpuSeen(f"n{at // 8}", at % 8, 95.0, 2000.0, 690.0, 2.0) for at in range(16))
MADE = {"driver": "6.16.6", "VBIOS": "a", "firmware": "f", "partition": "SPX/NPS1", "number of ports": "8"}


def job(*changed: GpuSeen, slow: dict[str, float] | None = None) -> JobSeen:
    others = {(one.node, one.gpu): one for one in changed}
    return JobSeen("run-1", "zaya", 1, tuple(others.get((one.node, one.gpu), one) for one in GPUS), slow or {})


@pytest.mark.parametrize(("capped", "found"), [(23.0, True), (21.5, False), (None, False)])
def test_a_gpu_that_its_power_limit_holds_down_more_than_the_others(capped: float | None, found: bool) -> None:
    judged = peers.power_cap(job(replace(GPUS[3], capped_percent=capped)), BOOK, 1000.0)
    assert [(one.node, one.entity, one.action) for one in judged.findings] == (
        [("n0", "gpu3", "alert")] if found else []
    )
    assert judged.unknown == ({Subject("power-cap", "n0", "gpu3")} if capped is None else frozenset())


def test_when_all_are_held_down_alike_nobody_is_unlike() -> None:
    seen = job(*(replace(one, capped_percent=60.0) for one in GPUS))
    assert peers.power_cap(seen, BOOK, 0.0).findings == ()


@pytest.mark.parametrize(
    ("change", "slow", "action"),
    [
        ({"clock_mhz": 1780.0}, {}, "alert"),
        ({"power_w": 600.0}, {}, "alert"),
        ({"clock_mhz": 1780.0}, {"n0": 6.0}, "drain"),
        ({"clock_mhz": 1780.0}, {"n1": 6.0}, "alert"),
        ({"clock_mhz": 1820.0, "power_w": 630.0}, {"n0": 9.0}, ""),
        ({"clock_mhz": 1780.0, "activity_percent": 70.0}, {}, ""),
        ({"clock_mhz": None}, {}, ""),
    ],
)
def test_a_gpu_slower_than_the_others_while_as_busy(
    change: dict[str, float | None], slow: dict[str, float], action: str
) -> None:
    judged = peers.straggler(job(replace(GPUS[3], **change), slow=slow), BOOK, 1000.0)  # type: ignore[arg-type]  # any field
    assert [(one.entity, one.action) for one in judged.findings] == ([("gpu3", action)] if action else [])
    assert all("zaya" in one.sentence and one.run_id == "run-1" for one in judged.findings)


def test_an_idle_job_and_a_job_of_two_gpus_have_no_stragglers() -> None:
    idle = job(*(replace(one, activity_percent=5.0) for one in GPUS[1:]), replace(GPUS[0], clock_mhz=132.0))
    two = JobSeen("r", "r", 1, GPUS[:2], {})
    for seen in (idle, two):
        judged = peers.straggler(seen, BOOK, 0.0)
        assert judged.findings == () and len(judged.unknown) == len(seen.gpus)


@pytest.mark.parametrize("what", sorted(MADE))
def test_a_node_made_unlike_most_of_its_peers(what: str) -> None:
    nodes = [NodeMade(f"n{at}", "run a", MADE) for at in range(4)] + [NodeMade("odd", "run a", {**MADE, what: "other"})]
    (finding,) = peers.drift(nodes, BOOK, 5.0).findings
    assert (finding.node, finding.entity, finding.action) == ("odd", "host", "alert") and what in finding.sentence
    assert "drift" in BOOK.refusing


def test_without_a_majority_nobody_drifts_and_jobs_are_compared_with_themselves() -> None:
    halves = [NodeMade(f"n{at}", "free", {**MADE, "driver": str(at % 2)}) for at in range(4)]
    assert peers.drift(halves, BOOK, 0.0).findings == ()
    apart = [NodeMade(f"n{at}", f"run {at // 3}", {**MADE, "driver": str(at // 3)}) for at in range(6)]
    assert peers.drift(apart, BOOK, 0.0).findings == ()
    silent = [NodeMade(f"n{at}", "free", MADE) for at in range(3)] + [NodeMade("new", "free", {**MADE, "VBIOS": ""})]
    assert peers.drift(silent, BOOK, 0.0).findings == (), "what a node does not say is no difference"

"""Peers over the store: a drill on one GPU of a live job's is found among the others, and drift keeps a node out."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.node.agent import columns
from agents.node.sources.simulated import SimulatedSource
from agents.wire import Batch
from controlplane.rules import book
from controlplane.services import incidents as incident_service
from controlplane.services.admission import admit
from controlplane.services.commit import commit
from controlplane.services.findings import Watch
from controlplane.store import incidents
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot

SECONDS = 310


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


class Fleet:
    """Simulated nodes under a run's names, whose samples go to the store each second."""

    def __init__(self, pilot: Pilot, names: list[str]) -> None:
        self.pilot = pilot
        self.sources = {name: SimulatedSource(name, pilot.clock.now()) for name in names}
        self.sequence = 1_000_000

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            now = self.pilot.clock.advance(1.0)
            batches = []
            for name, source in self.sources.items():
                source.follow(3.0)
                sample, self.sequence = source.sample(now, now), self.sequence + 1
                batches.append(
                    Batch(
                        *(name, "boot", self.sequence, "simulated", True, "0", now, now),
                        gpu=columns([sample], "gpu"),
                        facts=source.facts(),
                    )
                )
            with_times = [admit(batch, now) for batch in batches]
            commit(self.pilot.store, with_times, expected=lambda _run, _no: None, told={})


def firing(pilot: Pilot) -> list[tuple[str, str, str, str]]:
    watch = Watch(book.load(), since_s=0.0)
    incident_service.check_once(pilot.store, watch, pilot.epoch, pilot.clock.now())
    with pilot.store.read() as session:
        found = watch.judge(session, pilot.clock.now()).findings
    wanted = ("power-cap", "straggler", "drift")
    return [(one.rule, one.node, one.entity, one.action) for one in found if one.rule in wanted]


@pytest.mark.parametrize(("drill", "rule"), [("power-cap", "power-cap"), ("straggler", "straggler")])
def test_a_gpu_unlike_the_others_of_its_job_is_found(pilot: Pilot, drill: str, rule: str) -> None:
    run_id = pilot.started(last=20)
    nodes = list(pilot.last(run_id).nodes)
    fleet = Fleet(pilot, nodes)
    fleet.run(SECONDS)
    assert firing(pilot) == [], "healthy noise"
    fleet.sources[nodes[1]].apply_drill(drill, 3)
    fleet.run(SECONDS)
    assert firing(pilot) == [(rule, nodes[1], "gpu3", "alert")]
    fleet.sources[nodes[1]].apply_drill("clear", 3)
    fleet.run(SECONDS)
    assert firing(pilot) == []


def test_a_node_with_another_driver_gets_no_new_attempt(pilot: Pilot) -> None:
    fleet = Fleet(pilot, list(pilot.names))
    fleet.run(2)
    odd = pilot.names[0]
    fleet.sources[odd].apply_drill("drift", 0)
    fleet.run(6)
    assert firing(pilot) == [("drift", odd, "host", "alert")]
    with pilot.store.read() as session:
        assert incidents.afflicted(session) == {}
        assert incidents.afflicted(session, book.load().refusing) == {odd: "drift"}
    run_id = pilot.submit(nodes=2)
    pilot.round(1)
    pilot.round(1)
    assert odd not in pilot.last(run_id).nodes and len(pilot.last(run_id).nodes) == 2

"""The rows of the fault table that only peers show, from registers to an incident: found, not just below, over again.

One node's registers lie behind the stand-in of AMD's library; its agent, the server that takes its samples and the
server's rules are what runs. Of the nodes beside it only the server's rows are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from agents.node.agent import Agent, Paths
from agents.node.outbox import Outbox
from agents.node.sources.machine import MachineSource
from agents.rules.load import load_rules
from agents.stub.node import StubNode
from agents.wire import decode
from controlplane.services import incidents
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store.engine import Store
from controlplane.store.tables import Fault as StoredFault
from controlplane.store.tables import Incident, Node
from tests.agents.conftest import places
from tests.agents.conftest import stub as stub  # the fixture
from tests.flow.scenarios import GPU
from tests.flow.test_scenarios import tell
from tests.runs.piloting import Pilot

JUDGED_EVERY = 10
pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True, slots=True)
class Row:
    """A rule; the drill that makes it fire within `most` seconds; fields of the GPU that are just not enough."""

    rule: str
    most: int
    below: dict[str, float] = field(default_factory=dict)


ROWS = (
    Row("power-cap", 310, {"cap_share": 0.18}),
    Row("straggler", 310, {"clock_factor": 0.93}),
    Row("drift", 30),
)


class Job:
    """A run on one node whose agent reads the stand-in, free nodes made of the same beside it, and one clock."""

    def __init__(self, stub: StubNode, pilot: Pilot, folder: Path, *, runs: bool) -> None:
        self.stub, self.pilot, self.clock = stub, pilot, pilot.clock
        run_id = pilot.started(nodes=1) if runs else ""
        self.node = pilot.last(run_id).nodes[0] if runs else pilot.names[0]
        self.ingest = Ingest(pilot.store, Live(pilot.store, self.clock), self.clock)
        self.ingest.start()
        self.source = MachineSource(self.node, replace(places(stub), monotonic=self.clock.monotonic), {})
        with pilot.store.write() as session:  # the others are made of the same
            for name in pilot.names:
                found = session.get(Node, name)
                assert found is not None
                found.facts = asdict(self.source.facts())
        self.outbox = Outbox(folder / "spool")
        paths = Paths(folder / "runtime", folder / "spool")
        self.agent = Agent(self.node, "boot", self.source, load_rules(), self.outbox, paths)
        stub.source.registers.random.seed(7)
        stub.source.follow(3.0)
        self.waiting: list[Future[object]] = []
        self.second = 0

    def step(self) -> None:
        """A second: sampled and sent; every tenth is waited for and judged."""
        now = self.clock.advance(1.0)
        self.stub.beat(now)
        assert self.agent.sample_once(now, self.clock.monotonic()) == [], "no rule of the node's own is near"
        while (taken := self.outbox.take(0)) is not None:
            self.waiting.append(self.ingest.submit(decode(taken[1]), now))
            self.outbox.done(taken[0])
        self.second += 1
        if self.second % JUDGED_EVERY == 0:
            while self.waiting:
                self.waiting.pop().result(timeout=30)
            incidents.check_once(self.pilot.store, self.pilot.watch, self.pilot.epoch, now)

    def fault(self, rule: str) -> StoredFault | None:
        with self.pilot.store.read() as session:
            found = session.query(StoredFault).filter_by(rule=rule).all()
        assert len(found) <= 1
        return found[0] if found else None

    def close(self) -> None:
        self.ingest.stop()
        self.source.close()
        self.outbox.close()


@pytest.fixture
def job(request: pytest.FixtureRequest, stub: StubNode, sqlite_store: Store, tmp_path: Path) -> Iterator[Job]:
    found = Job(stub, Pilot(sqlite_store, tmp_path), tmp_path / "node", runs=request.param.rule != "drift")
    yield found
    found.close()


def names(row: Row) -> str:
    return row.rule


@pytest.mark.parametrize(("row", "job"), [(row, row) for row in ROWS], ids=map(names, ROWS), indirect=["job"])
def test_a_row_that_peers_show_fires_becomes_an_incident_and_clears(row: Row, job: Job) -> None:
    for _ in range(60):
        job.step()
    assert job.fault(row.rule) is None, "a healthy node"

    begun = job.clock.now()
    job.stub.drill(row.rule, GPU)
    while job.fault(row.rule) is None:
        job.step()
        assert job.clock.now() - begun <= row.most
    fired_s = job.clock.now() - begun
    fault = job.fault(row.rule)
    assert fault is not None and fault.state == "firing" and job.node in fault.sentence
    assert (fault.node, fault.entity) == (job.node, "host" if row.rule == "drift" else f"gpu{GPU}")
    with job.pilot.store.read() as session:
        incident = session.get(Incident, fault.incident_id)
        assert incident is not None and (incident.state, incident.node) == ("open", job.node)

    repaired = job.clock.now()
    job.stub.drill("clear", GPU)
    while (fault := job.fault(row.rule)) is not None and fault.state != "clear":
        job.step()
        assert job.clock.now() - repaired <= 400
    assert fault is not None
    tell(fault, fired_s, job.clock.now() - repaired)


@pytest.mark.parametrize(
    ("row", "job"), [(row, row) for row in ROWS if row.below], ids=["power-cap", "straggler"], indirect=["job"]
)
def test_just_below_such_a_row_does_not_fire(row: Row, job: Job) -> None:
    for name, value in row.below.items():
        setattr(job.stub.source.registers.gpus[GPU], name, value)
    for _ in range(row.most + 60):
        job.step()
    assert job.fault(row.rule) is None

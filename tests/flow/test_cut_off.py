"""Nodes that cannot be heard, and clocks that are set: real agents, ingest and rules at clocks that a test moves.

Not being able to look is never evidence: nothing here may become more than an alert, and nothing that was seen is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.node.agent import Agent, Paths
from agents.node.outbox import Outbox
from agents.node.sources.simulated import SimulatedSource
from agents.rules.load import load_rules
from agents.wire import Drill, decode
from controlplane.clock import ManualClock
from controlplane.rules import book
from controlplane.services import incidents
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import faults, leases, telemetry
from controlplane.store import incidents as incident_rows
from controlplane.store.engine import Store
from jobs.contract import Heartbeat
from tests.services.batches import add_run

BEAT_S = 5


class Node:
    """An agent with one rank beside it, at a clock of its own."""

    def __init__(self, name: str, rank: int, folder: Path, at_s: float) -> None:
        self.name, self.rank, self.folder = name, rank, folder
        self.clock, self.connected, self.hung, self.step = ManualClock(at_s), True, False, 0
        self.told: list[int] = []
        self.boot()

    def boot(self, boot_id: str = "boot") -> None:
        """The agent's process begins."""
        self.outbox = Outbox(self.folder / "spool")
        paths = Paths(self.folder / "runtime", self.folder / "spool")
        source = SimulatedSource(self.name, self.clock.now())
        self.agent = Agent(self.name, boot_id, source, load_rules(), self.outbox, paths)

    def second(self, seconds: int) -> None:
        """One second of this node's life, the `seconds`th since its attempt began."""
        self.clock.advance(1.0)
        if seconds % BEAT_S == 0 and not self.hung:
            self.beat()
        self.agent.sample_once(self.clock.now(), self.clock.monotonic())

    def beat(self) -> None:
        """The rank has made steps and says so, by the wall clock that it reads."""
        now, self.step = self.clock.now(), self.step + BEAT_S
        said = Heartbeat(
            *("run-1", 1, 1, self.rank, 2, self.name, 100, "train", self.step, 1, self.step, None),
            *(now, now - 60.0, 1.0),
        )
        file = self.folder / "runtime" / "attempts" / "run-1-1" / f"heartbeat-rank-{self.rank}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said.to_json())
        os.utime(file, (now, now))


class House:
    """A leading server, two nodes, one run on both."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.clock = store, ManualClock()
        self.live = Live(store, self.clock)
        self.ingest = Ingest(store, self.live, self.clock, group_s=0.0)
        self.ingest.start()
        self.rules = Watch(book.load(), since_s=self.clock.now() - 1e6)
        with store.write() as session:
            epoch = leases.acquire(session, "control", leases.this_process("a"), now=self.clock.now(), ttl_s=1e6)
        assert epoch is not None
        self.epoch, self.seconds, self.found = epoch, 0, set[str]()
        add_run(store, attempts=[(1, ["node-a", "node-b"])])
        at_s = self.clock.now()
        self.a, self.b = (Node(name, rank, folder / name, at_s) for rank, name in enumerate(("node-a", "node-b")))

    def run(self, seconds: int) -> None:
        """Time passes; who is connected sends what it has, batch by batch, and the rules look after each."""
        for _ in range(seconds):
            self.seconds += 1
            self.clock.advance(1.0)
            for node in (self.a, self.b):
                node.second(self.seconds)
                while node.connected and node.outbox.waiting[0]:
                    self.send_one(node)
            self.check()

    def send_one(self, node: Node) -> None:
        """The next batch of a node's spool arrives."""
        taken = node.outbox.take(0)
        assert taken is not None
        batch = decode(taken[1])
        self.ingest.submit(batch, self.clock.now(), behind=node.outbox.waiting[0] - 1).result(30)
        node.told.append(batch.sequence)
        node.outbox.done(taken[0])
        if node.outbox.waiting[0]:
            self.check()

    def check(self) -> None:
        incidents.check_once(self.store, self.rules, self.epoch, self.clock.now())
        with self.store.read() as session:
            self.found |= {fault.rule for fault in faults.firing(session)}

    def asked_for(self) -> list[str]:
        """Rules because of which a decision is wanted."""
        with self.store.read() as session:
            return [one.rule for one in incident_rows.actionable(session, self.rules.book)]

    def heard(self) -> set[str]:
        """The rules that have found something since this was asked last, at any check."""
        found, self.found = self.found, set()
        return found

    def samples(self, node: Node) -> int:
        with self.store.read() as session:
            return telemetry.counted(session, "gpu", node.name)


@pytest.fixture
def house(sqlite_store: Store, tmp_path: Path) -> Iterator[House]:
    made = House(sqlite_store, tmp_path)
    made.run(30)
    assert made.heard() == set()
    yield made
    made.ingest.stop()
    made.a.outbox.close()
    made.b.outbox.close()


@pytest.mark.parametrize("both", [False, True])
def test_an_agent_that_was_cut_off_comes_back_to_a_healthy_run(house: House, both: bool) -> None:
    cut = (house.a, house.b) if both else (house.b,)
    for node in cut:
        node.connected = False
    house.run(90)
    assert house.heard() == ({"no-telemetry-fleet"} if both else {"no-telemetry"})
    for node in cut:
        node.connected = True
    house.run(10)
    assert "hang" not in house.heard(), "not even for one check"
    assert house.asked_for() == []
    assert [house.samples(node) for node in (house.a, house.b)] == [130, 130], "nothing that was seen is lost"


def test_a_fault_seen_while_cut_off_is_the_first_thing_that_is_told(house: House) -> None:
    house.b.connected = False
    house.run(20)
    house.b.agent.drill(Drill("d", "hbm-uncorrectable", 3))
    house.run(20)
    assert house.b.outbox.waiting[0] == 41
    house.send_one(house.b)
    assert house.asked_for() == ["hbm-uncorrectable"]
    with house.store.read() as session:
        (asked,) = incident_rows.actionable(session, house.rules.book)
    assert asked.onset_s == pytest.approx(house.clock.now() - 19.0, abs=0.1)
    house.b.connected = True
    house.run(2)
    assert house.b.told == [*range(1, 31), 51, *range(31, 51), *range(52, 74)]
    assert house.samples(house.b) == 72


@pytest.mark.parametrize("set_s", [-90.0, 90.0, -7200.0])
def test_a_clock_that_is_set_is_no_hang(house: House, set_s: float) -> None:
    house.run(3)
    house.b.clock.jump(set_s)
    house.run(70)
    assert house.heard() == set()
    house.a.hung = house.b.hung = True
    house.run(70)
    assert house.heard() == {"hang"}, "and a hang is still one"


@pytest.mark.parametrize("set_s", [-90.0, 90.0])
def test_a_clock_that_is_set_while_nobody_hears_is_no_hang(house: House, set_s: float) -> None:
    house.b.connected = False
    house.run(50)
    house.b.clock.jump(set_s)
    house.run(50)
    assert house.heard() == {"no-telemetry"}
    house.b.connected = True
    house.run(20)
    assert "hang" not in house.heard()


def test_a_rank_that_hung_while_nobody_heard_is_found_when_its_agent_has_caught_up(house: House) -> None:
    for node in (house.a, house.b):
        node.hung, node.connected = True, False
    house.run(80)
    assert house.heard() == {"no-telemetry-fleet"}
    house.a.connected = house.b.connected = True
    house.run(1)
    assert house.asked_for() == ["hang"]


def test_an_agent_that_begins_anew_gives_its_ranks_their_patience(house: House) -> None:
    house.run(100)
    house.b.outbox.close()
    house.b.clock.advance(40)
    house.clock.advance(40)
    house.a.clock.advance(40)
    house.b.clock.jump(-3600)
    house.b.boot("another boot")
    house.run(30)
    assert "hang" not in house.heard()

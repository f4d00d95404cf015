"""Every row of the fault table, from registers and kernel lines to an incident: it fires, not just below, and clears.

Registers lie behind a stand-in of AMD's library and real file formats; everything after them is what runs on a node and
in a server. With TRIMTAB_SCENARIO_ROWS each row writes a line, from which docs/scenarios.md is made.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node import agent as agent_module
from agents.node.agent import Agent, Paths
from agents.node.outbox import FAULTS, Outbox
from agents.node.sources.machine import MachineSource
from agents.readings import Fault
from agents.rules import evaluate
from agents.rules.evaluate import Attribution
from agents.rules.load import load_rules
from agents.stub.node import StubNode
from agents.wire import decode
from controlplane.clock import ManualClock
from controlplane.rules import book
from controlplane.services import incidents
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import leases
from controlplane.store.engine import Store
from controlplane.store.tables import Fault as StoredFault
from controlplane.store.tables import Incident
from tests.agents.conftest import places
from tests.agents.conftest import stub as stub  # the fixture
from tests.flow.scenarios import GPU, SCENARIOS, Scenario

WHO = Attribution("", 0, 0, heartbeat_age_s=1.0)
STEP_S = 30.0
"""How long a step is where nothing happens: the evaluator is told that it may trust so long a gap here."""
RULES = load_rules()
pytestmark = pytest.mark.timeout(120)


class Walk:
    """One node's agent and the server that it tells, on one clock."""

    def __init__(self, stub: StubNode, store: Store, folder: Path, scenario: Scenario) -> None:
        self.stub, self.store, self.scenario = stub, store, scenario
        self.clock = ManualClock(time.time())
        self.ingest = Ingest(store, Live(store, self.clock), self.clock)
        self.ingest.start()
        self.watch = Watch(book.load(), since_s=self.clock.now())
        with store.write() as session:
            found = leases.acquire(session, "control", leases.this_process("test"), now=self.clock.now(), ttl_s=1e9)
        assert found is not None
        self.epoch = found
        where = replace(places(stub), monotonic=self.clock.monotonic)
        self.source = MachineSource("node-a", where, {})
        self.outbox = Outbox(folder / "spool")
        paths = Paths(folder / "runtime", folder / "spool")
        self.agent = Agent("node-a", "boot", self.source, RULES, self.outbox, paths)
        self.employ(run="run-1")
        self.told: list[Fault] = []

    def employ(self, run: str) -> None:
        """A job is on the node, or with "" none; no run of the store, whose decisions are not asked here."""
        age_s = 90.0 if self.scenario.silent else 1.0
        who = replace(WHO, run_id=run, heartbeat_age_s=age_s if run else None)
        self.agent._who = lambda _at_s: who  # type: ignore[method-assign]  # rings of a real trainer are another test's
        self.stub.source.follow(3.0 if run else None)

    def step(self, seconds: float = 1.0) -> list[Fault]:
        """Lets time pass, samples, and sends the faults that changed; other batches are acknowledged by nobody."""
        now = self.clock.advance(seconds)
        self.stub.beat(now)
        self._settle()
        faults = self.agent.sample_once(now, self.clock.monotonic())
        while (taken := self.outbox.take(0)) is not None:
            if taken[0].kind == FAULTS:
                batch = decode(taken[1])
                self.ingest.submit(batch, now).result(timeout=30)
            self.outbox.done(taken[0])
        self.told += faults
        return faults

    def _settle(self) -> None:
        """Waits for the reads that are not made to hang: their threads live by this machine's time."""
        hung = [gpu.hung_call_s is not None for gpu in self.stub.source.registers.gpus]
        until = time.monotonic() + 30.0
        while any(
            worker.since_s is not None and not still
            for worker, still in zip(self.source._gpus._workers, hung, strict=True)
        ):
            assert time.monotonic() < until, "a read that should come back does not"
            time.sleep(0.002)

    def check(self) -> None:
        incidents.check_once(self.store, self.watch, self.epoch, self.clock.now())

    def close(self) -> None:
        self.ingest.stop()
        self.source.close()
        self.outbox.close()


@pytest.fixture
def walk(
    request: pytest.FixtureRequest, stub: StubNode, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Walk]:
    monkeypatch.setattr(evaluate, "LONGEST_GAP_S", STEP_S)
    monkeypatch.setattr(agent_module, "FACTS_EVERY_S", 1e9)
    found = Walk(stub, sqlite_store, tmp_path / "node", request.param)
    found.stub.source.registers.random.seed(7)
    for _ in range(20):
        found.step()
    for _ in range(12 if request.param.most > STEP_S else 1):  # long windows are full
        found.step(STEP_S)
    assert found.told == [], "a healthy node"
    if found.scenario.stops:
        found.employ("")
        for _ in range(5):
            found.step()
    yield found
    found.close()


def pace(scenario: Scenario, second: int, last: int) -> float:
    """Long scenarios are walked in long steps until shortly before something may happen."""
    far = scenario.least - 2 * STEP_S
    return STEP_S if last > 600 and STEP_S < second < far else 1.0


def names(scenario: Scenario) -> str:
    return scenario.rule


@pytest.mark.parametrize("walk", SCENARIOS, ids=names, indirect=True)
def test_a_row_fires_in_time_becomes_an_incident_and_clears(walk: Walk) -> None:
    scenario, second, fault = walk.scenario, 0.0, None
    while fault is None and second <= scenario.most:
        walk.scenario.act(walk.stub, int(second))
        passed = pace(scenario, int(second), scenario.most)
        found = [one for one in walk.step(passed) if one.rule == scenario.rule and one.state == "firing"]
        second += passed
        fault = found[0] if found else None
    assert fault is not None, (scenario.rule, [one.rule for one in walk.told])
    assert scenario.least <= second <= scenario.most + 1
    assert fault.entity in (f"gpu{GPU}", f"nic{GPU}", "host") and fault.node in fault.sentence
    assert {one.entity for one in walk.told} == {fault.entity}, "nothing else was found"

    walk.check()
    with walk.store.read() as session:
        stored = session.get(StoredFault, fault.id)
        assert stored is not None and (stored.rule, stored.state) == (scenario.rule, "firing")
        incident = session.get(Incident, stored.incident_id)
        assert incident is not None and incident.state == "open" and incident.node == "node-a"

    repaired = walk.clock.now()
    walk.stub.drill("clear", GPU)
    ids = {one.id for one in walk.told}
    while not any(one.rule == scenario.rule and one.state == "clear" for one in walk.told):
        walk.step(STEP_S)
        assert walk.clock.now() - repaired <= scenario.clear_s, f"{scenario.rule} does not clear"
    cleared_s = walk.clock.now() - repaired
    assert {one.id for one in walk.told} == ids, "the repair is no fault"
    with walk.store.read() as session:
        stored = session.get(StoredFault, fault.id)
        assert stored is not None and stored.state == "clear"
    tell(fault, second, cleared_s)


@pytest.mark.parametrize("walk", SCENARIOS, ids=names, indirect=True)
def test_just_below_a_row_does_not_fire(walk: Walk) -> None:
    scenario, second = walk.scenario, 0.0
    last = max(scenario.quiet_s, scenario.most + 5)
    while second <= last:
        walk.scenario.below(walk.stub, int(second))
        passed = pace(replace(scenario, least=last), int(second), last)
        assert [one.rule for one in walk.step(passed) if one.rule == scenario.rule] == []
        second += passed


@pytest.mark.parametrize("walk", [Scenario("page-fault-again", SCENARIOS[0].act, SCENARIOS[0].below)], indirect=True)
def test_two_jobs_with_page_faults_make_it_the_gpus(walk: Walk) -> None:
    rules: list[str] = []
    for run in ("run-1", "run-1", "run-2"):
        walk.employ(run)
        walk.stub.drill("page-fault", GPU)
        rules = [one.rule for one in walk.step()]
        for _ in range(3):
            walk.step(STEP_S)
    assert rules == ["page-fault", "page-fault", "page-fault-again"], "the fault before ends, a new one begins"
    fault = next(one for one in walk.told if one.rule == "page-fault-again")
    walk.stub.drill("clear", GPU)
    begun = walk.clock.now()
    while not any(one.rule == "page-fault-again" and one.state == "clear" for one in walk.told):
        walk.step(STEP_S)
    tell(fault, 1.0, walk.clock.now() - begun)


def test_every_rule_of_the_file_has_its_scenario() -> None:
    assert sorted([one.rule for one in SCENARIOS] + ["page-fault-again"]) == sorted(rule.id for rule in RULES)


def tell(fault: Fault | StoredFault, fired_s: float, cleared_s: float) -> None:
    """A line for docs/scenarios.md."""
    path = os.environ.get("TRIMTAB_SCENARIO_ROWS")
    if path:
        row = {"rule": fault.rule, "severity": fault.severity, "action": fault.action, "sentence": fault.sentence}
        with Path(path).open("a") as file:
            file.write(json.dumps({**row, "fired_s": round(fired_s), "cleared_s": round(cleared_s)}) + "\n")

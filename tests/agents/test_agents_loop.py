"""The agent's second: what goes into which batch, what outlives a restart, what a scrape shows, how time is kept."""

from __future__ import annotations

import socket
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agents.node import agent as agent_module
from agents.node import loop as loop_module
from agents.node.agent import Agent, Paths, portions
from agents.node.exporter import AgentCollector
from agents.node.loop import Loop, Troubles
from agents.node.main import StartError, options, start
from agents.node.outbox import Outbox
from agents.node.rings import Swept
from agents.node.sender import SenderState
from agents.node.sources.simulated import SimulatedSource
from agents.probe.capture import Probe
from agents.readings import ExpertRecord, StepRecord
from agents.rules.load import load_rules
from agents.wire import Batch, Drill, decode
from tests.exposition import lint


class Node:
    """An agent over a simulated node, its time in the test's hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.at = folder, 100.0
        self.begin()

    def begin(self) -> None:
        """A start of the agent: as the process does it."""
        self.outbox = Outbox(self.folder / "spool")
        self.source = SimulatedSource("node-a", self.at)
        paths = Paths(self.folder / "runtime", self.folder / "spool")
        self.agent = Agent("node-a", "boot", self.source, load_rules(), self.outbox, paths)

    def end(self) -> None:
        self.agent.save()
        self.outbox.close()

    def run(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.at += 1.0
            self.agent.sample_once(self.at, self.at)

    def batches(self) -> list[Batch]:
        """What waits, in order; it leaves the outbox."""
        found = []
        while (taken := self.outbox.take(0)) is not None:
            found.append(decode(taken[1]))
            self.outbox.done(taken[0])
        return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.outbox.close()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Probe]:
    env = {"TRIMTAB_HEARTBEAT_DIR": str(tmp_path / "runtime" / "attempts" / "run-1"), "TRIMTAB_RUN_ID": "run-1"}
    made = Probe(layers=1, slots=2, experts=2, top_k=1, env=env)
    yield made
    made.close()


def step(trainer: Probe, number: int) -> None:
    trainer.write(number, array("I", [1, 2]), array("f", [0, 0]), routed=3, loss=2.5)


def test_steps_travel_apart_from_telemetry_under_one_numbering(node: Node, trainer: Probe) -> None:
    node.run()
    step(trainer, 1)
    assert node.agent.sweep_once(node.at, node.at) == 1
    assert node.agent.sweep_once(node.at, node.at) == 0
    node.run()
    first, second, third = node.batches()
    assert (first.sequence, second.sequence, third.sequence) == (1, 2, 3)
    assert first.facts is not None and third.facts is None
    assert second.gpu is None and [record.step for record in second.experts] == [1] and second.steps[0].loss == 2.5
    assert third.gpu is not None and third.experts == ()


def test_a_fault_is_a_batch_of_its_own_and_overtakes_the_samples(node: Node) -> None:
    node.run(5)
    node.agent.drill(Drill("d", "hbm-uncorrectable", 3))
    node.run(2)
    told, *others = node.batches()
    assert [fault.rule for fault in told.faults] == ["hbm-uncorrectable"]
    assert not any((told.gpu, told.nic, told.facts, told.kernel, told.heartbeats))
    assert [batch.sequence for batch in others] == [1, 2, 3, 4, 5, 7, 8] and told.sequence == 6
    assert all(batch.gpu is not None and batch.faults == () for batch in others)


def test_heartbeats_are_told_again_when_batches_were_lost(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "runtime" / "attempts" / "run-1"
    folder.mkdir(parents=True)
    (folder / "heartbeat-rank-0.json").write_text("{}")
    node.run(2)
    assert [len(batch.heartbeats) for batch in node.batches()] == [1, 0]
    node.outbox.dropped += 1
    node.run(2)
    assert [len(batch.heartbeats) for batch in node.batches()] == [1, 0]


def test_a_fault_names_the_run_whose_rank_lives_here(node: Node, trainer: Probe) -> None:
    step(trainer, 1)
    node.agent.sweep_once(node.at, node.at)
    node.run(5)
    assert node.agent.drill(Drill("d", "hbm-uncorrectable", 3)) == ""
    node.run()
    (fault,) = node.batches()[0].faults
    assert (fault.run_id, fault.attempt_no, fault.rank, fault.entity) == ("run-1", 1, 0, "gpu3")


def test_a_drill_is_refused_by_a_source_that_is_not_simulated(node: Node) -> None:
    node.source.simulated = False
    assert "simulated nodes only" in node.agent.drill(Drill("d", "gpu-lost", 1))
    node.source.simulated = True
    assert "is not a drill" in node.agent.drill(Drill("d", "meltdown", 1))
    node.run(10)
    assert all(batch.faults == () for batch in node.batches())


def test_the_devices_follow_the_rank(node: Node, trainer: Probe) -> None:
    node.run(5)
    for number in range(10):
        step(trainer, number)
        node.agent.sweep_once(node.at, node.at)
        node.run()
    columns = [batch.gpu for batch in node.batches() if batch.gpu is not None]
    power = [column.values[column.metrics.index("power_w")][0] for column in columns]
    assert power[4] < 200 < 600 < power[-1]
    node.run(15)
    column = node.batches()[-1].gpu
    assert column is not None and column.values[column.metrics.index("power_w")][0] < 200


def test_a_restart_goes_on_where_the_last_agent_was(node: Node, trainer: Probe) -> None:
    step(trainer, 1)
    node.agent.sweep_once(node.at, node.at)
    node.run(3)
    node.agent.drill(Drill("d", "hbm-uncorrectable", 3))
    node.run()
    (fault,) = node.batches()[0].faults
    node.end()
    node.begin()
    step(trainer, 2)
    node.agent.sweep_once(node.at, node.at)
    node.run()
    told, swept, sampled = node.batches()
    assert [record.step for record in swept.steps] == [2]
    assert (swept.boot_id, swept.sequence) == ("boot-2", 1) and sampled.gpu is not None
    assert [(one.id, one.state) for one in told.faults] == [(fault.id, "clear")], "a simulated device starts anew"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot": "boot", "baselines": 3, "cursors": {}, "firing": []}'])
def test_a_memory_that_cannot_be_read_keeps_nobody_from_starting(tmp_path: Path, content: str) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "memory.json").write_text(content)
    node = Node(tmp_path)
    node.run(3)
    assert len(node.batches()) == 3
    node.end()


def record(number: int, slots: int) -> ExpertRecord:
    counts, bias = array("I", [1]) * slots, array("f", [0]) * slots
    return ExpertRecord("run", 1, 1, number, 1.0, 1, 1, slots, slots, 1, 1, 0, counts, bias)


def test_a_long_backlog_is_parted_into_batches_that_fit() -> None:
    steps = [StepRecord("run", 1, 1, 0, n, 1.0, 1.0, 1.0, 1.0, 1, 1.0, 1) for n in range(64)]
    parts = list(portions(Swept([record(number, 58 * 256) for number in range(64)], steps)))
    assert [one.step for part in parts for one in part.experts] == list(range(64))
    assert [len(part.steps) for part in parts] == [64] + [0] * (len(parts) - 1)
    for part in parts:
        assert sum(8 * len(one.counts) for one in part.experts) <= agent_module.RECORDS_BYTES
    assert list(portions(Swept())) == []
    assert len(list(portions(Swept([], steps)))) == 1


def test_a_batch_that_cannot_be_made_is_counted_and_the_agent_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small:
        small.setattr("agents.wire.MAX_BATCH_BYTES", 100)
        node.run()
    assert node.outbox.dropped == 1 and "could not be made" in node.agent.trouble
    node.run()
    assert [batch.sequence for batch in node.batches()] == [2]


def test_a_scrape_shows_what_is_known_and_nothing_for_what_is_not(node: Node) -> None:
    node.run()
    node.agent.drill(Drill("d", "gpu-lost", 2))
    node.run(4)
    registry = CollectorRegistry()
    registry.register(AgentCollector(lambda: node.agent.state(SenderState(sent=7))))
    text = generate_latest(registry)
    assert lint(text) == []
    families = {one.name: one for one in text_string_to_metric_families(text.decode())}
    power = {sample.labels["gpu"] for sample in families["trimtab_gpu_power_watts"].samples}
    assert power == {"0", "1", "3", "4", "5", "6", "7"}
    present = {sample.labels["gpu"]: sample.value for sample in families["trimtab_gpu_present"].samples}
    assert present["2"] == 0.0 and sum(present.values()) == 7
    assert [sample.labels["rule"] for sample in families["trimtab_agent_fault_firing"].samples] == ["gpu-lost"]
    assert families["trimtab_agent_batches_sent"].samples[0].value == 7
    energy = families["trimtab_gpu_energy_joules"]
    assert energy.type == "counter" and 100 < energy.samples[0].value < 2000, "joules, not register ticks"


def test_the_linter_is_not_silent_about_everything() -> None:
    said = lint(b"# HELP wait_ms w\n# TYPE wait_ms gauge\nwait_ms 1\n")
    assert said == ["wait_ms metric names should not contain abbreviated units"]


def test_a_scrape_before_the_first_sample_is_no_error(node: Node) -> None:
    registry = CollectorRegistry()
    registry.register(AgentCollector(lambda: node.agent.state(SenderState())))
    found = {one.name: one.samples for one in text_string_to_metric_families(generate_latest(registry).decode())}
    assert "trimtab_agent_info" in found and "trimtab_gpu_power_watts" not in found
    for unknown in ("last_acknowledged_timestamp_seconds", "sample_seconds"):
        assert found[f"trimtab_agent_{unknown}"] == []


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_beat_keeps_its_phase_and_leaves_out_what_it_missed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(node.agent, node.folder / "runtime")
    clock = [50.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: clock[0])
    due, sampled = 50.0, []
    for now in (50.0, 50.2, 50.9, 51.001, 51.5, 55.7, 56.0, 57.3):
        clock[0] = now
        before = node.agent.sample
        due = loop.run_once(due)
        if node.agent.sample is not before:
            sampled.append(now)
    assert sampled == [50.0, 51.001, 55.7, 56.0, 57.3]
    assert due == pytest.approx(58.0)
    monkeypatch.undo()
    loop.stopping.set()
    loop.run()


def test_a_trouble_is_said_when_it_begins_and_not_again(capsys: pytest.CaptureFixture[str]) -> None:
    troubles = Troubles()
    for sentence in ("", "full", "full", "", "full"):
        troubles.note("spool", sentence)
    assert capsys.readouterr().err.count("full") == 2


def test_a_disk_that_keeps_no_memory_does_not_end_the_loop(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = Loop(node.agent, node.folder / "runtime")

    def read_only() -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(node.agent, "save", read_only)
    due = 0.0
    for _ in range(3):
        due = loop.run_once(due)
    assert capsys.readouterr().err.count("Read-only") == 1
    loop.stopping.set()
    loop.run()


def refused(change: Callable[[list[str]], list[str]], tmp_path: Path) -> str:
    (tmp_path / "token").write_text("tt_agent_x")
    words = ["--source", "simulated", "--node", "n", "--server", "http://127.0.0.1:1", "--token-file"]
    words += [str(tmp_path / "token"), "--runtime-dir", str(tmp_path / "run"), "--spool-dir", str(tmp_path / "spool")]
    with pytest.raises(StartError) as caught:
        start(options(change(words)))
    return str(caught.value)


def test_a_taken_metrics_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(lambda words: [*words, "--metrics-port", str(port)], tmp_path)
    assert f"--metrics-port {port}" in said and "in use" in said


def test_a_spool_in_use_a_missing_token_and_a_binary_rule_file_are_named(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "spool")
    assert "another agent" in refused(lambda words: words, tmp_path)
    outbox.close()
    cure = "trimtab token create --kind agent --node n"
    assert cure in refused(lambda words: [*words, "--token-file", str(tmp_path / "no")], tmp_path)
    (tmp_path / "rules").write_bytes(b"\xff\xfe\0")
    assert "cannot be read" in refused(lambda words: [*words, "--rules", str(tmp_path / "rules")], tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in refused(lambda words: [*words, "--spool-dir", str(tmp_path / "file" / "below")], tmp_path)


def test_the_rule_file_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules.toml").write_text("version = 7")
    monkeypatch.setenv("TRIMTAB_FAULT_RULES", str(tmp_path / "rules.toml"))
    assert "version 7" in refused(lambda words: words, tmp_path)


def test_faults_may_be_asked_for_while_samples_are_judged(node: Node) -> None:
    stop, failures = threading.Event(), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            try:
                node.agent.state(SenderState())
            except RuntimeError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(5):
        node.run(20)
        node.end()
        node.begin()
    stop.set()
    asking.join()
    assert failures == []


class Loaded(SimulatedSource):
    """A node whose driver was loaded at a known time."""

    load = "monday"

    def driver_load(self) -> str:
        return self.load


def test_baselines_outlive_an_agent_and_neither_its_boot_nor_its_driver(node: Node) -> None:
    node.run(2)
    node.agent.evaluator.baselines["SIM-node-a-0/ecc_hbm_uncorrectable_total"] = 5
    node.end()
    node.begin()
    assert node.agent.evaluator.baselines == {}, "simulated counters begin anew with each start"
    node.outbox.close()
    node.outbox = Outbox(node.folder / "spool")
    paths = Paths(node.folder / "runtime", node.folder / "spool")

    def agent(boot: str, load: str) -> Agent:
        source = Loaded("node-a", node.at)
        source.load = load
        return Agent("node-a", boot, source, load_rules(), node.outbox, paths)

    first = agent("boot", "monday")
    first.evaluator.baselines["x"] = 5
    first.evaluator.past["SIM-node-a-0/gpu-reset-again"] = [(3.0, "run-1")]
    first.save()
    for boot, load, kept in (("boot", "monday", 5), ("boot", "tuesday", None), ("another", "monday", None)):
        later = agent(boot, load)
        assert later.evaluator.baselines.get("x") == kept
        assert later.evaluator.past == {"SIM-node-a-0/gpu-reset-again": [(3.0, "run-1")]}, "a device's past is its own"

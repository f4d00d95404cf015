"""The path of a record while the agent is alive, hung, dead or absent: the trainer goes on, and nothing is lost unsaid.

A real trainer's process writes through a real probe beside a real reader's process, which does with the rings what the
agent does. What the ring alone does (overwriting, torn records) is test_agents_probe's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents.node.rings import RuntimeDirectory
from agents.probe import wake
from agents.probe.ring import SLOTS
from agents.readings import ExpertRecord
from controlplane.store.expert_records import ExpertStep

WRITES = 20 * SLOTS
LIMIT_S = 60  # of a hang, not of a speed

TRAINER = """
import json, sys
from array import array
from agents.probe.capture import Probe
probe = Probe(layers=2, slots=3, experts=3, top_k=1, env=json.loads(sys.argv[1]))
step = 0
for line in sys.stdin:
    for step in range(step, step + int(line)):
        probe.write(step, array("I", [step] * 6), array("f", [0.5] * 6), routed=3 * step, step_seconds=1.0)
    step += 1
    print(step, probe.dropped, flush=True)
"""
READER = """
import json, select, sys, time
from pathlib import Path
from agents.node.rings import RuntimeDirectory
from agents.probe import wake
runtime, taps = RuntimeDirectory(Path(sys.argv[1])), wake.listen(Path(sys.argv[1]))
print("listening", flush=True)
while True:
    if select.select([taps], [], [], 0.05)[0]:
        taps.recv(16)
    for record in runtime.sweep(time.time()).experts:
        print(json.dumps([record.step, record.dropped]), flush=True)
"""
Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts Python programs with pipes; ends them, also stopped ones."""
    running: list[subprocess.Popen[str]] = []

    def start(program: str, argument: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running.append(subprocess.Popen([sys.executable, "-c", program, argument], text=True, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait(LIMIT_S)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def trainer(started: Started, runtime: Path) -> subprocess.Popen[str]:
    env = {"TRIMTAB_HEARTBEAT_DIR": str(runtime / "attempts" / "run-1"), "TRIMTAB_RUN_ID": "run"}
    return started(TRAINER, json.dumps(env))


def reader(started: Started, runtime: Path) -> subprocess.Popen[str]:
    process = started(READER, str(runtime))
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    return process


def train(process: subprocess.Popen[str], steps: int) -> list[int]:
    """So many steps; answers [steps in all, steps that could not be recorded] when the last one is written."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return [int(word) for word in process.stdout.readline().split()]


def told(process: subprocess.Popen[str], until: int) -> list[tuple[int, int]]:
    """(step, dropped before it) as the reader tells them, up to a step."""
    assert process.stdout is not None
    found: list[tuple[int, int]] = []
    while not found or found[-1][0] < until:
        step, dropped = json.loads(process.stdout.readline())
        found.append((step, dropped))
    return found


@pytest.mark.timeout(LIMIT_S)
def test_a_hung_agent_stops_nobody_and_counts_what_it_missed_when_it_goes_on(tmp_path: Path, started: Started) -> None:
    listening, training = reader(started, tmp_path), trainer(started, tmp_path)
    assert train(training, 8) == [8, 0]
    assert [step for step, _ in told(listening, 7)] == list(range(8))
    listening.send_signal(signal.SIGSTOP)
    assert train(training, WRITES) == [8 + WRITES, 0]
    listening.send_signal(signal.SIGCONT)
    train(training, 1)
    late = told(listening, 8 + WRITES)
    assert len(late) + sum(dropped for _, dropped in late) == WRITES + 1
    assert sum(dropped for _, dropped in late) >= WRITES - SLOTS
    steps = [step for step, _ in late]
    assert steps == sorted(set(steps)) and steps[0] >= 8


@pytest.mark.timeout(LIMIT_S)
def test_a_dead_agent_stops_nobody_and_the_next_one_is_heard(tmp_path: Path, started: Started) -> None:
    listening, training = reader(started, tmp_path), trainer(started, tmp_path)
    train(training, 8)
    told(listening, 7)
    listening.kill()
    listening.wait(LIMIT_S)
    assert Path(wake.wake_path(tmp_path)).exists()  # left behind
    assert train(training, WRITES) == [8 + WRITES, 0]
    after = reader(started, tmp_path)
    train(training, 1)
    late = told(after, 8 + WRITES)
    assert [step for step, _ in late][-1] == 8 + WRITES
    # an agent that kept no cursor counts all of the ring's past
    assert len(late) + sum(dropped for _, dropped in late) == 8 + WRITES + 1


@pytest.mark.timeout(LIMIT_S)
def test_an_absent_agent_stops_nobody(tmp_path: Path, started: Started) -> None:
    training = trainer(started, tmp_path)
    assert train(training, WRITES) == [WRITES, 0]
    assert not Path(wake.wake_path(tmp_path)).exists()
    found = RuntimeDirectory(tmp_path).sweep(1.0).experts
    assert [record.step for record in found] == list(range(WRITES - SLOTS, WRITES))
    assert [array("I", record.counts)[0] for record in found] == [record.step for record in found]
    assert [record.dropped for record in found] == [WRITES - SLOTS, *[0] * (SLOTS - 1)]


@pytest.mark.timeout(LIMIT_S)
def test_what_was_dropped_reaches_the_record_that_the_server_stores(tmp_path: Path, started: Started) -> None:
    training, runtime = trainer(started, tmp_path), RuntimeDirectory(tmp_path)
    swept: list[ExpertRecord] = []
    for steps in (SLOTS // 2, 3 * SLOTS, 1, 2 * SLOTS):
        train(training, steps)
        swept += runtime.sweep(1.0).experts
    stored = [ExpertStep.of(record) for record in swept]
    written = SLOTS // 2 + 3 * SLOTS + 1 + 2 * SLOTS
    assert len(stored) + sum(step.dropped for step in stored) == written
    assert [step.dropped for step in stored if step.dropped] == [2 * SLOTS, SLOTS]

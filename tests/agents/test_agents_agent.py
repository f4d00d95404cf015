"""The agent end to end: spool, sender and process against a real HTTP server that fails, lies and disappears."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.node.outbox import FAULTS, RECORDS, TELEMETRY, Outbox
from agents.node.sender import Sender
from agents.wire import Batch, Drill, encode
from tests.agents.sink import Sink, serving


@pytest.fixture
def sink() -> Iterator[tuple[Sink, str]]:
    kept = Sink()
    server = serving(kept)
    yield kept, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def until(what: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def batch(sequence: int) -> bytes:
    return encode(Batch("n", "b", sequence, "simulated", True, "0", 1.0, 1.0))


def test_the_outbox_keeps_order_across_a_restart_and_never_reuses_a_number(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    for _ in range(3):
        number = first.next_sequence()
        first.put(number, TELEMETRY, batch(number))
    taken = first.take(0)
    assert taken is not None
    first.done(taken[0])
    first.close()
    second = Outbox(tmp_path)
    assert second.generation == first.generation + 1
    number = second.next_sequence()
    second.put(number, TELEMETRY, batch(number))
    order = []
    while (taken := second.take(0)) is not None:
        order.append((taken[0].generation, taken[0].sequence))
        second.done(taken[0])
    assert order == [(1, 2), (1, 3), (2, 1)]
    assert second.waiting == (0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["generation"]


def test_a_full_outbox_drops_telemetry_before_records_before_faults(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, limit_bytes=1000)
    for sequence, kind in enumerate((FAULTS, TELEMETRY, RECORDS, TELEMETRY, RECORDS)):
        outbox.put(sequence, kind, bytes(200))
    for sequence in range(5, 9):
        outbox.put(sequence, FAULTS, bytes(200))
    left = []
    while (taken := outbox.take(0)) is not None:
        left.append((taken[0].sequence, taken[0].kind))
        outbox.done(taken[0])
    assert left == [(0, FAULTS), (5, FAULTS), (6, FAULTS), (7, FAULTS), (8, FAULTS)]
    assert outbox.dropped == 4


def sender(url: str, tmp_path: Path, drills: list[Drill], said: list[str]) -> Sender:
    token = tmp_path / "token"
    token.write_text("tt_agent_x")
    outbox = Outbox(tmp_path / "spool")
    for _ in range(3):
        number = outbox.next_sequence()
        outbox.put(number, TELEMETRY, batch(number))
    return Sender(url, token, outbox, drills.append, said.append)


def test_batches_arrive_in_order_and_drills_come_back(sink: tuple[Sink, str], tmp_path: Path) -> None:
    kept, url = sink
    kept.drills = [Drill("1", "gpu-lost", 2)]
    drills: list[Drill] = []
    sending = sender(url, tmp_path, drills, [])
    for _ in range(3):
        sending.send_one(0)
    sending.stop(0)
    assert [found.sequence for found in kept.batches] == [1, 2, 3]
    assert kept.tokens == {"Bearer tt_agent_x"}
    assert [drill.kind for drill in drills] == ["gpu-lost"]


@pytest.mark.parametrize("status", [500, 503, 429, 401, 403])
def test_a_server_that_refuses_for_now_loses_nothing(sink: tuple[Sink, str], tmp_path: Path, status: int) -> None:
    kept, url = sink
    said: list[str] = []
    sending = sender(url, tmp_path, [], said)
    sending._stop.set()  # waiting between tries ends at once
    kept.status = status
    for _ in range(3):
        sending.send_one(0)
    assert sending.state.failed == 3
    assert len(said) == 1
    kept.status = 200
    for _ in range(3):
        sending.send_one(0)
    sending.stop(0)
    assert [found.sequence for found in kept.batches] == [1, 2, 3]


def test_a_batch_that_the_server_calls_unreadable_is_dropped_and_said(sink: tuple[Sink, str], tmp_path: Path) -> None:
    kept, url = sink
    said: list[str] = []
    sending = sender(url, tmp_path, [], said)
    kept.status = 400
    sending.send_one(0)
    kept.status = 200
    sending.send_one(0)
    sending.stop(0)
    assert [found.sequence for found in kept.batches] == [2]
    assert sending.state.unreadable == 1
    assert "400" in said[0]


def start(url: str, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    (tmp_path / "token").write_text("tt_agent_x")
    command = [sys.executable, "-m", "agents.node.main", "--source", "simulated", "--node", "node-a", "--server", url]
    command += ["--token-file", str(tmp_path / "token"), "--runtime-dir", str(tmp_path / "run time")]
    command += ["--spool-dir", str(tmp_path / "spool"), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def stop(agent: subprocess.Popen[str]) -> str:
    agent.terminate()
    _, said = agent.communicate(timeout=20)
    assert agent.returncode == 0, said
    return said


def test_the_process_samples_takes_a_drill_and_tells_of_the_fault(sink: tuple[Sink, str], tmp_path: Path) -> None:
    kept, url = sink
    agent = start(url, tmp_path, "--metrics-port", "0")
    until(lambda: len(kept.batches) >= 3)
    first = kept.batches[0]
    assert first.facts is not None and first.simulated and first.gpu is not None and first.gpu.entities == 8
    kept.drills = [Drill("1", "hbm-uncorrectable", 3)]
    until(lambda: any(found.faults for found in kept.batches))
    (fault,) = next(found.faults for found in kept.batches if found.faults)
    assert (fault.rule, fault.entity, fault.state) == ("hbm-uncorrectable", "gpu3", "firing")
    said = stop(agent)
    assert "registers changed" in said
    numbers = [found.sequence for found in kept.batches]
    assert numbers == list(range(1, len(numbers) + 1))


def test_its_metrics_are_prometheus_and_name_the_simulation(sink: tuple[Sink, str], tmp_path: Path) -> None:
    kept, url = sink
    agent = start(url, tmp_path, "--metrics-port", "0")
    assert agent.stderr is not None
    address = next(line for line in agent.stderr if "metrics at" in line).split()[-1]
    until(lambda: len(kept.batches) >= 2)
    with urllib.request.urlopen(address, timeout=5) as answer:
        families = {found.name: found for found in text_string_to_metric_families(answer.read().decode())}
    assert len(families["trimtab_gpu_power_watts"].samples) == 8
    assert families["trimtab_gpu_ecc_hbm_uncorrectable"].type == "counter"
    assert families["trimtab_agent_info"].samples[0].labels["simulated"] == "true"
    stop(agent)


def test_a_server_that_goes_away_and_comes_back_gets_everything_once(tmp_path: Path) -> None:
    kept = Sink()
    server = serving(kept)
    port = server.server_port
    agent = start(f"http://127.0.0.1:{port}", tmp_path)
    until(lambda: len(kept.batches) >= 2)
    kept.gone = True
    server.shutdown()
    server.server_close()
    spool = tmp_path / "spool"
    until(lambda: len(list(spool.glob("*.batch"))) >= 3)
    kept.gone = False
    server = serving(kept, port)
    until(lambda: not list(spool.glob("*.batch")))
    said = stop(agent)
    server.shutdown()
    server.server_close()
    numbers = [found.sequence for found in kept.batches]
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))
    assert "cannot be reached" in said and "takes batches again" in said


def test_an_agent_killed_with_unsent_batches_sends_them_after_its_restart(
    sink: tuple[Sink, str], tmp_path: Path
) -> None:
    kept, url = sink
    kept.status = 503
    agent = start(url, tmp_path)
    until(lambda: len(list((tmp_path / "spool").glob("*.batch"))) >= 3)
    os.kill(agent.pid, signal.SIGKILL)
    agent.communicate(timeout=10)
    waiting = len(list((tmp_path / "spool").glob("*.batch")))
    kept.status = 200
    again = start(url, tmp_path)
    until(lambda: len(kept.batches) > waiting + 1)
    stop(again)
    boots = list(dict.fromkeys(found.boot_id for found in kept.batches))
    assert len(boots) == 2
    assert [found.sequence for found in kept.batches if found.boot_id == boots[0]] == list(range(1, waiting + 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--source", "auto"], "amd-smi-lib"),
        (["--rules", "/nowhere/rules.toml"], "cannot be read"),
        (["--server", "nonsense"], "must be a URL"),
        (["--token-file", "/nowhere/token"], "No such file"),
    ],
)
def test_it_says_in_words_why_it_cannot_start(tmp_path: Path, options: list[str], words: str) -> None:
    agent = start("http://127.0.0.1:1", tmp_path, *options)
    _, said = agent.communicate(timeout=20)
    assert agent.returncode == 1
    assert words in said
    assert "Traceback" not in said

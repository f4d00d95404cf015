"""The ring and the probe: whole records only, what was overwritten is counted, and nobody waits for anybody."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.node.rings import RuntimeDirectory
from agents.probe import wake
from agents.probe.attach import AttachError, attach
from agents.probe.capture import Probe
from agents.probe.ring import RingError, RingMeta, RingReader, RingWriter

META = RingMeta("run", 1, 2, 0, 1, 3, 5, 4, 1, 1)
VALUES = (1.0, 2.0, 0.5, 0.1, 1e-3, 64, 7, 64, 0.5)

WRITER = """
import sys
from array import array
from pathlib import Path
from agents.probe.ring import RingMeta, RingWriter
writer = RingWriter(Path(sys.argv[1]), RingMeta("run", 1, 1, 0, 1, 8, 64, 64, 1, 1))
print("ready", flush=True)
sys.stdin.readline()
for step in range(40_000):
    counts = array("I", [step]) * 512
    bias = array("f", [float(step)]) * 512
    writer.write((step, 0.0, float(step), 0.0, 0.0, 0.0, step, step, step, 0.0), counts, bias)
"""


def write(writer: RingWriter, step: int) -> None:
    writer.write((step, *VALUES), array("I", [step]) * 15, array("f", [step]) * 15)


def test_records_come_out_in_order_and_once(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring", META, slots=8)
    reader = RingReader(tmp_path / "ring")
    for step in range(5):
        write(writer, step)
    found = list(reader.read())
    assert [record.step for record in found] == [0, 1, 2, 3, 4]
    assert array("I", found[3].counts).tolist() == [3] * 15
    assert (found[0].at_s, found[0].loss, found[0].tokens, found[0].routed) == (1.0, 2.0, 64, 64)
    assert list(reader.read()) == []
    assert reader.meta == META


def test_what_was_overwritten_is_counted_and_the_newest_are_kept(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring", META, slots=8)
    reader = RingReader(tmp_path / "ring")
    for step in range(30):
        write(writer, step)
    assert [record.step for record in reader.read()] == list(range(22, 30))
    assert reader.missed == 22


def test_a_reader_beside_a_writing_process_never_sees_a_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    reader = RingReader(path)
    child.stdin.write("go\n")
    child.stdin.flush()
    seen = 0
    deadline = time.monotonic() + 60
    while (child.poll() is None or reader.next < 40_000) and time.monotonic() < deadline:
        for record in reader.read():
            counts, bias = array("I", record.counts), array("f", record.bias)
            assert counts.count(record.step) == len(counts)
            assert bias.count(float(record.step)) == len(bias)
            assert record.loss == record.step == record.tokens
            seen += 1
    assert child.wait(10) == 0
    child.stdin.close()
    child.stdout.close()
    assert seen > 64
    assert seen + reader.missed == 40_000


def test_a_file_that_is_no_ring_is_refused_in_words(tmp_path: Path) -> None:
    for content in (b"", b"x" * 5000, b"TTRING1\n" + bytes(5000)):
        path = tmp_path / "ring"
        path.write_bytes(content)
        with pytest.raises(RingError):
            RingReader(path)


def environment(tmp_path: Path, rank: int = 0) -> dict[str, str]:
    folder = tmp_path / "attempts" / "run-1"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "TRIMTAB_HEARTBEAT_DIR": str(folder),
        "TRIMTAB_RUN_ID": "run",
        "TRIMTAB_ATTEMPT": "1",
        "RANK": str(rank),
        "WORLD_SIZE": "2",
    }


@pytest.fixture
def opened() -> Iterator[Callable[..., Probe]]:
    """Makes probes and closes them."""
    made: list[Probe] = []

    def make(tmp_path: Path, rank: int = 0, *, layers: int = 1, slots: int = 2) -> Probe:
        made.append(Probe(layers=layers, slots=slots, experts=2, top_k=1, env=environment(tmp_path, rank)))
        return made[-1]

    yield make
    for probe in made:
        probe.close()


def test_two_ranks_of_a_node_become_one_record_a_step(tmp_path: Path, opened: Callable[..., Probe]) -> None:
    probes = [opened(tmp_path, rank, layers=2, slots=3) for rank in (0, 1)]
    runtime = RuntimeDirectory(tmp_path)
    for step in (1, 2):
        for probe in probes:
            probe.write(step, array("I", range(6)), array("f", [0.5] * 6), routed=15, loss=1.0)
    swept = runtime.sweep(10.0)
    assert [(record.step, record.ranks, record.tokens) for record in swept.experts] == [(1, 2, 30), (2, 2, 30)]
    assert swept.experts[0].counts.tolist() == [0, 2, 4, 6, 8, 10]
    assert len(swept.steps) == 4
    assert runtime.step_rate(10.0) == 1.0
    assert runtime.ranks()[0].run_id == "run"


def test_a_rank_that_says_nothing_is_waited_for_a_second_only(tmp_path: Path, opened: Callable[..., Probe]) -> None:
    probes = [opened(tmp_path, rank) for rank in (0, 1)]
    runtime = RuntimeDirectory(tmp_path)
    probes[0].write(1, array("I", [1, 2]), array("f", [0, 0]))
    assert runtime.sweep(10.0).experts == []
    assert [record.ranks for record in runtime.sweep(11.5).experts] == [1]


def test_cursors_keep_a_restarted_agent_from_repeating_or_skipping(
    tmp_path: Path, opened: Callable[..., Probe]
) -> None:
    probe = opened(tmp_path)
    runtime = RuntimeDirectory(tmp_path)
    probe.write(1, array("I", [1, 2]), array("f", [0, 0]))
    assert len(runtime.sweep(1.0).experts) == 1
    probe.write(2, array("I", [1, 2]), array("f", [0, 0]))
    later = RuntimeDirectory(tmp_path, runtime.cursors)
    assert [record.step for record in later.sweep(2.0).experts] == [2]


def test_the_ring_of_a_dead_trainer_is_read_to_its_end_and_let_go(tmp_path: Path) -> None:
    env = environment(tmp_path)
    program = (
        "from array import array; from agents.probe.capture import Probe; import json, sys\n"
        "probe = Probe(layers=1, slots=2, experts=2, top_k=1, env=json.loads(sys.argv[1]))\n"
        "probe.write(7, array('I', [1, 2]), array('f', [0, 0]))\n"
    )
    import json

    subprocess.run([sys.executable, "-c", program, json.dumps(env)], check=True)
    runtime = RuntimeDirectory(tmp_path)
    assert [record.step for record in runtime.sweep(1.0).experts] == [7]
    assert runtime.ranks() == []
    assert runtime.step_rate(1.0) is None
    assert runtime.sweep(2.0).experts == []


def test_a_heartbeat_is_passed_on_when_it_changes(tmp_path: Path) -> None:
    environment(tmp_path)
    runtime = RuntimeDirectory(tmp_path)
    beat = tmp_path / "attempts" / "run-1" / "heartbeat-rank-0.json"
    beat.write_bytes(b"{1}")
    assert [(found.path, found.body) for found in runtime.heartbeats()] == [("run-1/heartbeat-rank-0.json", b"{1}")]
    assert runtime.heartbeats() == []


def test_without_a_heartbeat_directory_the_probe_does_nothing(tmp_path: Path) -> None:
    probe = Probe(layers=1, slots=1, experts=1, top_k=1, env={})
    probe.write(1, array("I", [1]), array("f", [1]))
    probe.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tap_is_heard_and_an_absent_or_full_agent_is_not_waited_for(tmp_path: Path) -> None:
    waker = wake.Waker(tmp_path)
    waker.wake()
    listening = wake.listen(tmp_path)
    for _ in range(1000):
        waker.wake()
    assert listening.recv(16) == b""
    listening.close()
    waker.wake()
    waker.close()


def test_a_runtime_directory_with_a_long_name_still_has_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("a long name with spaces " * 4) / "more of it"
    deep.mkdir(parents=True)
    listening = wake.listen(deep)
    waker = wake.Waker(deep)
    waker.wake()
    assert listening.recv(16) == b""
    assert len(listening.getsockname()) < 108
    path = Path(listening.getsockname())
    listening.close()
    waker.close()
    path.unlink()
    assert isinstance(listening, socket.socket)


class Router(nn.Module):
    num_experts, top_k = 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens_per_expert", torch.zeros(4, dtype=torch.int64))
        self.register_buffer("balancing_biases", torch.zeros(4))


class Model(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Router() for _ in range(layers))


def test_attach_finds_routers_in_numeric_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    model = Model(12)
    for number, layer in enumerate(model.layers):
        layer.tokens_per_expert += number
        layer.balancing_biases += number / 10
    probe = attach(model)
    probe.step(3, loss=1.5, tokens=99)
    (reader,) = [RingReader(path) for path in (tmp_path / "attempts" / "run-1").glob("ring-*")]
    (record,) = reader.read()
    assert (reader.meta.layers, reader.meta.slots, reader.meta.experts) == (12, 4, 3)
    assert array("I", record.counts).tolist() == [number for number in range(12) for _ in range(4)]
    assert array("f", record.bias).tolist() == pytest.approx([n / 10 for n in range(12) for _ in range(4)])
    assert (record.step, record.loss, record.tokens) == (3, 1.5, 99)
    probe.close()


def test_attach_says_what_it_looked_for_when_there_is_no_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_HEARTBEAT_DIR", str(tmp_path))
    with pytest.raises(AttachError, match="tokens_per_expert"):
        attach(nn.Linear(2, 2))


def test_counters_too_narrow_to_count_in_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HEARTBEAT_DIR", str(tmp_path))
    model = Model(1)
    model.layers[0].tokens_per_expert = torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(AttachError, match="too narrow"):
        attach(model)

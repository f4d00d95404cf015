"""Rings and heartbeats as a node has them: replaced, cut, forged, late, of many ranks; and a probe that never hurts."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from agents.node.rank_sums import summed
from agents.node.rings import RuntimeDirectory
from agents.probe import wake
from agents.probe.attach import attach
from agents.probe.capture import Probe
from agents.probe.ring import MAGIC, PAGE, RingError, RingMeta, RingReader, RingWriter

META = RingMeta("run", 1, 1, 0, 1, 1, 2, 2, 1, 1)
SCALARS = (0.0, 1.0, 1.0, 1.0, 0.0, 2, 0, 2, 0.5)


def folder(runtime: Path, attempt: str = "run-1") -> Path:
    made = runtime / "attempts" / attempt
    made.mkdir(parents=True, exist_ok=True)
    return made


class Trainers:
    """The probes of a node's ranks, closed when the test is over."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self.open: list[Probe] = []

    def rank(self, rank: int = 0, local_world: int = 1, layers: int = 1) -> Probe:
        attempt = folder(self._runtime)
        env = {"TRIMTAB_HEARTBEAT_DIR": str(attempt), "RANK": str(rank), "LOCAL_WORLD_SIZE": str(local_world)}
        self.open.append(Probe(layers=layers, slots=2, experts=2, top_k=1, env=env))
        return self.open[-1]


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[Trainers]:
    made = Trainers(tmp_path)
    yield made
    for writer in made.open:
        writer.close()


def write(writer: Probe, step: int, layers: int = 1, step_seconds: float = 1.0) -> None:
    bias = array("f", [0.5] * 2 * layers)
    writer.write(step, array("I", [step, 1] * layers), bias, routed=step + 1, step_seconds=step_seconds)


def test_a_ring_that_was_made_anew_is_read_from_its_beginning(tmp_path: Path, trainers: Trainers) -> None:
    runtime = RuntimeDirectory(tmp_path)
    first = trainers.rank()
    for step in range(5):
        write(first, step)
    assert len(runtime.sweep(1.0).steps) == 5
    first.close()
    second = trainers.rank()
    write(second, 5)
    runtime.look_around()
    assert [record.step for record in runtime.sweep(2.0).steps] == [5]
    second.close()
    assert runtime.sweep(3.0).steps == []  # let go
    write(trainers.rank(), 6)
    runtime.look_around()
    assert [record.step for record in runtime.sweep(4.0).steps] == [6]


def test_the_end_of_an_attempt_is_not_told_again_by_the_next_agent(tmp_path: Path, trainers: Trainers) -> None:
    writer = trainers.rank()
    write(writer, 1)
    writer.close()
    runtime = RuntimeDirectory(tmp_path)
    assert len(runtime.sweep(1.0).experts) == 1
    runtime.look_around()
    later = RuntimeDirectory(tmp_path, json.loads(json.dumps(runtime.cursors)))
    assert later.sweep(2.0).experts == [] == later.sweep(2.0).steps
    for path in (tmp_path / "attempts" / "run-1").iterdir():
        path.unlink()
    (tmp_path / "attempts" / "run-1").rmdir()
    later.look_around()
    assert later.cursors == {}


def test_an_ended_writer_is_seen_though_its_process_id_lives_on(tmp_path: Path) -> None:
    writer = RingWriter(folder(tmp_path) / "ring-rank-0.bin", replace(META, pid=os.getpid()))
    runtime = RuntimeDirectory(tmp_path)
    runtime.sweep(1.0)
    assert runtime.ranks()[0].run_id == "run"
    writer.close()
    assert runtime.ranks() == []
    runtime.sweep(2.0)
    assert runtime.step_rate(2.0) is None


def test_a_trainer_killed_outright_lets_go_of_its_ring(tmp_path: Path) -> None:
    program = (
        "import json, sys; from array import array; from agents.probe.capture import Probe\n"
        "probe = Probe(layers=1, slots=2, experts=2, top_k=1, env=json.loads(sys.argv[1]))\n"
        "probe.write(3, array('I', [1, 2]), array('f', [0, 0])); print('written', flush=True); sys.stdin.read()\n"
    )
    env = {"TRIMTAB_HEARTBEAT_DIR": str(folder(tmp_path)), "TRIMTAB_RUN_ID": "run"}
    command = [sys.executable, "-c", program, json.dumps(env)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "written\n"
        runtime = RuntimeDirectory(tmp_path)
        assert [record.step for record in runtime.sweep(1.0).steps] == [3]
        assert runtime.ranks()[0].run_id == "run"
        trainer.kill()
        trainer.wait(10)
        assert runtime.ranks() == []


def test_a_dead_trainers_ring_is_removed_after_a_while_and_a_later_ones_is_not(tmp_path: Path) -> None:
    paths = [folder(tmp_path) / f"ring-rank-{rank}.bin" for rank in range(2)]
    writers = [RingWriter(path, replace(META, rank=rank)) for rank, path in enumerate(paths)]
    runtime = RuntimeDirectory(tmp_path)
    runtime.sweep(1.0)
    for writer in writers:
        writer.close()
    runtime.sweep(2.0)
    again = RingWriter(paths[1], replace(META, rank=1))
    runtime.sweep(300.0)
    assert all(path.exists() for path in paths)
    runtime.sweep(303.0)
    assert [path.exists() for path in paths] == [False, True]
    again.close()


@pytest.mark.parametrize("size", [0, 20, PAGE, PAGE + 100])
def test_a_ring_cut_short_under_its_reader_is_let_go_and_named(tmp_path: Path, size: int) -> None:
    writer = RingWriter(folder(tmp_path) / "ring-rank-0.bin", META)
    writer.write((1, *SCALARS), array("I", [1, 2]), array("f", [0, 0]))
    runtime = RuntimeDirectory(tmp_path)
    assert len(runtime.sweep(1.0).steps) == 1
    writer.write((2, *SCALARS), array("I", [1, 2]), array("f", [0, 0]))
    os.truncate(tmp_path / "attempts" / "run-1" / "ring-rank-0.bin", size)
    assert runtime.sweep(2.0).steps == []
    assert runtime.missed == 1 or "cut short" in runtime.broken["ring-rank-0.bin"]


def forged(**changes: object) -> bytes:
    meta = json.dumps({**META.__dict__, **changes}).encode()
    head = struct.pack("<8sIIQ", MAGIC, 4, 128, 0).ljust(64, b"\0") + struct.pack("<I", len(meta)) + meta
    return head.ljust(PAGE, b"\0") + bytes(4 * 128)


@pytest.mark.parametrize(
    "content",
    [
        forged(layers=0),
        forged(layers=-5),
        forged(layers="9"),
        forged(layers=10**9),
        forged(colour="red"),
        forged()[:-1],
        forged()[:100],
        forged().replace(struct.pack("<II", 4, 128), struct.pack("<II", 0, 128)),
        forged().replace(b'"run_id"', b'"run_id\xff'),
    ],
)
def test_a_forged_ring_is_refused_and_does_not_stop_the_others(
    tmp_path: Path, trainers: Trainers, content: bytes
) -> None:
    (folder(tmp_path) / "ring-rank-7.bin").write_bytes(content)
    with pytest.raises(RingError):
        RingReader(folder(tmp_path) / "ring-rank-7.bin")
    writer = trainers.rank()
    write(writer, 1)
    runtime = RuntimeDirectory(tmp_path)
    assert [record.step for record in runtime.sweep(1.0).steps] == [1]
    assert list(runtime.broken) == ["ring-rank-7.bin"]
    writer.close()


def test_a_record_that_changes_under_the_copy_is_counted_and_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RingWriter(tmp_path / "ring", META)
    reader = RingReader(tmp_path / "ring")
    writer.write((1, *SCALARS), array("I", [1, 2]), array("f", [0, 0]))
    read = reader._at

    def overtaken(offset: int, size: int) -> bytes:
        found = read(offset, size)
        if offset == PAGE:  # the writer begins record 64, in the same slot, as soon as it was copied
            struct.pack_into("<Q", writer._map, PAGE, 129)
        return found

    monkeypatch.setattr(reader, "_at", overtaken)
    assert list(reader.read()) == []
    assert reader.missed == 1


def test_the_first_rank_waits_for_the_second_even_before_its_ring_is_there(tmp_path: Path, trainers: Trainers) -> None:
    runtime = RuntimeDirectory(tmp_path)
    first = trainers.rank(0, local_world=2)
    write(first, 1)
    assert runtime.sweep(10.0).experts == []
    second = trainers.rank(1, local_world=2)
    write(second, 1)
    (record,) = runtime.sweep(10.5).experts
    assert (record.ranks, record.tokens, record.counts.tolist()) == (2, 4, [2, 2])


def test_ranks_of_another_shape_are_not_added_to_the_first(tmp_path: Path, trainers: Trainers) -> None:
    runtime = RuntimeDirectory(tmp_path)
    for rank, layers in ((0, 1), (1, 3), (2, 1)):
        write(trainers.rank(rank, 3, layers), 4, layers)
    (record,) = runtime.sweep(1.0).experts
    assert (record.ranks, record.layers, record.counts.tolist()) == (2, 1, [8, 2])


def test_a_record_says_how_many_before_it_came_too_late(tmp_path: Path, trainers: Trainers) -> None:
    runtime = RuntimeDirectory(tmp_path)
    writer = trainers.rank()
    for step in range(70):
        write(writer, step)
    found = runtime.sweep(1.0).experts
    assert [record.dropped for record in found] == [6, *[0] * 63]
    write(writer, 70)
    assert [record.dropped for record in runtime.sweep(2.0).experts] == [0]


def test_a_slow_job_is_not_taken_for_a_stopped_one(tmp_path: Path, trainers: Trainers) -> None:
    runtime = RuntimeDirectory(tmp_path)
    write(trainers.rank(), 1, step_seconds=20.0)
    runtime.sweep(100.0)
    assert (runtime.step_rate(130.0) or 0.0) > 0
    assert runtime.step_rate(160.0) == 0.0


@given(st.lists(st.lists(st.integers(0, 2**29), min_size=6, max_size=6), min_size=1, max_size=8))
def test_the_sum_as_one_large_integer_is_the_sum_of_each_element(parts: list[list[int]]) -> None:
    found = array("I", summed([array("I", part).tobytes() for part in parts]))
    assert found.tolist() == [sum(column) for column in zip(*parts, strict=True)]


def test_counts_that_overflow_do_not_stop_the_agent() -> None:
    assert len(summed([b"\xff" * 8, b"\xff" * 8])) == 8


def test_a_heartbeat_replaced_within_a_clock_tick_and_one_too_large(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path)
    beat = folder(tmp_path) / "heartbeat-rank-0.json"
    seen = []
    for number in range(20):
        (folder(tmp_path) / "new").write_text(str(number))
        (folder(tmp_path) / "new").replace(beat)
        runtime.look_around()
        seen += [found.body for found in runtime.heartbeats()]
    assert seen == [str(number).encode() for number in range(20)]
    (folder(tmp_path) / "heartbeat-rank-1.json").write_bytes(b"x" * 100_000)
    runtime.look_around()
    assert runtime.heartbeats() == []


# --- the probe never hurts its trainer -------------------------------------------------------------------------------


def test_a_step_that_cannot_be_recorded_is_dropped_and_said_once(
    tmp_path: Path, trainers: Trainers, caplog: pytest.LogCaptureFixture
) -> None:
    writer = trainers.rank()
    counts, bias = array("I", [1, 2]), array("f", [0, 0])
    with caplog.at_level(logging.WARNING, "trimtab.probe"):
        writer.write(1, array("I", [1]), bias)
        writer.write(2, [1, 2], bias)
        writer.write(3, counts, bias, loss="high")  # type: ignore[arg-type]  # what a careless trainer does
        writer.write(4, torch.tensor([1, 2]), bias)
        writer.write(5, counts, bias, tokens=2**70)
    assert (writer.dropped, len(caplog.records)) == (5, 1)
    writer.write(6, counts, bias)
    reader = RingReader(tmp_path / "attempts" / "run-1" / "ring-rank-0.bin")
    assert ([record.step for record in reader.read()], reader.missed) == ([6], 0)


def test_a_probe_without_room_for_its_ring_is_inert_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "trimtab.probe"):
        for env in (
            {"TRIMTAB_HEARTBEAT_DIR": str(tmp_path / "file" / "below")},
            {"TRIMTAB_HEARTBEAT_DIR": str(tmp_path / "there"), "RANK": "first"},
            {"TRIMTAB_HEARTBEAT_DIR": str(tmp_path / "there"), "TRIMTAB_RUN_ID": "r" * 5000},
        ):
            writer = Probe(layers=1, slots=2, experts=2, top_k=1, env=env)
            write(writer, 1)
            assert not writer.active
            writer.close()
    assert len(caplog.records) == 3


def test_a_tap_finds_the_agent_that_came_after_the_first(tmp_path: Path) -> None:
    waker = wake.Waker(tmp_path)
    for _ in range(3):
        listening = wake.listen(tmp_path)
        waker.wake()
        assert listening.recv(16) == b""
        listening.close()
        waker.wake()
    waker.close()


class Router(nn.Module):
    num_experts, top_k = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens_per_expert", torch.tensor([3, 4]))
        self.register_buffer("balancing_biases", torch.zeros(2, dtype=torch.bfloat16))


def test_attach_reads_buffers_that_were_replaced_and_survives_a_broken_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_HEARTBEAT_DIR", str(folder(tmp_path)))
    model = nn.Sequential(Router(), Router())
    attached = attach(model)
    model[1].tokens_per_expert = torch.tensor([5, 6])
    attached.step(1, loss=torch.tensor(1.5))
    model[1].tokens_per_expert = torch.tensor([5, 6, 7])
    attached.step(2)
    attached.close()
    attached.step(3)
    (record,) = RingReader(tmp_path / "attempts" / "run-1" / "ring-rank-0.bin").read()
    assert (array("I", record.counts).tolist(), record.loss, record.routed) == ([3, 4, 5, 6], 1.5, 7)

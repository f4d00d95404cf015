"""The spool where disks are sick, files are torn and agents meet: nothing raises, no number is used twice."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.node.outbox import FACTS, FAULTS, RECORDS, TELEMETRY, Outbox, OutboxError


def put(outbox: Outbox, kind: str = TELEMETRY, size: int = 100) -> int:
    number = outbox.next_sequence()
    outbox.put(number, kind, bytes([number % 251 + 1]) * size)
    return number


def drained(outbox: Outbox) -> list[tuple[int, int]]:
    order = []
    while (taken := outbox.take(0)) is not None:
        item, body = taken
        assert len(body) == item.bytes
        order.append((item.generation, item.sequence))
        outbox.done(item)
    return order


def test_a_second_agent_on_one_spool_is_refused_in_words(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    with pytest.raises(OutboxError, match="another agent uses the spool"):
        Outbox(tmp_path)
    first.close()
    Outbox(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"not a number", b"\0\0\0\0"])
def test_a_lost_generation_is_followed_by_one_that_was_never_used(tmp_path: Path, content: bytes) -> None:
    used = 0
    for _ in range(3):
        first = Outbox(tmp_path)
        used = first.generation
        put(first)
        assert drained(first) == [(used, 1)]
        first.close()
    (tmp_path / "generation").write_bytes(content)
    second = Outbox(tmp_path)
    assert second.generation > used
    second.close()
    assert Outbox(tmp_path).generation == second.generation + 1


def test_a_generation_that_is_older_than_its_batches_is_not_believed(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    put(first)
    first.close()
    (tmp_path / "generation").unlink()
    second = Outbox(tmp_path)
    put(second)
    assert drained(second) == [(1, 1), (2, 1)]


def test_files_that_lost_their_contents_with_the_power_are_left_out(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    numbers = [put(first) for _ in range(3)]
    first.close()
    (tmp_path / f"000001-{numbers[1]:012d}-t.batch").write_bytes(b"")
    (tmp_path / "one-two-t.batch").write_bytes(b"x")
    (tmp_path / "000001-000000000009-t.new").write_bytes(b"half")
    assert drained(Outbox(tmp_path)) == [(1, 1), (1, 3)]


def test_what_a_full_disk_or_a_kill_left_half_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1-7-t.new").write_bytes(b"half")
    outbox = Outbox(tmp_path)
    written = Path.write_bytes

    def full(path: Path, body: bytes) -> int:
        written(path, body[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        outbox.put(outbox.next_sequence(), TELEMETRY, b"batch")
    outbox.close()
    assert list(tmp_path.glob("*.new")) == []


def test_while_the_disk_takes_nothing_the_newest_wait_in_memory_and_faults_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path, memory_bytes=500)
    put(outbox)

    def full(self: Path, body: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as sick:
        sick.setattr(Path, "write_bytes", full)
        fault = put(outbox, FAULTS)
        telemetry = [put(outbox) for _ in range(6)]
        assert "No space left" in outbox.trouble
    last = put(outbox)
    assert outbox.trouble == ""
    assert outbox.dropped == 2
    assert drained(outbox) == [(1, number) for number in (fault, 1, *telemetry[2:], last)]
    assert outbox.waiting == (0, 0)


def test_faults_overtake_what_waits_and_stay_in_order_among_themselves(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    for kind in (TELEMETRY, FACTS, FAULTS, RECORDS, TELEMETRY, FAULTS):
        put(first, kind)
    first.close()
    second = Outbox(tmp_path)
    put(second, FAULTS)
    assert drained(second)[:3] == [(1, 3), (1, 6), (2, 1)]
    put(second, TELEMETRY)
    put(second, FAULTS)
    assert drained(second) == [(2, 3), (2, 2)]
    assert drained(Outbox(tmp_path / "other")) == []


def test_a_batch_whose_file_vanished_is_passed_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first, second = put(outbox), put(outbox)
    (tmp_path / f"000001-{first:012d}-t.batch").unlink()
    assert outbox.take(0) is None
    assert drained(outbox) == [(1, second)]
    assert outbox.dropped == 1


def fault_file(number: int) -> str:
    return f"000001-{number:012d}-f.batch"


DEEDS = st.tuples(st.sampled_from([TELEMETRY, RECORDS, FACTS, FAULTS, "take"]), st.integers(1, 400))


@given(st.lists(DEEDS, max_size=60))
def test_whatever_comes_in_stays_within_the_limit_and_each_lane_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    outbox = Outbox(folder, limit_bytes=1000)
    faults, others, waiting = list[int](), list[int](), set[int]()
    for kind, size in [*steps, *[("take", 0)] * len(steps)]:
        if kind != "take":
            number = put(outbox, kind, size)
            waiting |= {number} if kind == FAULTS else set()
        elif (taken := outbox.take(0)) is not None:
            (faults if taken[0].kind == FAULTS else others).append(taken[0].sequence)
            assert taken[0].kind == FAULTS or not any((folder / f).exists() for f in map(fault_file, waiting))
            outbox.done(taken[0])
        count, total = outbox.waiting
        assert total <= 1000
        files = list(folder.glob("*.batch"))
        assert (len(files), sum(file.stat().st_size for file in files)) == (count, total)
    assert faults == sorted(set(faults)) and others == sorted(set(others))
    assert outbox.waiting == (0, 0)
    outbox.close()

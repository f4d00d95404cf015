"""Telemetry chunks: merged without loss, read one series at a time, pruned without harm; the newest sample is kept."""

from __future__ import annotations

import numpy as np
import pytest

from agents.readings import UNKNOWN, KernelLine
from controlplane.store import codec, telemetry, upkeep
from controlplane.store.engine import Store
from controlplane.store.tables import TelemetryChunk
from controlplane.store.telemetry import Chunk

START = 1_800_000_000.0  # a multiple of 60 and of 300


def chunk(
    second: int, node: str = "node-1", metrics: tuple[str, ...] = ("power_w", "energy_j"), entities: int = 8
) -> Chunk:
    """One second's sample: power is the second, energy the second times a million, each plus the device's number."""
    at_s = np.array([START + second])
    values = np.array([[second + gpu for gpu in range(entities)], [second * 10**6 + gpu for gpu in range(entities)]])
    columns = [values[index % 2].astype("<i8").tobytes() for index in range(len(metrics))]
    blob = codec.encode_raw(metrics, entities, at_s.tobytes(), (at_s - START).tobytes(), columns)
    return Chunk(node, "gpu", START + second, START + second, 1, codec.RAW, blob)


def fill(store: Store, seconds: range, node: str = "node-1") -> None:
    with store.write() as session:
        telemetry.add(session, [chunk(second, node) for second in seconds])


def power(store: Store, node: str = "node-1", since: float = 0, until: float = 10**4) -> list[int]:
    with store.read() as session:
        found = telemetry.read_series(session, node, "gpu", "power_w", since_s=START + since, until_s=START + until)
    return [int(value) for series in found for value in series.values[:, 0]]


def levels(store: Store) -> dict[int, int]:
    with store.read() as session:
        rows = session.query(TelemetryChunk.level).all()
    return {level: sum(1 for row in rows if row.level == level) for level in {row.level for row in rows}}


def test_chunks_are_merged_to_a_minute_and_to_five_and_nothing_changes(store: Store) -> None:
    fill(store, range(630))
    fill(store, range(100, 130), "node-2")
    before = power(store)
    assert before == list(range(630))
    telemetry.compact_once(store, START + 631)
    # the open minute stays as sent, the open five minutes as minutes; node-2's last word is long enough ago
    assert levels(store) == {0: 30, 1: 5, 2: 2}
    assert power(store) == before
    assert power(store, "node-2") == list(range(100, 130))
    assert telemetry.compact_once(store, START + 632) == 0
    telemetry.compact_once(store, START + 10**4)
    assert levels(store) == {2: 4}
    assert power(store) == before
    with store.read() as session:
        assert telemetry.counted(session, "gpu") == 660
        assert telemetry.counted(session, "gpu", "node-2") == 30


def test_a_window_is_merged_although_the_nodes_clock_is_ahead(store: Store) -> None:
    fill(store, range(600, 725))
    telemetry.compact_once(store, START)
    assert levels(store) == {1: 2, 0: 5}


def test_what_came_late_is_merged_beside_and_read_in_order(store: Store) -> None:
    fill(store, range(30))
    fill(store, range(60, 70))
    telemetry.compact_once(store, START + 70)
    fill(store, range(30, 60))
    telemetry.compact_once(store, START + 71)
    assert power(store) == list(range(70))


def test_samples_of_unlike_shape_are_not_mixed(store: Store) -> None:
    with store.write() as session:
        telemetry.add(session, [chunk(second) for second in range(3)])
        telemetry.add(session, [chunk(second, entities=4) for second in range(3, 6)])
        telemetry.add(session, [chunk(second, metrics=("energy_j",)) for second in range(6, 9)])
    telemetry.compact_once(store, START + 10**4)
    assert levels(store) == {2: 3}
    assert power(store) == list(range(6))
    with store.read() as session:
        points = telemetry.read_points(
            session, "node-1", "gpu", "power_w", 7, since_s=START, until_s=START + 10, points=50
        )
    assert points.last.tolist() == [7.0, 8.0, 9.0]  # the devices that the node lost have no values later


def test_two_mergers_at_once_merge_once(store: Store) -> None:
    fill(store, range(120))
    groups = telemetry._closed(store, 0, 60.0, START + 10**4)
    merges = [(ids, telemetry._merge(store, ids)) for ids in groups]
    assert telemetry._swap(store, 0, merges) == 120
    assert telemetry._swap(store, 0, merges) == 0
    assert power(store) == list(range(120))


def test_a_stretch_of_time_is_cut_exactly(store: Store) -> None:
    fill(store, range(300))
    telemetry.compact_once(store, START + 10**4)
    assert power(store, since=59, until=62) == [59, 60, 61]
    assert power(store, since=400) == []


def test_many_samples_become_few_points_with_their_extremes(store: Store) -> None:
    fill(store, range(600))
    with store.read() as session:
        points = telemetry.read_points(
            session, "node-1", "gpu", "power_w", 2, since_s=START, until_s=START + 600, points=6
        )
        empty = telemetry.read_points(session, "none", "gpu", "power_w", 2, since_s=0, until_s=1, points=6)
    assert points.low.tolist() == [2 + 100 * index for index in range(6)]
    assert points.high.tolist() == [101 + 100 * index for index in range(6)]
    assert points.last.tolist() == points.high.tolist()
    assert points.mean.tolist() == [51.5 + 100 * index for index in range(6)]
    assert points.at_s[-1] == START + 599
    assert len(empty.at_s) == 0


def test_a_gap_in_time_has_no_points() -> None:
    at_s = np.array([0.0, 1.0, 2.0, 90.0, 91.0])
    points = telemetry.downsample(at_s, np.arange(5.0), since_s=0.0, until_s=100.0, points=4)
    assert points.at_s.tolist() == [2.0, 91.0]
    assert points.mean.tolist() == [1.0, 3.5]


def test_old_chunks_are_pruned_in_small_bites(store: Store) -> None:
    fill(store, range(300))
    with store.write() as session:
        telemetry.add_kernel_lines(
            session, "node-1", [KernelLine(START, 6, "old"), KernelLine(START + 200, 6, "new")], received_s=START
        )
    bites = []
    while bite := telemetry.prune_once(store, before_s=START + 100, rows=40):
        bites.append(bite)
    assert bites == [41, 40, 20]
    assert power(store) == list(range(100, 300))
    with store.read() as session:
        assert [line.text for line in telemetry.kernel_lines(session, "node-1")] == ["new"]
        assert telemetry.kernel_lines(session, "node-1", until_s=START + 200) == []


def test_the_newest_sample_is_replaced(store: Store) -> None:
    for second in (0, 1):
        with store.write() as session:
            telemetry.put_latest(session, [chunk(second), chunk(second, "node-2")], received_s=START + second)
    with store.read() as session:
        found = telemetry.latest_chunks(session)
    assert [(received_s, one.node) for received_s, one in found] == [(START + 1, "node-1"), (START + 1, "node-2")]
    assert codec.decode(found[0][1].codec, found[0][1].blob).values[0, -1].tolist() == list(range(1, 9))


def test_unknown_values_are_no_points(store: Store) -> None:
    values = np.array([UNKNOWN, 5], "<i8")
    at_s = np.array([START, START + 1])
    blob = codec.encode_raw(("power_w",), 1, at_s.tobytes(), at_s.tobytes(), [values.tobytes()])
    with store.write() as session:
        telemetry.add(session, [Chunk("node-1", "gpu", START, START + 1, 2, codec.RAW, blob)])
        points = telemetry.read_points(
            session, "node-1", "gpu", "power_w", 0, since_s=START, until_s=START + 9, points=9
        )
    assert points.last.tolist() == [5.0]
    assert points.at_s.tolist() == [START + 1]


@pytest.mark.parametrize("metric", ["power_w", "nothing"])
def test_a_metric_that_a_chunk_lacks_is_passed_over(store: Store, metric: str) -> None:
    with store.write() as session:
        telemetry.add(session, [chunk(0, metrics=("energy_j",))])
        found = telemetry.read_series(session, "node-1", "gpu", metric, since_s=0, until_s=START + 9)
    assert found == []


def test_the_upkeep_merges_and_forgets(store: Store) -> None:
    fill(store, range(120))
    assert upkeep.compact_once(store, START + 10**4) == 122  # 120 seconds into two minutes into one chunk
    assert upkeep.prune_once(store, START + 10**4) == 0
    assert upkeep.prune_once(store, START + 10**4, keep_s=5000) == 1
    assert power(store) == []

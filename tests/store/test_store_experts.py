"""Expert chunks: exact through merging, one layer read alone, a later attempt's steps before an earlier one's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controlplane.rules.experts import layer_statistics
from controlplane.store import expert_coding, expert_merging, expert_raster, expert_records, experts, steps
from controlplane.store.engine import Store
from controlplane.store.expert_coding import encode_steps, merge_coded
from controlplane.store.expert_records import ExpertStep, Shape
from tests.services.batches import step_record

SHAPE = Shape(3, 5, 4, 1)


def record(step: int, attempt_no: int = 1, shape: Shape = SHAPE, run_id: str = "run-1") -> ExpertStep:
    dice = np.random.default_rng([step, attempt_no])
    counts = dice.integers(0, 500, (shape.layers, shape.slots)).astype(np.uint32)
    bias = dice.normal(0, 1e-3, (shape.layers, shape.slots)).astype(np.float32)
    return ExpertStep(run_id, attempt_no, step, 1.8e9 + step, 2, 1000, 3, shape, counts, bias)


def write(store: Store, found: list[ExpertStep], size: int = 4) -> None:
    for begin in range(0, len(found), size):
        part = found[begin : begin + size]
        bounds = (part[0].step, part[-1].step, len(part))
        with store.write() as session:
            session.add(
                experts.chunk_row(
                    part[0].run_id, part[0].attempt_no, part[0].shape, encode_steps(part), level=0, steps=bounds
                )
            )


def assert_same(one: ExpertStep, other: ExpertStep) -> None:
    assert (one.key, one.at_s, one.ranks, one.tokens, one.dropped, one.shape) == (
        (other.key, other.at_s, other.ranks, other.tokens, other.dropped, other.shape)
    )
    assert np.array_equal(one.counts, other.counts)
    assert one.bias.tobytes() == other.bias.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.uint32, (6, 2, 3)),
    hnp.arrays(np.float32, (6, 2, 3), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
)
def test_counts_and_biases_come_back_bit_by_bit(counts: expert_records.Counts, bias: expert_records.Float32) -> None:
    shape = Shape(2, 3, 2, 1)
    found = [ExpertStep("r", 1, i, float(i), 1, 1, 0, shape, counts[i], bias[i]) for i in range(6)]
    parts = [(shape, encode_steps(found[:2]), 2), (shape, encode_steps(found[2:]), 4)]
    merged, kept = merge_coded(parts)
    assert kept == 6
    for coded, begin, end in ((parts[1][1], 2, 6), (merged, 0, 6)):
        back_counts, back_bias = expert_coding.decode_all(shape, coded, end - begin)
        assert np.array_equal(back_counts, counts[begin:end])
        known = ~np.isnan(bias[begin:end])
        assert np.array_equal(np.isnan(back_bias), ~known)
        assert back_bias[known].tobytes() == bias[begin:end][known].tobytes()


def test_steps_are_the_same_before_and_after_merging(store: Store) -> None:
    found = [record(step) for step in range(600)]
    write(store, found)
    for merged in (0, 128, 0):
        if merged:
            assert expert_merging.compact_once(store) == merged
        with store.read() as session:
            assert experts.counted(session, "run-1") == 600
            recent = experts.recent(session, "run-1", limit=64)
            one_by_one = [experts.current_step(session, "run-1", step) for step in (0, 255, 256, 511, 512, 599)]
            assert experts.last_steps(session, [("run-1", 1), ("run-1", 2)]) == {("run-1", 1): 599}
        assert [step.step for step in recent] == list(range(536, 600))
        for one in [*one_by_one, *recent]:
            assert one is not None
            assert_same(one, found[one.step])
    assert expert_merging.compact_once(store) == 0


def test_merging_never_brings_back_what_a_late_rank_completed(store: Store) -> None:
    alone = [replace(record(step, 2), attempt_no=1, ranks=1) for step in range(240)]
    late = [record(step) for step in range(180, 240)]
    want = [*alone[:180], *late]
    write(store, alone)
    write(store, late)  # 256 written steps are merged: all of the first writing and the beginning of the second
    for merged in (0, 64):
        assert not merged or expert_merging.compact_once(store) == merged
        with store.read() as session:
            for one in experts.recent(session, "run-1", limit=1000):
                assert_same(one, want[one.step])
            raster = expert_raster.read_raster(session, "run-1", 0, first=0, last=239, columns=1000)
            count = experts.counted(session, "run-1")
        assert count == 240, "a step that was written twice is one step"
        assert raster is not None
        np.testing.assert_array_equal(raster.bias, np.stack([one.bias[0, :4] for one in want]).T)


@pytest.mark.parametrize("merge", [False, True])
def test_a_raster_is_the_layer_over_its_steps(store: Store, merge: bool) -> None:
    found = [record(step) for step in range(300)]
    write(store, found)
    if merge:
        assert expert_merging.compact_once(store) == 64
    with store.read() as session:
        raster = expert_raster.read_raster(session, "run-1", 2, first=10, last=289, columns=1000)
        coarse = expert_raster.read_raster(session, "run-1", 2, first=0, last=299, columns=3)
        assert expert_raster.read_raster(session, "run-1", 3, first=0, last=299, columns=3) is None
        assert expert_raster.read_raster(session, "run-1", 0, first=400, last=500, columns=3) is None
        assert expert_raster.read_raster(session, "none", 0, first=0, last=500, columns=3) is None
    assert raster is not None
    assert coarse is not None
    assert raster.step.tolist() == list(range(10, 290))
    real = np.stack([one.counts[2, :4] for one in found[10:290]]).astype(float)
    share = real / real.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(raster.share, share.T, rtol=1e-6)
    np.testing.assert_array_equal(raster.bias, np.stack([one.bias[2, :4] for one in found[10:290]]).T)
    statistics = layer_statistics(found[10].counts, found[10].bias, 4, 1)
    assert raster.cv_floor[0] == pytest.approx(statistics.cv_floor[2], rel=1e-6)
    newest = layer_statistics(found[289].counts, found[289].bias, 4, 1)
    assert raster.floor_cv == pytest.approx(newest.cv[2] / raster.cv_floor[-1], rel=1e-6)
    assert raster.skip_share[0] == pytest.approx(statistics.skip_share[2], rel=1e-6)
    assert coarse.step.tolist() == [99, 199, 299]
    np.testing.assert_allclose(coarse.share[:, 1], share[90:190].mean(axis=0), rtol=1e-5)


def test_a_bias_that_diverged_is_in_its_own_column_only(store: Store) -> None:
    steps = [record(step) for step in range(20)]
    steps[12].bias[0, 1] = np.inf
    write(store, steps)
    with store.read() as session:
        raster = expert_raster.read_raster(session, "run-1", 0, first=0, last=19, columns=10)
    assert raster is not None
    assert np.flatnonzero(~np.isfinite(raster.bias).all(axis=0)).tolist() == [6]


@pytest.mark.parametrize("merge", [False, True])
def test_a_step_that_tells_nothing_of_a_layer_is_left_out_of_its_column(store: Store, merge: bool) -> None:
    """One of ten steps in the second column, and all of the third, as where the node of a pipeline's stage is gone."""
    found = [record(step) for step in range(512)]
    untold = [14, *range(20, 30)]
    for step in untold:
        found[step].counts[1], found[step].bias[1] = 0, np.nan
    write(store, found)
    if merge:
        assert expert_merging.compact_once(store)
    with store.read() as session:
        raster = expert_raster.read_raster(session, "run-1", 1, first=0, last=49, columns=5)
    assert raster is not None
    for column, steps_of in ((0, range(10)), (1, [*range(10, 14), *range(15, 20)])):
        told = [found[step] for step in steps_of]
        each = [layer_statistics(one.counts, one.bias, 4, 1) for one in told]
        assert raster.share[:, column] == pytest.approx(np.mean([one.share[1] for one in each], axis=0), rel=1e-5)
        assert raster.bias[:, column] == pytest.approx(np.mean([one.bias[1, :4] for one in told], axis=0), rel=1e-5)
        assert raster.cv_floor[column] == pytest.approx(np.mean([one.cv_floor[1] for one in each]), rel=1e-5)
        assert raster.skip_share[column] == pytest.approx(np.mean([one.skip_share[1] for one in each]), rel=1e-4)
    for values in (raster.share, raster.bias, raster.cv_floor[None], raster.skip_share[None]):
        assert np.isnan(values[:, 2]).all() and np.isfinite(values[:, [0, 1, 3, 4]]).all()


def test_a_later_attempt_hides_the_steps_that_it_does_again(store: Store) -> None:
    write(store, [record(step) for step in range(1, 96)])
    write(store, [record(step, 2) for step in range(81, 86)])
    with store.read() as session:
        statistics = experts.read_statistics(session, "run-1", ("cv", "maxvio"))
        raster = expert_raster.read_raster(session, "run-1", 0, first=0, last=200, columns=500)
        window = experts.recent(session, "run-1", limit=8)
        assert experts.bounds(session, "run-1") == (1, 85)
        assert experts.counted(session, "run-1") == 100
        assert experts.current_step(session, "run-1", 90) is None
        hidden = experts.stored_step(session, ("run-1", 1, 90))
    assert hidden is not None
    assert_same(hidden, record(90))
    assert statistics.step.tolist() == list(range(1, 86))
    assert statistics.attempt_no.tolist() == [1] * 80 + [2] * 5
    assert statistics.values["cv"].shape == (3, 85)
    assert raster is not None
    assert raster.attempt_no.tolist() == statistics.attempt_no.tolist()
    assert [(one.step, one.attempt_no) for one in window] == [(78, 1), (79, 1), (80, 1)] + [
        (step, 2) for step in range(81, 86)
    ]


def test_a_step_written_twice_counts_as_last_written(store: Store) -> None:
    write(store, [record(step) for step in range(4)])
    again = record(2, attempt_no=1)
    again = ExpertStep(*again.key, 1.9e9, 4, 9, 9, SHAPE, again.counts * 2, again.bias)
    write(store, [again])
    with store.read() as session:
        statistics = experts.read_statistics(session, "run-1", ("cv",))
        found = experts.recent(session, "run-1", limit=64)
    assert statistics.step.tolist() == [0, 1, 2, 3]
    assert statistics.at_s[2] == 1.9e9
    assert found[2].ranks == 4


def test_a_run_without_records_has_nothing(store: Store) -> None:
    with store.read() as session:
        assert experts.recent(session, "none", limit=64) == []
        assert experts.bounds(session, "none") is None
        assert len(experts.read_statistics(session, "none", ("cv",)).step) == 0
        assert experts.last_runs(session, limit=5) == []


def test_the_runs_written_last_come_last(store: Store) -> None:
    for run_id in ("a", "b", "a", "c"):
        write(store, [record(1, run_id=run_id)])
    with store.read() as session:
        assert experts.last_runs(session, limit=2) == ["a", "c"]


def test_a_new_shape_does_not_mix_with_the_old(store: Store) -> None:
    write(store, [record(step) for step in range(4)])
    write(store, [record(step, 2, Shape(4, 5, 4, 1)) for step in range(4, 8)])
    with store.read() as session:
        raster = expert_raster.read_raster(session, "run-1", 3, first=0, last=99, columns=99)
    assert raster is not None
    assert raster.step.tolist() == [4, 5, 6, 7]


def test_step_records_keep_each_rank_and_survive_merging(store: Store) -> None:
    for step in range(600):
        with store.write() as session:
            steps.add(session, [step_record(step, rank) for rank in (1, 0)])
        if step == 10:
            with store.write() as session:
                steps.add(session, [step_record(3, 1, loss=9.0), step_record(4, 0, loss=float("nan"))])
    assert steps.compact_once(store) == 512
    with store.write() as session:
        steps.add(session, [step_record(80, 0, attempt_no=2, epoch=2)])
    with store.read() as session:
        first, second = steps.read(session, "run-1")
        some = steps.read(session, "run-1", first=3, last=4)[0]
        assert steps.last_step(session, "run-1", 1) == 599
        assert steps.last_step(session, "run-1", 3) is None
    assert first.step.tolist() == [step for step in range(600) for _ in (0, 1)]
    assert first.rank.tolist() == [0, 1] * 600
    assert first.step_seconds.tolist() == [0.5, 1.5] * 600
    assert (second.attempt_no, second.step.tolist()) == (2, [80])
    assert some.loss[1] == 9.0
    assert np.isnan(some.loss[2])
    assert some.data_position.tolist() == [3 * 2048, 3 * 2048, 4 * 2048, 4 * 2048]


def test_statistics_of_a_run_whose_shape_changed_are_the_newest_shape_s(sqlite_store: Store) -> None:
    write(sqlite_store, [record(step) for step in range(1, 9)])
    write(sqlite_store, [record(step, 2, Shape(5, 5, 4, 1)) for step in range(9, 17)])
    with sqlite_store.read() as session:
        found = experts.read_statistics(session, "run-1", ("cv",))
    assert found.values["cv"].shape == (5, 8) and found.step.tolist() == list(range(9, 17))


def test_a_window_reaches_further_back_where_steps_were_lost(sqlite_store: Store) -> None:
    write(sqlite_store, [record(step) for step in range(1, 200) if step % 10])
    with sqlite_store.read() as session:
        assert experts.recent(session, "run-1", limit=64)[0].step == 129

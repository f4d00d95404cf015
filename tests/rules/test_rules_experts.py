"""Expert statistics against a slow, plain-Python computation, and against cases whose answer is known."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controlplane.rules import experts as x

CLOSE = {"rel": 1e-9, "abs": 1e-9}


@st.composite
def records(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int, int]:
    experts = draw(st.integers(2, 9))
    slots = experts + draw(st.integers(0, 2))
    layers = draw(st.integers(1, 4))
    counts = draw(hnp.arrays(np.uint32, (layers, slots), elements=st.integers(0, 2**31)))
    bias = draw(hnp.arrays(np.float32, (layers, slots), elements=st.floats(-4, 4, width=32)))
    return counts, bias, experts, draw(st.integers(1, experts))


def plain(counts: list[int], bias: list[float], experts: int, top_k: int) -> dict[str, float]:
    """One layer's statistics, written for reading."""
    real = counts[:experts]
    routed, everything = sum(real), sum(counts)
    share = [count / routed for count in real]
    mean = routed / experts
    ratio = [count / mean for count in real]
    entropy = -sum(p * math.log(p) for p in share if p > 0)
    pairs = sum(abs(a - b) for a in real for b in real)
    floor = math.sqrt((experts - top_k) / routed)
    return {
        "maxvio": max(ratio) - 1,
        "avgvio": fmean(abs(r - 1) for r in ratio),
        "cv": pstdev(real) / mean,
        "entropy": entropy / math.log(experts),
        "effective": math.exp(entropy) / experts,
        "gini": pairs / (2 * experts * routed),
        "min_load": min(ratio),
        "dead_count": sum(count == 0 for count in real) if routed >= 20 * experts else 0,
        "skip_share": 1 - routed / everything,
        "cv_floor": pstdev(real) / mean / floor if floor else math.inf,
        "bias_mean": fmean(bias[:experts]),
        "bias_spread": max(bias[:experts]) - min(bias[:experts]),
    }


@given(records())
def test_statistics_equal_the_plain_computation(
    record: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int, int],
) -> None:
    counts, bias, experts, top_k = record
    found = x.layer_statistics(counts, bias, experts, top_k)
    for layer in range(len(counts)):
        row = [int(count) for count in counts[layer]]
        if sum(row[:experts]) == 0:
            assert math.isnan(found.cv[layer]) and math.isnan(found.maxvio[layer]) and math.isnan(found.gini[layer])
            assert found.dead_count[layer] == 0
            continue
        expected = plain(row, [float(b) for b in bias[layer]], experts, top_k)
        for name, value in expected.items():
            if name == "cv_floor" and top_k == experts:
                continue  # every expert takes every token: the floor is zero, and so is the CV
            assert getattr(found, name)[layer] == pytest.approx(value, **CLOSE), name
        assert found.share[layer] == pytest.approx([count / sum(row[:experts]) for count in row[:experts]])


def test_a_window_of_records_equals_each_record_alone() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 400, size=(5, 3, 8))
    bias = rng.normal(size=counts.shape)
    window = x.layer_statistics(counts, bias, 7, 2)
    for step in range(5):
        alone = x.layer_statistics(counts[step], bias[step], 7, 2)
        for name in x.LayerStatistics.__slots__:
            np.testing.assert_array_equal(getattr(window, name)[step], getattr(alone, name), err_msg=name)


def test_perfect_balance() -> None:
    found = x.layer_statistics(np.full((2, 16), 128), np.zeros((2, 16)), 16, 1)
    for name, value in {"maxvio": 0, "avgvio": 0, "cv": 0, "gini": 0, "min_load": 1, "entropy": 1}.items():
        assert getattr(found, name) == pytest.approx([value, value], abs=1e-12), name
    assert found.effective == pytest.approx([1, 1])


def test_everything_on_one_expert() -> None:
    counts = np.zeros((1, 8))
    counts[0, 5] = 1000
    found = x.layer_statistics(counts, np.zeros((1, 8)), 8, 1)
    assert found.maxvio[0] == pytest.approx(7)
    assert found.effective[0] == pytest.approx(1 / 8)
    assert found.entropy[0] == pytest.approx(0)
    assert found.cv[0] == pytest.approx(math.sqrt(7))
    assert found.gini[0] == pytest.approx(7 / 8)
    assert found.dead[0].tolist() == [True] * 5 + [False] + [True] * 2


def test_the_skip_slot_is_not_an_expert() -> None:
    counts = np.full((1, 17), 100)
    counts[0, 16] = 400
    found = x.layer_statistics(counts, np.full((1, 17), -1.0), 16, 1)
    assert found.maxvio[0] == pytest.approx(0, abs=1e-12)
    assert found.skip_share[0] == pytest.approx(0.2)
    assert found.share.shape == (1, 16)


def test_a_layer_without_tokens_is_unknown_not_zero() -> None:
    found = x.layer_statistics(np.zeros((1, 4), dtype=np.uint32), np.zeros((1, 4)), 4, 1)
    for name in ("maxvio", "avgvio", "cv", "entropy", "effective", "gini", "min_load", "cv_floor", "skip_share"):
        assert math.isnan(getattr(found, name)[0]), name
    assert math.isnan(found.floor_cv)
    assert found.dead_count[0] == 0


@pytest.mark.parametrize(
    ("shape", "bias_shape", "experts", "top_k"),
    [
        ((3,), (3,), 3, 1),
        ((2, 4), (2, 5), 4, 1),
        ((2, 4), (2, 4), 5, 1),
        ((2, 4), (2, 4), 4, 5),
        ((2, 4), (2, 4), 4, 0),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, ...], bias_shape: tuple[int, ...], experts: int, top_k: int
) -> None:
    with pytest.raises(ValueError, match=r"fit|must both"):
        x.layer_statistics(np.zeros(shape), np.zeros(bias_shape), experts, top_k)


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(16, 1, 2048), (256, 8, 4096), (24, 1, 8192), (8, 2, 512)])
def test_the_sampling_floor_is_what_fair_choice_shows(experts: int, top_k: int, tokens: int) -> None:
    """Tokens that choose K distinct experts without preference have, in the mean, the floor's CV and its MaxVio."""
    rng = np.random.default_rng(11)
    counts = np.zeros((48, experts), dtype=np.int64)
    for row in counts:
        chosen = np.argpartition(rng.random((tokens, experts)), top_k, axis=1)[:, :top_k]
        row += np.bincount(chosen.ravel(), minlength=experts)
    found = x.layer_statistics(counts, np.zeros(counts.shape), experts, top_k)
    assert found.cv_floor.mean() == pytest.approx(1.0, abs=0.06)
    assert float(found.floor_cv) == pytest.approx(math.sqrt((experts - top_k) / (tokens * top_k)))
    assert found.maxvio.mean() == pytest.approx(float(x.maxvio_floor(found.floor_cv, experts)), rel=0.25)


def test_dead_experts_need_enough_steps_and_tokens() -> None:
    counts = np.full((20, 2, 8), 50)
    counts[-16:, 0, 6] = 0
    counts[-15:, 1, 2] = 0
    assert x.dead_experts(counts, 8).tolist() == [[False] * 6 + [True, False], [False] * 8]
    assert not x.dead_experts(counts[-15:], 8).any(), "15 steps are not 16"
    few = np.full((16, 1, 8), 1)
    few[:, 0, 1] = 0
    assert not x.dead_experts(few, 8).any(), "fewer than 20 tokens were to be expected"


def series(values: list[float]) -> np.ndarray[Any, Any]:
    """One layer, two experts whose loads mirror each other."""
    array = np.array(values)
    return np.stack([array, 10 - array], axis=-1)[:, None, :]


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40))
def test_lag1_equals_the_plain_computation(values: list[int]) -> None:
    found = x.lag1_autocorrelation(series([float(value) for value in values]))[0]
    mean = fmean(values)
    variance = sum((value - mean) ** 2 for value in values)
    if len(set(values)) == 1:
        assert math.isnan(found)
        return
    products = sum((a - mean) * (b - mean) for a, b in pairwise(values))
    assert found == pytest.approx(products / variance, abs=1e-9)


def test_known_autocorrelations_and_periods() -> None:
    steps = np.arange(64)
    alternating = series([5.0 + (-1) ** int(step) for step in steps])
    slow = series(list(5 + np.sin(2 * np.pi * steps / 16)))
    assert x.lag1_autocorrelation(alternating)[0] == pytest.approx(-63 / 64)
    assert x.period_steps(alternating)[0] == pytest.approx(2)
    assert x.lag1_autocorrelation(slow)[0] > 0.85
    assert x.period_steps(slow)[0] == pytest.approx(16)
    assert np.isnan(x.period_steps(series([3.0] * 64))).all()
    assert np.isnan(x.lag1_autocorrelation(series([1.0, 2.0]))).all()


def test_independent_steps_have_almost_no_autocorrelation() -> None:
    loads = np.random.default_rng(5).multinomial(4096, [1 / 16] * 16, size=(64, 6))
    assert x.lag1_autocorrelation(loads) == pytest.approx(np.full(6, -1 / 64), abs=0.1)


@given(hnp.arrays(np.float32, (9, 2, 4), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])))
def test_bias_directions_equal_the_plain_computation(bias: np.ndarray[Any, Any]) -> None:
    same, flips = x.same_direction_share(bias, 3), x.sign_flip_rate(bias, 3)
    for layer in range(2):
        shares, rates = [], []
        for expert in range(3):
            moves = np.sign(np.diff(bias[:, layer, expert].astype(float))).tolist()
            moving = [move for move in moves if move]
            if moving:
                shares.append(max(moving.count(1.0), moving.count(-1.0)) / len(moving))
            pairs = [a * b for a, b in pairwise(moves) if a * b]
            if pairs:
                rates.append(sum(pair < 0 for pair in pairs) / len(pairs))
        assert same[layer] == pytest.approx(fmean(shares) if shares else math.nan, nan_ok=True)
        assert flips[layer] == pytest.approx(fmean(rates) if rates else math.nan, nan_ok=True)


def test_a_bias_that_never_moves_has_no_direction() -> None:
    still = np.ones((10, 1, 4))
    assert np.isnan(x.same_direction_share(still, 4)).all() and np.isnan(x.sign_flip_rate(still, 4)).all()
    assert x.bias_change(still, 4)[0] == 0
    assert np.isnan(x.bias_change(still[:1], 4)).all()
    rising = np.cumsum(np.ones((10, 1, 4)), axis=0)
    assert x.same_direction_share(rising, 4)[0] == 1
    assert x.sign_flip_rate(rising, 4)[0] == 0
    assert x.bias_change(rising, 4)[0] == 1


def test_churn_is_the_part_of_the_load_that_moves() -> None:
    shares = np.array([[[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]], [[0.5, 0.0, 0.5]]])
    assert x.churn(shares) == pytest.approx([0.25])
    assert np.isnan(x.churn(shares[:1])).all()


def test_the_pooled_design_effect_weighs_by_degrees_of_freedom_and_is_at_least_one() -> None:
    counts = np.full((2, 1, 4), 100.0)
    expected = 400 / 8 * 4 * 0.25 * 0.75
    squares = np.array([[7 * expected * 3.0], [1 * expected * 11.0]])
    freedom, ranks = np.array([[7.0], [1.0]]), np.full((2, 1), 8.0)
    assert x.pooled_design_effect(counts, squares, freedom, ranks, 1) == pytest.approx([4.0])
    assert x.pooled_design_effect(counts, squares * 0, freedom, ranks, 1).tolist() == [1.0]
    assert x.pooled_design_effect(counts, squares, freedom * 0, ranks, 1).tolist() == [1.0]

"""How load answers bias: a known gain is found again, and nothing is claimed of a bias that stood still."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.rules.expert_response import (
    LEAST_STEPS,
    Record,
    compare,
    draw_movement,
    felt_bias,
    fit_response,
    lifted,
    record_of,
    seen_in,
    shares_of,
)
from controlplane.simulate.balance import Controller
from tests.simulate.routers import EXPERTS, run

GAINS = [12.0, 30.0]


def record(controller: Controller, **more: float) -> Record:
    counts, bias = run(controller, GAINS, **more)  # type: ignore[arg-type] # a test hands floats alone
    return record_of(counts, bias, EXPERTS, 1)


@pytest.mark.parametrize(
    ("controller", "within"),
    [
        (Controller("adamw", 0.005), 0.25),
        (Controller("sign", 0.005), 0.25),
        # linear in the shares: noise, walk and answer are harder to tell apart
        (Controller("pi", kp=0.05, ki=0.05), 0.8),
    ],
    ids=["adamw", "sign", "pi"],
)
def test_a_known_gain_is_found_again_while_its_controller_runs(controller: Controller, within: float) -> None:
    found = fit_response(record(controller), design=1.0)
    assert found.known().all()
    assert found.gain == pytest.approx(GAINS, rel=within)
    assert (found.r2_step > 0.02).all()


def test_least_squares_of_the_change_would_have_been_wrong() -> None:
    """The reason for the filter: noise that goes away by itself looks like an answer."""
    told = record(Controller("sign", 0.001))
    seen = seen_in(told, fit_response(told, 1.0))
    change, moved = np.diff(seen, axis=0), np.diff(told.bias, axis=0)
    plain = (change * moved).sum(axis=(0, 2)) / (moved**2).sum(axis=(0, 2))
    assert (plain > 2 * np.array(GAINS)).all()
    assert fit_response(told, design=1.0).gain == pytest.approx(GAINS, rel=0.5)


def test_a_router_that_learns_a_standing_bias_away_is_seen_to() -> None:
    found = fit_response(record(Controller("sign", 0.005), fade=0.05), design=1.0)
    assert (found.fade >= 0.02).all()
    assert found.gain == pytest.approx(GAINS, rel=0.35)
    assert (fit_response(record(Controller("sign", 0.005)), design=1.0).fade <= 0.01).all()


def test_of_a_bias_that_stood_still_nothing_is_claimed() -> None:
    found = fit_response(record(Controller("none")))
    assert not found.known().any()
    for values in (found.gain, found.gain_error, found.r2_step):
        assert np.isnan(values).all()


def test_one_frozen_layer_does_not_hide_the_other() -> None:
    counts, bias = run(Controller("sign", 0.005), GAINS)
    bias[:, 0] = bias[0, 0]
    found = fit_response(record_of(counts, bias, EXPERTS, 1), 1.0)
    assert found.known().tolist() == [False, True]
    assert found.gain[1] == pytest.approx(GAINS[1], rel=0.25)


def test_the_size_of_the_noise_is_found_where_nobody_measured_it() -> None:
    assert fit_response(record(Controller("sign", 0.005))).design == pytest.approx([1, 1], rel=0.3)


def test_a_model_is_chosen_by_steps_that_it_was_not_fitted_to() -> None:
    told = record(Controller("sign", 0.02))
    assert fit_response(told, 1.0).model == "softmax"
    both = compare(told, 1.0)
    assert set(both) == {"softmax", "linear"}
    assert both["softmax"].r2_step.mean() > both["linear"].r2_step.mean()


@pytest.mark.parametrize("model", ["softmax", "linear"])
def test_what_a_model_sees_becomes_the_shares_again(model: str) -> None:
    told = record(Controller("sign", 0.005), steps=64)
    found = compare(told, 1.0)[model]
    share = told.counts / told.routed[..., None]
    assert np.abs(shares_of(seen_in(told, found), found) - share).max() < 1e-3


def test_a_drawn_movement_follows_the_record_and_no_two_are_alike() -> None:
    told = record(Controller("sign", 0.005))
    found = fit_response(told, 1.0)
    own = seen_in(told, found) - lifted(told.bias, found)
    random = np.random.default_rng(3)
    (walk, noise), (other, _) = draw_movement(told, found, random), draw_movement(told, found, random)
    assert not np.allclose(walk, other)
    left = own - walk
    left -= left.mean(axis=2, keepdims=True)
    # the record less a drawn walk is noise of the size that was measured: √(7 ÷ 1024) of a share
    assert left.std() == pytest.approx(noise.std(), rel=0.15)
    assert np.std(own.mean(axis=2)) < 1e-9


def test_a_bias_is_felt_whole_without_fade_and_forgotten_with_it() -> None:
    bias = np.zeros((50, 2, 4))
    bias[10:, :, 0] = 1.0
    felt = felt_bias(bias, np.array([0.0, 0.1]))
    assert (felt[:, 0] == bias[:, 0]).all()
    assert felt[10, 1, 0] == pytest.approx(0.9)
    assert felt[40, 1, 0] == pytest.approx(0.9**31)


def test_a_bias_is_in_force_in_the_step_after_the_counts_that_led_to_it() -> None:
    counts = np.arange(1, 13, dtype=float).reshape(3, 1, 4)
    bias = np.arange(12, dtype=float).reshape(3, 1, 4) ** 2
    after = record_of(counts, bias, 3, 1)
    assert after.counts[:, 0].tolist() == [[5, 6, 7], [9, 10, 11]]
    assert after.bias[0, 0] == pytest.approx(bias[0, 0, :3] - bias[0, 0, :3].mean())
    before = record_of(counts, bias, 3, 1, bias_after=False)
    assert len(before.counts) == 3


@pytest.mark.parametrize(
    ("counts", "bias", "experts", "said"),
    [
        (np.ones((4, 2, 3)), np.ones((4, 2, 2)), 2, "must both be"),
        (np.ones((4, 3)), np.ones((4, 3)), 2, "must both be"),
        (np.ones((4, 2, 3)), np.ones((4, 2, 3)), 4, "does not fit"),
        (np.zeros((4, 2, 3)), np.ones((4, 2, 3)), 3, "must have tokens"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), 3, "must have tokens"),
    ],
)
def test_what_is_no_record_is_refused(counts: np.ndarray, bias: np.ndarray, experts: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        record_of(counts, bias, experts, 1)


def test_a_record_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{LEAST_STEPS} are needed"):
        fit_response(record(Controller("sign", 0.005), steps=20))

"""Where a data mix changed: found at its first step, told once, and not found in noise, growth or a slow drift."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rules.expert_marks import BEFORE_STEPS, RECENT_STEPS, data_mix_shifts


def quiet(steps: int, seed: int = 1) -> np.ndarray:
    """Mean MaxVio of a balanced run: around 0.1 with the noise of sampling."""
    return np.random.default_rng(seed).normal(0.1, 0.01, steps)


def test_a_jump_is_found_at_its_first_step_and_told_once_however_long_it_lasts() -> None:
    series = quiet(400)
    series[200:] += 0.9 * np.exp(-np.arange(200) / 40)
    assert data_mix_shifts(series).tolist() == [200]


def test_a_jump_that_never_decays_is_one_shift_although_the_median_follows_it() -> None:
    series = quiet(600)
    series[200:] = 1.0
    assert data_mix_shifts(series).tolist() == [200]


def test_medians_that_were_not_taken_would_have_changed_nothing() -> None:
    """Against the definition, window by window, over noise in which most windows could be a shift."""
    dice, told = np.random.default_rng(3), 0
    for noise in (0.1, 0.4, 0.8, 1.2):
        series = dice.lognormal(-2, noise, 500)
        series[300:340] *= 6
        found, at = [], 16
        while at <= len(series) - RECENT_STEPS:
            base = np.median(series[max(0, at - BEFORE_STEPS) : at])
            if np.median(series[at : at + RECENT_STEPS]) > 2.7 * base:
                found.append(at + int(np.argmax(series[at : at + RECENT_STEPS] > 2.7 * base)))
                while at <= len(series) - RECENT_STEPS and np.median(series[at : at + RECENT_STEPS]) >= 1.8 * base:
                    at += 1
            else:
                at += 1
        assert data_mix_shifts(series).tolist() == found
        told += len(found)
    assert told >= 4


def test_after_it_has_decayed_a_second_one_is_told_too() -> None:
    series = quiet(600)
    for begin in (150, 400):
        series[begin : begin + 60] += 0.9 * np.exp(-np.arange(60) / 12)
    assert data_mix_shifts(series).tolist() == [150, 400]


@pytest.mark.parametrize(
    "series",
    [
        quiet(1000),
        np.geomspace(0.1, 5.0, 1000),
        np.linspace(3.0, 0.1, 1000),
        np.where(np.arange(1000) == 500, 1.2, quiet(1000)),
        np.zeros(200),
        np.full(200, np.nan),
        np.zeros(0),
        np.ones(RECENT_STEPS),
    ],
    ids=["noise", "slow growth", "warm-up", "one step alone", "zeros", "unknown", "empty", "short"],
)
def test_what_is_no_change_of_the_data_is_not_called_one(series: np.ndarray) -> None:
    assert data_mix_shifts(series).tolist() == []


def test_unknown_steps_are_left_out_and_indices_are_of_the_whole_series() -> None:
    series = quiet(400)
    series[200:] += 0.9
    series[190:200] = np.nan
    assert data_mix_shifts(series).tolist() == [200]


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="one axis"):
        data_mix_shifts(np.ones((4, 100)))


@given(st.integers(BEFORE_STEPS, 300), st.floats(0.6, 20.0), st.integers(0, 50))
def test_a_shift_is_where_it_was_planted_at_any_size(at: int, size: float, seed: int) -> None:
    series = quiet(400, seed)
    series[at:] += size
    assert data_mix_shifts(series).tolist() == [at]

"""Autocorrelation by lag: what swings has its period in it, chance has none, and lag 1 is the alarm's own figure."""

import numpy as np
import pytest

from controlplane.rules.expert_swings import autocorrelations
from controlplane.rules.experts import lag1_autocorrelation


def loads(period: float | None, steps: int = 64) -> np.ndarray:
    """[W, 1, 8] loads that swing with a period, or only by chance."""
    noise = np.random.default_rng(2).normal(0, 0.01, (steps, 1, 8))
    if period is None:
        return noise
    phase = np.arange(8) / 8
    return noise + 0.1 * np.cos(2 * np.pi * (np.arange(steps)[:, None, None] / period + phase))


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_swing_repeats_at_its_period_and_is_opposite_at_half_of_it(period: int) -> None:
    (found,) = autocorrelations(loads(period), 16)
    assert found[period - 1] > 0.8
    assert found[period // 2 - 1] < -0.8


def test_chance_repeats_nothing() -> None:
    assert np.abs(autocorrelations(loads(None), 16)).max() < 0.2


def test_lag_one_is_the_figure_that_the_alarm_looks_at() -> None:
    both = np.concatenate([loads(3.3), loads(None)], axis=1)
    assert autocorrelations(both, 4)[:, 0] == pytest.approx(lag1_autocorrelation(both))


def test_steps_that_are_not_known_are_left_out_with_their_pairs() -> None:
    swings, lost = loads(4), [0, 20, 21, 63]
    holed = swings.copy()
    holed[lost] = np.nan
    (found,), (whole,) = autocorrelations(holed, 8), autocorrelations(swings, 8)
    assert found == pytest.approx(whole, abs=0.15) and found[3] > 0.75
    assert lag1_autocorrelation(holed) == pytest.approx(found[0])
    holed[2:] = np.nan
    assert np.isnan(autocorrelations(holed, 8)).all(), "two steps repeat nothing"


def test_what_cannot_be_known_is_unknown() -> None:
    assert np.isnan(autocorrelations(np.ones((64, 2, 4), np.float32), 8)).all()
    short = autocorrelations(loads(4, steps=6), 8)
    assert np.isfinite(short[0, :4]).all() and np.isnan(short[0, 4:]).all()

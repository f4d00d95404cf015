"""A window that moves on says the same as one that is computed anew, whatever enters, leaves or is done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from controlplane.rules.experts import lag1_autocorrelation, mean_of_known
from controlplane.services import experts_frame
from controlplane.services.experts_window import MovingWindow, balance_of, statistics_of
from controlplane.store.expert_records import ExpertStep, Shape

SHAPE = Shape(4, 9, 8, 2)


def steps(count: int, seed: int = 0, shape: Shape = SHAPE) -> list[ExpertStep]:
    """Steps in which layer 0 swings, layer 1 never moves, layer 2 has no tokens in steps 5 to 9."""
    dice = np.random.default_rng(seed)
    found = []
    for number in range(count):
        counts = dice.integers(900, 1100, (shape.layers, shape.slots)).astype(np.uint32)
        counts[0, : shape.experts] += np.uint32(500) * (np.arange(shape.experts) % 2 == number % 2)
        counts[1] = np.arange(shape.slots) + 3
        counts[2] *= not 5 <= number < 10
        bias = dice.normal(0, 1, counts.shape).astype(np.float32)
        found.append(ExpertStep("run", 1, number, float(number), 1, 4096, 0, shape, counts, bias))
    return found


def agrees(moving: MovingWindow, window: Sequence[ExpertStep]) -> None:
    """The window's sums and statistics are those of the same steps alone."""
    moving.move(window)
    assert np.array_equal(moving.each("counts"), np.stack([step.counts for step in window]))
    assert np.array_equal(moving.each("bias"), np.stack([step.bias for step in window]))
    assert np.array_equal(moving.together, np.stack([step.counts for step in window]).sum(axis=0, dtype=np.float64))
    cvs = np.stack([statistics_of(step).cv for step in window])
    assert np.array_equal(moving.each("cv"), cvs, equal_nan=True)
    shares = np.stack([balance_of(step, statistics_of(step)).share for step in window])
    assert moving.lag1() == pytest.approx(lag1_autocorrelation(shares.astype(np.float64)), abs=1e-6, nan_ok=True)
    assert np.array_equal(np.stack([one.share for one in moving.balances]), shares, equal_nan=True)
    assert moving.mean("cv") == pytest.approx(mean_of_known(cvs, axis=0), nan_ok=True)
    assert moving.known_steps.tolist() == np.isfinite(cvs).sum(axis=0).tolist()
    assert np.array_equal(moving.newest.cv_floor, statistics_of(window[-1]).cv_floor, equal_nan=True)


def test_a_window_that_moves_on_is_the_window_computed_anew() -> None:
    every, moving = steps(120), MovingWindow()
    for last in range(1, len(every)):
        agrees(moving, every[max(0, last - 16) : last])
    agrees(moving, every[50:114])
    assert np.isnan(moving.lag1()[1]) and moving.lag1()[0] < -0.8


def test_steps_that_are_done_again_replace_those_that_were_there() -> None:
    every, again, moving = steps(40), steps(40, seed=1), MovingWindow()
    agrees(moving, every[:30])
    agrees(moving, [*every[:29], again[29]])
    agrees(moving, [*every[:12], *again[12:20]])
    agrees(moving, [every[3], again[7], every[9]])
    agrees(moving, every[20:])
    agrees(moving, every[10:])
    other = steps(8, shape=Shape(6, 4, 4, 1))
    agrees(moving, other)


def test_silent_steps_at_any_place_leave_the_others_their_autocorrelation() -> None:
    every, moving = steps(60), MovingWindow()
    for number, layers in ((10, [0]), (12, [0]), (13, [0, 3]), (20, [0, 1, 2, 3]), (30, [3]), (31, [3]), (45, [0])):
        every[number].counts[layers] = 0
    for last in range(8, len(every)):
        agrees(moving, every[max(0, last - 24) : last])
        assert np.isfinite(moving.lag1()[0]) and np.isfinite(moving.mean("cv_floor")[[0, 3]]).all()


def test_two_steps_have_no_autocorrelation() -> None:
    moving = MovingWindow()
    moving.move(steps(2))
    assert np.isnan(moving.lag1()).all()


def test_a_frame_that_follows_a_run_is_the_frame_of_its_window() -> None:
    every, moving = [replace(step, layout=(4, 1, 1)) for step in steps(90)], MovingWindow()
    for last in (64, 65, 66, 90):
        head, arrays = experts_frame.of_window(every[:last], moving)
        alone, expected = experts_frame.of_window(every[last - 64 : last])
        assert head == alone and arrays.keys() == expected.keys()
        for name, values in arrays.items():
            assert values == pytest.approx(expected[name], rel=1e-5, abs=1e-6, nan_ok=True), name

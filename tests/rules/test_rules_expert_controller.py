"""The controller that steers biases is found again from what it did, beside the really trained model's own balancer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from controlplane.rules import expert_controller
from controlplane.rules.expert_controller import Controller, identify
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.network import Router
from jobs.zaya.training.balance import Balancer

EXPERTS, LAYERS, STEPS = 8, 2, 64
Integers = NDArray[np.int64]


def loads(seed: int = 1, steps: int = STEPS) -> Integers:
    """Counts [W, L, E + 1] of a slow swing with noise."""
    dice = np.random.default_rng(seed)
    wave = np.sin(np.arange(steps)[:, None, None] / 5 + dice.uniform(0, 6, (LAYERS, EXPERTS)))
    real = (1000 + 200 * wave + dice.normal(0, 10, wave.shape)).astype(np.int64)
    return np.concatenate([real, np.zeros((steps, LAYERS, 1), np.int64)], axis=-1)


def answered(counts: Integers, kp: float, ki: float, kd: float) -> NDArray[np.float64]:
    """What a PID controller would have made of these counts."""
    error = expert_controller.load_error(counts, EXPERTS)
    change = np.diff(error, axis=0, prepend=error[:1])
    bias = 0.3 - (kp * error + ki * np.cumsum(error, axis=0) + kd * change)
    return np.concatenate([bias, np.full((*bias.shape[:2], 1), -1.0)], axis=-1)


@pytest.mark.parametrize(("kp", "ki", "kd"), [(0.0, 0.02, 0.0), (0.5, 0.02, 0.0), (0.5, 0.02, 0.3), (-0.2, -0.05, 0.0)])
def test_the_gains_of_a_pid_controller_are_found(kp: float, ki: float, kd: float) -> None:
    counts = loads()
    found = identify(counts, answered(counts, kp, ki, kd), EXPERTS)
    for gain, true in ((found.kp, kp), (found.ki, ki), (found.kd, kd)):
        assert gain == pytest.approx([true] * LAYERS, abs=1e-6)
    assert found.r2 == pytest.approx([1.0] * LAYERS)
    assert found.inverted(0.2, 0.8).tolist() == [ki < 0] * LAYERS


def balanced(controller: str, rate: float, counts: Integers) -> Controller:
    """Biases as the reference trainer's own balancer moves them."""
    routers = [Router(ModelConfig(num_experts=EXPERTS), layer) for layer in range(LAYERS)]
    balancer = Balancer(routers, controller, rate)
    moved = []
    for step in counts:
        balancer.step(torch.from_numpy(step))
        moved.append(balancer.biases.numpy().copy())
    return identify(counts, np.stack(moved), EXPERTS)


def test_the_trainers_sign_controller_is_named_with_its_step() -> None:
    found = balanced("sign", 0.001, loads())
    assert found.kind == ["sign"] * LAYERS
    assert found.sign_gain == pytest.approx([0.001] * LAYERS, rel=1e-3)


def test_the_trainers_adamw_pushes_against_the_error() -> None:
    found = balanced("adamw", 0.001, loads())
    assert (found.ki > 0).all() and not found.inverted(0.2, 0.8).any()
    assert balanced("adamw", -0.001, loads()).inverted(0.2, 0.8).all()


def test_biases_that_stand_still_and_short_windows_tell_nothing() -> None:
    counts = loads()
    still = identify(counts, np.zeros(counts.shape), EXPERTS)
    assert np.isnan(still.ki).all() and np.isnan(still.r2).all() and still.kind == ["unknown"] * LAYERS
    assert not still.inverted(0.2, 0.8).any()
    short = identify(counts[:8], answered(counts, 0, 1, 0)[:8], EXPERTS)
    assert np.isnan(short.sign_gain).all()


def test_a_bias_that_diverged_makes_no_gain() -> None:
    counts = loads()
    bias = answered(counts, 0.5, 0.02, 0.0)
    bias[40:, 1, 3] = np.inf
    found = identify(counts, bias, EXPERTS)
    assert np.isfinite(found.ki[0]) and np.isnan(found.ki[1])

"""Replayed controllers: the trainer's own arithmetic, the record back from itself, and predictions that come true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from controlplane.rules.expert_response import Record, Response, fit_response, record_of
from controlplane.simulate.balance import (
    Controller,
    Outcome,
    Steering,
    candidates,
    measure,
    rank_correlation,
    ranked,
    replay,
    replay_loads,
)
from jobs.zaya.config import CONTROLLERS
from jobs.zaya.model.network import Router
from jobs.zaya.training.balance import Balancer
from tests.jobs.zaya_small import MODEL
from tests.simulate.routers import EXPERTS, run

RECORDED = Controller("sign", 0.004)
GAINS = [12.0, 30.0]


@pytest.fixture(scope="module")
def told() -> tuple[Record, Response]:
    counts, bias = run(RECORDED, GAINS)
    record = record_of(counts, bias, EXPERTS, 1)
    return record, fit_response(record, 1.0)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_replayed_controller_moves_biases_as_the_trainers_does(name: str) -> None:
    one = Controller(name, 0.01, 0.3, 0.05, 0.1)
    router = Router(MODEL, 0)
    balancer = Balancer([router], name, one.rate, (one.kp, one.ki, one.kd))
    steering = Steering(one, np.zeros((1, MODEL.num_experts)))
    random = np.random.default_rng(0)
    for _ in range(30):
        counts = random.multinomial(100, [0.4, 0.3, 0.2, 0.1])
        balancer.step(torch.tensor([[*counts.tolist(), 7]]))
        steering.step(counts[None] / 100)
        assert router.balancing_biases[:-1].tolist() == pytest.approx(steering.bias[0].tolist(), abs=2e-5)


def test_a_controller_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'pdi'"):
        Steering(Controller("pdi"), np.zeros((1, 4)))


def test_the_recorded_controller_gives_the_record_back(told: tuple[Record, Response]) -> None:
    record, response = told
    loads = replay_loads(record, response, RECORDED, draws=2)
    assert np.abs(loads[0] - record.counts).max() < 1.0
    assert np.abs(loads[1] - record.counts).max() > 20
    assert loads[1].sum(axis=2) == pytest.approx(record.routed)


@pytest.mark.parametrize(
    ("controller", "within"),
    [
        (Controller("sign", 0.02), 0.1),
        (Controller("pi", kp=0.1, ki=0.1), 0.1),
        (Controller("adamw", 0.002), 0.1),
        # far from the record: what the gain is off goes straight into it
        (Controller("none"), 0.25),
    ],
    ids=["sign", "pi", "adamw", "none"],
)
def test_what_is_predicted_comes_true_where_the_model_is_true(
    told: tuple[Record, Response], controller: Controller, within: float
) -> None:
    record, response = told
    predicted = replay(record, response, controller, judged_from=100)
    counts, _ = run(controller, GAINS)
    true = measure(counts[1:], 1, 100, controller)
    assert predicted.cv_floor == pytest.approx(true.cv_floor, rel=within)
    assert predicted.maxvio == pytest.approx(true.maxvio, rel=2 * within)
    assert predicted.lag1 == pytest.approx(true.lag1, abs=0.2)
    assert predicted.cv_low <= predicted.cv_floor <= predicted.cv_high


def test_gains_beyond_what_undoes_an_error_are_predicted_to_swing(told: tuple[Record, Response]) -> None:
    undo = EXPERTS / max(GAINS)
    calm, wild = (replay(*told, Controller("pi", ki=part * undo), judged_from=100, draws=2) for part in (0.2, 1.8))
    assert wild.lag1 < -0.4 < calm.lag1
    assert wild.cv_floor > 1.5 * calm.cv_floor


def test_settling_is_slower_under_a_slower_controller(told: tuple[Record, Response]) -> None:
    record, response = told
    # the record begins as even as it goes on: a preference of its own makes the beginning uneven
    record = Record(record.counts * np.linspace(0.3, 1.7, EXPERTS), record.bias, 1)
    fast, slow = (replay(record, response, Controller("sign", u), judged_from=300, draws=1) for u in (0.01, 0.001))
    assert fast.settle_steps < slow.settle_steps


def test_of_layers_that_cannot_be_told_nothing_is_predicted() -> None:
    counts, bias = run(Controller("none"), GAINS)
    record = record_of(counts, bias, EXPERTS, 1)
    response = fit_response(record)
    outcome = replay(record, response, RECORDED, judged_from=100)
    assert np.isnan([outcome.cv_floor, outcome.cv_low, outcome.maxvio, outcome.lag1]).all()
    assert candidates(response, EXPERTS) == ()


def test_candidates_are_scaled_by_the_gain_and_ranked_with_the_unknown_last(told: tuple[Record, Response]) -> None:
    tried = candidates(told[1], EXPERTS)
    assert {one.name for one in tried} == set(CONTROLLERS)
    assert len(set(tried)) == len(tried)
    undo = EXPERTS / np.median(told[1].gain)
    assert max(one.ki for one in tried) == pytest.approx(0.8 * undo)
    values = [2.0, float("nan"), 1.0]
    order = ranked(Outcome(tried[0], value, value, value, 0.0, 0.0, 0.0) for value in values)
    assert [one.cv_floor for one in order[:2]] == [1.0, 2.0]
    assert np.isnan(order[2].cv_floor)


def test_a_label_names_the_numbers_that_count() -> None:
    one = Controller("pi", 0.5, 0.1, 0.02, 9.0)
    assert one.label() == "pi Kp 0.1 Ki 0.02"
    assert Controller("sign", 0.001).label() == "sign 0.001"
    assert Controller("none", 0.5).label() == "none"


def test_rank_correlation_is_of_the_order_alone() -> None:
    assert rank_correlation([1, 2, 30], [5, 6, 7]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [7, 6, 5]) == pytest.approx(-1)
    assert np.isnan(rank_correlation([1, 2], [1, 2]))

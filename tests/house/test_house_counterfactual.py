"""The counterfactual bench's own parts: what it records, what it chooses to train, and the page it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import counterfactual, counterfactual_page
from benchmarks.counterfactual import (
    RECORDED,
    Seed,
    chosen_of,
    design_of,
    frozen_gain,
    learner,
    lines_of,
    missed,
    train,
)
from controlplane.rules.expert_response import Response
from controlplane.simulate.balance import Controller, Outcome


def outcome(controller: Controller, cv: float, lag1: float = 0.1) -> Outcome:
    return Outcome(controller, cv, cv - 0.1, cv + 0.1, maxvio=cv / 4, lag1=lag1, settle_steps=7.0)


@pytest.fixture
def seed() -> Seed:
    """Predictions of which `none` alone is wrong, and a gain that is half of the frozen router's."""
    tried = [
        outcome(Controller("none"), 9.0),
        outcome(RECORDED, 2.0),
        outcome(Controller("sign", 0.02), 4.0, -0.4),
        outcome(Controller("sign", 0.002), 2.2),
        outcome(Controller("pi", ki=0.1), 1.8),
        outcome(Controller("pid", kp=1.0), 6.0, -0.8),
    ]
    predicted = chosen_of(tried)
    measured = predicted | {"none": outcome(Controller("none"), 4.5)}
    gain, one = np.array([20.0, np.nan]), np.array([1.0, np.nan])
    response = Response("softmax", gain, one, one, one, one, one)
    return Seed(
        0, response, {"softmax": [0.1, np.nan], "linear": [0.2, np.nan]}, [40.0, 3.0], tried[1], predicted, measured
    )


def test_what_is_trained_is_the_best_the_best_of_others_one_that_swings_and_none(seed: Seed) -> None:
    assert {why: one.controller.label() for why, one in seed.predicted.items()} == {
        "proposed": "pi Kp 0 Ki 0.1",
        "best adamw": "adamw 0.005",
        "best sign": "sign 0.002",
        "swinging": "pid Kp 1 Ki 0 Kd 0",
        "none": "none",
    }


def test_each_prediction_has_its_training_beside_it_and_targets_are_judged(seed: Seed) -> None:
    lines = {line["name"]: line for line in lines_of([seed])}
    told = lines["CV, seed 0, none: none"]
    assert (told["value"], told["peer_value"], told["interval"]) == (9.0, 4.5, [8.9, 9.1])
    figures = {name: line["value"] for name, line in lines.items() if not line["peer"]}
    assert list(figures.values()) == pytest.approx([0.9, 1.0, 2.0, -0.8, 0.9, 2.0])
    assert not any(map(missed, lines.values()))
    assert missed({"value": 1.2, "target": 1.15, "better": "lower"})
    assert missed({"value": 0.5, "target": 0.7, "better": "higher"})


def test_the_page_has_every_figure_and_no_gain_that_cannot_be_told(
    seed: Seed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterfactual_page, "PAGE", tmp_path / "page.md")
    lines = lines_of([seed])
    counterfactual_page.write_page(lines, counterfactual._fit_rows(seed), counterfactual._facts())
    text = (tmp_path / "page.md").read_text()
    assert "| 0 | 0 | softmax | 20.0 ± 1.0 | 40.0 |" in text
    assert "| 0 | 1 | softmax | cannot be told | 3.0 | – |" in text
    assert "| 0 | none | none | 9.00 | 8.90–9.10 | 4.50 | 2.00 |" in text
    assert all(line["name"] in text for line in lines if not line["peer"])
    assert "{" not in text


def test_a_record_is_what_a_probe_would_have_written() -> None:
    torch.set_num_threads(1)
    one = learner(3, RECORDED)
    found = train(one, 1, 3)
    assert found["counts"].shape == found["bias"].shape == (3, 4, 9)
    assert (found["counts"].sum(axis=2) == counterfactual.SEQUENCES * counterfactual.LENGTH).all()
    assert torch.equal(torch.from_numpy(found["bias"][-1]), one.balancer.biases)
    assert not np.array_equal(found["bias"][0], found["bias"][1])
    assert (design_of(found) >= 1).all()


def test_what_was_trained_is_judged_on_the_layers_that_were_predicted(seed: Seed) -> None:
    counts = np.full((200, 2, 5), 50)
    counts[:, 1, 0] = 900
    counts[: counterfactual.JUDGED_FROM, 0, 0] = 900
    found = counterfactual.seen(counts, seed.response, RECORDED)
    assert (found.cv_floor, found.maxvio, found.controller) == (0.0, 0.0, RECORDED)


def test_the_frozen_routers_gain_is_measured_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(counterfactual, "GAIN_BATCHES", 2)
    one = learner(3, RECORDED)
    train(one, 1, 1)
    before = one.balancer.biases.clone()
    assert min(frozen_gain(one)) > 0
    assert torch.equal(before, one.balancer.biases)
    assert int(one.counts().sum()) == 0

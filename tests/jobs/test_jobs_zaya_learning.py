"""Data, optimizer, balancing and the learner: deterministic, and really learning."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig, TrainConfig, read_config
from jobs.zaya.phases import learning_rate
from jobs.zaya.training.data import Text, documentation
from jobs.zaya.training.learner import NumericsError
from jobs.zaya.training.optim import FlatOptimizer, orthogonalised
from tests.jobs.zaya_small import MODEL, learner, train

SENTENCE = bytes(range(256)) * 8


def test_the_text_is_pythons_own_and_long_enough() -> None:
    text = documentation()
    assert len(text) > 200_000
    assert b"lambda" in text


def test_a_batch_is_a_function_of_seed_and_index_alone() -> None:
    one, same, other = Text(SENTENCE, 16, 7), Text(SENTENCE, 16, 7), Text(SENTENCE, 16, 8)
    torch.rand(3)
    assert torch.equal(one.batch(5, 0, 2, 4), same.batch(5, 0, 2, 4))
    assert not torch.equal(one.batch(5, 0, 2, 4), one.batch(6, 0, 2, 4))
    assert not torch.equal(one.batch(5, 0, 2, 4), other.batch(5, 0, 2, 4))


def test_ranks_share_one_draw_without_overlap() -> None:
    text = Text(SENTENCE, 16, 7)
    whole = text.batch(5, 0, 1, 8)
    assert torch.equal(torch.stack([text.batch(5, r, 2, 4) for r in (0, 1)], dim=1).flatten(0, 1), whole)


def test_a_batch_holds_consecutive_bytes_of_the_text() -> None:
    batch = Text(SENTENCE, 16, 7).batch(1, 0, 1, 4)
    assert batch.shape == (4, 17)
    assert torch.equal((batch[:, 1:] - batch[:, :-1]) % 256, torch.ones(4, 16, dtype=torch.int64))


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((5, 12, 20), (5, 20, 12)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_a_batch_of_experts_is_orthogonalised_one_by_one() -> None:
    matrices = torch.randn(3, 6, 9) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    alone = torch.stack([orthogonalised(matrix[None])[0] for matrix in matrices])
    assert torch.allclose(orthogonalised(matrices), alone, atol=1e-5)


def adamw_by_hand(value: float, gradients: list[float], rate: float, decay: float) -> float:
    """Algorithm 2 of arXiv 1711.05101 for one number."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        ratio = (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-8)
        value -= rate * (ratio + decay * value)
    return value


def test_adamw_moves_each_number_by_its_formula_and_decays_matrices_alone() -> None:
    """Not compared with torch.optim: importing its compiler takes longer than all else here."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    nn.init.normal_(model.bias)
    before = [p.detach().clone() for p in (model.weight, model.bias)]
    flat = FlatOptimizer(model, "adamw", decay=0.1)
    gradients = torch.randn(4, 1 + 8)
    for gradient in gradients:
        flat.gradients.copy_(gradient)
        flat.step(0.01)
    # the bias, undecayed, lies first in the flat vector
    history = gradients[:, 1:].T.tolist()
    bias = [adamw_by_hand(v, g, 0.01, 0.0) for v, g in zip(before[1].tolist(), history[:2], strict=True)]
    weight = [adamw_by_hand(v, g, 0.01, 0.1) for v, g in zip(before[0].flatten().tolist(), history[2:], strict=True)]
    assert model.bias.tolist() == pytest.approx(bias, abs=1e-6)
    assert model.weight.flatten().tolist() == pytest.approx(weight, abs=1e-6)


def test_gradients_of_the_model_land_in_the_flat_vector() -> None:
    model = nn.Linear(3, 2)
    flat = FlatOptimizer(model, "adamw", decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    assert flat.gradients.tolist() == [0.0] + [1.0] * 8


def test_an_unknown_optimizer_or_controller_is_named() -> None:
    with pytest.raises(ContractError, match=r"train\.optimizer must be one of muon, adamw"):
        learner(optimizer="sgd")
    with pytest.raises(
        ContractError, match=r"router\.balancing must be one of adamw, sign, centred-sign, pi, pid, none"
    ):
        learner(balancing="pdi")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(optimizer: str) -> None:
    losses = train(learner(optimizer=optimizer, steps=40, learning_rate=0.01), 1, 40)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.8


def test_a_step_counts_every_token_once_in_every_layer() -> None:
    one = learner()
    done = one.step(1, 1)
    assert one.counts().sum(dim=1).tolist() == [4 * 32] * MODEL.num_hidden_layers
    assert done.tokens == 4 * 32
    one.reset_counts()
    assert int(one.counts().sum()) == 0


def test_the_schedule_ends_balancing_at_its_step() -> None:
    one = learner(balancing_until=2)
    train(one, 1, 2)
    moved = one.balancer.biases.clone()
    assert moved[:, :-1].any()
    train(one, 3, 4)
    assert torch.equal(one.balancer.biases, moved)


def test_a_loss_that_is_not_finite_raises_before_any_weight_moves() -> None:
    one = learner()
    one.model.model.norm.weight.data[0] = float("nan")
    before = one.model.model.layers[0].self_attn.o_proj.weight.clone()
    with pytest.raises(NumericsError, match="at step 1"):
        one.step(1, 1)
    assert torch.equal(before, one.model.model.layers[0].self_attn.o_proj.weight)


def test_the_learning_rate_warms_up_and_ends_at_a_tenth() -> None:
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, config.schedule, config.warmup) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)


def env(train: Any = None, router: Any = None, data: Any = None) -> dict[str, str]:
    found = {"TRAIN": train, "ROUTER": router, "DATA": data}
    return {f"TRIMTAB_{name}_JSON": json.dumps(value) for name, value in found.items() if value is not None}


def test_the_jobs_words_become_the_models_numbers() -> None:
    model, training = read_config(
        env({"steps": 9, "learningRate": 1}, {"experts": 8, "balancing": "sign"}, {"source": "python-docs"})
    )
    assert (model.num_experts, training.steps, training.learning_rate, training.balancing) == (8, 9, 1, "sign")
    assert read_config({}) == (ModelConfig(), TrainConfig())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (env({"step": 9}), "train.step is not known"),
        (env({"steps": "9"}), "train.steps must be a whole number"),
        (env({"steps": True}), "train.steps must be a whole number"),
        (env({"steps": 0}), "train.steps must be ≥ 1"),
        (env({"learningRate": 0.0}), "train.learningRate must be > 0"),
        (env({"clip": float("nan")}), "train.clip must be a finite number"),
        (env({"seed": -1}), "train.seed must be ≥ 0"),
        (env(router={"expert": 4}), "router.expert is not known"),
        (env(router={"experts": 0}), "router.experts must be ≥ 1"),
        (env(router={"skipBias": "abc"}), "router.skipBias must be a number, not 'abc'"),
        (env(router={"balancing": "nonsense"}), "router.balancing must be one of adamw, sign, centred-sign, pi"),
        (env(router={"balancing": "pid", "balancingKi": -0.1}), "router.balancingKi must be ≥ 0"),
        (env(router={"balancing": "pi", "balancingKd": 0.1}), "router.balancingKd is a gain of pid, not of .* pi"),
        (env(router={"balancingKp": 0.1}), "router.balancingKp is a gain of pi and pid, not of the balancing adamw"),
        (
            env(router={"balancing": "pi", "balancingKp": 0, "balancingKi": 0}),
            "router.balancing pi moves nothing: it has no gain above 0",
        ),
        (env(data={"source": "the web"}), "data.source must be one of python-docs"),
        (env(data={"path": "/"}), "data.path is not known"),
        (env({"steps": 0}, {"experts": 0}), "train.steps must be ≥ 1; router.experts must be ≥ 1"),
        ({"TRIMTAB_TRAIN_JSON": "{"}, "TRIMTAB_TRAIN_JSON is not JSON"),
        ({"TRIMTAB_TRAIN_JSON": "[]"}, "must be a JSON object"),
    ],
)
def test_a_setting_that_means_nothing_is_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_config(given)

"""The balancing controllers: each by its formula, the skip slot left alone, and a resume that is equal to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.zaya.config import CONTROLLERS
from jobs.zaya.model.network import Router
from jobs.zaya.training.balance import Balancer
from tests.jobs.zaya_small import MODEL, learner, train

STEERING = [name for name in CONTROLLERS if name != "none"]
GAINS = (0.3, 0.05, 0.1)
COUNTS = [[70, 10, 10, 10, 40], [40, 20, 30, 10, 0], [10, 50, 20, 20, 5], [25, 25, 30, 20, 0]]


def biases(controller: str, counts: list[list[int]], gains: tuple[float, float, float] = GAINS) -> Tensor:
    """The biases [steps, slots] of one router after each of the counts."""
    router = Router(MODEL, 0)
    balancer = Balancer([router], controller, 0.01, gains)
    found = []
    for row in counts:
        balancer.step(torch.tensor([row]))
        found.append(router.balancing_biases.clone())
    assert torch.equal(router.balancing_biases, balancer.biases[0])
    return torch.stack(found)


def errors() -> Tensor:
    counts = torch.tensor(COUNTS)[:, :4].double()
    return counts / counts.sum(dim=1, keepdim=True) - 0.25


@pytest.mark.parametrize("controller", STEERING)
def test_biases_move_against_the_load_and_the_skip_slot_stays(controller: str) -> None:
    found = biases(controller, COUNTS[:1])[0].tolist()
    assert found[0] < 0 < min(found[1:4])
    assert found[4] == -1.0


@pytest.mark.parametrize(("controller", "kd"), [("pi", 0.0), ("pid", 0.1)])
def test_pi_and_pid_are_their_positional_form(controller: str, kd: float) -> None:
    e = errors()
    change = torch.diff(e, dim=0, prepend=torch.zeros(1, 4, dtype=torch.float64))
    expected = -(0.3 * e + 0.05 * e.cumsum(dim=0) + kd * change)
    assert torch.allclose(biases(controller, COUNTS)[:, :4].double(), expected, atol=1e-7)


def test_the_centred_sign_keeps_the_mean_bias_where_the_sign_does_not() -> None:
    sign, centred = biases("sign", COUNTS)[:, :4], biases("centred-sign", COUNTS)[:, :4]
    assert centred.mean(dim=1).tolist() == pytest.approx([0] * 4, abs=1e-8)
    assert sign.mean(dim=1).abs().max() > 0.004
    first = torch.tensor([-1.5, 0.5, 0.5, 0.5]) * 0.01
    assert torch.allclose(centred[0], first)


def test_no_balancing_leaves_the_biases_alone() -> None:
    assert biases("none", COUNTS)[-1].tolist() == [0, 0, 0, 0, -1]


@pytest.mark.parametrize("controller", STEERING)
def test_a_layer_that_everybody_skipped_moves_no_expert_against_another(controller: str) -> None:
    found = biases(controller, [[0, 0, 0, 0, 100]])[0, :4]
    assert found.isfinite().all()
    assert torch.equal(found, found[:1].expand(4))


def test_gains_that_pi_does_not_have_change_nothing() -> None:
    assert torch.equal(biases("pi", COUNTS), biases("pi", COUNTS, (0.3, 0.05, 9.0)))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_resumed_controller_is_equal_to_the_last_bit(controller: str) -> None:
    values: dict[str, Any] = {"balancing": controller, "balancing_kd": 0.002, "steps": 8}
    whole = learner(**values)
    train(whole, 1, 4)
    kept = _copied(whole.state())
    train(whole, 5, 8)
    resumed = learner(**values)
    resumed.load(kept)
    train(resumed, 5, 8)
    assert torch.equal(whole.balancer.biases, resumed.balancer.biases)
    assert whole.balancer.state_dict().keys() == resumed.balancer.state_dict().keys()
    for name, value in whole.balancer.memory.items():
        assert torch.equal(value, resumed.balancer.memory[name]), name
        assert value.any()


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def test_the_memory_of_another_controller_is_refused() -> None:
    router = Router(MODEL, 0)
    state = Balancer([router], "pi", 0.01, GAINS).state_dict()
    with pytest.raises(KeyError):
        Balancer([Router(MODEL, 0)], "pid", 0.01, GAINS).load_state_dict(state)


def test_balancing_spreads_a_load_that_stays_uneven_without_it() -> None:
    """A fixed router over fixed tokens, so that the biases alone decide."""
    x = torch.randn(2000, MODEL.hidden_size, generator=torch.Generator().manual_seed(2))
    spread = {}
    for controller in CONTROLLERS:
        torch.manual_seed(5)
        router = Router(MODEL, 0)
        balancer = Balancer([router], controller, 0.002, (0.002, 0.01, 0.001))
        for _ in range(150):
            router.tokens_per_expert.zero_()
            router(x, None)
            balancer.step(router.tokens_per_expert[None])
        counts = router.tokens_per_expert[:-1].float()
        spread[controller] = float(counts.max() / counts.mean() - 1)
    assert spread.pop("none") > 0.5 > max(spread.values()), spread

"""Group-relative policy optimisation against its formulas, worked out by hand or by autograd of the plain form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import ContractError
from jobs.zaya.rl.grpo import advantages, clipped_loss, kl_penalty, sort_groups

rewards = st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=5)


@given(rewards)
def test_advantages_of_a_group_sum_to_nothing_and_keep_the_order_of_its_rewards(values: list[list[float]]) -> None:
    given_GN = torch.tensor(values)
    for kind in ("group", "dr"):
        found = advantages(given_GN, kind)
        assert torch.allclose(found.sum(dim=1), torch.zeros(len(values)), atol=1e-2)
        better = given_GN[:, :1] > given_GN[:, 1:]
        assert bool((found[:, :1] >= found[:, 1:])[better].all())


def test_a_groups_advantages_are_in_its_own_standard_deviations_and_dr_leaves_them_in_rewards() -> None:
    given_GN = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.6, 0.5, 0.5, 0.4]])
    deviation = math.sqrt(3) / 4
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25])
    assert torch.allclose(advantages(given_GN, "group")[0], expected / (deviation + 1e-4), atol=1e-5)
    assert torch.allclose(advantages(given_GN, "dr")[0], expected)
    small = advantages(given_GN, "group")[1].abs().max() / advantages(given_GN, "dr")[1].abs().max()
    assert small > 10, "a group that hardly differs weighs as much as any other, unless it is dr"


def test_an_advantage_of_another_name_is_refused() -> None:
    with pytest.raises(ContractError, match=r"train\.advantage"):
        advantages(torch.zeros(1, 2), "mean")


def test_groups_without_a_difference_are_told_apart_and_not_learned_from() -> None:
    found = sort_groups(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.2, 0.3]]))
    assert found.teaching == [3, 4]
    assert (found.all_pass, found.all_fail, found.all_same, found.dropped) == (1, 1, 1, 3)


def _loss(ratio: float, advantage: float) -> tuple[float, float, float]:
    """(loss, its gradient by the log-probability, tokens clipped) of one token with this importance ratio."""
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = clipped_loss(
        logprob,
        torch.zeros(1, 1),
        torch.tensor([advantage]),
        torch.ones(1, 1, dtype=torch.bool),
        low=0.2,
        high=0.3,
        divisor=1.0,
    )
    found.value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert logprob.grad is not None
    return float(found.value.detach()), float(logprob.grad), found.clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 1.0, -1.0, -1.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 1.0, -1.3, 0.0, 1),  # likelier already than the bound allows
        (0.5, 1.0, -0.5, -0.5, 0),  # a good token that became unlikely is brought back
        (0.5, -1.0, 0.8, 0.0, 1),  # unlikelier already than the bound allows
        (1.5, -1.0, 1.5, 1.5, 0),
    ],
)
def test_the_clip_takes_only_a_gain_beyond_its_bound_away(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    found = _loss(ratio, advantage)
    assert found[0] == pytest.approx(loss, abs=1e-6)
    assert found[1] == pytest.approx(gradient, abs=1e-6)
    assert found[2] == clipped


def test_what_the_mask_leaves_out_adds_nothing_and_the_divisor_is_the_steps() -> None:
    logprobs = torch.tensor([[0.0, 50.0], [0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    found = clipped_loss(logprobs, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), mask, low=0.2, high=0.2, divisor=4.0)
    assert float(found.value.detach()) == pytest.approx((-1 + 1 + 1) / 4)
    assert found.ratio == pytest.approx(3.0)
    found.value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.25, 0.0], [0.25, 0.25]]


@given(st.lists(st.floats(-3, 0), min_size=3, max_size=3), st.lists(st.floats(-3, 0), min_size=3, max_size=3))
def test_the_kl_estimate_is_never_negative_and_nothing_where_both_agree(one: list[float], other: list[float]) -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    policy, reference = torch.tensor([one], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)
    assert float(kl_penalty(policy, reference, mask, 3.0)) >= -1e-12
    assert float(kl_penalty(policy, policy, mask, 3.0)) == 0.0


def test_the_kl_estimate_is_the_divergence_in_the_mean() -> None:
    """Over all tokens that the policy may draw, weighed by how likely it draws them."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    mask = torch.ones(1, 1, dtype=torch.bool)
    mean = sum(
        float(p) * float(kl_penalty(p.log().view(1, 1), r.log().view(1, 1), mask, 1.0))
        for p, r in zip(policy, reference, strict=True)
    )
    assert mean == pytest.approx(float((policy * (policy / reference).log()).sum()), abs=1e-6)

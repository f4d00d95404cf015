"""Group-relative policy optimisation as pure functions of tensors: advantages, which groups teach, the clipped loss.

GRPO: Shao et al., arXiv 2402.03300. Dr. GRPO: Liu et al., arXiv 2503.20783. Clip bounds of their own for each side,
the mean over all tokens of a step, and groups without a difference dropped: DAPO, Yu et al., arXiv 2503.14476.
It knows no model, no actors and no environments.

Shape suffixes: G groups, N samples a group, B completions, T time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.contract import ContractError

_EPSILON = 1e-4  # of a standard deviation of rewards between 0 and 1


def advantages(rewards_GN: Tensor, kind: str) -> Tensor:
    """Each completion's advantage over its own group, [G, N] → the same.

    `group`: (r − mean) / (std + ε), arXiv 2402.03300, section 4.1.2, with the population's std. `dr`: r − mean, so
    that a group's difficulty does not weigh its gradient, arXiv 2503.20783, section 3.2.
    """
    centred = rewards_GN - rewards_GN.mean(dim=1, keepdim=True)
    if kind == "dr":
        return centred
    if kind != "group":
        raise ContractError(f"train.advantage must be group or dr, not {kind!r}")
    return centred / (rewards_GN.std(dim=1, correction=0, keepdim=True) + _EPSILON)


@dataclass(frozen=True)
class Sorted:
    """Groups by what they can teach: indices of those with a difference, and how many had none.

    `all_pass`: every reward 1 or more, `all_fail`: every one 0 or less, `all_same`: equal in between.
    """

    teaching: list[int]
    all_pass: int
    all_fail: int
    all_same: int

    @property
    def dropped(self) -> int:
        """Groups whose advantages are all zero."""
        return self.all_pass + self.all_fail + self.all_same


def sort_groups(rewards_GN: Tensor) -> Sorted:
    """Sorts groups of rewards [G, N] into those that teach and those that do not (DAPO, section 3.2)."""
    low, high = rewards_GN.amin(dim=1), rewards_GN.amax(dim=1)
    same = high == low
    passed, failed = same & (low >= 1), same & (high <= 0)
    teaching = torch.nonzero(~same)[:, 0].tolist()
    return Sorted(teaching, int(passed.sum()), int(failed.sum()), int(same.sum() - passed.sum() - failed.sum()))


@dataclass(frozen=True)
class Loss:
    """A micro batch's share of a step's loss, with gradient, and sums over its tokens for the step's means."""

    value: Tensor
    clipped: float
    """tokens whose gradient the clip took away"""
    ratio: float
    """importance ratios, summed"""


def clipped_loss(
    logprobs_BT: Tensor,
    sampled_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    low: float,
    high: float,
    divisor: float,
) -> Loss:
    """−Σ min(ρA, clip(ρ, 1 − low, 1 + high)A) / divisor over the tokens in the mask; ρ = exp(logprob − sampled).

    `sampled` are the log-probabilities that the rollout's own weights gave (PPO, arXiv 1707.06347, eq. 7). `divisor` is
    the step's: the number of its tokens for `group`, completions × the longest allowed for `dr`.
    """
    ratio = (logprobs_BT - sampled_BT).masked_fill(~mask_BT, 0).exp()
    advantage = advantages_B[:, None]
    free, bound = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    loss = -torch.minimum(free, bound).masked_fill(~mask_BT, 0).sum() / divisor
    clipped = ((bound < free) & mask_BT).sum()
    return Loss(loss, float(clipped), float(ratio.detach()[mask_BT].sum()))


def kl_penalty(logprobs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, divisor: float) -> Tensor:
    """Σ (r − 1 − log r) / divisor with r = reference ÷ policy: never negative, zero where both agree.

    The estimator is k3 of Schulman, "Approximating KL Divergence" (2020), as in arXiv 2402.03300, eq. 4.
    """
    log_ratio = (reference_BT - logprobs_BT).masked_fill(~mask_BT, 0)
    return (log_ratio.exp() - 1 - log_ratio).sum() / divisor

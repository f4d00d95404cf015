"""Expert parallelism in numbers: what each rank carries, how uneven that is, and what the unevenness costs in time.

Experts of a layer lie on ranks in contiguous blocks (rank r of R has experts r·E/R to (r+1)·E/R − 1), and groups nest
in Megatron's order: tensor parallel inside expert parallel inside data parallel, a pipeline's stages outermost. A step
is as slow as its fullest rank, layer by layer. Pure numpy; shape suffixes as in controlplane.rules.experts, R ranks of
an expert-parallel group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from controlplane.rules.experts import Floats

LEAST_STEPS = 16


@dataclass(frozen=True, slots=True)
class Home:
    """What lives on one rank: experts [first, last] of layers [first, last], and how many ranks hold the same."""

    experts: tuple[int, int]
    layers: tuple[int, int]
    copies: int


@dataclass(frozen=True, slots=True)
class Tax:
    """What uneven ranks cost: a line through step time over Σ_l (fullest ÷ mean rank's load − 1), by least squares."""

    seconds_a_load: float
    """slope: seconds a step that one more mean load on the fullest rank of a layer costs"""
    seconds: float
    """mean seconds a step above what even ranks would take"""
    share: float
    """of the mean step time"""
    r2: float


def rank_loads(counts: ArrayLike, experts: int, ranks: int) -> Floats:
    """Loads [..., L, R] of counts [..., L, S]: tokens that each expert-parallel rank's block of experts got.

    ValueError if the experts do not divide into the ranks.
    """
    if ranks < 1 or experts % ranks:
        raise ValueError(f"{experts} experts do not lie on {ranks} ranks in equal blocks")
    real = np.asarray(counts, dtype=np.float64)[..., :experts]
    return np.asarray(real.reshape(*real.shape[:-1], ranks, experts // ranks).sum(axis=-1), dtype=np.float64)


def skew(loads: ArrayLike) -> Floats:
    """Fullest ÷ mean rank of loads [..., R]; 1 is even, NaN without tokens."""
    found = np.asarray(loads, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(found.max(axis=-1) / found.mean(axis=-1), dtype=np.float64)


def skew_floor(loads: ArrayLike, design_effect: ArrayLike) -> Floats:
    """What chance alone makes of skew − 1 for loads [L, R]: √((R − 1)·deff ÷ N)·√(2 ln R), N the layer's tokens (the
    sampling floor of R equal bins, and the expected maximum of R near-normal loads)."""
    found = np.asarray(loads, dtype=np.float64)
    ranks, tokens = found.shape[-1], np.maximum(found.sum(axis=-1), 1.0)
    floor = np.sqrt((ranks - 1) * np.asarray(design_effect, dtype=np.float64) / tokens)
    return np.asarray(floor * np.sqrt(2 * np.log(ranks)), dtype=np.float64)


def imbalance_tax(step_seconds: ArrayLike, loads: ArrayLike) -> Tax | None:
    """The tax of steps [W] with loads [W, L, R]; None where too few steps are known or the load never moved.

    Regression of step time on what the layers with tokens have above an even step: Σ_l max_rank load − 1, loads in
    units of the layer's mean.
    """
    seconds, uneven = np.asarray(step_seconds, dtype=np.float64), skew(loads)
    excess = np.nansum(uneven - 1, axis=-1)
    known = np.isfinite(seconds) & np.isfinite(uneven).any(axis=-1)
    seconds, excess = seconds[known], excess[known]
    if len(seconds) < LEAST_STEPS or np.ptp(excess) == 0 or seconds.mean() <= 0:
        return None
    (slope, _), residuals = np.polyfit(excess, seconds, 1), seconds.var()
    above = float(slope * excess.mean())
    r2 = float(slope**2 * excess.var() / residuals) if residuals > 0 else 0.0
    return Tax(float(slope), above, above / float(seconds.mean()), r2)


def home(rank: int, world: int, experts: int, layers: int, layout: tuple[int, int, int]) -> Home | None:
    """Where rank `rank` of `world` stands; layout are the expert-, tensor- and pipeline-parallel sizes.

    None when the sizes do not divide what they are sizes of.
    """
    expert_parallel, tensor_parallel, stages = layout
    if min(layout) < 1 or world % stages or experts % expert_parallel or layers % stages:
        return None
    inside = world // stages
    if not 0 <= rank < world or inside % (tensor_parallel * expert_parallel):
        return None
    block, depth = experts // expert_parallel, layers // stages
    place, stage = (rank % inside) // tensor_parallel % expert_parallel, rank // inside
    return Home(
        (place * block, (place + 1) * block - 1),
        (stage * depth, (stage + 1) * depth - 1),
        inside // (tensor_parallel * expert_parallel),
    )

"""Expert balance in numbers: statistics per MoE layer of one step's counts, and of a window of steps.

Pure numpy, vectorised over layers and, where an argument says so, over leading axes of any shape (a window, a raster).
It judges nothing: `controlplane.rules.alarms` does. Shape suffixes: L layers, S slots, E real experts, W steps.
Slots from `experts` on are skip slots; they count for `skip_share` and nowhere else. What cannot be known (a layer
without tokens, a window that never moved) is NaN, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

DEAD_EXPECTED_TOKENS = 20.0
"""Below this many expected tokens a count of zero says nothing: balance alone gives it once in e^20 tries."""
DEAD_STEPS = 16
"""Three would do for independent tokens; in small batches of real text a group of like tokens leaves an expert empty
for longer (docs/experts.md)."""


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Balance of each layer; `...` is the shape of the axes in front of [L, S]. r = count ÷ mean count of its layer."""

    share: Floats
    """[..., L, E] part of the layer's routed tokens; 1/E is fair"""
    maxvio: Floats
    """[..., L] max r − 1: how far the fullest expert is above fair (Wang et al. 2024, "loss-free balancing")"""
    avgvio: Floats
    """[..., L] mean |r − 1|"""
    cv: Floats
    """[..., L] standard deviation of r, which is the coefficient of variation of the counts"""
    entropy: Floats
    """[..., L] H(share) ÷ ln E; 1 is fair"""
    effective: Floats
    """[..., L] exp(H) ÷ E: the part of the experts that a fair layer would need for this entropy"""
    gini: Floats
    """[..., L] Gini coefficient of the counts; 0 is fair"""
    min_load: Floats
    """[..., L] min r"""
    dead: Bools
    """[..., L, E] no token although at least DEAD_EXPECTED_TOKENS were to be expected"""
    dead_count: Integers
    """[..., L] how many experts are dead"""
    skip_share: Floats
    """[..., L] part of all tokens that took a skip slot; 0 in a model without one"""
    floor_cv: Floats
    """[...] the sampling floor of the whole record, from the mean number of routed tokens of the layers with any"""
    cv_floor: Floats
    """[..., L] cv ÷ the layer's own sampling floor: about 1 is as even as chance allows, whatever the shape"""
    bias_mean: Floats
    """[..., L] mean balancing bias of the real experts"""
    bias_spread: Floats
    """[..., L] largest − smallest balancing bias of the real experts"""


def sampling_floor(tokens: ArrayLike, experts: int, top_k: int) -> Floats:
    """CV that perfect balance still shows: √((E − K) ÷ (T·K)), with `tokens` = T·K routed token copies of a layer.

    T tokens that each pick K of E experts without preference give every count a variance of T·(K/E)·(1 − K/E).
    NaN where there are no tokens; real tokens correlate, so a real layer lies somewhat above.
    """
    routed = np.asarray(tokens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = np.sqrt((experts - top_k) / routed)
    return np.asarray(np.where(routed > 0, floor, np.nan), dtype=np.float64)


def design_effect(counts: ArrayLike, squares: ArrayLike, freedom: ArrayLike, ranks: ArrayLike, top_k: int) -> Floats:
    """How much more a layer's counts vary between ranks than independent tokens would: [L], 1 is independent.

    counts [L, E] are the sums over `ranks` [L] ranks, `squares` [L] the sum over ranks and experts of squared distances
    from the mean rank, `freedom` [L] its degrees of freedom. Independent tokens give a rank's count of an expert a
    variance of T·q·(1 − q), T its tokens and q = K·share the expert's chance (Kish 1965, "design effect": the ratio of
    the variances with and without clustering). NaN where there is no second rank or nothing was routed.
    """
    free, expected = np.asarray(freedom, dtype=np.float64), rank_variance(counts, ranks, top_k)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.asarray(squares, dtype=np.float64) / (free * expected)
    return np.asarray(np.where((free > 0) & (expected > 0), found, np.nan), dtype=np.float64)


def rank_variance(counts: ArrayLike, ranks: ArrayLike, top_k: int) -> Floats:
    """What independent tokens give a rank, the sum of its counts' variances over experts: [L], Σ_e T·q·(1 − q)."""
    counted, members = np.asarray(counts, dtype=np.float64), np.asarray(ranks, dtype=np.float64)
    routed = counted.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip(top_k * counted / routed[..., None], 0.0, 1.0)
        return np.asarray(routed / (top_k * members) * (chance * (1 - chance)).sum(axis=-1), dtype=np.float64)


def pooled_design_effect(
    counts: ArrayLike, squares: ArrayLike, freedom: ArrayLike, ranks: ArrayLike, top_k: int
) -> Floats:
    """The design effect of a window: [L], from counts [W, L, E] and the others [W, L] (`design_effect`'s); at least 1,
    as tokens are hardly ever more even than chance, and 1 where nothing is known. The mean of the steps, each weighing
    by its degrees of freedom."""
    each = design_effect(counts, squares, freedom, ranks, top_k)
    return trailing_design_effect(each.T, np.asarray(freedom, dtype=np.float64).T, len(each))[:, -1]


def trailing_design_effect(effects: ArrayLike, freedom: ArrayLike, steps: int = 64) -> Floats:
    """The design effect in force at each of N steps: [L, N], from those of single steps [L, N] and their degrees of
    freedom: the weighted mean of the last `steps` steps, at least 1; 1 where none of them is known."""
    each, weight = np.asarray(effects, dtype=np.float64), np.asarray(freedom, dtype=np.float64)
    known = np.isfinite(each) & (weight > 0)
    sums = np.cumsum(np.where(known, each * weight, 0.0), axis=1), np.cumsum(np.where(known, weight, 0.0), axis=1)
    for found in sums:
        found[:, steps:] -= found[:, :-steps].copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums[0] / sums[1]
    # differences of sums leave a crumb where nothing is known
    return np.asarray(np.where(sums[1] > 0.5, np.maximum(mean, 1.0), 1.0), dtype=np.float64)


def maxvio_floor(floor_cv: ArrayLike, experts: int) -> Floats:
    """MaxVio that perfect balance still shows: about CV₀·√(2 ln E), the expected maximum of E near-normal loads."""
    return np.asarray(np.asarray(floor_cv, dtype=np.float64) * np.sqrt(2 * np.log(experts)), dtype=np.float64)


def layer_statistics(counts: ArrayLike, bias: ArrayLike, experts: int, top_k: int) -> LayerStatistics:
    """Statistics of counts [..., L, S] and balancing biases of the same shape; ValueError if shapes do not fit."""
    counted = np.asarray(counts, dtype=np.float64)
    biases = np.asarray(bias, dtype=np.float64)
    if counted.shape != biases.shape or counted.ndim < 2:
        raise ValueError(f"counts {counted.shape} and bias {biases.shape} must both be [..., layers, slots]")
    if not 1 <= top_k <= experts <= counted.shape[-1]:
        raise ValueError(f"top-{top_k} of {experts} experts does not fit {counted.shape[-1]} slots")
    real, real_bias = counted[..., :experts], biases[..., :experts]
    routed = real.sum(axis=-1)
    everything = counted.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = real / routed[..., None]
        ratio = share * experts
        cv = ratio.std(axis=-1)
        entropy = _entropy(share)
        cv_floor = cv / sampling_floor(routed, experts, top_k)
        skip_share = 1.0 - routed / everything
        usual = routed.sum(axis=-1) / np.count_nonzero(routed, axis=-1)
    dead = (real == 0) & (routed[..., None] >= DEAD_EXPECTED_TOKENS * experts)
    return LayerStatistics(
        share=share,
        maxvio=ratio.max(axis=-1) - 1.0,
        avgvio=np.abs(ratio - 1.0).mean(axis=-1),
        cv=cv,
        entropy=entropy / np.log(experts) if experts > 1 else np.where(routed > 0, 1.0, np.nan),
        effective=np.exp(entropy) / experts,
        gini=_gini(share),
        min_load=ratio.min(axis=-1),
        dead=dead,
        dead_count=dead.sum(axis=-1),
        skip_share=skip_share,
        floor_cv=sampling_floor(usual, experts, top_k),
        cv_floor=cv_floor,
        bias_mean=real_bias.mean(axis=-1),
        bias_spread=np.ptp(real_bias, axis=-1),
    )


def _entropy(share: Floats) -> Floats:
    """H = −Σ p ln p over the last axis, in nats, with 0·ln 0 = 0; NaN shares stay NaN."""
    logs = np.log(np.where(share == 0, 1.0, share))
    return np.asarray(-(share * logs).sum(axis=-1), dtype=np.float64)


def _gini(share: Floats) -> Floats:
    """Gini coefficient over the last axis from the sorted shares: Σ (2i − E − 1)·p₍ᵢ₎ ÷ E."""
    experts = share.shape[-1]
    weights = (2 * np.arange(1, experts + 1) - experts - 1) / experts
    return np.asarray(np.sort(share, axis=-1) @ weights, dtype=np.float64)


def mean_of_known(values: ArrayLike, axis: int = -1) -> Floats:
    """The mean over an axis of what is known (finite); NaN of nothing."""
    found = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # +inf and -inf together
        plain = found.sum(axis=axis)
    if found.shape[axis] and np.isfinite(plain).all():
        return np.asarray(plain / found.shape[axis], dtype=np.float64)
    known = np.isfinite(found)
    total = known.sum(axis=axis)
    sums = np.where(known, found, 0.0).sum(axis=axis)
    return np.asarray(np.where(total > 0, sums / np.maximum(total, 1), np.nan), dtype=np.float64)


def bucket_means(values: NDArray[np.float32], starts: NDArray[np.intp]) -> NDArray[np.float32]:
    """Means [..., C] of what is known of values [..., N] over buckets that begin at `starts` [C]; NaN of nothing."""
    with np.errstate(invalid="ignore", over="ignore"):  # +inf and -inf together
        plain = np.add.reduceat(values, starts, axis=-1)
    if np.isfinite(plain).all():
        return (plain / np.diff(np.append(starts, values.shape[-1]))).astype(np.float32)
    known = np.isfinite(values)
    count = np.add.reduceat(known.astype(np.float32), starts, axis=-1)
    total = np.add.reduceat(np.where(known, values, np.float32(0)), starts, axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def dead_experts(counts: ArrayLike, experts: int, steps: int = DEAD_STEPS, design_effect: ArrayLike = 1.0) -> Bools:
    """Which experts [L, E] got no token in the last `steps` of counts [W, L, S] although enough were to be expected.

    Correlated tokens are worth fewer: the expected number is divided by the design effect, [L] or one for all. Nobody
    is dead in a window that is shorter: what was not seen is not known.
    """
    counted = np.asarray(counts)
    last = counted[-steps:, :, :experts].sum(axis=0, dtype=np.float64)
    if counted.shape[0] < steps:
        return np.zeros(last.shape, dtype=np.bool_)
    expected = last.sum(axis=-1, keepdims=True) / experts / np.asarray(design_effect, dtype=np.float64)[..., None]
    return np.asarray((last == 0) & (expected >= DEAD_EXPECTED_TOKENS), dtype=np.bool_)


def lag1_autocorrelation(loads: ArrayLike) -> Floats:
    """Lag-1 autocorrelation [L] of loads [W, L, E] (counts or shares), pooled over the experts of a layer.

    ρ₁ = Σ_e Σ_t d_t·d_{t+1} ÷ Σ_e Σ_t d_t², d = deviation from the expert's mean over the window: each expert weighs
    by its variance. Independent steps give about −1/W. NaN for fewer than three known steps or where nothing moved;
    pairs of steps of which one is not known are left out.
    """
    moved = deviations(loads)
    if moved.shape[0] < 3:
        return np.full(moved.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.einsum("wle,wle->l", moved, moved)
        return np.asarray(np.einsum("wle,wle->l", moved[:-1], moved[1:]) / variance, dtype=np.float64)


def period_steps(loads: ArrayLike) -> Floats:
    """The strongest period [L], in steps, of loads [W, L, E]: the peak of the power summed over a layer's experts.

    NaN for fewer than four steps or where nothing moved. Resolution: W ÷ k for whole k.
    """
    moved = deviations(loads)
    steps = moved.shape[0]
    if steps < 4:
        return np.full(moved.shape[1], np.nan)
    power = (np.abs(np.fft.rfft(moved, axis=0)) ** 2).sum(axis=-1)[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(power.max(axis=0) > 0, steps / (power.argmax(axis=0) + 1), np.nan), dtype=np.float64)


def deviations(loads: ArrayLike) -> NDArray[np.floating[Any]]:
    """Loads [W, L, E] less their mean over the window; single precision stays single, for windows of large models.

    0 in the steps of a layer that are not known (NaN), and in all of a layer of which fewer than three are.
    """
    found = np.asarray(loads)
    found = found if found.dtype == np.float32 else found.astype(np.float64)
    silent = np.isnan(found[..., 0])
    if silent.any():
        return _known_deviations(found, ~silent)
    moved: NDArray[np.floating[Any]] = found - found.mean(axis=0, keepdims=True)
    # what is left of a constant series is rounding, not movement
    moved[:, (found == found[:1]).all(axis=0)] = 0.0
    return moved


def _known_deviations(found: NDArray[np.floating[Any]], known: Bools) -> NDArray[np.floating[Any]]:
    """Of loads [W, L, E] that are `known` in some steps [W, L] only."""
    steps = known.sum(axis=0)
    filled = np.where(known[..., None], found, 0)
    moved: NDArray[np.floating[Any]] = filled - filled.sum(axis=0) / np.maximum(steps, 1).astype(found.dtype)[:, None]
    first = found[known.argmax(axis=0), np.arange(known.shape[1])]
    moved[:, ((found == first) | ~known[..., None]).all(axis=0)] = 0.0
    moved[~known | (steps < 3)] = 0.0
    return moved


def same_direction_share(bias: ArrayLike, experts: int) -> Floats:
    """How one-sidedly the biases [W, L, S] move: the larger part of an expert's non-zero Δb of one sign, mean over [L].

    1 is a bias that only ever went one way, about ½ a controller at rest. NaN where no bias moved.
    """
    signs = _bias_signs(bias, experts)
    up, down = (signs > 0).sum(axis=0), (signs < 0).sum(axis=0)
    return _mean_known(np.maximum(up, down), up + down)


def sign_flip_rate(bias: ArrayLike, experts: int) -> Floats:
    """How often a bias's Δb changes sign from one step to the next, mean over the experts of each layer [L].

    Steps in which a bias stood still are left out, with the pairs they are part of. NaN where no pair is left.
    """
    signs = _bias_signs(bias, experts)
    products = signs[:-1] * signs[1:]
    return _mean_known((products < 0).sum(axis=0), (products != 0).sum(axis=0))


def churn(share: ArrayLike) -> Floats:
    """How much of a layer's load moves to other experts from one step to the next: [L], mean over the window of shares
    [W, L, E] of ½·Σ_e |p_t − p_{t−1}| (total variation distance), where both are known. NaN of no such pair."""
    shares = np.asarray(share, dtype=np.float64)
    if shares.shape[0] < 2:
        return np.full(shares.shape[1], np.nan)
    return mean_of_known(np.abs(np.diff(shares, axis=0)).sum(axis=-1) / 2, axis=0)


def bias_change(bias: ArrayLike, experts: int) -> Floats:
    """Mean |Δb| [L] over the steps and real experts of biases [W, L, S]; NaN for fewer than two steps."""
    biases = np.asarray(bias, dtype=np.float64)[..., :experts]
    if biases.shape[0] < 2:
        return np.full(biases.shape[1], np.nan)
    return np.asarray(np.abs(np.diff(biases, axis=0)).mean(axis=(0, 2)), dtype=np.float64)


def _bias_signs(bias: ArrayLike, experts: int) -> Floats:
    biases = np.asarray(bias, dtype=np.float64)[..., :experts]
    return np.asarray(np.sign(np.diff(biases, axis=0)), dtype=np.float64)


def _mean_known(hits: NDArray[Any], tries: NDArray[Any]) -> Floats:
    """Mean over the last axis of hits ÷ tries, leaving out what had no try; NaN where nothing is left."""
    known = tries > 0
    rates = np.where(known, hits / np.where(known, tries, 1), 0.0).sum(axis=-1)
    total = known.sum(axis=-1)
    return np.asarray(np.where(total > 0, rates / np.where(total > 0, total, 1), np.nan), dtype=np.float64)

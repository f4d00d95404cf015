"""How the load of experts answers their balancing biases: one gain a layer, fitted to a recorded run. Pure numpy.

A router adds the bias to its scores and takes the largest, so a bias moves tokens between experts that are nearly tied.
Two models of one gain g a layer stand against each other, and the one that predicts steps it was not fitted to
better is taken:

    softmax   p = softmax(a + g·f), for small changes Δp = g·(diag(p) − p·pᵀ)·Δf
    linear    p = 1/E + a + (g/E)·(f − mean f)

f is the bias less its running mean, b − m with m ← m + fade·(b − m): a router that trains under a standing bias learns
it away, so only what is new of it is felt; fade 0 is a router that does not. a [L, E] is what the router wants by
itself. It is no constant either: a is a random walk, and what is seen of p is p with sampling noise. g is fitted to
the innovations of the Kalman filter of that walk, shares and biases filtered alike, by weighted least squares (the
prediction-error method; Ljung, System Identification, 2nd edition, 1999, chapters 7 and 13). Plain least squares of
Δp on Δb would not do: a controller moves the bias against the noise of the step before, and noise that goes away by
itself would look like an answer. Fade and the ratio of walk to noise are those of the highest likelihood on a grid.

Where the bias of a layer did not move, nothing is known of g: NaN, never a guess. It judges nothing and simulates
nothing; controlplane.simulate.balance does. Shapes: W steps, L layers, S slots, E experts, N draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controlplane.rules.experts import sampling_floor

Floats = NDArray[np.float64]

MODELS = ("softmax", "linear")
FIT_SHARE = 0.7
"""The first part of a record is fitted, the rest judges the fit."""
LEAST_STEPS = 32
"""A shorter record is not fitted."""
SURE_ERRORS = 2.0
"""A gain below this many of its standard errors cannot be told from none."""
_RATIOS = 2.0 ** np.arange(-14, 7)
"""Variance of the walk a step ÷ variance of the sampling noise at fair shares."""
_FADES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_MEMORY = 0.9
"""Of the running share that says how noisy an expert's logarithm is; past steps only, so that the filter is causal."""


@dataclass(frozen=True, slots=True)
class Response:
    """What was found of each layer; [L] each, NaN where it cannot be told."""

    model: str
    gain: Floats
    """g: relative change of a fair share by a change of bias by one"""
    gain_error: Floats
    """standard error of g"""
    fade: Floats
    """part of a standing bias that the router learns away in a step"""
    ratio: Floats
    """variance of the router's walk a step ÷ that of the sampling noise at fair shares"""
    design: Floats
    """variance of the noise ÷ that of independent tokens: 1 is tokens that choose one by one"""
    r2_step: Floats
    """of the next step's shares on held-out steps, against the same filter that knows no bias"""

    def known(self) -> NDArray[np.bool_]:
        """[L] layers whose gain can be told from none."""
        with np.errstate(invalid="ignore"):
            found: NDArray[np.bool_] = self.gain > SURE_ERRORS * self.gain_error
        return found


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded run: the counts of each step and the biases that were in force in it."""

    counts: Floats
    """[W, L, E]"""
    bias: Floats
    """[W, L, E], less its mean over the experts"""
    top_k: int

    @property
    def experts(self) -> int:
        """E."""
        return int(self.counts.shape[2])

    @property
    def routed(self) -> Floats:
        """[W, L] token copies that real experts got."""
        return np.asarray(self.counts.sum(axis=2), dtype=np.float64)

    def part(self, first: int, last: int | None) -> Record:
        """The steps first ≤ w < last."""
        return replace(self, counts=self.counts[first:last], bias=self.bias[first:last])


def record_of(counts: ArrayLike, bias: ArrayLike, experts: int, top_k: int, *, bias_after: bool = True) -> Record:
    """From counts and biases [W, L, S] of consecutive steps; ValueError if they are none.

    `bias_after`: a step's bias is the one that its counts led to, as the probe of jobs.zaya and Megatron's writes it;
    it is in force in the next step, and the first step, whose own is not known, is left out.
    """
    counted, biases = np.asarray(counts, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    if counted.ndim != 3 or counted.shape != biases.shape:
        raise ValueError(f"counts {counted.shape} and bias {biases.shape} must both be [steps, layers, slots]")
    if not 1 <= top_k < experts <= counted.shape[2]:
        raise ValueError(f"top-{top_k} of {experts} experts does not fit {counted.shape[2]} slots")
    counted, biases = counted[..., :experts], biases[..., :experts]
    if bias_after:
        counted, biases = counted[1:], biases[:-1]
    if not len(counted) or (counted.sum(axis=2) <= 0).any():
        raise ValueError("each step must have tokens in every layer")
    return Record(counted, biases - biases.mean(axis=2, keepdims=True), top_k)


def fit_response(record: Record, design: ArrayLike | None = None) -> Response:
    """The better of the two models; the gain is that of all steps, the R² are those of the held-out ones.

    `design` [L] or a number: the design effect as it was measured (`pooled_design_effect` of rules.experts). Without it
    the size of the noise is fitted too, and walk and noise are easily taken for each other: the gain is then less sure
    than its error says. So it is under a controller that is linear in the shares (pi, pid).
    """
    if len(record.counts) < LEAST_STEPS:
        raise ValueError(f"{len(record.counts)} steps are too few to fit a response, {LEAST_STEPS} are needed")
    judged = [_judge(record, model, design) for model in MODELS]
    wrong = [float(np.nanmean(error)) if np.isfinite(error).any() else np.inf for _, error in judged]
    return judged[int(np.argmin(wrong))][0]


def compare(record: Record, design: ArrayLike | None = None) -> dict[str, Response]:
    """Each model's fit by its name."""
    return {model: _judge(record, model, design)[0] for model in MODELS}


def _judge(record: Record, model: str, design: ArrayLike | None) -> tuple[Response, Floats]:
    """The fit to all steps with its R² on held-out ones, and [L] the squared error of those."""
    cut = int(FIT_SHARE * len(record.counts))
    early = _fit(record.part(0, cut), model, design)
    whole = _fit(record, model, design)
    gain, shares = np.nan_to_num(early.gain), _share(record)
    lift = gain[:, None] * felt_bias(record.bias, early.fade)
    errors = [
        ((shares[1:] - _predicted(record, model, moved, early.ratio))[cut:] ** 2).sum(axis=(0, 2))
        for moved in (lift, 0 * lift)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        r2_step = 1 - errors[0] / errors[1]
    unknown = np.isnan(early.gain) | np.isnan(whole.gain)
    return replace(whole, r2_step=np.where(unknown, np.nan, r2_step)), np.where(unknown, np.nan, errors[0])


# --- the filter ------------------------------------------------------------------------------------------------------


def _share(record: Record) -> Floats:
    return record.counts / record.routed[..., None]


def _seen(record: Record, model: str) -> Floats:
    """What is linear in a and b [W, L, E]: centred logarithms of the shares, or the shares in units of 1/E."""
    if model == "linear":
        return _share(record) * record.experts - 1
    logs = np.log(record.counts + 0.5)
    return np.asarray(logs - logs.mean(axis=2, keepdims=True), dtype=np.float64)


def _noise(record: Record, model: str) -> Floats:
    """Variance of what is seen [W, L, E] in units of the squared sampling floor; of past steps alone."""
    if model == "linear":
        return np.ones_like(record.counts)
    running = np.empty_like(record.counts)
    share = _share(record)
    running[0] = 1 / record.experts
    for step in range(1, len(share)):
        running[step] = _MEMORY * running[step - 1] + (1 - _MEMORY) * share[step - 1]
    running = np.maximum(running, 0.5 / record.routed[..., None])
    spare = np.maximum(1 / running - record.top_k, 0.25)
    return np.asarray(spare / (record.experts - record.top_k), dtype=np.float64)


def _gains(noise: Floats, ratio: Floats) -> Floats:
    """Kalman gain [W, L, E] for a walk of variance `ratio` [L] seen with `noise`."""
    gains = np.empty_like(noise)
    spread = noise[0].copy()
    gains[0] = 1.0
    for step in range(1, len(noise)):
        spread = spread + ratio[:, None]
        gains[step] = spread / (spread + noise[step])
        spread = spread * (1 - gains[step])
    return gains


def _levels(series: Floats, gains: Floats) -> Floats:
    """The filtered level [W, L, E] of a series after each step."""
    level = np.empty_like(series)
    level[0] = series[0]
    for step in range(1, len(series)):
        level[step] = level[step - 1] + gains[step] * (series[step] - level[step - 1])
    return level


def _fit(record: Record, model: str, design: ArrayLike | None) -> Response:
    """The gain of the highest likelihood over the grid of fades and ratios; R² are left NaN."""
    seen, noise = _seen(record, model), _noise(record, model)
    floor2 = sampling_floor(record.routed, record.experts, record.top_k).mean(axis=0) ** 2
    layers, degrees = seen.shape[1], (len(seen) - 1) * (record.experts - 1)
    felt = np.stack([felt_bias(record.bias, np.full(layers, fade)) for fade in _FADES])
    sums = _sums(seen, felt, noise)
    # what is left of a bias that stood still is rounding
    power = np.where(np.ptp(felt, axis=1).max(axis=-1)[:, None] > 1e-9, sums.power, np.nan)
    gain = sums.cross / power
    scale = (sums.square - np.nan_to_num(gain * sums.cross)) / degrees
    size = scale if design is None else np.broadcast_to(np.asarray(design, dtype=np.float64), (layers,)) * floor2
    loss = degrees * (np.log(size) + scale / size) + sums.logs * (record.experts - 1) / record.experts
    best = loss.reshape(-1, layers).argmin(axis=0)

    def at_best(values: NDArray[np.floating[Any]]) -> Floats:
        flat = np.broadcast_to(values, loss.shape).reshape(-1, layers)
        return np.asarray(flat[best, np.arange(layers)], dtype=np.float64)

    return Response(
        model=model,
        gain=at_best(gain),
        gain_error=at_best(np.sqrt(scale / power)),
        fade=at_best(np.array(_FADES)[:, None, None]),
        ratio=at_best(_RATIOS[:, None]),
        design=at_best(size) / floor2,
        r2_step=np.full(layers, np.nan),
    )


@dataclass(slots=True)
class _Sums:
    """What the likelihood needs of the innovations at each point of the grid; F fades, R ratios. Sums over steps and
    experts of weighted squares of the answer [R, L], of its products with the cause and of the cause's squares
    [F, R, L], and of the logarithms of their variances [R, L]."""

    square: Floats
    cross: Floats
    power: Floats
    logs: Floats


def _sums(seen: Floats, felt: Floats, noise: Floats) -> _Sums:
    """One pass of the filters of all ratios over what is seen [W, L, E] and felt [F, W, L, E]."""
    fades, (_, layers, experts), ratios = len(felt), seen.shape, len(_RATIOS)
    walk = _RATIOS[:, None, None]
    level, spread = (np.repeat(first[None], ratios, axis=0) for first in (seen[0], noise[0]))
    cause_level = np.zeros((fades, ratios, layers, experts))
    sums = _Sums(*(np.zeros(shape) for shape in [(ratios, layers), *[(fades, ratios, layers)] * 2, (ratios, layers)]))
    for step in range(1, len(seen)):
        spread += walk
        variance = spread + noise[step]
        gain = spread / variance
        spread *= 1 - gain
        answer, cause = seen[step] - level, felt[:, None, step] - cause_level
        level += gain * answer
        cause_level += gain * cause
        weighted = cause / variance
        sums.square += (answer**2 / variance).sum(axis=-1)
        sums.cross += (weighted * answer).sum(axis=-1)
        sums.power += (weighted * cause).sum(axis=-1)
        sums.logs += np.log(variance).sum(axis=-1)
    return sums


def felt_bias(bias: Floats, fade: Floats) -> Floats:
    """What is new [W, L, E] of biases [W, L, E] over their running mean, by the fade [L] of each layer."""
    running, felt = bias[0].copy(), np.zeros_like(bias)
    for step in range(1, len(bias)):
        running += fade[:, None] * (bias[step] - running)
        felt[step] = bias[step] - running
    return felt


def _shares_of(seen: Floats, model: str) -> Floats:
    """The inverse of _seen."""
    if model == "linear":
        share = np.maximum(1 + seen, 0.0)
    else:
        share = np.exp(seen - seen.max(axis=-1, keepdims=True))
    return np.asarray(share / share.sum(axis=-1, keepdims=True), dtype=np.float64)


def _predicted(record: Record, model: str, lift: Floats, ratio: Floats) -> Floats:
    """Shares [W − 1, L, E] of each step from the second, from the steps before and what its biases lift."""
    gains = _gains(_noise(record, model), ratio)
    level = _levels(_seen(record, model) - lift, gains)
    return _shares_of(level[:-1] + lift[1:], model)


# --- the router by itself --------------------------------------------------------------------------------------------


def draw_movement(record: Record, response: Response, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The router's own movement [W, L, E], biases left out, and the noise around it, both drawn from all that was seen.

    A walk and its noise are made up and smoothed like the record; what the smoother missed of the made-up walk is added
    to the record's (Durbin & Koopman, Biometrika 89, 2002). The noise is normal, of the fitted size. Layers whose gain
    is not known are taken with gain 0.
    """
    noise, seen = _noise(record, response.model), _seen(record, response.model)
    floor2 = sampling_floor(record.routed, record.experts, record.top_k).mean(axis=0) ** 2
    unit = np.sqrt(response.design * floor2)[:, None]
    gains = _gains(noise, response.ratio)
    steps = unit * np.sqrt(response.ratio)[:, None] * random.standard_normal(seen.shape)
    walk = np.cumsum(steps, axis=0)
    made = walk + unit * np.sqrt(noise) * random.standard_normal(seen.shape)
    level = seen - lifted(record.bias, response)
    drawn = _smoothed(level - made, gains, noise, response.ratio) + walk
    return drawn, np.asarray(unit * np.sqrt(noise) * random.standard_normal(seen.shape), dtype=np.float64)


def lifted(bias: Floats, response: Response) -> Floats:
    """What biases [W, L, E] add to what is seen; 0 in layers whose gain is not known."""
    gain = np.where(response.known(), response.gain, 0.0)
    return np.asarray(gain[:, None] * felt_bias(bias, response.fade), dtype=np.float64)


def _smoothed(series: Floats, gains: Floats, noise: Floats, ratio: Floats) -> Floats:
    """The level [W, L, E] from all steps (Rauch, Tung & Striebel, AIAA Journal 3, 1965)."""
    level, spread = _levels(series, gains), gains * noise
    for step in range(len(level) - 2, -1, -1):
        pull = spread[step] / (spread[step] + ratio[:, None])
        level[step] += pull * (level[step + 1] - level[step])
    return level


def seen_in(record: Record, response: Response) -> Floats:
    """The record [W, L, E] as the response's model sees it: the scale on which movement, noise and lift add up."""
    return _seen(record, response.model)


def shares_of(seen: Floats, response: Response) -> Floats:
    """Shares [..., L, E] of what is seen; the inverse of `seen_in`."""
    return _shares_of(seen, response.model)

"""Alarms over loads: imbalance and collapse, swinging loads, dead experts, a used skip slot. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import experts as statistics
from controlplane.rules.book import Rule
from controlplane.rules.expert_swings import autocorrelations
from controlplane.rules.expert_window import ExpertWindow, clear, finding, unknown, worst
from controlplane.rules.findings import Judgement


def imbalance(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers whose steps lie far from even, in units of what chance makes of correlated tokens, and which do not even
    out over the window."""
    at = rule.thresholds
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    uneven, collapsed = uneven_layers(last, rule)
    lasting, effective = last.lasting.cv, last.lasting.effective
    layers = collapsed if collapsed.any() else uneven
    if not layers.any():
        return clear(last, rule, last.unseen)
    layer = worst(layers, last.floors)
    words = {
        "cv": f"{lasting[layer]:.2f}",
        "floors": f"{last.floors[layer]:.1f}",
        "effective": f"{effective[layer]:.0%}",
        "fullest": f"{1 + last.lasting.maxvio[layer]:.1f}",
    }
    threshold = at["worse_cv_floor"] if collapsed.any() else at["cv_floor"]
    value = float(last.floors[layer])
    return finding(last, rule, layers, layer, value, threshold, words, is_worse=bool(collapsed.any()))


def uneven_layers(last: ExpertWindow, rule: Rule) -> tuple[statistics.Bools, statistics.Bools]:
    """[L] which layers of a whole window the imbalance rule names, and which of them at its worse level.

    One expert at 1 + m times its fair share makes a CV of m ÷ √(E − 1) only, so that the fullest expert counts as well.
    """
    at, falling = rule.thresholds, last.falling(rule)
    lasting, effective, fullest = last.lasting.cv, last.lasting.effective, last.lasting.maxvio
    above = fullest > at["maxvio_floors"] * last.lasting_maxvio_floor
    uneven = (last.floors > at["cv_floor"]) & ((lasting > at["cv"]) | ((fullest > at["maxvio"]) & above))
    collapsed = (last.floors > at["worse_cv_floor"]) & (
        (lasting > at["worse_cv"]) | ((fullest > at["worse_maxvio"]) & above)
    )
    uneven |= effective < at["effective"]
    collapsed |= effective < at["worse_effective"]
    left = falling | last.unseen
    return uneven & ~left, collapsed & ~left


def oscillation(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers whose loads swing back and forth: a bias controller with too much gain overshoots, in the very next step
    or, where it has momentum, some steps later."""
    at = rule.thresholds
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    swings, wild = swinging_layers(last, rule)
    if not swings.any():
        return clear(last, rule, last.unseen)
    size, correlation, lag = _slow_swings(last, rule)
    fast = last.lag1 <= at["lag1"]
    correlation[fast], lag[fast] = last.lag1[fast], 1
    layer = worst(wild if wild.any() else swings, -correlation)
    period = statistics.period_steps(last.found.share)[layer]
    words = {
        "period": f"{period:.1f}".removesuffix(".0"),
        "correlation": f"{correlation[layer]:.2f}",
        "lag": f"{lag[layer]} step{'s' if lag[layer] > 1 else ''}",
        "floors": f"{last.floors[layer]:.1f}",
    }
    is_worse = bool(wild.any())
    value, of = (correlation, "lag1") if fast[layer] else (size, "slow")
    threshold = at[f"worse_{of}"] if is_worse else at[of]
    return finding(last, rule, swings, layer, float(value[layer]), threshold, words, is_worse=is_worse)


def swinging_layers(last: ExpertWindow, rule: Rule) -> tuple[statistics.Bools, statistics.Bools]:
    """[L] which layers of a whole window the oscillation rule names, and which of them at its worse level."""
    at = rule.thresholds
    size, _, _ = _slow_swings(last, rule)
    swings = ((last.lag1 <= at["lag1"]) & (last.floors > at["cv_floor"])) | (size > at["slow"])
    wild = np.asarray((last.lag1 <= at["worse_lag1"]) | (size > at["worse_slow"]))
    return (swings | wild) & ~last.unseen, wild & ~last.unseen


def _slow_swings(last: ExpertWindow, rule: Rule) -> tuple[statistics.Floats, statistics.Floats, NDArray[np.int64]]:
    """[L] the size of each layer's swing in floors, its autocorrelation and the lag of that, half a period.

    Size is the CV that passes within the window, in floors, times the most negative autocorrelation up to `slow_lags`,
    turned round. Healthy controllers with momentum swing a little: where even all of the CV would be too small a
    swing, or the CV is small in itself, it is NaN.
    """
    at = rule.thresholds
    with np.errstate(divide="ignore", invalid="ignore"):  # a layer without tokens
        passing = last.floors * np.sqrt(np.clip(1 - (last.lasting.cv / last.cv) ** 2, 0.0, 1.0))
    size, correlation = np.full((2, len(passing)), np.nan)
    lag = np.ones(len(passing), np.int64)
    far = np.flatnonzero((passing > at["slow"]) & (last.cv > at["slow_cv"]))
    if len(far):
        counts = last.counts[:, far, : last.experts].astype(np.float32)
        with np.errstate(invalid="ignore"):  # a step without tokens is not known
            found = autocorrelations(counts / counts.sum(axis=-1, keepdims=True), int(at["slow_lags"]))
        correlation[far], lag[far] = found.min(axis=-1), np.nan_to_num(found).argmin(axis=-1) + 1
        clear = correlation[far] <= at["slow_lag"]  # the least of so many is below zero by chance too
        size[far] = np.where(clear, -correlation[far] * passing[far], np.nan)
    return size, correlation, lag


def dead(window: ExpertWindow, rule: Rule) -> Judgement:
    """Experts without a token. One that its controller is bringing back, its bias rising among its layer's, is given
    `patience_steps`."""
    steps = int(rule.thresholds["steps"])
    last = window.last(rule, steps)
    if last is None:
        return unknown(window, rule)
    found = lifeless(window, last, rule)
    count = found.sum(axis=-1)
    if not found.any():
        return clear(last, rule, np.asarray(~last.counts[..., : last.experts].any(axis=(0, 2)), dtype=np.bool_))
    layer = worst(count > 0, count.astype(np.float64))
    total = int(count.sum())
    words: dict[str, Any] = {
        "experts": f"{total} expert{'s' if total > 1 else ''}",
        "steps": steps,
        "count": int(count[layer]),
        "of": last.experts,
    }
    return finding(last, rule, count > 0, layer, float(total), 0.0, words)


def lifeless(window: ExpertWindow, last: ExpertWindow, rule: Rule) -> statistics.Bools:
    """[L, E] which experts the rule for dead ones names; `last` are the rule's own last steps of the window."""
    at = rule.thresholds
    found = statistics.dead_experts(last.counts, last.experts, int(at["steps"]), window.design_effect)
    return found & ~_coming_back(window, int(at["patience_steps"])) if found.any() else found


def _coming_back(window: ExpertWindow, patience: int) -> statistics.Bools:
    """[L, E] whether an expert's bias has risen among its layer's in the window, and it had a token within patience."""
    bias = window.bias[[0, -1], :, : window.experts].astype(np.float64)
    with np.errstate(invalid="ignore"):  # a bias that diverged is infinite
        above = bias - bias.mean(axis=-1, keepdims=True)
        rising = above[-1] > above[0]
    lived = window.counts[-patience:, :, : window.experts].any(axis=0)
    return np.asarray(rising & lived, dtype=np.bool_)


def skipping(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers in which tokens take the skip slot, so that no expert sees them."""
    at = rule.thresholds
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    share, layers = last.skip_share, skipping_layers(last, rule)
    if not layers.any():
        return clear(last, rule, np.isnan(share))
    layer = worst(layers, share)
    return finding(last, rule, layers, layer, float(share[layer]), at["share"], {"share": f"{share[layer]:.1%}"})


def skipping_layers(last: ExpertWindow, rule: Rule) -> statistics.Bools:
    """[L] which layers of a whole window the skip slot's rule names."""
    return np.asarray(last.skip_share > rule.thresholds["share"], dtype=np.bool_)

"""Alarms over balancing biases: one that runs away, one that stands still, one that was lost at a resume. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import experts as statistics
from controlplane.rules.book import Rule
from controlplane.rules.expert_controller import Controller, identify
from controlplane.rules.expert_window import ExpertWindow, Resumed, clear, finding, unknown, worst
from controlplane.rules.findings import Judgement

_LEFT = 0.1
"""A bias below this part of the checkpoint's is taken for a new one."""


def runaway(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers whose biases only go one way while loads are far from even; worse, biases that feed the error."""
    at = rule.thresholds
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    controller = identify(last.counts, last.bias, last.experts)
    inverted, by_sign = inverted_layers(last, controller, rule)
    same = statistics.same_direction_share(last.bias, last.experts)
    one_way = (same >= at["same_direction"]) & (last.floors > at["cv_floor"]) & ~last.falling(rule) & ~last.unseen
    layers = inverted if inverted.any() else one_way
    if not layers.any():
        return clear(last, rule, last.unseen)
    layer = worst(layers, last.floors)
    gain, same_share = float((controller.sign_gain if by_sign[layer] else controller.ki)[layer]), float(same[layer])
    words = {"same": f"{same_share:.0%}", "floors": f"{last.floors[layer]:.1f}", "gain": f"{gain:.2g}"}
    value, threshold = (gain, 0.0) if inverted.any() else (same_share, at["same_direction"])
    return finding(last, rule, layers, layer, value, threshold, words, is_worse=bool(inverted.any()))


def inverted_layers(
    last: ExpertWindow, controller: Controller, rule: Rule
) -> tuple[statistics.Bools, statistics.Bools]:
    """[L] in which layers of a whole window the biases feed the error, and in which of them the gain of the error's
    sign tells it; in the others that of its sum does. `controller` is the one identified from this window."""
    at = rule.thresholds
    far = (last.floors > at["inverted_cv_floor"]) & ~last.unseen
    inverted = controller.inverted(at["least_r2"], at["least_pid_r2"]) & far
    return inverted, inverted & controller.sign_inverted(at["least_r2"])


def bias_frozen(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers whose biases stand still over the whole window while loads are uneven, though they moved before.

    A bias that is zero was never moved, which is another matter (imbalance); one that the job's own schedule has
    stopped is meant to stand still.
    """
    at = rule.thresholds
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    if last.balanced_until is not None and last.steps[-1] > last.balanced_until:
        return Judgement()
    layers = np.asarray(_still(last) & (last.floors > at["cv_floor"]) & ~last.unseen)
    if not layers.any():
        return clear(last, rule, last.unseen)
    layer = worst(layers, last.floors)
    value = float(last.floors[layer])
    words = {"steps": len(last.steps), "floors": f"{value:.1f}"}
    return finding(last, rule, layers, layer, value, at["cv_floor"], words)


def _still(last: ExpertWindow) -> statistics.Bools:
    """[L] whose biases, not all zero, are the same in every step that tells them."""
    bias = last.bias[..., : last.experts]
    told = ~np.isnan(bias[..., 0])
    first = bias[told.argmax(axis=0), np.arange(bias.shape[1])]
    first = np.where(np.isnan(first), 0, first)
    same = ((bias == first).all(axis=-1) | ~told).all(axis=0)
    return np.asarray(same & (first != 0).any(axis=-1), dtype=np.bool_)


def bias_lost(window: ExpertWindow, rule: Rule) -> Judgement:
    """An attempt that took up a checkpoint without its biases, told for `told_steps` from its first step.

    Known by their checksum where the trainer and the manifest tell it and by what was recorded of both: new biases are
    small. There is no warm-up: loads may look even for a while, and by then the layers have learned around it.
    """
    resumed = window.resumed
    if resumed is None:
        return Judgement()
    if not len(window.steps) or window.steps[-1] >= resumed.first_step + rule.thresholds["told_steps"]:
        return Judgement()
    layers = _lost(window, resumed)
    if layers is None:
        return unknown(window, rule)
    if not layers.any():
        return Judgement()
    size = np.full(len(layers), np.nan) if resumed.before is None else _sizes(resumed.before, window.experts)
    layer = worst(layers, size)
    were = f"they were up to {size[layer]:.3g}" if np.isfinite(size[layer]) else "by their checksum"
    words = {"attempt": window.attempt_no, "step": resumed.first_step, "before": were}
    now = float(_sizes(window.bias[0], window.experts)[layer])
    return finding(window, rule, layers, layer, now, float(np.nan_to_num(size[layer])), words)


def _sizes(bias: NDArray[np.float32], experts: int) -> statistics.Floats:
    """[L] the largest |b| of the real experts."""
    return np.asarray(np.abs(bias[:, :experts].astype(np.float64)).max(axis=-1), dtype=np.float64)


def _lost(window: ExpertWindow, resumed: Resumed) -> statistics.Bools | None:
    """[L] whose biases are not the checkpoint's; None if there is nothing to tell by.

    Checksums that agree settle it. Ones that differ may be of two layouts: where both biases were recorded, layers
    that begin where the checkpoint's ended, within a tenth of their spread, have kept them.
    """
    known = bool(resumed.start_bias and resumed.checkpoint_bias)
    if known and resumed.start_bias == resumed.checkpoint_bias:
        return np.zeros(window.bias.shape[1], dtype=np.bool_)
    before, begun = resumed.before, resumed.begun
    if before is None or begun is None or before.shape != begun.shape:
        return np.ones(window.bias.shape[1], dtype=np.bool_) if known else None
    size = _sizes(before, window.experts)
    if not known:
        return np.asarray((size > 0) & (_sizes(begun, window.experts) < _LEFT * size), dtype=np.bool_)
    moved = np.abs(begun.astype(np.float64) - before)[:, : window.experts].max(axis=-1)
    return np.asarray(moved > _LEFT * np.ptp(before[:, : window.experts], axis=-1), dtype=np.bool_)

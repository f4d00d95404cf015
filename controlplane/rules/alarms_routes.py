"""Alarms over where routes lead: expert-parallel ranks that carry too much, a trainer unlike its rollout. Pure."""

from __future__ import annotations

import numpy as np

from controlplane.rules.book import Rule
from controlplane.rules.expert_ranks import rank_loads, skew, skew_floor
from controlplane.rules.expert_window import ExpertWindow, clear, finding, unknown, worst
from controlplane.rules.experts import Bools
from controlplane.rules.findings import Judgement


def parallel_skew(window: ExpertWindow, rule: Rule) -> Judgement:
    """Layers in which one expert-parallel rank carries far more than the mean one, summed over the window: each step
    of the layer waits for that rank."""
    at, ranks = rule.thresholds, window.expert_parallel
    if ranks < 2 or window.experts % ranks:
        return Judgement()
    last = window.last(rule, int(at["window_steps"]))
    if last is None:
        return unknown(window, rule)
    loads = rank_loads(last.together, last.experts, ranks)
    uneven = skew(loads)
    layers, grave = skewed_layers(last, rule)
    layers = grave if grave.any() else layers
    if not layers.any():
        return clear(last, rule, last.unseen)
    layer = worst(layers, uneven)
    words = {"rank": int(loads[layer].argmax()), "ranks": ranks, "skew": f"{uneven[layer]:.2f}"}
    threshold = at["worse_skew"] if grave.any() else at["skew"]
    return finding(last, rule, layers, layer, float(uneven[layer]), threshold, words, is_worse=bool(grave.any()))


def skewed_layers(last: ExpertWindow, rule: Rule) -> tuple[Bools, Bools]:
    """[L] in which layers of a whole window the skew rule names a rank, and in which at its worse level."""
    at = rule.thresholds
    loads = rank_loads(last.together, last.experts, last.expert_parallel)
    uneven, calm = skew(loads), last.falling(rule) | last.unseen
    calm |= uneven - 1 < at["floors"] * skew_floor(loads, last.design_effect)
    return (uneven > at["skew"]) & ~calm, (uneven > at["worse_skew"]) & ~calm


def route_mismatch(window: ExpertWindow, rule: Rule) -> Judgement:
    """A trainer that routes tokens unlike the engine that generated them: what it learns from is not what was done."""
    at = rule.thresholds
    known = window.mismatch[np.isfinite(window.mismatch)]
    if not len(known):
        return Judgement()
    if len(known) < at["window_steps"]:
        return unknown(window, rule)
    share = float(known[-int(at["window_steps"]) :].mean())
    usual = window.mismatch_usual
    risen = bool(np.isfinite(usual)) and share > usual + at["above_usual"]
    if share <= at["share"] and not risen:
        return Judgement()
    everywhere = np.ones(window.counts.shape[1], dtype=np.bool_)
    words = {"share": f"{share:.1%}", "usual": f"{usual:.1%}" if np.isfinite(usual) else "unknown"}
    threshold = at["share"] if share > at["share"] else usual + at["above_usual"]
    return finding(window, rule, everywhere, 0, share, float(threshold), words)

"""Alarms over a window of expert records: imbalance, swinging loads, dead experts. Pure; they alert and never restart.

A fresh run is unbalanced by nature until its biases have moved, so nothing is judged before a warm-up of optimizer
steps, and an imbalance that is still falling is left alone. One finding a run and rule, with its layers as evidence:
a collapse of forty layers is one incident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import experts as statistics
from controlplane.rules.book import Rule, RuleBook
from controlplane.rules.findings import RUN, Finding, Judgement, Subject

RULES = ("expert-imbalance", "expert-oscillation", "expert-dead")
_LAYERS_NAMED = 16


@dataclass(frozen=True, slots=True)
class ExpertWindow:
    """The newest consecutive expert records of one live attempt, summed over ranks. W steps, L layers, S slots."""

    run_id: str
    run_name: str
    attempt_no: int
    steps: NDArray[np.int64]
    """[W] optimizer steps, ascending"""
    at_s: NDArray[np.float64]
    """[W] by the server's clock"""
    counts: NDArray[np.uint32]
    """[W, L, S]"""
    bias: NDArray[np.float32]
    """[W, L, S]"""
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class _Balance:
    """Means over the window a layer, and whether a layer's CV is falling."""

    cv: statistics.Floats
    cv_floor: statistics.Floats
    effective: statistics.Floats
    falling: statistics.Bools


def judge(window: ExpertWindow, book: RuleBook) -> Judgement:
    """All expert alarms of one window; a rule whose window is not full yet, or in warm-up, is unknown."""
    return (
        _imbalance(window, book["expert-imbalance"])
        + _oscillation(window, book["expert-oscillation"])
        + _dead(window, book["expert-dead"])
    )


def unseen(run_id: str) -> Judgement:
    """What is known of a run's experts when there is no record: nothing."""
    return Judgement(unknown=frozenset(Subject(rule, run_id, RUN) for rule in RULES))


def _unknown(window: ExpertWindow, rule: Rule) -> Judgement:
    return Judgement(unknown=frozenset({Subject(rule.id, window.run_id, RUN)}))


def _last(window: ExpertWindow, rule: Rule, steps: int) -> ExpertWindow | None:
    """The last `steps` records; None while there are fewer, half are lost, or they reach into the warm-up."""
    if len(window.steps) < steps:
        return None
    cut = slice(len(window.steps) - steps, None)
    numbers = window.steps[cut]
    if numbers[0] <= rule.thresholds["warmup_steps"] or numbers[-1] - numbers[0] >= 2 * steps:
        return None
    return ExpertWindow(
        window.run_id,
        window.run_name,
        window.attempt_no,
        numbers,
        window.at_s[cut],
        window.counts[cut],
        window.bias[cut],
        window.experts,
        window.top_k,
    )


def _balance(window: ExpertWindow, falling: float) -> _Balance:
    found = statistics.layer_statistics(window.counts, window.bias, window.experts, window.top_k)
    half = len(window.steps) // 2
    early, late = found.cv[:half].mean(axis=0), found.cv[half:].mean(axis=0)
    return _Balance(
        cv=found.cv.mean(axis=0),
        cv_floor=found.cv_floor.mean(axis=0),
        effective=found.effective.mean(axis=0),
        falling=np.asarray(late < early * (1 - falling), dtype=np.bool_),
    )


def _imbalance(window: ExpertWindow, rule: Rule) -> Judgement:
    at = rule.thresholds
    last = _last(window, rule, int(at["window_steps"]))
    if last is None:
        return _unknown(window, rule)
    balance = _balance(last, at["falling"])
    uneven = ((balance.cv_floor > at["cv_floor"]) & (balance.cv > at["cv"])) | (balance.effective < at["effective"])
    collapsed = (balance.cv_floor > at["worse_cv_floor"]) & (balance.cv > at["worse_cv"])
    collapsed |= balance.effective < at["worse_effective"]
    uneven, collapsed = uneven & ~balance.falling, collapsed & ~balance.falling
    layers = collapsed if collapsed.any() else uneven
    if not layers.any():
        return Judgement()
    worst = _worst(layers, balance.cv_floor)
    words = {
        "cv": f"{balance.cv[worst]:.2f}",
        "floors": f"{balance.cv_floor[worst]:.1f}",
        "effective": f"{balance.effective[worst]:.0%}",
    }
    threshold = at["worse_cv_floor"] if collapsed.any() else at["cv_floor"]
    return _finding(last, rule, layers, worst, float(balance.cv_floor[worst]), threshold, words, bool(collapsed.any()))


def _oscillation(window: ExpertWindow, rule: Rule) -> Judgement:
    at = rule.thresholds
    last = _last(window, rule, int(at["window_steps"]))
    if last is None:
        return _unknown(window, rule)
    found = statistics.layer_statistics(last.counts, last.bias, last.experts, last.top_k)
    lag1 = statistics.lag1_autocorrelation(found.share)
    swings = (lag1 <= at["lag1"]) & (found.cv_floor.mean(axis=0) > at["cv_floor"])
    swings |= lag1 <= at["lag1_alone"]
    if not swings.any():
        return Judgement()
    worst = _worst(swings, -lag1)
    period = statistics.period_steps(found.share)[worst]
    words = {"period": f"{period:.1f}".removesuffix(".0"), "lag1": f"{lag1[worst]:.2f}"}
    return _finding(last, rule, swings, worst, float(lag1[worst]), at["lag1"], words)


def _dead(window: ExpertWindow, rule: Rule) -> Judgement:
    steps = int(rule.thresholds["steps"])
    last = _last(window, rule, steps)
    if last is None:
        return _unknown(window, rule)
    dead = statistics.dead_experts(last.counts, last.experts, steps)
    count = dead.sum(axis=-1)
    if not dead.any():
        return Judgement()
    worst = _worst(count > 0, count.astype(np.float64))
    total = int(count.sum())
    words: dict[str, Any] = {
        "experts": f"{total} expert{'s' if total > 1 else ''}",
        "steps": steps,
        "count": int(count[worst]),
        "of": last.experts,
    }
    return _finding(last, rule, count > 0, worst, float(total), 0.0, words)


def _worst(layers: statistics.Bools, badness: statistics.Floats) -> int:
    return int(np.argmax(np.where(layers, np.nan_to_num(badness, nan=-np.inf), -np.inf)))


def _finding(
    window: ExpertWindow,
    rule: Rule,
    layers: statistics.Bools,
    worst: int,
    value: float,
    threshold: float,
    spoken: dict[str, Any],
    is_worse: bool = False,
) -> Judgement:
    words = rule.worse if is_worse and rule.worse else rule.plain
    named = [int(layer) for layer in np.flatnonzero(layers)]
    facts = {"run": window.run_name, "layers": len(named), "of": len(layers), "layer": worst, **spoken}
    return Judgement(
        (
            Finding(
                rule=rule.id,
                severity=words.severity,
                action=words.action,
                entity=RUN,
                sentence=words.sentence.format(**facts),
                # the window is judged as a whole: it satisfies the rule since its last record
                onset_s=float(window.at_s[-1]),
                last_clean_s=float(window.at_s[0]),
                value=value,
                threshold=threshold,
                run_id=window.run_id,
                attempt_no=window.attempt_no,
                evidence={
                    "layers": named[:_LAYERS_NAMED],
                    "worst_layer": worst,
                    "first_step": int(window.steps[0]),
                    "last_step": int(window.steps[-1]),
                },
            ),
        )
    )

"""The picture of a run's expert balance at one step: the arrays of the experts frame. Pure.

Arrays of L layers and X slots: counts u4 [L, X]; bias f4 [L, X] and delta_bias f4 [L, X] (since the step before, NaN if
there is none); cv_floor f4 [L], CV in multiples of the sampling floor; lag1 f4 [L], the autocorrelation of the loads
over the window; dead u1 [L, X]; history f4 [L, 64], cv_floor of the last 64 steps, oldest first, NaN before the first.
Where a run declares R expert-parallel ranks also rank_load f4 [L, R], each rank's load over its layer's mean. The head
says in words what they show: sentence, tiles, and `settling` while no rule judges yet.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_ranks import rank_loads
from controlplane.rules.experts import (
    DEAD_STEPS,
    dead_experts,
    design_effect,
    lag1_autocorrelation,
    layer_statistics,
    trailing_design_effect,
)
from controlplane.services import experts_words
from controlplane.services.experts_words import Picture
from controlplane.store.expert_records import ExpertStep

HISTORY = 64


@dataclass(frozen=True, slots=True)
class Balance:
    """What the frame needs of each step of its window: computed once a step, as the window moves on."""

    share: NDArray[np.float32]
    """[L, E]"""
    cv_floor: NDArray[np.float32]
    """[L] in floors of independent tokens"""
    floor_cv: float
    effect: NDArray[np.float64]
    freedom: NDArray[np.float64]
    """[L] the ranks' design effect in this step, NaN unknown, and its degrees of freedom"""


def _balance(step: ExpertStep) -> Balance:
    with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite
        found = layer_statistics(step.counts, step.bias, step.shape.experts, step.shape.top_k)
    effect, freedom = _effect(step)
    share, cv_floor = found.share.astype(np.float32), found.cv_floor.astype(np.float32)
    return Balance(share, cv_floor, float(found.floor_cv), effect, freedom)


def _effect(step: ExpertStep) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    spread = step.spread
    if spread is None:
        return np.full(step.shape.layers, np.nan), np.zeros(step.shape.layers)
    counts = step.counts[:, : step.shape.experts]
    return design_effect(counts, spread.squares, spread.freedom, spread.ranks, step.shape.top_k), spread.freedom


def _floors(balances: Sequence[Balance]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """CV in floors in force [W, L], and the design effect of the window [L]."""
    effects = np.stack([balance.effect for balance in balances], axis=1)
    freedom = np.stack([balance.freedom for balance in balances], axis=1)
    effect = trailing_design_effect(effects, freedom, HISTORY)[:, -1]
    floors = np.stack([balance.cv_floor for balance in balances]) / np.sqrt(effect)
    return floors.astype(np.float32), effect


def of_window(
    window: Sequence[ExpertStep], known: MutableMapping[int, tuple[ExpertStep, Balance]] | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame's head and arrays for the last step of a window of steps, which are in order and not none.

    known: balances by step from the call before, brought up to this window; for callers that follow a run.
    """
    steps = _alike(window)
    balances = _balances(steps, known)
    seen = _judged(steps, balances)
    last, shape = steps[-1], steps[-1].shape
    history = np.full((shape.layers, HISTORY), np.nan, np.float32)
    floors, effect = _floors(balances)
    history[:, HISTORY - len(steps) :] = floors.T
    dead = np.zeros((shape.layers, shape.slots), np.uint8)
    dead[:, : shape.experts] = seen.dead
    with np.errstate(invalid="ignore"):
        delta = last.bias - steps[-2].bias if len(steps) > 1 else np.full_like(last.bias, np.nan)
    meta = {
        "run": last.run_id,
        "attempt": last.attempt_no,
        "step": last.step,
        "at_s": last.at_s,
        "layers": shape.layers,
        "experts": shape.experts,
        "slots": shape.slots,
        "top_k": shape.top_k,
        "tokens": last.tokens,
        "ranks": last.ranks,
        "expert_parallel": last.expert_parallel,
        "floor_cv": balances[-1].floor_cv * float(np.sqrt(np.median(effect))),
        "design_effect": float(np.median(effect)),
        "settling": seen.settling,
        "sentence": experts_words.sentence(seen),
        "tiles": experts_words.tiles(seen),
    }
    arrays: dict[str, NDArray[Any]] = {
        "counts": last.counts,
        "bias": last.bias,
        "delta_bias": delta,
        "cv_floor": floors[-1],
        "lag1": seen.lag1.astype(np.float32),
        "dead": dead,
        "history": history,
    }
    return meta, arrays | _rank_load(last)


def _rank_load(step: ExpertStep) -> dict[str, NDArray[Any]]:
    """What each expert-parallel rank carries [L, R], 1 is even; nothing without such ranks or without equal blocks."""
    ranks, experts = step.expert_parallel, step.shape.experts
    if ranks <= 1 or experts % ranks:
        return {}
    loads = rank_loads(step.counts, experts, ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"rank_load": (loads / loads.mean(axis=-1, keepdims=True)).astype(np.float32)}


def picture(window: Sequence[ExpertStep], book: RuleBook | None = None) -> Picture:
    """The same window judged, for who wants it in words alone."""
    steps = _alike(window)
    return _judged(steps, _balances(steps, None), book)


def _alike(window: Sequence[ExpertStep]) -> list[ExpertStep]:
    """The last steps of one shape."""
    return [step for step in window if step.shape == window[-1].shape][-HISTORY:]


def _balances(
    steps: Sequence[ExpertStep], known: MutableMapping[int, tuple[ExpertStep, Balance]] | None
) -> list[Balance]:
    before = {} if known is None else dict(known)
    balances = []
    for step in steps:
        found = before.get(step.step)
        balances.append(found[1] if found is not None and found[0] is step else _balance(step))
    if known is not None:
        known.clear()
        known.update({step.step: (step, balance) for step, balance in zip(steps, balances, strict=True)})
    return balances


def _judged(steps: Sequence[ExpertStep], balances: Sequence[Balance], book: RuleBook | None = None) -> Picture:
    shares = np.stack([balance.share for balance in balances])
    floors, effect = _floors(balances)
    experts = steps[-1].shape.experts
    dead = dead_experts(np.stack([step.counts for step in steps[-DEAD_STEPS:]]), experts)
    return experts_words.picture(steps[-1], shares, floors, lag1_autocorrelation(shares), dead, effect, book)

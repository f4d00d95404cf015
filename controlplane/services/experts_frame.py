"""The picture of a run's expert balance at one step: the arrays of the experts frame. Pure.

Arrays of L layers and X slots: counts u4 [L, X]; bias f4 [L, X] and delta_bias f4 [L, X] (since the step before, NaN if
there is none); cv_floor f4 [L], CV in multiples of the sampling floor; lag1 f4 [L], the autocorrelation of the loads
over the window; dead u1 [L, X]; history f4 [L, 64], cv_floor of the last 64 steps, oldest first, NaN before the first.
Where a run declares R expert-parallel ranks also rank_load f4 [L, R], each rank's load over its layer's mean. The head
says in words what they show: sentence, tiles, and `settling` while no rule judges yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_ranks import rank_loads
from controlplane.rules.experts import DEAD_STEPS, dead_experts, trailing_design_effect
from controlplane.services import experts_words
from controlplane.services.experts_window import Balance, MovingWindow, rows_of
from controlplane.services.experts_words import Picture
from controlplane.store.expert_records import ExpertStep

HISTORY = 64


def _floors(balances: Sequence[Balance]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """CV in floors in force [W, L], and the design effect of the window [L]."""
    effects = rows_of([balance.effect for balance in balances])
    freedom = rows_of([balance.freedom for balance in balances])
    effect = trailing_design_effect(effects.T, freedom.T, HISTORY)[:, -1]
    floors = rows_of([balance.cv_floor for balance in balances]) / np.sqrt(effect)
    return floors.astype(np.float32), effect


def of_window(
    window: Sequence[ExpertStep], known: MovingWindow | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame's head and arrays for the last step of a window of steps, which are in order and not none.

    known: what the call before has left, moved on to this window; for callers that follow a run.
    """
    steps = _alike(window)
    moving = _moved(steps, known)
    balances = moving.balances
    floors, effect = _floors(balances)
    seen = _judged(steps, moving, floors, effect)
    last, shape = steps[-1], steps[-1].shape
    history = np.full((shape.layers, HISTORY), np.nan, np.float32)
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
    moving = _moved(steps, None)
    return _judged(steps, moving, *_floors(moving.balances), book)


def _alike(window: Sequence[ExpertStep]) -> list[ExpertStep]:
    """The last steps of one shape."""
    return [step for step in window if step.shape == window[-1].shape][-HISTORY:]


def _moved(steps: Sequence[ExpertStep], known: MovingWindow | None) -> MovingWindow:
    moving = MovingWindow() if known is None else known
    moving.move(steps)
    return moving


def _judged(
    steps: Sequence[ExpertStep],
    moving: MovingWindow,
    floors: NDArray[np.float32],
    effect: NDArray[np.float64],
    book: RuleBook | None = None,
) -> Picture:
    newest = np.stack([step.counts for step in steps[-DEAD_STEPS:]])
    dead = dead_experts(newest, steps[-1].shape.experts, design_effect=effect)
    shares = [balance.share for balance in moving.balances]
    return experts_words.picture(steps[-1], moving.newest, shares, floors, moving.lag1(), dead, effect, book)

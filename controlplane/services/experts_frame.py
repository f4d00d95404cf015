"""The picture of a run's expert balance at one step: the arrays of the experts frame. Pure.

Of the step, with L layers and X slots: counts u4 [L, X]; bias f4 [L, X] and delta_bias f4 [L, X] (since the step
before, NaN if there is none); cv_floor f4 [L], CV in multiples of the sampling floor. Of the window of 64 steps:
mean_floor f4 [L], the steps' mean of that; lag1 f4 [L], the autocorrelation of the loads; history f4 [L, 64], each
step's cv_floor, oldest first, NaN before the first; and what the alarms name (experts_judged): level, uneven, swinging,
skipping u1 [L] (0 ok, 1 warn, 2 fault) and dead u1 [L, X] (1 without a token, 2 named by the rule). Where a run
declares R expert-parallel ranks also rank_load f4 [L, R], each rank's load over its layer's mean, and skewed u1 [L].
The head says in words what they show: sentence, tiles, `settling` while no rule judges yet; `rules` are the thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_ranks import rank_loads
from controlplane.rules.experts import trailing_design_effect
from controlplane.services import experts_judged, experts_words
from controlplane.services.experts_judged import Earlier
from controlplane.services.experts_window import MovingWindow
from controlplane.services.experts_words import Picture
from controlplane.store.expert_records import ExpertStep

HISTORY = 64


def _floors(moving: MovingWindow) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """CV in floors in force [W, L], and the design effect of the window [L]."""
    effect = trailing_design_effect(moving.each("effect").T, moving.each("freedom").T, HISTORY)[:, -1]
    floors = moving.each("cv_floor") / np.sqrt(effect)
    return floors.astype(np.float32), effect


def of_window(
    window: Sequence[ExpertStep],
    known: MovingWindow | None = None,
    book: RuleBook | None = None,
    earlier: Earlier | None = None,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The frame's head and arrays for the last step of a window of steps, which are in order and not none.

    known: what the call before has left, moved on to this window; for callers that follow a run.
    """
    steps = _alike(window)
    moving = _moved(steps, known)
    floors, effect = _floors(moving)
    seen = _judged(steps, moving, floors, effect, book, earlier)
    return _head(seen, book), _arrays(seen, steps, floors) | _rank_load(steps[-1])


def _head(seen: Picture, book: RuleBook | None) -> dict[str, Any]:
    """What the frame says in words and numbers."""
    last, shape = seen.last, seen.last.shape
    return {
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
        "floor_cv": seen.floor,
        "design_effect": seen.deff,
        "settling": seen.settling,
        "sentence": experts_words.sentence(seen),
        "tiles": experts_words.tiles(seen),
        "rules": experts_judged.thresholds(book),
    }


def _arrays(seen: Picture, steps: Sequence[ExpertStep], floors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The matrices of the last step, and what is said of each layer [L]."""
    last, shape = steps[-1], steps[-1].shape
    history = np.full((shape.layers, HISTORY), np.nan, np.float32)
    history[:, HISTORY - len(steps) :] = floors.T
    dead = np.zeros((shape.layers, shape.slots), np.uint8)
    dead[:, : shape.experts] = seen.judged.dead
    with np.errstate(invalid="ignore"):
        delta = last.bias - steps[-2].bias if len(steps) > 1 else np.full_like(last.bias, np.nan)
    arrays: dict[str, NDArray[Any]] = {
        "counts": last.counts,
        "bias": last.bias,
        "delta_bias": delta,
        "cv_floor": floors[-1],
        "lag1": seen.judged.lag1.astype(np.float32),
        "dead": dead,
        "history": history,
        "mean_floor": seen.judged.floors.astype(np.float32),
        "level": seen.judged.levels,
        "uneven": seen.judged.uneven,
        "swinging": seen.judged.swinging,
        "skipping": seen.judged.skipping,
    }
    if seen.judged.skewed is not None:
        arrays["skewed"] = seen.judged.skewed
    return arrays


def _rank_load(step: ExpertStep) -> dict[str, NDArray[Any]]:
    """What each expert-parallel rank carries [L, R], 1 is even; nothing without such ranks or without equal blocks."""
    ranks, experts = step.expert_parallel, step.shape.experts
    if ranks <= 1 or experts % ranks:
        return {}
    loads = rank_loads(step.counts, experts, ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"rank_load": (loads / loads.mean(axis=-1, keepdims=True)).astype(np.float32)}


def picture(window: Sequence[ExpertStep], book: RuleBook | None = None, earlier: Earlier | None = None) -> Picture:
    """The same window judged, for who wants it in words alone."""
    steps = _alike(window)
    moving = _moved(steps, None)
    return _judged(steps, moving, *_floors(moving), book, earlier)


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
    book: RuleBook | None,
    earlier: Earlier | None,
) -> Picture:
    return Picture(
        last=steps[-1],
        found=moving.newest,
        cv_floor=floors[-1],
        effect=effect,
        deff=experts_words.median(effect[moving.known_steps > 0]) or 1.0,
        shares=[balance.share for balance in moving.balances],
        judged=experts_judged.judge(steps, moving, effect, book, earlier),
        moving=moving,
    )

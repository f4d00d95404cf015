"""What one window of expert records means, in words: the sentence, the tiles, and whether the run is still settling.

The experts frame carries these words beside its arrays and the summary repeats them, so that a page's sentence, its
tiles and its map always speak of one step and count a dead expert alike. Thresholds are the rules' own. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import book as rule_book
from controlplane.rules.book import RuleBook
from controlplane.rules.experts import Floats, LayerStatistics, period_steps
from controlplane.store.expert_records import ExpertStep

LAYERS_NAMED = 3
Tile = dict[str, str]


@dataclass(frozen=True, slots=True)
class Picture:
    """The last step of a window, judged; L layers, E experts, W steps."""

    last: ExpertStep
    found: LayerStatistics
    """of the last step alone"""
    cv_floor: NDArray[np.floating[Any]]
    """[L] of the last step, in floors in force"""
    effect: Floats
    """[L] design effect of the window; 1 where ranks tell none"""
    lag1: Floats
    """[L] over the window"""
    shares: Sequence[NDArray[np.floating[Any]]]
    """of each of the W steps [L, E]"""
    dead: NDArray[np.bool_]
    """[L, E] without a token in the last steps"""
    swinging: NDArray[np.bool_]
    """[L]; none while the run settles"""
    settling: bool
    """in the warm-up, in which no rule judges"""
    warmup_steps: int
    warn_at: float
    fault_at: float

    @property
    def floor(self) -> float:
        """The sampling floor in force as a CV: chance alone, with tokens as correlated as the median layer's."""
        return float(self.found.floor_cv * np.sqrt(np.median(self.effect)))

    def worst(self) -> int:
        """The layer farthest from even."""
        return int(np.argmax(np.nan_to_num(self.cv_floor, nan=-1.0)))

    def level(self, value: float) -> str:
        """ok, warn or fault of a distance in floors; nothing is wrong while the run settles."""
        if self.settling or not np.isfinite(value) or value < self.warn_at:
            return "ok"
        return "fault" if value >= self.fault_at else "warn"


@cache
def shipped_book() -> RuleBook:
    """The rules as they are delivered."""
    return rule_book.load()


def picture(
    last: ExpertStep,
    found: LayerStatistics,
    shares: Sequence[NDArray[np.floating[Any]]],
    cv_floors: NDArray[np.floating[Any]],
    lag1: Floats,
    dead: NDArray[np.bool_],
    effect: Floats,
    book: RuleBook | None = None,
) -> Picture:
    """Judges the window that ends with `last`, whose statistics are `found`: shares W of [L, E], cv_floors [W, L],
    lag1 and effect [L], dead [L, E]."""
    rules = book or shipped_book()
    imbalance, oscillation = rules["expert-imbalance"].thresholds, rules["expert-oscillation"].thresholds
    warmup = int(imbalance["warmup_steps"])
    settling = last.step <= warmup
    loud = cv_floors.mean(axis=0) > oscillation["cv_floor"]
    swinging = ((lag1 <= oscillation["lag1"]) & loud) | (lag1 <= oscillation["worse_lag1"])
    return Picture(
        last=last,
        found=found,
        cv_floor=cv_floors[-1],
        effect=effect,
        lag1=lag1,
        shares=shares,
        dead=dead,
        swinging=np.zeros_like(swinging) if settling else swinging,
        settling=settling,
        warmup_steps=warmup,
        warn_at=imbalance["cv_floor"],
        fault_at=imbalance["worse_cv_floor"],
    )


def sentence(seen: Picture, *, ended: bool = False) -> dict[str, str]:
    """What stands out at this step: lead, rest, level. `ended`: no step comes after it."""
    shape, worst = seen.last.shape, seen.worst()
    value = float(seen.cv_floor[worst])
    share = np.nan_to_num(seen.found.share[worst])
    expert = int(share.argmax())
    rest = [*_dead_words(seen)]
    if seen.swinging.any():
        rest.append(f"Layer {int(np.flatnonzero(seen.swinging)[0])} swings.")
    level = seen.level(value)
    if seen.settling and ended:
        lead = f"The run ended at step {seen.last.step}, before its warm-up of {seen.warmup_steps} steps was over."
        rest.insert(0, f"Layer {worst} was farthest from even, at {value:.1f}× its sampling floor.")
    elif seen.settling:
        lead = f"Step {seen.last.step}: the balancing biases are still settling."
        rest.insert(0, f"Layer {worst} is farthest from even, at {value:.1f}× its sampling floor.")
    elif level != "ok":
        lead = f"Layer {worst} sends {share[expert] * shape.experts:.1f}× its share to expert {expert}."
        rest.insert(0, f"Its CV is {value:.1f}× the sampling floor.")
    else:
        lead = f"All {shape.layers} layers are as even as chance allows."
        rest.insert(0, f"The farthest, layer {worst}, is at {value:.1f}× its sampling floor.")
    dead = bool(seen.dead.any()) and not seen.settling
    return {"lead": lead, "rest": " ".join(rest), "level": "fault" if dead else level}


def _dead_words(seen: Picture) -> list[str]:
    layers = np.flatnonzero(seen.dead.any(axis=1))
    if not len(layers):
        return []
    count = _count(int(seen.dead.sum()), "dead expert")
    return [f"Layer {layers[0]} has {count}." if len(layers) == 1 else f"{len(layers)} layers have {count}."]


def tiles(seen: Picture) -> list[Tile]:
    """The row of figures of this step."""
    shape, worst, cv_floor = seen.last.shape, seen.worst(), seen.cv_floor
    above = [int(np.count_nonzero(cv_floor > limit)) for limit in (seen.fault_at, seen.warn_at)]
    cv, floor = median(seen.found.cv), number(seen.floor)
    dead = int(seen.dead.sum())
    effective = seen.found.effective * shape.experts
    fewest = int(np.argmin(np.nan_to_num(effective, nan=np.inf)))
    return [
        tile(
            "worst layer",
            times(float(cv_floor[worst])),
            f"floor · L{worst}",
            f"{_count(above[0], 'layer')} above {seen.fault_at:g}×, {above[1]} above {seen.warn_at:g}×",
            seen.level(float(cv_floor[worst])),
        ),
        tile(
            "median layer",
            times(median(cv_floor)),
            "floor",
            f"CV {_plain(cv, 2)}, floor {_plain(floor, 2)}{_effect(seen)}",
        ),
        tile(
            "dead experts",
            str(dead),
            f"of {shape.layers * shape.experts:,}",
            _dead_named(seen),
            "fault" if dead and not seen.settling else "ok",
        ),
        tile(
            "effective experts",
            _plain(median(effective), 1),
            f"of {shape.experts}",
            f"exp(H), fewest {_plain(number(effective[fewest]), 1)} in L{fewest}",
        ),
        _skip_tile(seen),
        _swing_tile(seen),
    ]


def _effect(seen: Picture) -> str:
    """How much the ranks' tokens correlate, where they tell it."""
    effect = float(np.median(seen.effect))
    return f", deff {effect:.1f}" if effect > 1 else ""


def _dead_named(seen: Picture) -> str:
    """L31: 3, 11 — or the layers, the first few by name."""
    layers = np.flatnonzero(seen.dead.any(axis=1))
    if not len(layers):
        return "none"
    if len(layers) == 1:
        return f"L{layers[0]}: {_first_few(str(expert) for expert in np.flatnonzero(seen.dead[layers[0]]))}"
    return _first_few(f"L{layer}" for layer in layers)


def _first_few(names: Any) -> str:
    listed: Sequence[str] = list(names)
    more = len(listed) - LAYERS_NAMED
    return ", ".join(listed[:LAYERS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _skip_tile(seen: Picture) -> Tile:
    skip = seen.found.skip_share
    mean = float(np.nanmean(skip)) if np.isfinite(skip).any() else np.nan
    most = int(np.argmax(np.nan_to_num(skip, nan=-1.0)))
    return tile(
        "skip share",
        "?" if np.isnan(mean) else f"{100 * mean:.2f} %",
        "of tokens",
        f"most {100 * skip[most]:.2f} % in L{most}" if mean > 0 else "no token took a skip slot",
        "warn" if mean > 0 and not seen.settling else "ok",
    )


def _swing_tile(seen: Picture) -> Tile:
    layers = np.flatnonzero(seen.swinging)
    context = "not judged in the warm-up" if seen.settling else f"none in the last {len(seen.shares)} steps"
    if len(layers):
        first = int(layers[0])
        loads = np.stack([share[first : first + 1] for share in seen.shares])
        context = f"L{first}, period {period_steps(loads)[0]:.1f} steps"
    unit = "layer" if len(layers) == 1 else "layers"
    value = "–" if seen.settling else str(len(layers))
    return tile("oscillating", value, "" if seen.settling else unit, context, "warn" if len(layers) else "ok")


def tile(label: str, value: str, unit: str, context: str, level: str = "ok") -> Tile:
    """One tile of a page."""
    return {"label": label, "value": value, "unit": unit, "context": context, "level": level}


def number(value: Any) -> float | None:
    """A finite number for JSON; None for what is not known."""
    return float(value) if np.isfinite(value) else None


def median(values: NDArray[np.floating[Any]]) -> float | None:
    """The median of what is known."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def times(value: float | None) -> str:
    """1.23×, 8.2×"""
    return "?" if value is None or not np.isfinite(value) else f"{value:.2f}×" if value < 2 else f"{value:.1f}×"


def _plain(value: float | None, digits: int = 3) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

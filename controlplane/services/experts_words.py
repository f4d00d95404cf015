"""What one window of expert records means, in words: the sentence, the tiles, and whether the run is still settling.

The experts frame carries these words beside its arrays and the summary repeats them, so that a page's sentence, its
tiles and its map always speak of one window and count a dead expert alike. What is called uneven, dead or swinging is
what the alarms name in it (experts_judged); a single step is never judged. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.experts import Floats, LayerStatistics, period_steps, sampling_floor
from controlplane.services.experts_judged import FAULT, NAMES, WARN, Judged
from controlplane.services.experts_window import MovingWindow
from controlplane.store.expert_records import ExpertStep

LAYERS_NAMED = 3
UNKNOWN = "–"
NO_TOKENS = "no tokens recorded"
Tile = dict[str, str]


@dataclass(frozen=True, slots=True)
class Picture:
    """The last step of a window, and the window judged; L layers, E experts, W steps."""

    last: ExpertStep
    found: LayerStatistics
    """of the last step alone"""
    cv_floor: NDArray[np.floating[Any]]
    """[L] of the last step alone, in floors in force"""
    effect: Floats
    """[L] design effect of the window; 1 where ranks tell none"""
    deff: float
    """the median layer's, of those that have tokens"""
    shares: Sequence[NDArray[np.floating[Any]]]
    """of each of the W steps [L, E]"""
    judged: Judged
    moving: MovingWindow
    """what the figures were summed up in; good until it moves on"""

    @property
    def floor_of_layers(self) -> Floats:
        """[L] the sampling floor in force of each layer as a CV."""
        shape = self.last.shape
        routed = self.last.counts[:, : shape.experts].sum(axis=-1)
        return np.asarray(sampling_floor(routed, shape.experts, shape.top_k) * np.sqrt(self.effect), dtype=np.float64)

    @property
    def floor(self) -> float:
        """The sampling floor in force as a CV: chance alone, with tokens as correlated as the median layer's."""
        return float(self.found.floor_cv * np.sqrt(self.deff))

    @property
    def settling(self) -> bool:
        """Whether no rule judges its balance yet, as the window reaches into the warm-up."""
        return self.judged.is_settling

    def worst(self) -> int:
        """The layer farthest from even over the window."""
        return self.judged.worst()


def sentence(seen: Picture, *, ended: bool = False) -> dict[str, str]:
    """What stands out in the window: lead, rest, level. `ended`: no step comes after it."""
    judged = seen.judged
    of_loads = [*_uneven_words(seen), *_dead_words(seen), *_swing_words(judged)]
    named, unseen = [*of_loads, *_skew_words(judged), *_skip_words(judged)], _unseen_words(judged)
    if not judged.is_judged:
        told = [_unjudged_words(seen, ended), *unseen, _farthest(seen), *named]
    else:
        told = [*named, *unseen, *([] if named else _even_words(seen))]
    return {"lead": told[0], "rest": " ".join(part for part in told[1:] if part), "level": judged.level}


def _unjudged_words(seen: Picture, ended: bool) -> str:
    """Why no rule judges this window."""
    last, judged = seen.last, seen.judged
    if judged.is_settling and ended:
        return f"The run ended at step {last.step}, before its balance could be judged."
    if judged.is_settling:
        return f"Step {last.step}: the balancing biases are still settling."
    if judged.steps < judged.wanted:
        have = f"{judged.steps} of the {judged.wanted} steps that are judged together"
        return f"Step {last.step}: there are records of {have}, in attempt {last.attempt_no}."
    return f"Step {last.step}: too many records before it are missing to judge its balance."


def _farthest(seen: Picture) -> str:
    layer = seen.worst()
    floors = float(seen.judged.floors[layer])
    return "" if np.isnan(floors) else f"Layer {layer} is farthest from even, at {times(floors)} its sampling floor."


def _uneven_words(seen: Picture) -> list[str]:
    judged = seen.judged
    if not judged.uneven.any():
        return []
    layer = judged.worst()
    share = np.nan_to_num(judged.lasting.share[layer])
    expert = int(share.argmax())
    words = [f"Layer {layer} sends {share[expert] * len(share):.1f}× its share to expert {expert}."]
    steps = f"Over {judged.steps} steps its CV is {judged.lasting.cv[layer]:.2f}"
    floors = float(judged.floors[layer])
    far = (
        f"the steps lie at {times(floors)} the sampling floor"
        if np.isfinite(floors)
        else "its experts get too few tokens for a sampling floor"
    )
    words.append(f"{steps}, and {far}.")
    more = int(np.count_nonzero(judged.uneven)) - 1
    return [*words, f"{_count(more, 'more layer')} {'is' if more == 1 else 'are'} uneven."] if more else words


def _unseen_words(judged: Judged) -> list[str]:
    """Of layers that nobody recorded, or in so few steps that no rule judges them."""
    layers, words = len(judged.unseen), []
    if silent := int(judged.silent.sum()):
        words.append(f"{silent} of {layers} layers {'has' if silent == 1 else 'have'} no tokens recorded.")
    if few := int((judged.unseen & ~judged.silent).sum()):
        has = "has tokens for its" if few == 1 else "have tokens for their"
        words.append(f"{few} of {layers} layers {has} experts in fewer than half of the steps.")
    return words


def _even_words(seen: Picture) -> list[str]:
    """Of a window in which no rule names a layer: even, uneven from step to step only, or on its way."""
    judged, layer = seen.judged, seen.worst()
    known = int(np.count_nonzero(~judged.unseen))
    if not known:
        return []
    which = f"All {known} layers" if known == len(judged.unseen) else f"The other {known}" if known > 1 else "The other"
    is_one = which == "The other"
    floors, lasting = float(judged.floors[layer]), judged.lasting.cv[layer]
    far = times(floors)
    if judged.falling[layer] and floors > judged.warn_floor:
        return [f"Layer {layer} is at {far} its sampling floor, and its CV is falling."]
    if floors > judged.warn_floor:
        steps = f"Layer {layer}'s steps lie at {far} their sampling floor, and together at a CV of {lasting:.2f}."
        return [f"{which} {'evens' if is_one else 'even'} out over {judged.steps} steps.", steps]
    rest = [f"The farthest, layer {layer}, is at {far} its sampling floor."] if np.isfinite(floors) else []
    return [f"{which} {'is' if is_one else 'are'} as even as chance allows.", *rest]


def _dead_words(seen: Picture) -> list[str]:
    """Of experts that the rule names."""
    dead = seen.judged.dead == 2
    layers = np.flatnonzero(dead.any(axis=1))
    if not len(layers):
        return []
    count = _count(int(dead.sum()), "dead expert")
    return [f"Layer {layers[0]} has {count}." if len(layers) == 1 else f"{len(layers)} layers have {count}."]


def _swing_words(judged: Judged) -> list[str]:
    layers = np.flatnonzero(judged.swinging)
    if not len(layers):
        return []
    return [f"Layer {layers[0]} swings." if len(layers) == 1 else f"{len(layers)} layers swing."]


def _skew_words(judged: Judged) -> list[str]:
    layers = np.flatnonzero(judged.skewed if judged.skewed is not None else ())
    if not len(layers):
        return []
    whose = f"Layer {layers[0]}'s" if len(layers) == 1 else f"{len(layers)} layers'"
    return [f"{whose} ranks are skewed."]


def _skip_words(judged: Judged) -> list[str]:
    if not judged.skipping.any():
        return []
    layer = int(np.argmax(np.where(judged.skipping > 0, judged.skip_share, -1.0)))
    return [f"{100 * judged.skip_share[layer]:.1f} % of layer {layer}'s tokens take the skip slot."]


def tiles(seen: Picture) -> list[Tile]:
    """The row of figures of this window."""
    shape, judged, worst = seen.last.shape, seen.judged, seen.worst()
    effective = judged.lasting.effective * shape.experts
    fewest = int(np.argmin(np.nan_to_num(effective, nan=np.inf)))
    cv, floor = median(judged.cv), number(seen.floor)
    return [
        tile(
            "worst layer",
            times(float(judged.floors[worst])),
            "" if judged.unseen.all() else f"floor · L{worst}",
            _uneven_count(judged),
            NAMES[max(int(judged.uneven.max(initial=0)), WARN if judged.unseen.any() else 0)],
        ),
        tile(
            "median layer",
            times(median(judged.floors)),
            "floor",
            f"CV {_plain(cv, 2)}, floor {_plain(floor, 2)}{_effect(seen)}",
        ),
        _dead_tile(seen),
        tile(
            "effective experts",
            _plain(median(effective), 1),
            f"of {shape.experts}",
            f"exp(H), fewest {effective[fewest]:.1f} in L{fewest}" if np.isfinite(effective).any() else NO_TOKENS,
        ),
        _skip_tile(judged),
        _swing_tile(seen),
    ]


def _uneven_count(judged: Judged) -> str:
    """How many layers the alarm names, or why none."""
    fault, warn = (int(np.count_nonzero(judged.uneven == level)) for level in (FAULT, WARN))
    if fault or warn:
        return f"{fault} collapsing, {warn} uneven in {judged.steps} steps"
    if unseen := int(judged.unseen.sum()):
        return f"{unseen} of {len(judged.unseen)} layers not {'judged' if unseen > judged.silent.sum() else 'recorded'}"
    if not judged.is_judged:
        return "not judged in the warm-up" if judged.is_settling else f"not judged, {judged.steps} steps"
    return "no layer is uneven"


def _dead_tile(seen: Picture) -> Tile:
    shape, judged = seen.last.shape, seen.judged
    named, told = bool((judged.dead == 2).any()), int(np.count_nonzero(~judged.silent))
    return tile(
        "dead experts",
        str(int(np.count_nonzero(judged.dead))) if told else UNKNOWN,
        f"of {told * shape.experts:,}" if told else "",
        _dead_named(seen) if told else NO_TOKENS,
        NAMES[judged.dead_level] if named else "ok",
    )


def _effect(seen: Picture) -> str:
    """How much the ranks' tokens correlate, where they tell it."""
    return f", deff {seen.deff:.1f}" if seen.deff > 1 else ""


def _dead_named(seen: Picture) -> str:
    """L31: 3, 11 — or the layers, the first few by name."""
    dead = seen.judged.dead
    layers = np.flatnonzero(dead.any(axis=1))
    if not len(layers):
        return "none"
    if len(layers) == 1:
        return f"L{layers[0]}: {_first_few(str(expert) for expert in np.flatnonzero(dead[layers[0]]))}"
    return _first_few(f"L{layer}" for layer in layers)


def _first_few(names: Any) -> str:
    listed: Sequence[str] = list(names)
    more = len(listed) - LAYERS_NAMED
    return ", ".join(listed[:LAYERS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _skip_tile(judged: Judged) -> Tile:
    skip = judged.skip_share
    if not np.isfinite(skip).any():
        return tile("skip share", UNKNOWN, "of tokens", NO_TOKENS)
    mean, most = float(np.nanmean(skip)), int(np.argmax(np.nan_to_num(skip, nan=-1.0)))
    return tile(
        "skip share",
        f"{100 * mean:.2f} %",
        "of tokens",
        f"most {100 * skip[most]:.2f} % in L{most}" if mean > 0 else "no token took a skip slot",
        NAMES[int(judged.skipping.max(initial=0))],
    )


def _swing_tile(seen: Picture) -> Tile:
    judged = seen.judged
    layers = np.flatnonzero(judged.swinging)
    if (not judged.is_judged or judged.unseen.all()) and not len(layers):
        return tile("oscillating", "–", "", _uneven_count(judged))
    context = f"none in the last {len(seen.shares)} steps"
    if len(layers):
        first = int(layers[0])
        loads = np.stack([share[first : first + 1] for share in seen.shares])
        context = f"L{first}, period {period_steps(loads)[0]:.1f} steps"
    unit = "layer" if len(layers) == 1 else "layers"
    return tile("oscillating", str(len(layers)), unit, context, NAMES[int(judged.swinging.max(initial=0))])


def tile(label: str, value: str, unit: str, context: str, level: str = "ok") -> Tile:
    """One tile of a page."""
    return {"label": label, "value": value, "unit": unit, "context": context, "level": level}


def number(value: Any) -> float | None:
    """A finite number for JSON; None for what is not known."""
    return float(value) if np.isfinite(value) else None


def median(values: NDArray[np.floating[Any]]) -> float | None:
    """The median of what is known."""
    known = np.sort(values[np.isfinite(values)])  # numpy.median takes many times as long for as few
    return float(known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if len(known) else None


def times(value: float | None) -> str:
    """1.23×, 8.2×, and a dash for what is not known"""
    return UNKNOWN if value is None or not np.isfinite(value) else f"{value:.2f}×" if value < 2 else f"{value:.1f}×"


def _plain(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

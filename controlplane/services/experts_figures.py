"""All statistics of every layer at one step: its own value, the mean of its window, and what chance makes of it.

The same names and figures for the page, the terminal, and (but for the window) the export. What they mean, with their
formulas: docs/experts.md. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.readings import LAYER_FACTS
from controlplane.rules.expert_chance import of_chance
from controlplane.rules.experts import Floats, mean_of_known
from controlplane.rules.experts import churn as churn_of
from controlplane.services.experts_window import FIGURES
from controlplane.services.experts_words import Picture, number
from controlplane.store.expert_records import ExpertStep

NAMES = (*FIGURES, "churn", "lag1", "design_effect", *LAYER_FACTS)
Figure = dict[str, float | None]


def of_layers(seen: Picture, window: Sequence[ExpertStep], told: ExpertStep | None) -> list[dict[str, Figure]]:
    """Of each layer {name: {step, window, chance}}, None where unknown; `told` is the newest step with router facts.

    `effective` is a number of experts, 1 ÷ E of which LayerStatistics has. lag1 is of the window only; churn's step is
    the change from the step before.
    """
    step, mean = _of_step(seen, told), _of_window(seen, window)
    floors = np.asarray(seen.floor_of_layers, dtype=np.float64)
    chance = of_chance(floors, seen.last.shape.experts, len(seen.shares))
    scale = {"effective": seen.last.shape.experts}

    def value(found: Mapping[str, NDArray[Any]], name: str, layer: int) -> float | None:
        return number(found[name][layer] * scale.get(name, 1)) if name in found else None

    return [
        {
            name: {
                "step": value(step, name, layer),
                "window": value(mean, name, layer),
                "chance": value(chance, name, layer),
            }
            for name in NAMES
        }
        for layer in range(seen.last.shape.layers)
    ]


def _of_step(seen: Picture, told: ExpertStep | None) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {name: getattr(seen.found, name) for name in FIGURES}
    found["cv_floor"] = np.asarray(seen.cv_floor, dtype=np.float64)
    found["design_effect"] = seen.moving.each("effect")[-1]
    if len(seen.shares) > 1:
        found["churn"] = churn_of(np.stack(seen.shares[-2:]))
    if told is not None and told.facts is not None:
        found |= dict(zip(LAYER_FACTS, told.facts, strict=True))
    return found


def _of_window(seen: Picture, window: Sequence[ExpertStep]) -> dict[str, Floats]:
    found = {name: mean_of_known(seen.moving.each(name), axis=0) for name in FIGURES}
    found["cv_floor"] = found["cv_floor"] / np.sqrt(seen.effect)
    found |= {"churn": churn_of(np.stack(seen.shares)), "lag1": seen.judged.lag1, "design_effect": seen.effect}
    facts = [one.facts for one in window if one.facts is not None and one.shape == seen.last.shape]
    if facts:
        found |= dict(zip(LAYER_FACTS, mean_of_known(np.stack(facts), axis=0), strict=True))
    return found

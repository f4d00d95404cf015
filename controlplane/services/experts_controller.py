"""What moves each layer's balancing biases over a window, and which controller explains it: for the page.

What it calls inverted or swinging is what the alarms name (rules.alarms_bias, experts_judged); gains stay figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from controlplane.rules import alarms_bias
from controlplane.rules.book import RuleBook
from controlplane.rules.expert_controller import identify
from controlplane.rules.experts import bias_change, same_direction_share, sign_flip_rate
from controlplane.services import experts_together
from controlplane.services.experts_words import Picture, number
from controlplane.store.expert_records import ExpertStep

GAINS = ("kp", "ki", "kd", "r2", "sign_gain", "sign_r2")
_RULE = "expert-runaway"


def of_layers(steps: Sequence[ExpertStep], seen: Picture, book: RuleBook) -> list[dict[str, Any]]:
    """A row a layer, of those of the steps that the alarms judge together; `seen` is the picture of the same steps.

    `inverted_by` is the gain, sign_gain or ki, by which the runaway alarm says that the biases feed the error; None
    where it does not say so. `swings` is the oscillation alarm's word. What is not known is None.
    """
    rule = book[_RULE]
    window = experts_together.window_of(experts_together.own(steps)).knowing(floors=seen.judged.floors)
    last = window.last(rule, int(rule.thresholds["window_steps"]))
    shown = window if last is None else last
    steered = identify(shown.counts, shown.bias, shown.experts)
    inverted = by_sign = np.zeros(len(seen.judged.floors), np.bool_)
    if last is not None:
        inverted, by_sign = alarms_bias.inverted_layers(last, steered, rule)
    figures = {
        "same_direction": same_direction_share(shown.bias, shown.experts),
        "sign_flips": sign_flip_rate(shown.bias, shown.experts),
        "bias_spread": seen.found.bias_spread,
        "drift": bias_change(shown.bias, shown.experts),
        **{name: getattr(steered, name) for name in GAINS},
    }
    return [
        {
            "layer": layer,
            "kind": kind,
            "inverted": bool(inverted[layer]),
            "inverted_by": ("sign_gain" if by_sign[layer] else "ki") if inverted[layer] else None,
            "swings": bool(seen.judged.swinging[layer]),
            **{name: number(values[layer]) for name, values in figures.items()},
        }
        for layer, kind in enumerate(steered.kind)
    ]

"""The RSA experiment's figures: each model's scores, and differences over the seeds with their intervals.

A figure is a mean over seeds of a difference within a seed, with Student's interval; what the interval lets one say is
its word, gain, loss or no effect. It measures nothing and writes no page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

ARMS = ("with", "without")
"""models that saw aggregation prompts in every stage, and models that saw none in any"""
STAGES = ("SFT", "SFT + RL")
METHODS = ("pass@1", "maj", "rsa")
_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 % by degrees of freedom"""
Line = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """One model's scores on the held-out problems."""

    seed: int
    arm: str
    """of ARMS, or `before`: the model that both go on from"""
    stage: str
    """of STAGES; `before` too"""
    metrics: Mapping[str, float]
    cpu_s: float
    told: Mapping[str, float] = field(default_factory=dict)
    """of its training: loss in nats a learned byte of SFT, rewards and tokens of RL; the arms' are of other prompts"""

    def worth(self, what: str) -> float:
        """A method's score, or an uplift: RSA's less that of the method named after it."""
        over = what.removeprefix("RSA less ")
        return self.metrics[what] if what == over else self.metrics["rsa"] - self.metrics[over]


UPLIFTS = ("RSA less pass@1", "RSA less maj")
WORTH_IT = "RSA with the prompts less the better plain method without them"
Pick = Callable[[str, str], Sequence[Trained]]
"""an arm and a stage → its models, in the order of the seeds"""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t, values taken as independent and normal; at least two."""
    mean = fmean(values)
    half = _QUANTILES[len(values) - 1] * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def word_for(low: float, high: float) -> str:
    """What an interval lets one say."""
    return "gain" if low > 0 else "loss" if high < 0 else "no effect"


def lines_of(found: Sequence[Trained], scale: float) -> list[Line]:
    """Each model's scores, then uplifts and effects over the seeds: after each stage, and what the second changed."""

    def pick(arm: str, stage: str) -> Sequence[Trained]:
        return [one for one in found if (one.arm, one.stage) == (arm, stage)]

    lines = [_scores(one) for one in found]
    for stage in STAGES:
        lines += [_figure("stages", row, stage, each, scale) for row, each in _after(pick, stage).items()]
    for column, rows in _changes(pick).items():
        lines += [_figure("changes", row, column, each, scale) for row, each in rows.items()]
    return lines


def _after(pick: Pick, stage: str) -> dict[str, list[float]]:
    """Uplifts of each arm and effects of the prompts after a stage, a value a seed."""
    both = list(zip(pick("with", stage), pick("without", stage), strict=True))
    told: dict[str, list[float]] = {}
    for what in UPLIFTS:
        told |= {f"{what}, {arm} the prompts": [one.worth(what) for one in pick(arm, stage)] for arm in ARMS}
    for what in (*UPLIFTS, *METHODS):
        told[f"effect of the prompts on {what}"] = [a.worth(what) - b.worth(what) for a, b in both]
    told[WORTH_IT] = [a.worth("rsa") - max(b.worth("pass@1"), b.worth("maj")) for a, b in both]
    return told


def _changes(pick: Pick) -> dict[str, dict[str, list[float]]]:
    """What RL made of each arm, and how much more of the one with the prompts: a value a seed."""
    changed = {
        arm: {
            what: [b.worth(what) - a.worth(what) for a, b in zip(*(pick(arm, one) for one in STAGES), strict=True)]
            for what in (*METHODS, *UPLIFTS)
        }
        for arm in ARMS
    }
    more = {
        what: [a - b for a, b in zip(values, changed["without"][what], strict=True)]
        for what, values in changed["with"].items()
    }
    return {**changed, "with less without": more}


def _scores(one: Trained) -> Line:
    return {
        "name": f"RSA, seed {one.seed}, {one.arm}" + (f", {one.stage}" if one.arm in ARMS else ""),
        "value": round(one.metrics["rsa"], 4),
        "unit": "1",
        "target": None,
        "better": "higher",
        "peer": "majority at equal generated tokens",
        "peer_value": round(one.metrics["maj"], 4),
        "pass@1": round(one.metrics["pass@1"], 4),
        "seed": one.seed,
        "arm": one.arm,
        "stage": one.stage,
        "rsa_tokens": round(one.metrics["tokens_per_problem"], 1),
        "plain_tokens": round(one.metrics["plain_tokens_per_problem"], 1),
        "training": dict(one.told),
        "cpu_s": round(one.cpu_s, 1),
    }


def _figure(table: str, row: str, column: str, values: Sequence[float], scale: float) -> Line:
    """A figure's line. `table` is `stages` or `changes`; the page has a cell for each row and column."""
    mean, low, high = interval(values)
    return {
        "name": f"{row}, after {column}" if table == "stages" else f"what RL changes in {row}, {column}",
        "value": round(mean, 4),
        "unit": "1",
        "target": None,
        "better": "higher",
        "peer": None,
        "peer_value": None,
        "interval": [round(low, 4), round(high, 4)],
        "each": [round(value, 4) for value in values],
        "found": word_for(low, high),
        "table": table,
        "row": row,
        "column": column,
        "scale": scale,
    }

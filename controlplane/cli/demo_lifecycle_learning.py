"""What reinforcement learning taught, on held-out problems: a stage's end beside its start, the checkpoint from which
reinforcement learning on these environments began, the fine-tuned model and the best constant answer, with the standard
error that the claim is held to.

Pure over a lifecycle that the API tells. A stage is compared on the environments that it learned from; that evaluations
ask the same problems is the plan's part (tests/cli/test_cli_demo_lifecycle.py holds it to that). Gold scores are not
compared here: they are measured while the stage learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

Json = dict[str, Any]
TOLERANCE = 2.0
"""Standard errors by which an accuracy has to lie above another to count as higher."""
_WHOLE = ("pass@1", "pass@1_se", "constant_baseline", "loss", "gold", "proxy")
_EACH = ("pass@1", "pass@1_se", "constant_baseline")


def held_out(stage: Json) -> Json | None:
    """What the newest evaluation of a stage's checkpoint measured, over all problems and of each environment."""
    found = [one["metrics"] for one in stage["runs"] if one["role"] == "evaluate" and one["metrics"]]
    if not found:
        return None
    metrics = found[-1]
    names = [name.removesuffix("/pass@1") for name in metrics if name.endswith("/pass@1")]
    each = {
        name: {one: metrics[f"{name}/{one}"] for one in _EACH if f"{name}/{one}" in metrics} for name in sorted(names)
    }
    return {one: metrics[one] for one in _WHOLE if one in metrics} | {"environments": each}


def _learned_from(told: Json, name: str) -> set[str]:
    """The environments of a stage's own job, without their difficulties; of the jobs of RL alone."""
    job = next(one["job"] for one in told["spec"]["spec"]["stages"] if one["name"] == name)
    named = str((job.get("data") or {}).get("environments") or "")
    return {part.strip().partition("@")[0] for part in named.split(",") if part.strip()}


def compared(told: Json, stage: Json) -> Json | None:
    """Accuracy at the end of an RL stage beside three others'; None where nobody else was asked the same, or the stage
    has no evaluation.

    `before` is of the checkpoint that the stage started from, `untaught` of the one that the first stage of RL on one
    of these environments started from (where that is not known, as `fine_tuned`), `fine_tuned` of the first stage that
    was asked. `se` is the standard error of `after` less `untaught`; the same problems are asked, so only sampling
    differs.
    """
    own, stages = held_out(stage), told["stages"]
    if own is None or stage["role"] != "train":
        return None
    learned_from = _learned_from(told, stage["name"])
    names = [name for name in own["environments"] if name in learned_from]
    if not names:
        return None
    earlier = []
    for one in stages[: [one["name"] for one in stages].index(stage["name"])]:
        found = held_out(one)
        if found is not None and set(names) <= set(found["environments"]):
            earlier.append((one, found["environments"]))
    if not earlier:
        return None
    measured: dict[str, Json] = {one["candidate"]["hash"]: found for one, found in earlier if one["candidate"]}
    teaching = next(one for one in stages if _learned_from(told, one["name"]) & set(names))
    tuned: Json = earlier[0][1]
    start, untaught = measured.get(_init_of(stage)), measured.get(_init_of(teaching), tuned)
    return {
        "environments": names,
        "fine_tuned": _mean(tuned, names),
        "untaught": _mean(untaught, names),
        "before": None if start is None else _mean(start, names),
        "after": _mean(own["environments"], names),
        "se": math.hypot(_se(untaught, names), _se(own["environments"], names)),
        "constant_baseline": fmean(own["environments"][name]["constant_baseline"] for name in names),
    }


def _init_of(stage: Json) -> str:
    return str((stage["init"] or {}).get("hash") or "")


def _mean(found: Json, names: Sequence[str]) -> float:
    return fmean(found[name]["pass@1"] for name in names)


def _se(found: Json, names: Sequence[str]) -> float:
    """Of the mean over environments, whose samples are independent."""
    return math.sqrt(sum(found[name]["pass@1_se"] ** 2 for name in names)) / len(names)


def rose(learning: Json) -> bool:
    """Whether the end is above where RL on these environments began and above the best constant answer, each by
    TOLERANCE."""
    least = max(learning["untaught"], learning["constant_baseline"]) + TOLERANCE * learning["se"]
    return bool(learning["after"] > least)


def line_of(row: Json) -> str:
    """A stage's line for people; empty where there is nothing to tell."""
    found = row["learning"]
    if found is None:
        return ""
    before = "" if found["before"] is None else f"{found['before']:.3f} → "
    moved = row["difficulty"]
    harder = "" if moved is None else f"; difficulty drawn {moved['first']:.1f} → {moved['last']:.1f}"
    return (
        f"{row['stage']}: held-out pass@1 {before}{found['after']:.3f} (fine-tuned {found['fine_tuned']:.3f}, "
        f"standard error {found['se']:.3f}, best constant answer {found['constant_baseline']:.3f}){harder}"
    )

"""The advice of a spec or a run as pages show it: how often to checkpoint, how many spares, on which inputs.

The formulas are controlplane.runs.advice's. What the run itself has shown replaces an assumption, and each input says
where it comes from: spec, measured or assumed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controlplane.runs.advice import Advice, advise, outlook
from controlplane.runs.causes import GPU_HOURS_PER_STOP, Costs
from controlplane.services.durations import duration
from controlplane.store.tables import Attempt
from jobs.spec import JobSpec

Json = dict[str, Any]
SHORTEST_S = 0.01
"""No checkpoint is taken to block for less: below that it is noise."""


def advice(
    spec: JobSpec, *, step_s: float | None, blocking_s: float | None = None, restart_s: float | None = None
) -> Json | None:
    """An Advice for this spec; None for a job without GPUs. What is not measured is None and is assumed."""
    if not spec.gpus:
        return None
    costs = Costs(gpus_per_node=spec.spec.resources.gpus_per_node)
    costs = costs if blocking_s is None else replace(costs, blocking_s=blocking_s)
    told = advise(spec.gpus, costs, step_s=step_s, restart_s=restart_s)
    every = spec.spec.train.checkpoint_every
    set_s = every * step_s if step_s is not None else None
    run_s = spec.spec.train.steps * step_s if step_s is not None else None
    return {
        "sentence": _sentence(spec, told, run_s),
        "interval_s": told.interval_s,
        "interval_steps": told.interval_steps,
        "young_daly_s": told.young_daly_s,
        "spares": told.spares,
        "mtbf_s": told.mtbf_s,
        "ettr_percent": told.outlook.ettr_percent,
        "lost": [{"cause": one.cause, "percent": one.percent} for one in told.outlook.lost],
        "set": {
            "interval_steps": every,
            "interval_s": set_s,
            "ettr_percent": _set_percent(spec, costs, told, set_s),
        },
        "stops_expected": run_s / told.mtbf_s if run_s is not None else None,
        "lost_a_stop_gpu_h": (min(set_s, run_s or set_s) / 2 + told.restart_s) * spec.gpus / 3600 if set_s else None,
        "inputs": _inputs(spec, costs, told, step_s, blocking_s, restart_s),
    }


def of_run(
    spec: JobSpec,
    attempts: Sequence[Attempt],
    saved: Sequence[Json],
    step_s: float | None,
    newest: tuple[int, Mapping[str, Any]] | None,
) -> Json | None:
    """The advice at the run's own pace, as far as it has shown it.

    saved: its checkpoints as pages show them. newest: the last attempt with steps, and its `step` and `at_s` as arrays.
    """
    blocking = None
    if newest is not None:
        number, series = newest
        written = {int(one["step"]) for one in saved if one["attempt"] == number}
        blocking = measured_blocking_s(series["step"].tolist(), series["at_s"].tolist(), written)
    return advice(spec, step_s=step_s, blocking_s=blocking, restart_s=measured_restart_s(attempts))


def _set_percent(spec: JobSpec, costs: Costs, told: Advice, set_s: float | None) -> float | None:
    """What the interval that the spec sets lets expect, with the advised spares."""
    return None if set_s is None else outlook(spec.gpus, costs, set_s, told.spares, told.restart_s).ettr_percent


def _sentence(spec: JobSpec, told: Advice, run_s: float | None) -> str:
    gpus = f"{spec.gpus:,} GPUs are" if spec.gpus != 1 else "1 GPU is"
    begin = f"{gpus} stopped by a fault about once in {_long(told.mtbf_s)}"
    if run_s is not None and run_s < told.interval_s:
        return f"{begin}; this run is shorter than the {duration(told.interval_s)} after which a checkpoint pays."
    length = duration(told.interval_s)
    each = f"{told.interval_steps:,} steps ({length})" if told.interval_steps is not None else length
    return f"{begin}, so a checkpoint each {each} loses least."


def _long(seconds: float) -> str:
    """A time between stops: 49 h, 132 days."""
    return f"{seconds / 86_400:,.0f} days" if seconds >= 3 * 86_400 else duration(seconds)


def _inputs(
    spec: JobSpec,
    costs: Costs,
    told: Advice,
    step_s: float | None,
    blocking_s: float | None,
    restart_s: float | None,
) -> list[Json]:
    def line(name: str, value: float | None, unit: str, measured: bool, otherwise: str = "assumed") -> Json:
        return {"name": name, "value": value, "unit": unit, "source": "measured" if measured else otherwise}

    return [
        {"name": "GPUs", "value": spec.gpus, "unit": "", "source": "spec"},
        line("a stop each", GPU_HOURS_PER_STOP, "GPU-hours", False, "Llama 3"),
        line("a step takes", step_s, "s", step_s is not None, "unknown"),
        line("a checkpoint blocks", costs.blocking_s, "s", blocking_s is not None),
        line("back after", told.restart_s, "s", restart_s is not None),
        line("a node is repaired in", costs.repair_s, "s", False),
    ]


def measured_blocking_s(steps: Sequence[int], at_s: Sequence[float], saved: Collection[int]) -> float | None:
    """How much later than usual a step ended when the one before it was saved: the median; None below two of them.

    steps, at_s: one attempt's completed steps and when each was. A writer in the background takes longer than this.
    """
    gaps = [(step, later - at) for step, at, later in zip(steps, at_s, at_s[1:], strict=False)]
    after = [gap for step, gap in gaps if step in saved]
    plain = [gap for step, gap in gaps if step not in saved]
    if len(after) < 2 or not plain:
        return None
    return max(SHORTEST_S, statistics.median(after) - statistics.median(plain))


def measured_restart_s(attempts: Sequence[Attempt]) -> float | None:
    """From an attempt's end to the next one's first step, the median; None before the first restart."""
    took = [
        after.first_step_s - before.ended_s
        for before, after in itertools.pairwise(attempts)
        if before.ended_s is not None and after.first_step_s is not None
    ]
    return statistics.median(took) if took else None

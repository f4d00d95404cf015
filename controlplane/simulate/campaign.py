"""Many months of one setup, one for each seed, summed up: the mean ETTR with its interval, and where the rest went.

ETTR = step time never run again ÷ wall time since the first admission, as in controlplane.runs.goodput.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from controlplane.runs.advice import advise, young_daly_s
from controlplane.runs.causes import Costs
from controlplane.simulate.chance import stops
from controlplane.simulate.month import Month, Outcome, Setup

GOALS: Mapping[int, float] = {1_024: 99.3, 8_192: 97.0}
"""ETTR in percent that the lower end of the interval is to reach, by GPUs."""
SEEDS, DAYS = 200, 30.0
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """The same months under other conditions."""

    name: str
    costs: Costs
    mode: str = "act"


@dataclass(frozen=True, slots=True)
class Summary:
    """What many months of one setup came to; counts and GPU-hours are means of one month."""

    scenario: str
    gpus: int
    seeds: int
    days: float
    interval_steps: int
    interval_s: float
    young_daly_s: float
    spares: int
    ettr_percent: float
    low_percent: float
    high_percent: float
    goal_percent: float | None
    lost_gpu_h: float
    lost_by_cause_gpu_h: dict[str, float]
    lost_by_phase_gpu_h: dict[str, float]
    idle_spare_gpu_h: float
    stops: float
    attempts: float
    calls: float
    waits: float
    wrong: float
    ignored: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def scenarios(costs: Costs) -> tuple[Scenario, ...]:
    """As it is; loading twice as long; checkpoints blocking twice as long; and every restart waiting for a person."""
    return (
        Scenario("as it is", costs),
        Scenario("double load", replace(costs, load_s=2 * costs.load_s)),
        Scenario("double blocking", replace(costs, blocking_s=2 * costs.blocking_s)),
        Scenario("a human on call", costs, "advise"),
    )


def setup(scenario: Scenario, gpus: int, days: float = DAYS) -> Setup:
    """A scenario at a size, with the interval that `advise` gives it and its share of spares."""
    costs = scenario.costs
    steps = advise(gpus, costs, step_s=costs.step_s).interval_steps or 1
    return Setup(gpus, steps, costs.spares(gpus), costs, scenario.mode, days)


def months(of: Setup, seeds: Sequence[int], tell: Tell = lambda _: None) -> Iterator[Outcome]:
    """One outcome a seed."""
    for done, seed in enumerate(seeds, 1):
        yield Month(of, stops(seed)).run()
        if done % 20 == 0 or done == len(seeds):
            tell(f"{of.gpus:,} GPUs, {done} of {len(seeds)} months")


def interval_95(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean: Student's t, by the first term of its expansion around the normal's quantile."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    normal = statistics.NormalDist().inv_cdf(0.975)
    quantile = normal + (normal**3 + normal) / (4 * (len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def run(
    scenario: Scenario, gpus: int, seeds: Sequence[int], days: float = DAYS, tell: Tell = lambda _: None
) -> Summary:
    """The months of a scenario at a size."""
    of = setup(scenario, gpus, days)
    return summary(scenario.name, of, list(months(of, seeds, tell)))


def summary(name: str, of: Setup, found: Sequence[Outcome]) -> Summary:
    """Sums outcomes of one setup up."""
    count, gpu_h = len(found), of.gpus / 3600.0
    causes: dict[str, float] = {}
    phases: dict[str, float] = {}
    for outcome in found:
        for (cause, phase), seconds in outcome.lost.items():
            causes[cause] = causes.get(cause, 0.0) + seconds * gpu_h / count
            phases[phase] = phases.get(phase, 0.0) + seconds * gpu_h / count
    values = [one.ettr_percent for one in found]
    low, high = interval_95(values)
    return Summary(
        scenario=name,
        gpus=of.gpus,
        seeds=count,
        days=of.days,
        interval_steps=of.interval,
        interval_s=of.interval * of.costs.step_s,
        young_daly_s=young_daly_s(of.costs.blocking_s, of.costs.mtbf_s(of.gpus)),
        spares=of.spares,
        ettr_percent=statistics.fmean(values),
        low_percent=low,
        high_percent=high,
        goal_percent=GOALS.get(of.gpus) if name == "as it is" else None,
        lost_gpu_h=_mean(found, lambda one: (1 - one.ettr_percent / 100) * one.wall_s * gpu_h),
        lost_by_cause_gpu_h=_largest_first(causes),
        lost_by_phase_gpu_h=_largest_first(phases),
        idle_spare_gpu_h=_mean(found, lambda one: one.idle_node_s * of.costs.gpus_per_node / 3600),
        stops=_mean(found, lambda one: sum(one.stops.values())),
        attempts=_mean(found, lambda one: one.attempts),
        calls=_mean(found, lambda one: one.calls),
        waits=_mean(found, lambda one: one.waits),
        wrong=_mean(found, lambda one: one.wrong),
        ignored=_mean(found, lambda one: one.ignored),
    )


def _largest_first(lost: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(lost.items(), key=lambda one: -one[1]))


def _mean(found: Sequence[Outcome], of: Callable[[Outcome], float]) -> float:
    return statistics.fmean(of(one) for one in found)

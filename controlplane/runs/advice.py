"""How often to checkpoint and how many spare nodes to hold, from closed forms: cheap enough for every page. Pure.

T is the seconds of training between two checkpoints, C what each blocks, M the mean time between stops, R the way back.
`trimtab simulate advise` holds these answers against the real policy; docs/ettr.md has the formulas and one such run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controlplane.runs.causes import Costs, mean_back_s, share

MOST_SPARES = 64


@dataclass(frozen=True, slots=True)
class Lost:
    """A part of all wall time (of all GPU-hours, for spares), in percent."""

    cause: str
    percent: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to be expected of an interval and a number of spares."""

    ettr_percent: float
    lost: tuple[Lost, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """The interval and the spares that lose least. `interval_steps` None: how long a step takes is not known."""

    interval_s: float
    interval_steps: int | None
    young_daly_s: float
    spares: int
    mtbf_s: float
    restart_s: float
    outlook: Outlook


def young_daly_s(blocking_s: float, mtbf_s: float) -> float:
    """T = √(2·C·M): the interval that loses least, to first order, while C ≪ M.

    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17 (9), 1974, 530–531; with the
    same first term J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
    Generation Computer Systems 22 (3), 2006, 303–312.
    """
    return math.sqrt(2 * blocking_s * mtbf_s)


def best_interval_s(blocking_s: float, mtbf_s: float) -> float:
    """The T that minimises Daly's complete cost function M·e^(R/M)·(e^((T+C)/M) − 1) / T (2006, equation 20).

    Its derivative is zero where 1 − T/M = e^(−(T+C)/M), whatever R is; found by Newton's method from the first-order
    answer, on the side from which it converges monotonically.
    """
    x, c = math.sqrt(2 * blocking_s / mtbf_s), blocking_s / mtbf_s
    for _ in range(50):
        rest = math.exp(-(x + c))
        step = (1 - x - rest) / (rest - 1)
        x -= step
        if abs(step) < 1e-12 * x:
            break
    return x * mtbf_s


def useful_share(interval_s: float, blocking_s: float, mtbf_s: float) -> float:
    """The part of a gang's running time that is kept: T / (M·(e^((T+C)/M) − 1)), Daly 2006 without the way back."""
    return interval_s / (mtbf_s * math.expm1((interval_s + blocking_s) / mtbf_s))


def waits_share(spares: int, away: float) -> float:
    """The part of time in which more nodes are in repair than there are spares, so that the run waits.

    While it waits nothing more of it breaks, so the nodes in repair are Erlang's loss system with spares + 1 places
    and `away` offered (breakages in one repair time); it holds for any spread of repair times. A. K. Erlang, 1917.
    """
    blocked = 1.0
    for places in range(1, spares + 2):
        blocked = away * blocked / (places + away * blocked)
    return blocked


def away(gpus: int, costs: Costs) -> float:
    """Nodes that break within one repair time."""
    return costs.repair_s / costs.mtbf_s(gpus) * share(node=True)


def best_spares(gpus: int, costs: Costs) -> int:
    """The number of spares for which waiting without and standing idle with them lose least GPU-hours together."""
    offered = away(gpus, costs)

    def lost(spares: int) -> float:
        waits = waits_share(spares, offered)
        return waits * costs.nodes(gpus) + max(0.0, spares - offered * (1 - waits))

    return min(range(MOST_SPARES + 1), key=lost)


def outlook(gpus: int, costs: Costs, interval_s: float, spares: int, restart_s: float | None = None) -> Outlook:
    """The expected ETTR of a long run, and where the rest goes; `restart_s` replaces the mix's mean way back."""
    mtbf, back = costs.mtbf_s(gpus), mean_back_s(costs) if restart_s is None else restart_s
    waits = waits_share(spares, away(gpus, costs))
    # of the time in which there are nodes: so much runs, the rest are ways back
    up = (1 - waits) * mtbf / (mtbf + back)
    cycle = interval_s + costs.blocking_s
    blocked = up * costs.blocking_s / cycle
    silent = up * min(1.0, share(effect="silent") * costs.silent_s / mtbf)
    useful = max(0.0, up * useful_share(interval_s, costs.blocking_s, mtbf) - silent)
    again = max(0.0, up - blocked - useful)
    lost = (
        Lost("checkpoints", 100 * blocked),
        Lost("steps again", 100 * again),
        Lost("restarts", 100 * (1 - waits - up)),
        Lost("waiting for a node", 100 * waits),
    )
    return Outlook(100 * useful, lost)


def advise(gpus: int, costs: Costs, *, step_s: float | None = None, restart_s: float | None = None) -> Advice:
    """The interval, in whole steps where `step_s` is known, and the spares that lose least, with what to expect."""
    mtbf = costs.mtbf_s(gpus)
    interval = best_interval_s(costs.blocking_s, mtbf)
    steps = None
    if step_s is not None and step_s > 0:
        below = max(1, math.floor(interval / step_s))
        steps = max(below, below + 1, key=lambda count: useful_share(count * step_s, costs.blocking_s, mtbf))
        interval = steps * step_s
    spares = best_spares(gpus, costs)
    return Advice(
        interval_s=interval,
        interval_steps=steps,
        young_daly_s=young_daly_s(costs.blocking_s, mtbf),
        spares=spares,
        mtbf_s=mtbf,
        restart_s=mean_back_s(costs) if restart_s is None else restart_s,
        outlook=outlook(gpus, costs, interval, spares, restart_s),
    )

"""What other balancing controllers would have made of a recorded run: replay over a fitted response, side by side.

What was seen is moved by what the fitted gain makes of the difference between the replayed bias and the recorded one
(softmax: p = softmax(ln p_seen + g·(f − f_seen))), and the replayed controller sees the shares that come of it. Draw 0
keeps the record's own noise: the recorded biases give the record back, so only the difference is a model, and it is the
prediction. The other draws take the router's movement, the noise and the gain as likely as the record leaves them;
their spread is the interval.

What it cannot know: the router learns from the tokens that it gets, and would have moved otherwise under another
controller; the fitted fade is all that it has of this. docs/counterfactual.md says how far off that is in the toy.
Nothing here changes a run.
Shapes: N draws, W steps, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.expert_response import Record, Response, draw_movement, lifted, seen_in, shares_of
from controlplane.rules.experts import lag1_autocorrelation, layer_statistics

Floats = NDArray[np.float64]

DRAWS = 16
INTERVAL = (2.5, 97.5)
"""Percentiles over the draws."""
SETTLED, SETTLE_STEPS = 1.25, 16
"""A layer has settled when the mean CV of SETTLE_STEPS steps comes below SETTLED × that of the judged steps."""
_BETA1, _BETA2, _EPSILON = 0.9, 0.95, 1e-8


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller of jobs/zaya/training/balance.py by its name there, and its rate or gains."""

    name: str
    rate: float = 0.0
    kp: float = 0.0
    ki: float = 0.0
    kd: float = 0.0

    def label(self) -> str:
        """The name with the numbers that it reads."""
        if self.name in ("pi", "pid"):
            numbers = {"Kp": self.kp, "Ki": self.ki} | ({"Kd": self.kd} if self.name == "pid" else {})
            return f"{self.name} " + " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        return self.name if self.name == "none" else f"{self.name} {self.rate:.3g}"


class Steering:
    """A controller at work on biases [..., L, E], moved in place; the arithmetic of jobs/zaya/training/balance.py."""

    def __init__(self, controller: Controller, bias: Floats) -> None:
        if controller.name not in ("adamw", "sign", "centred-sign", "pi", "pid", "none"):
            raise ValueError(f"no controller is named {controller.name!r}")
        self.controller, self.bias, self.steps = controller, bias, 0
        self.mean, self.square = np.zeros_like(bias), np.zeros_like(bias)
        self.error, self.error_before = np.zeros_like(bias), np.zeros_like(bias)

    def step(self, share: Floats) -> None:
        """Moves the biases after a step with these shares, of the shape of the biases."""
        error = share - 1 / share.shape[-1]
        self.bias += self._change(error)
        self.error_before, self.error = self.error, error

    def _change(self, error: Floats) -> Floats:
        one = self.controller
        self.steps += 1
        if one.name == "adamw":
            self.mean += (1 - _BETA1) * (error - self.mean)
            self.square += (1 - _BETA2) * (error**2 - self.square)
            divisor = np.sqrt(self.square / (1 - _BETA2**self.steps)) + _EPSILON
            return np.asarray(-one.rate / (1 - _BETA1**self.steps) * self.mean / divisor)
        if one.name in ("sign", "centred-sign"):
            sign = np.sign(error)
            centre = sign.mean(axis=-1, keepdims=True) if one.name == "centred-sign" else 0.0
            return np.asarray(-one.rate * (sign - centre))
        if one.name == "none":
            return np.zeros_like(error)
        kd = one.kd if one.name == "pid" else 0.0
        curve = error - 2 * self.error + self.error_before
        return np.asarray(-(one.kp * (error - self.error) + one.ki * error + kd * curve))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Balance under one controller, over the judged steps and the layers that can be told; NaN where none can."""

    controller: Controller
    cv_floor: float
    """mean CV in sampling floors"""
    cv_low: float
    cv_high: float
    maxvio: float
    lag1: float
    """median lag-1 autocorrelation of the layers; near 1 is drifting, below 0 swinging"""
    settle_steps: float
    """mean over the layers, from the replay's beginning; the whole record where one never does"""


def replay(
    record: Record, response: Response, controller: Controller, *, judged_from: int, draws: int = DRAWS, seed: int = 0
) -> Outcome:
    """The record under another controller, from its first step and first biases.

    `judged_from` is the first step that counts. The interval is that of the draws, moved by what draw 0 differs from
    their median; a point with one draw.
    """
    known = response.known()
    if not known.any():
        return Outcome(controller, *[float("nan")] * 6)
    loads = replay_loads(record, response, controller, draws=draws, seed=seed)[:, :, known]
    told = [measure(one, record.top_k, judged_from, controller) for one in loads]
    values = [one.cv_floor for one in told]
    low, middle, high = np.percentile(values, (INTERVAL[0], 50, INTERVAL[1]))
    point = told[0].cv_floor
    return replace(told[0], cv_low=float(point + low - middle), cv_high=float(point + high - middle))


def replay_loads(
    record: Record, response: Response, controller: Controller, *, draws: int = DRAWS, seed: int = 0
) -> Floats:
    """Counts [N, W, L, E] that the controller would have seen."""
    random = np.random.default_rng(seed)
    known = response.known()
    gains = response.gain + response.gain_error * random.standard_normal((draws, *response.gain.shape))
    gains[0] = response.gain
    gains = np.where(known, gains, 0.0)[..., None]
    own = seen_in(record, response) - lifted(record.bias, response)
    wanted = np.stack([own, *(np.add(*draw_movement(record, response, random)) for _ in range(draws - 1))])
    steering = Steering(controller, np.repeat(record.bias[:1], draws, axis=0))
    running = steering.bias.copy()
    shares = np.empty_like(wanted)
    for step in range(len(own)):
        running += response.fade[:, None] * (steering.bias - running)
        felt = steering.bias - running
        felt -= felt.mean(axis=-1, keepdims=True)
        shares[:, step] = shares_of(wanted[:, step] + gains * felt, response)
        steering.step(shares[:, step])
    return np.asarray(shares * record.routed[..., None], dtype=np.float64)


def measure(counts: Floats, top_k: int, judged_from: int, controller: Controller) -> Outcome:
    """The same figures of counts [W, L, E] that were really seen, or of one draw; the interval is a point."""
    experts = counts.shape[-1]
    found = layer_statistics(counts, np.zeros_like(counts), experts, top_k)
    judged = found.cv_floor[judged_from:]
    layers = judged.mean(axis=0)
    cv = float(layers.mean())
    return Outcome(
        controller,
        cv_floor=cv,
        cv_low=cv,
        cv_high=cv,
        maxvio=float(found.maxvio[judged_from:].mean()),
        lag1=float(np.median(lag1_autocorrelation(found.share[judged_from:]))),
        settle_steps=float(np.mean([_settled(one, goal) for one, goal in zip(found.cv_floor.T, layers, strict=True)])),
    )


def _settled(cv: Floats, goal: float) -> float:
    """Steps until the running mean of a CV [W] is near its goal."""
    running = np.convolve(cv, np.full(SETTLE_STEPS, 1 / SETTLE_STEPS), mode="valid")
    near = np.flatnonzero(running <= SETTLED * goal)
    return float(near[0]) if len(near) else float(len(cv))


def candidates(response: Response, experts: int) -> tuple[Controller, ...]:
    """Controllers to try. PI and PID in units of E ÷ g, the gain that would undo an error of a median layer at once."""
    known = response.gain[response.known()]
    if not len(known):
        return ()
    undo = experts / float(np.median(known))
    found = [Controller("none")]
    found += [Controller("adamw", rate) for rate in (0.001, 0.002, 0.005, 0.01, 0.02)]
    found += [
        Controller(name, rate) for name in ("sign", "centred-sign") for rate in (0.0005, 0.001, 0.002, 0.005, 0.02)
    ]
    proportional, integral = (0.0, 0.1, 0.3, 0.6), (0.05, 0.1, 0.2, 0.4, 0.8)
    found += [Controller("pi", kp=kp * undo, ki=ki * undo) for kp in proportional for ki in integral]
    found += [Controller("pid", kp=0.3 * undo, ki=ki * undo, kd=kd * undo) for ki in integral for kd in (0.1, 0.3)]
    return tuple(found)


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The most even first; what cannot be told last."""
    return sorted(outcomes, key=lambda one: np.nan_to_num(one.cv_floor, nan=np.inf))


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Spearman's ρ without ties; NaN for fewer than three pairs."""
    if len(predicted) < 3:
        return float("nan")
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, measured)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])

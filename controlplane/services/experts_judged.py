"""A window of expert records as the alarms judge it, layer by layer, for the page: the same functions, the same book.

The alarms (rules.alarms_load) look at 64 steps together; one step alone is uneven in a healthy run as well. So what a
page calls uneven, dead or swinging is what they name, and a step's own figures stay figures. Dear sums come from the
moving window. Pure: what the store knows of earlier steps is asked through `earlier`, and only where it can matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import alarms_load, alarms_routes
from controlplane.rules import book as rule_book
from controlplane.rules.book import Rule, RuleBook
from controlplane.rules.expert_window import ExpertWindow
from controlplane.rules.experts import Floats, LayerStatistics, dead_experts
from controlplane.services import experts_together
from controlplane.services.experts_window import MovingWindow
from controlplane.store.expert_records import ExpertStep

OK, WARN, FAULT = 0, 1, 2
NAMES = ("ok", "warn", "fault")
_OF_SEVERITY = {"info": OK, "warning": WARN, "error": FAULT, "critical": FAULT}
SHOWN_RULES = ("expert-imbalance", "expert-oscillation", "expert-dead", "expert-skip", "expert-parallel-skew")
_WINDOWED = ("expert-imbalance", "expert-oscillation", "expert-skip", "expert-parallel-skew")
Levels = NDArray[np.uint8]
Earlier = Callable[[ExpertStep], Floats | None]
"""The mean CV [L] of the attempt's window TREND_STEPS before a step; None if there was none."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rules name in a window; levels are 0 ok, 1 warn, 2 fault, as the rule's severity says. L layers."""

    steps: int
    """how many steps of the attempt there are, at most 64"""
    wanted: int
    """how many the imbalance rule looks at"""
    warn_floor: float
    """from which distance in floors on the imbalance rule looks at a layer"""
    is_settling: bool
    """whether it does not judge since the window reaches into the warm-up"""
    is_judged: bool
    unseen: NDArray[np.bool_]
    """[L] whether too few of the steps have tokens of the layer to judge it"""
    silent: NDArray[np.bool_]
    """[L] whether none of them was told any token of it, as when the agents of a pipeline's stage are gone"""
    floors: Floats
    """[L] mean CV of the steps in floors in force"""
    cv: Floats
    """[L] mean CV of the steps"""
    lasting: LayerStatistics
    """[L] of the steps' counts together"""
    lag1: Floats
    """[L] autocorrelation of the loads at lag 1"""
    falling: NDArray[np.bool_]
    """[L] whether the CV is on its way down, which the imbalance rule leaves alone"""
    uneven: Levels
    """[L] by the imbalance rule"""
    swinging: Levels
    """[L] by the oscillation rule"""
    dead: Levels
    """[L, E] 0 alive, 1 without a token though no rule judges or it comes back, 2 named by the rule"""
    dead_level: int
    skipping: Levels
    """[L] by the rule of the skip slot"""
    skip_share: Floats
    """[L] mean of the steps"""
    skewed: Levels | None
    """[L] by the rule of expert-parallel ranks; None without such ranks"""

    @property
    def levels(self) -> Levels:
        """[L] the gravest of all of them."""
        dead = np.where((self.dead == 2).any(axis=-1), self.dead_level, OK)
        skewed = self.skewed if self.skewed is not None else np.zeros_like(self.uneven)
        gravest: Levels = np.maximum.reduce([self.uneven, self.swinging, self.skipping, skewed, dead.astype(np.uint8)])
        return gravest

    @property
    def level(self) -> str:
        """ok, warn or fault of the whole run; what cannot be seen of it is at least a warning."""
        return NAMES[max(int(self.levels.max(initial=OK)), WARN if self.unseen.any() else OK)]

    def worst(self) -> int:
        """The layer that is farthest from even, of those that are named at the gravest level."""
        gravest = self.uneven == self.uneven.max(initial=OK)
        floors = np.where(self.unseen, -1.0, np.nan_to_num(self.floors, nan=-1.0))
        return int(np.argmax(np.where(gravest, floors, -2.0)))


@cache
def shipped_book() -> RuleBook:
    """The rules as they are delivered."""
    return rule_book.load()


def thresholds(book: RuleBook | None) -> dict[str, dict[str, float]]:
    """The thresholds that pictures draw, by rule: for the heads of frames."""
    rules = book or shipped_book()
    return {rule: dict(rules[rule].thresholds) for rule in SHOWN_RULES}


def level_of(rule: Rule, *, is_worse: bool = False) -> int:
    """How a page shows what a rule finds."""
    words = rule.worse if is_worse and rule.worse else rule.plain
    return _OF_SEVERITY.get(words.severity, WARN)


def judge(
    steps: Sequence[ExpertStep],
    moving: MovingWindow,
    effect: Floats,
    book: RuleBook | None = None,
    earlier: Earlier | None = None,
) -> Judged:
    """The window of steps of one shape, not none, that `moving` was moved to; effect [L] is its design effect."""
    rules = book or shipped_book()
    own = experts_together.own(steps)
    whole = len(own) == len(steps) and all(len(own) <= rules[name].thresholds["window_steps"] for name in _WINDOWED)
    window = experts_together.window_of(own, moving if whole else None)
    if whole:
        window = _knowing(window, moving, effect)
    uneven, skewed = _of_loads(window, rules)
    if earlier is not None and (uneven.any() or (skewed is not None and skewed.any())):
        before = earlier(own[-1])  # it can only show that a layer's CV is falling, and clear it of both
        if before is not None:
            window = replace(window, cv_before=before).knowing(**_held(window))
            uneven, skewed = _of_loads(window, rules)
    rule = rules["expert-imbalance"]
    judged = window.last(rule, int(rule.thresholds["window_steps"]))
    return Judged(
        steps=len(own),
        wanted=int(rule.thresholds["window_steps"]),
        warn_floor=rule.thresholds["cv_floor"],
        is_settling=judged is None and bool(window.steps[0] <= rule.thresholds["warmup_steps"]),
        is_judged=judged is not None,
        unseen=window.unseen,
        silent=np.asarray(~window.together.any(axis=-1), dtype=np.bool_),
        floors=window.floors,
        cv=window.cv,
        lasting=window.lasting,
        lag1=window.lag1,
        falling=judged.falling(rule) if judged is not None else np.zeros(len(uneven), np.bool_),
        uneven=uneven,
        swinging=_graded(rules["expert-oscillation"], window, alarms_load.swinging_layers),
        dead=_dead(window, rules["expert-dead"]),
        dead_level=level_of(rules["expert-dead"]),
        skipping=_graded(rules["expert-skip"], window, _skipping),
        skip_share=window.skip_share,
        skewed=skewed,
    )


def _of_loads(window: ExpertWindow, rules: RuleBook) -> tuple[Levels, Levels | None]:
    """[L] by the imbalance rule, and by that of expert-parallel ranks if the experts lie on any."""
    uneven = _graded(rules["expert-imbalance"], window, alarms_load.uneven_layers)
    ranks = window.expert_parallel
    if ranks < 2 or window.experts % ranks:
        return uneven, None
    return uneven, _graded(rules["expert-parallel-skew"], window, alarms_routes.skewed_layers)


_HELD = ("design_effect", "floors", "cvs", "known_steps", "together", "lasting", "lag1", "skip_share")


def _knowing(window: ExpertWindow, moving: MovingWindow, effect: Floats) -> ExpertWindow:
    """The window with what the moving one has summed up: statistics of 64 steps would be computed anew each step."""
    return window.knowing(
        design_effect=effect,
        floors=moving.mean("cv_floor") / np.sqrt(effect),
        cvs=moving.each("cv"),
        known_steps=moving.known_steps,
        together=moving.together,
        lag1=moving.lag1(),
        skip_share=moving.mean("skip_share"),
    )


def _held(window: ExpertWindow) -> dict[str, Any]:
    return {name: value for name, value in vars(window).items() if name in _HELD}


def _graded(
    rule: Rule,
    window: ExpertWindow,
    named: Callable[[ExpertWindow, Rule], tuple[NDArray[np.bool_], NDArray[np.bool_]]],
) -> Levels:
    """[L] the levels of what a rule names; nothing where it does not judge."""
    last = window.last(rule, int(rule.thresholds["window_steps"]))
    if last is None:
        return np.zeros(window.counts.shape[1], np.uint8)
    plain, worse = named(last, rule)
    levels = np.where(plain, level_of(rule), OK)
    graded: Levels = np.where(worse, level_of(rule, is_worse=True), levels).astype(np.uint8)
    return graded


def _skipping(window: ExpertWindow, rule: Rule) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    layers = alarms_load.skipping_layers(window, rule)
    return layers, np.zeros_like(layers)


def _dead(window: ExpertWindow, rule: Rule) -> Levels:
    steps = int(rule.thresholds["steps"])
    last = window.last(rule, steps)
    found = dead_experts(window.counts[-steps:], window.experts, steps, window.design_effect)
    named = np.zeros_like(found) if last is None else alarms_load.lifeless(window, last, rule)
    levels: Levels = (found.astype(np.uint8) + named).astype(np.uint8)
    return levels

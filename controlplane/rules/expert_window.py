"""The stretch of a run's expert records that the alarms judge, and what they all ask of it. Pure.

W steps, L layers, S slots, E real experts. A fresh run is unbalanced by nature until its biases have moved, so nothing
is judged before a warm-up of optimizer steps, and an imbalance that is still falling is left alone. A step without
tokens tells nothing of its layer: means are of the others, and a layer that has few of those is not judged at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules import experts as statistics
from controlplane.rules.book import Rule
from controlplane.rules.findings import RUN, Finding, Judgement, Subject

TREND_STEPS = 192
_LAYERS_NAMED = 16


@dataclass(frozen=True, slots=True)
class Resumed:
    """How an attempt that took up a checkpoint began. Heads of bias checksums: 0 is unknown (agents.probe.ring)."""

    first_step: int
    start_bias: int = 0
    checkpoint_bias: int = 0
    before: NDArray[np.float32] | None = None
    """[L, S] biases of the checkpoint's step as the attempt before recorded them"""
    begun: NDArray[np.float32] | None = None
    """[L, S] biases of this attempt's first step"""


@dataclass(frozen=True)
class ExpertWindow:
    """The newest consecutive expert records of one live attempt, summed over ranks."""

    run_id: str
    run_name: str
    attempt_no: int
    steps: NDArray[np.int64]
    """[W] optimizer steps, ascending"""
    at_s: NDArray[np.float64]
    """[W] by the server's clock"""
    counts: NDArray[np.uint32]
    """[W, L, S]"""
    bias: NDArray[np.float32]
    """[W, L, S]"""
    experts: int
    top_k: int
    spread: NDArray[np.float64] | None = None
    """[3, W, L] sums of squares between ranks, their degrees of freedom, the ranks (store.expert_records.Spread)"""
    cv_before: NDArray[np.float64] | None = None
    """[L] mean CV of as many steps, TREND_STEPS earlier in the same attempt; None while there are none"""
    expert_parallel: int = 1
    balanced_until: int | None = None
    """the last step at which the job's own schedule moves the biases; None: to the end"""
    resumed: Resumed | None = None
    mismatch: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """[W] share of choices unlike the rollout's, NaN unknown; empty: this is no reinforcement learning"""
    mismatch_usual: float = math.nan
    """what it was when the attempt began"""

    def last(self, rule: Rule, steps: int) -> ExpertWindow | None:
        """The last `steps` records; None while there are fewer, half are lost, or they reach into the warm-up."""
        if len(self.steps) < steps:
            return None
        cut = slice(len(self.steps) - steps, None)
        numbers = self.steps[cut]
        if numbers[0] <= rule.thresholds.get("warmup_steps", 0) or numbers[-1] - numbers[0] >= 2 * steps:
            return None
        if steps == len(self.steps):
            return self
        return replace(
            self,
            steps=numbers,
            at_s=self.at_s[cut],
            counts=self.counts[cut],
            bias=self.bias[cut],
            spread=None if self.spread is None else self.spread[:, cut],
            mismatch=self.mismatch[cut] if len(self.mismatch) else self.mismatch,
        )

    def knowing(self, **properties: Any) -> ExpertWindow:
        """The same window with properties that its caller has computed already, by their names."""
        made = replace(self)
        vars(made).update(properties)
        return made

    @cached_property
    def found(self) -> statistics.LayerStatistics:
        """The statistics of each step, [W, L]."""
        with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite
            return statistics.layer_statistics(self.counts, self.bias, self.experts, self.top_k)

    @cached_property
    def design_effect(self) -> statistics.Floats:
        """[L] pooled over the window, at least 1; 1 where it is not known."""
        if self.spread is None:
            return np.ones(self.counts.shape[1])
        squares, freedom, ranks = self.spread
        return statistics.pooled_design_effect(self.counts[..., : self.experts], squares, freedom, ranks, self.top_k)

    @cached_property
    def cvs(self) -> statistics.Floats:
        """[W, L] of each step"""
        return self.found.cv

    @cached_property
    def cv(self) -> statistics.Floats:
        """[L] mean over the window"""
        return statistics.mean_of_known(self.cvs, axis=0)

    @cached_property
    def known_steps(self) -> statistics.Integers:
        """[L] in how many of the steps the layer's experts have tokens"""
        return np.asarray(np.isfinite(self.cvs).sum(axis=0), dtype=np.int64)

    @property
    def unseen(self) -> statistics.Bools:
        """[L] whether that is in fewer than half of them, which is too little to judge the layer by"""
        return np.asarray(2 * self.known_steps < len(self.steps), dtype=np.bool_)

    @cached_property
    def floors(self) -> statistics.Floats:
        """[L] mean CV in multiples of the sampling floor of correlated tokens: CV₀·√(design effect)."""
        return statistics.mean_of_known(self.found.cv_floor, axis=0) / np.sqrt(self.design_effect)

    @cached_property
    def lag1(self) -> statistics.Floats:
        """[L] lag-1 autocorrelation of the loads over the window"""
        return statistics.lag1_autocorrelation(self.found.share)

    @cached_property
    def skip_share(self) -> statistics.Floats:
        """[L] mean share of the tokens that take a skip slot"""
        return statistics.mean_of_known(self.found.skip_share, axis=0)

    @cached_property
    def together(self) -> statistics.Floats:
        """[L, S] the sum of the window's counts"""
        return np.asarray(self.counts.sum(axis=0, dtype=np.float64))

    @cached_property
    def lasting(self) -> statistics.LayerStatistics:
        """The statistics of the window's counts together, [L]: what does not average out over its steps. A group of
        like tokens that a controller passes from expert to expert makes every step uneven and none of this."""
        with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite
            return statistics.layer_statistics(self.together, self.bias[-1], self.experts, self.top_k)

    @cached_property
    def lasting_maxvio_floor(self) -> statistics.Floats:
        """[L] MaxVio of the window's counts together that even routing of tokens as correlated as these would show."""
        routed = self.together[:, : self.experts].sum(axis=-1)
        floor = statistics.sampling_floor(routed, self.experts, self.top_k) * np.sqrt(self.design_effect)
        return statistics.maxvio_floor(floor, self.experts)

    def falling(self, rule: Rule) -> statistics.Bools:
        """[L] whether the CV is on its way down: that of the window's later half is below that of its earlier half by
        more than `falling` of it, or the window's below the one of TREND_STEPS before by more than `trend` of that."""
        half, at = len(self.steps) // 2, rule.thresholds
        early, late = (statistics.mean_of_known(part, axis=0) for part in (self.cvs[:half], self.cvs[half:]))
        down = late < early * (1 - at["falling"])
        if self.cv_before is not None:
            # a layer that rises within the window is not falling, whatever it was before
            down |= (self.cv < self.cv_before * (1 - at["trend"])) & (late < early * (1 + at["falling"]))
        return np.asarray(down, dtype=np.bool_)


def unknown(window: ExpertWindow, rule: Rule) -> Judgement:
    """Nothing is known of this rule's subject: it keeps the state that it had."""
    return Judgement(unknown=frozenset({Subject(rule.id, window.run_id, RUN)}))


def clear(window: ExpertWindow, rule: Rule, unseen: statistics.Bools) -> Judgement:
    """No layer is found; but one of which nothing is known, [L], may be what was found before."""
    return unknown(window, rule) if unseen.any() else Judgement()


def worst(layers: statistics.Bools, badness: statistics.Floats) -> int:
    """The worst of the named layers."""
    return int(np.argmax(np.where(layers, np.nan_to_num(badness, nan=-np.inf), -np.inf)))


def finding(
    window: ExpertWindow,
    rule: Rule,
    layers: statistics.Bools,
    layer: int,
    value: float,
    threshold: float,
    spoken: dict[str, Any],
    *,
    is_worse: bool = False,
) -> Judgement:
    """One finding for a run and rule, with its layers as evidence: a collapse of forty layers is one incident."""
    words = rule.worse if is_worse and rule.worse else rule.plain
    named = [int(index) for index in np.flatnonzero(layers)]
    facts = {"run": window.run_name, "layers": len(named), "of": len(layers), "layer": layer, **spoken}
    told = Finding(
        rule=rule.id,
        severity=words.severity,
        action=words.action,
        entity=RUN,
        sentence=words.sentence.format(**facts),
        # the window is judged as a whole: it satisfies the rule since its last record
        onset_s=float(window.at_s[-1]),
        last_clean_s=float(window.at_s[0]),
        value=value,
        threshold=threshold,
        run_id=window.run_id,
        attempt_no=window.attempt_no,
        evidence={
            "layers": named[:_LAYERS_NAMED],
            "worst_layer": layer,
            "first_step": int(window.steps[0]),
            "last_step": int(window.steps[-1]),
        },
    )
    return Judgement((told,))

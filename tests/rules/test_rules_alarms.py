"""Expert alarms: silent over a healthy start and healthy training, loud over what they are for, never a storm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controlplane.rules import alarms
from controlplane.rules import book as rule_book
from controlplane.rules.expert_window import ExpertWindow
from controlplane.rules.findings import Finding, Subject

BOOK = rule_book.load()
LAYERS, EXPERTS, TOKENS = 6, 16, 4096


def window(probabilities: Any, *, first_step: int = 1000, steps: int = 64, seed: int = 1) -> ExpertWindow:
    """A window sampled from probabilities [E], [L, E] or [W, L, E]."""
    fair = np.broadcast_to(np.asarray(probabilities, dtype=float), (steps, LAYERS, EXPERTS))
    fair = fair / fair.sum(axis=-1, keepdims=True)
    counts = np.random.default_rng(seed).multinomial(TOKENS, fair)
    return ExpertWindow(
        run_id="run-1",
        run_name="zaya-toy",
        attempt_no=2,
        steps=np.arange(first_step, first_step + steps),
        at_s=1e9 + np.arange(steps, dtype=float),
        counts=counts.astype(np.uint32),
        bias=np.zeros(counts.shape, np.float32),
        experts=EXPERTS,
        top_k=1,
    )


def found(probabilities: Any, **options: Any) -> dict[str, Finding]:
    return {finding.rule: finding for finding in alarms.judge(window(probabilities, **options), BOOK).findings}


FAIR = np.ones(EXPERTS)


def tilted(strength: float, layers: int = LAYERS) -> np.ndarray[Any, Any]:
    """The first experts of the first `layers` layers get more than their part."""
    weights = np.ones((LAYERS, EXPERTS))
    weights[:layers, :4] += strength
    return weights


def test_fair_routing_is_silent_over_many_windows() -> None:
    for seed in range(25):
        assert alarms.judge(window(FAIR, seed=seed), BOOK) == alarms.Judgement()


def test_a_mild_unevenness_far_above_a_large_batchs_floor_is_silent() -> None:
    uneven = window(1 + 0.05 * np.sin(np.arange(EXPERTS)))
    large = replace(uneven, counts=uneven.counts * 1000)
    assert alarms.judge(large, BOOK).findings == (), "CV 0.04 is 40 times that floor, and harmless"


def test_imbalance_has_two_levels_and_names_the_worst_layer() -> None:
    warned = found(tilted(0.8))["expert-imbalance"]
    assert (warned.severity, warned.action, warned.entity, warned.run_id) == ("warning", "alert", "run", "run-1")
    assert warned.evidence["layers"] == list(range(LAYERS))
    weights = tilted(0.8)
    weights[3, 0] += 60
    paged = found(weights)["expert-imbalance"]
    assert (paged.severity, paged.action) == ("error", "alert"), "it alerts and never restarts"
    assert paged.evidence["worst_layer"] == 3
    assert "layer 3" in paged.sentence and "collapsing" in paged.sentence


def test_a_fresh_run_is_not_judged_before_its_warm_up() -> None:
    judged = alarms.judge(window(tilted(60), first_step=100), BOOK)
    assert judged.findings == ()
    without = {"expert-parallel-skew", "route-mismatch", "expert-bias-lost"}  # there is nothing that they would judge
    assert judged.unknown == {Subject(rule, "run-1", "run") for rule in alarms.RULES if rule not in without}


def test_an_imbalance_that_is_still_falling_is_left_alone() -> None:
    strength = np.linspace(6, 3, 64)[:, None, None]
    weights = np.ones((64, LAYERS, EXPERTS))
    weights[..., :4] += strength
    assert "expert-imbalance" not in found(weights)
    assert "expert-imbalance" in found(weights[::-1]), "the same one rising is not"


def test_oscillation_shows_its_period() -> None:
    swing = np.where(np.arange(64) % 2, 3.0, 1.0)
    weights = np.ones((64, LAYERS, EXPERTS))
    weights[:, 2, :8] *= swing[:, None]
    finding = found(weights)["expert-oscillation"]
    assert finding.evidence["layers"] == [2]
    assert "period of 2 steps" in finding.sentence
    assert finding.value < -0.9


def test_a_slow_drift_is_no_oscillation() -> None:
    weights = np.ones((64, LAYERS, EXPERTS))
    weights[:, 2, :8] *= np.linspace(1, 3, 64)[:, None]
    assert "expert-oscillation" not in found(weights)


def test_dead_experts_are_one_finding_however_many_they_are() -> None:
    weights = np.ones((LAYERS, EXPERTS))
    weights[0, 3] = 0
    weights[4, 1] = weights[4, 9] = 0
    finding = found(weights)["expert-dead"]
    assert finding.evidence["layers"] == [0, 4]
    assert finding.value == 3
    assert "3 experts got no token in 16 steps, worst is layer 4 with 2 of 16" in finding.sentence


def test_a_short_window_knows_only_the_dead() -> None:
    weights = np.ones((LAYERS, EXPERTS))
    weights[0, 3] = 0
    judged = alarms.judge(window(weights, steps=20), BOOK)
    assert [finding.rule for finding in judged.findings] == ["expert-dead"]
    full = {"expert-imbalance", "expert-oscillation", "expert-runaway", "expert-bias-frozen", "expert-skip"}
    assert {subject.rule for subject in judged.unknown} == full


@pytest.mark.parametrize("lost", [1, 40])
def test_lost_records_are_borne_up_to_a_point(lost: int) -> None:
    whole = window(tilted(60), steps=64 + lost)
    kept = np.delete(np.arange(64 + lost), np.linspace(1, 62 + lost, lost).astype(int))
    holed = replace(whole, **{name: getattr(whole, name)[kept] for name in ("steps", "at_s", "counts", "bias")})
    assert "expert-imbalance" in {finding.rule for finding in alarms.judge(holed, BOOK).findings}
    sparse = replace(holed, steps=1000 + 3 * np.arange(64))
    assert Subject("expert-imbalance", "run-1", "run") in alarms.judge(sparse, BOOK).unknown

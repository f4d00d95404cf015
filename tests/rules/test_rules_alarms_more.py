"""Alarms over biases, ranks and routes: loud over what they are for, silent over its healthy neighbour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_rules_alarms import BOOK, EXPERTS, FAIR, LAYERS, found, tilted, window

from controlplane.rules import alarms
from controlplane.rules.expert_controller import load_error
from controlplane.rules.expert_window import ExpertWindow, Resumed
from controlplane.rules.findings import Finding

STEPS = 64


def told(judged: ExpertWindow) -> dict[str, Finding]:
    return {finding.rule: finding for finding in alarms.judge(judged, BOOK).findings}


def steered(judged: ExpertWindow, rate: float) -> ExpertWindow:
    """The window with the biases of a sign controller of this rate."""
    moves = -rate * np.sign(load_error(judged.counts, EXPERTS))
    return replace(judged, bias=np.cumsum(moves, axis=0).astype(np.float32))


def test_a_design_effect_lifts_the_floor_and_a_collapse_still_rises_above_it() -> None:
    few = window(FAIR, seed=3)
    clustered = replace(few, counts=few.counts // 4 * 16)  # tokens in runs: the same loads, twice as far from even
    assert "expert-imbalance" in told(replace(clustered, counts=window(tilted(0.8)).counts))
    ranks, freedom = np.full((STEPS, LAYERS), 8.0), np.full((STEPS, LAYERS), 7.0)
    total = clustered.counts.sum(axis=-1, dtype=np.float64)
    expected = freedom * total / ranks * (1 - 1 / EXPERTS)
    spread = np.stack([25 * expected, freedom, ranks])
    assert replace(clustered, spread=spread).design_effect == pytest.approx([25.0] * LAYERS, rel=0.01)
    floors = replace(clustered, spread=spread).floors
    assert floors == pytest.approx(clustered.floors / 5, rel=0.01)
    assert "expert-imbalance" in told(replace(window(tilted(60)), spread=spread)), "its effective experts say so"


def test_less_than_independent_spread_is_taken_for_independence() -> None:
    fair = window(FAIR)
    spread = np.stack([np.full((STEPS, LAYERS), value) for value in (0.0, 7.0, 8.0)])
    assert replace(fair, spread=spread).design_effect.tolist() == [1.0] * LAYERS
    unknown = np.stack([np.zeros((STEPS, LAYERS))] * 3)
    assert replace(fair, spread=unknown).design_effect.tolist() == [1.0] * LAYERS


def test_biases_that_go_one_way_over_a_lasting_imbalance_run_away() -> None:
    stuck = steered(window(tilted(6)), 1e-3)
    finding = told(stuck)["expert-runaway"]
    assert finding.severity == "warning" and "go one way" in finding.sentence
    assert "expert-runaway" not in told(steered(window(FAIR), 1e-3)), "a controller at rest goes both ways"


def test_a_gain_of_the_wrong_sign_is_graver_and_named() -> None:
    finding = told(steered(window(tilted(6)), -1e-3))["expert-runaway"]
    assert finding.severity == "error" and "feeds the error" in finding.sentence
    assert finding.value == pytest.approx(-1e-3, rel=0.1)


def test_a_bias_that_stands_still_under_imbalance_is_frozen_unless_the_schedule_says_so() -> None:
    bias = np.broadcast_to(np.linspace(-0.1, 0.1, EXPERTS, dtype=np.float32), (STEPS, LAYERS, EXPERTS))
    frozen = replace(window(tilted(6)), bias=bias)
    finding = told(frozen)["expert-bias-frozen"]
    assert finding.evidence["layers"] == list(range(LAYERS)) and "64 steps" in finding.sentence
    assert "expert-bias-frozen" not in told(replace(frozen, balanced_until=1010)), "the schedule stopped it"
    assert "expert-bias-frozen" in told(replace(frozen, balanced_until=5000))
    assert "expert-bias-frozen" not in told(replace(frozen, counts=window(FAIR).counts)), "it need not move"
    assert "expert-bias-frozen" not in found(tilted(6)), "biases of zero were never moved"


def resumed(bias: Any, **how: Any) -> ExpertWindow:
    return replace(window(FAIR), bias=np.full((STEPS, LAYERS, EXPERTS), bias, np.float32), resumed=Resumed(1000, **how))


def test_a_bias_lost_at_resume_is_known_by_its_checksum() -> None:
    finding = told(resumed(0.2, start_bias=7, checkpoint_bias=8))["expert-bias-lost"]
    assert finding.severity == "error" and "attempt 2 went on at step 1000" in finding.sentence
    assert "expert-bias-lost" not in told(resumed(0.2, start_bias=8, checkpoint_bias=8))
    late = replace(resumed(0.2, start_bias=7, checkpoint_bias=8), steps=np.arange(1300, 1300 + STEPS))
    assert "expert-bias-lost" not in told(late), "it is told for the first 256 steps"


def test_a_bias_lost_at_resume_is_known_by_its_size_without_a_checksum() -> None:
    before, zero = np.full((LAYERS, EXPERTS), 0.3, np.float32), np.zeros((LAYERS, EXPERTS), np.float32)
    finding = told(resumed(0.2, before=before, begun=before / 300))["expert-bias-lost"]
    assert "up to 0.3" in finding.sentence, "however far they have come since"
    assert "expert-bias-lost" not in told(resumed(0.29, before=before, begun=before * 0.97))
    assert "expert-bias-lost" not in told(resumed(0.0, before=zero, begun=zero))
    blind = alarms.judge(resumed(0.0), BOOK)
    assert "expert-bias-lost" in {subject.rule for subject in blind.unknown}, "there is nothing to tell by"
    assert "expert-bias-lost" not in told(window(FAIR)), "the first attempt has resumed nothing"


def test_checksums_of_two_layouts_do_not_cry_where_the_biases_went_on() -> None:
    before = np.linspace(-0.3, 0.3, LAYERS * EXPERTS, dtype=np.float32).reshape(LAYERS, EXPERTS)
    hashes = {"start_bias": 7, "checkpoint_bias": 8, "before": before}
    assert "expert-bias-lost" not in told(resumed(0.2, begun=before + np.float32(1e-4), **hashes))
    one = before.copy()
    one[2] = 0
    assert told(resumed(0.2, begun=one, **hashes))["expert-bias-lost"].evidence["layers"] == [2]


def test_a_controller_that_answers_a_step_late_is_not_called_inverted() -> None:
    swing = np.ones((STEPS, LAYERS, EXPERTS))
    swing[::2, :, :8] += 3
    swinging = window(swing)
    error = np.sign(load_error(swinging.counts, EXPERTS))
    late = np.concatenate([error[:1], error[:-1]])
    assert "feeds" not in str(told(replace(swinging, bias=np.cumsum(-1e-3 * late, axis=0).astype(np.float32))))


def test_tokens_in_the_skip_slot_are_told() -> None:
    counts = np.concatenate([window(FAIR).counts, np.zeros((STEPS, LAYERS, 1), np.uint32)], axis=-1)
    bias = np.zeros(counts.shape, np.float32)
    unused = replace(window(FAIR), counts=counts, bias=bias)
    assert "expert-skip" not in told(unused)
    used = counts.copy()
    used[:, 4, -1] = 200
    finding = told(replace(unused, counts=used))["expert-skip"]
    assert finding.evidence["layers"] == [4] and "4.7%" in finding.sentence


def test_a_skewed_rank_is_named_at_two_levels() -> None:
    weights = np.ones((LAYERS, EXPERTS))
    weights[2, 4:8] = 1.25
    warned = told(replace(window(weights), expert_parallel=4))["expert-parallel-skew"]
    assert warned.severity == "warning" and "rank 1 of 4" in warned.sentence and warned.evidence["layers"] == [2]
    weights[2, 4:8] = 2.0
    assert told(replace(window(weights), expert_parallel=4))["expert-parallel-skew"].severity == "error"
    assert "expert-parallel-skew" not in told(window(weights)), "every rank holds all experts"
    assert "expert-parallel-skew" not in told(replace(window(FAIR), expert_parallel=4))


def test_a_trainer_unlike_its_rollout_is_told_absolutely_and_against_its_own_start() -> None:
    def judged(share: float, usual: float = float("nan")) -> dict[str, Finding]:
        return told(replace(window(FAIR), mismatch=np.full(STEPS, share), mismatch_usual=usual))

    assert "route-mismatch" not in judged(0.08) and "route-mismatch" not in judged(0.08, usual=0.05)
    assert "16.0%" in judged(0.16)["route-mismatch"].sentence
    assert judged(0.11, usual=0.04)["route-mismatch"].threshold == pytest.approx(0.09)
    sparse = replace(window(FAIR), mismatch=np.where(np.arange(STEPS) < 8, 0.5, np.nan))
    assert "route-mismatch" in {subject.rule for subject in alarms.judge(sparse, BOOK).unknown}


def test_a_slow_fall_over_hundreds_of_steps_is_left_alone_and_a_lasting_level_is_not() -> None:
    lasting = window(tilted(0.8))
    assert "expert-imbalance" in told(replace(lasting, cv_before=lasting.cv * 1.05))
    assert "expert-imbalance" not in told(replace(lasting, cv_before=lasting.cv * 1.25))
    rising = np.ones((STEPS, LAYERS, EXPERTS))
    rising[..., :4] += np.linspace(0.5, 3, STEPS)[:, None, None]
    worse = window(rising)
    assert "expert-imbalance" in told(replace(worse, cv_before=worse.cv * 2)), "it was worse, but rises again"


def test_a_lump_of_tokens_that_goes_from_expert_to_expert_is_no_imbalance() -> None:
    weights = np.ones((STEPS, LAYERS, EXPERTS))
    weights[np.arange(STEPS), :, np.random.default_rng(1).integers(0, EXPERTS, STEPS)] += 5
    passing = window(weights)
    assert passing.floors.min() > 4 and passing.lasting.cv.max() < 0.3
    assert "expert-imbalance" not in told(passing)
    weights[:] = 1
    weights[..., 3] += 5
    assert "expert-imbalance" in told(window(weights)), "one that stays is"


def test_correlated_tokens_are_worth_fewer_before_an_expert_is_called_dead() -> None:
    weights = np.ones((LAYERS, EXPERTS))
    weights[0, 3] = 0
    dead = replace(window(weights), counts=window(weights).counts // 64)  # 4 tokens an expert, 64 in sixteen steps
    assert "expert-dead" in told(dead)
    total = dead.counts.sum(axis=-1, dtype=np.float64)
    ranks, freedom = np.full(total.shape, 8.0), np.full(total.shape, 7.0)
    clustered = np.stack([4 * freedom * total / ranks * (1 - 1 / 15), freedom, ranks])
    assert "expert-dead" not in told(replace(dead, spread=clustered))


def test_an_expert_that_its_controller_brings_back_is_given_patience() -> None:
    weights = np.ones((STEPS, LAYERS, EXPERTS))
    weights[-20:, 0, 3] = 0
    asleep = window(weights)
    rising = np.zeros(asleep.bias.shape, np.float32)
    rising[:, 0, 3] = np.linspace(0, 0.1, STEPS)
    assert "expert-dead" in told(asleep)
    assert "expert-dead" not in told(replace(asleep, bias=rising))
    weights[:, 0, 3] = 0
    assert "expert-dead" in told(replace(window(weights), bias=rising)), "it never came back"


def sick(rule: str) -> ExpertWindow:
    """A window that fires this rule."""
    if rule == "expert-dead":
        return window(np.where(np.arange(EXPERTS) == 3, 0.0, 1.0))
    if rule == "expert-oscillation":
        swing = np.ones((STEPS, LAYERS, EXPERTS))
        swing[::2, :, :8] += 3
        return window(swing)
    if rule == "expert-skip":
        fair = window(FAIR)
        counts = np.concatenate([fair.counts, np.full((STEPS, LAYERS, 1), 200, np.uint32)], axis=-1)
        return replace(fair, counts=counts, bias=np.zeros(counts.shape, np.float32))
    uneven = replace(window(tilted(6)), expert_parallel=4)
    if rule == "expert-bias-frozen":
        bias = np.linspace(-0.1, 0.1, EXPERTS, dtype=np.float32)
        return replace(uneven, bias=np.broadcast_to(bias, (STEPS, LAYERS, EXPERTS)).copy())
    return steered(uneven, 1e-3)


OF_LAYERS = [
    "expert-imbalance",
    "expert-oscillation",
    "expert-dead",
    "expert-runaway",
    "expert-bias-frozen",
    "expert-skip",
    "expert-parallel-skew",
]


@pytest.mark.parametrize("lost", [[30], [0, 31, 32, 63]])
@pytest.mark.parametrize("rule", OF_LAYERS)
def test_steps_without_tokens_blind_no_alarm(rule: str, lost: list[int]) -> None:
    whole = sick(rule)
    counts, bias = whole.counts.copy(), whole.bias.copy()
    counts[lost] = 0
    if rule == "expert-bias-frozen":
        bias[lost] = np.nan
    holed = replace(whole, counts=counts, bias=bias)
    before, after = told(whole)[rule], told(holed)[rule]
    assert (after.severity, after.evidence["layers"]) == (before.severity, before.evidence["layers"])
    assert holed.floors == pytest.approx(whole.floors, rel=0.1)


@pytest.mark.parametrize("rule", OF_LAYERS)
def test_a_layer_of_which_nothing_is_recorded_is_unknown_and_hides_no_other(rule: str) -> None:
    def judged(silent: slice) -> tuple[list[str], set[str]]:
        counts, bias = whole.counts.copy(), whole.bias.copy()
        counts[:, silent], bias[:, silent] = 0, np.nan
        found = alarms.judge(replace(whole, counts=counts, bias=bias), BOOK)
        return [finding.rule for finding in found.findings], {subject.rule for subject in found.unknown}

    whole = sick(rule)
    found, unknown = judged(slice(1, 3))
    assert rule in found and rule not in unknown
    found, unknown = judged(slice(None))
    assert not found and rule in unknown, "not being able to look ends nothing"


def test_a_layer_that_is_known_in_few_steps_is_not_judged() -> None:
    whole = sick("expert-oscillation")
    counts = whole.counts.copy()
    counts[2:60] = 0
    judged = alarms.judge(replace(whole, counts=counts), BOOK)
    assert not judged.findings and {"expert-imbalance", "expert-oscillation"} <= {one.rule for one in judged.unknown}

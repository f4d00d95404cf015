"""Alarms over layers of 256 experts, where one expert hardly moves a layer's CV, and swings slower than a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from controlplane.rules import alarms
from controlplane.rules import book as rule_book
from controlplane.rules.expert_controller import load_error
from controlplane.rules.expert_window import ExpertWindow
from controlplane.rules.findings import Finding

BOOK = rule_book.load()
STEPS, LAYERS, WIDE, TOP_K, TOKENS = 64, 2, 256, 8, 65536


def window(shares: Any, routed: int, bias: Any = None, top_k: int = TOP_K) -> ExpertWindow:
    """A window of `routed` token copies a step and layer, by weights [W, L, E]."""
    fair = shares / shares.sum(axis=-1, keepdims=True)
    counts = np.random.default_rng(1).multinomial(routed, fair)
    return ExpertWindow(
        run_id="run-1",
        run_name="wide",
        attempt_no=1,
        steps=np.arange(1000, 1000 + STEPS),
        at_s=1e9 + np.arange(STEPS, dtype=float),
        counts=counts.astype(np.uint32),
        bias=np.zeros(counts.shape, np.float32) if bias is None else bias(counts).astype(np.float32),
        experts=shares.shape[-1],
        top_k=top_k,
    )


def told(judged: ExpertWindow) -> dict[str, Finding]:
    return {finding.rule: finding for finding in alarms.judge(judged, BOOK).findings}


def hot(times: float) -> np.ndarray[Any, Any]:
    """Expert 7 of the last layer is asked for `times` as often as each of the others."""
    weights = np.ones((STEPS, LAYERS, WIDE))
    weights[:, -1, 7] = times
    return weights


def test_one_expert_among_256_that_carries_several_times_its_share_is_an_imbalance() -> None:
    warned = told(window(hot(2.5), TOKENS * TOP_K))["expert-imbalance"]
    assert warned.severity == "warning" and warned.evidence["layers"] == [1]
    assert "its fullest expert at 2.5 x the mean one" in warned.sentence
    assert told(window(hot(4), TOKENS * TOP_K))["expert-imbalance"].severity == "error"
    assert "expert-imbalance" not in told(window(hot(1.5), TOKENS * TOP_K))
    assert "expert-imbalance" not in told(window(hot(1), TOKENS * TOP_K))


def test_a_full_expert_that_chance_explains_is_none() -> None:
    few = window(hot(2.5), 1024 * TOP_K).knowing(floors=np.full(LAYERS, 3.0))
    assert "expert-imbalance" in told(few)
    clustered = few.knowing(floors=np.full(LAYERS, 3.0), design_effect=np.full(LAYERS, 25.0))
    assert clustered.lasting_maxvio_floor == pytest.approx(5 * few.lasting_maxvio_floor)
    assert "expert-imbalance" not in told(clustered), "tokens that go together leave so much over 64 steps"


@pytest.mark.parametrize("gain", [0.02, -0.02])
def test_an_integral_controller_of_the_wrong_sign_is_told_while_256_experts_collapse_onto_one(gain: float) -> None:
    """Its sign explains 4/E of what moves: one expert's bias rises as much as those of 255 fall together."""
    weights = hot(1)
    weights[:, -1, 7] += np.exp(np.linspace(0, 5, STEPS))
    collapsing = window(weights, TOKENS * TOP_K, lambda counts: -gain * np.cumsum(load_error(counts, WIDE), axis=0))
    found = told(collapsing).get("expert-runaway")
    if gain > 0:
        assert found is None or "feeds the error" not in found.sentence, "its sign is right, whatever the loads do"
        return
    assert found is not None and found.severity == "error" and "feeds the error" in found.sentence
    assert found.value == pytest.approx(gain, rel=1e-3)
    assert found.evidence["layers"] == [1]


def swinging(period: float, size: float) -> np.ndarray[Any, Any]:
    """Sixteen experts whose loads swing about even, each at its own phase."""
    phase = np.random.default_rng(2).uniform(0, 2 * np.pi, (1, LAYERS, 16))
    return np.asarray(1 + size * np.sin(2 * np.pi * np.arange(STEPS)[:, None, None] / period + phase))


@pytest.mark.parametrize("period", [3, 4, 5, 8, 16, 32])
def test_a_swing_that_evens_out_over_the_window_is_told_at_any_period(period: int) -> None:
    judged = window(swinging(period, 0.9), 8192, top_k=1)
    assert judged.lasting.cv.max() < 0.2, "no imbalance would say it"
    finding = told(judged)["expert-oscillation"]
    assert finding.severity == "error"
    spoken = float(finding.sentence.split("a period of ")[1].split(" ")[0])
    assert spoken == pytest.approx(period, rel=0.1)


@pytest.mark.parametrize(
    ("size", "routed"),
    [pytest.param(0.1, 8192, id="near-the-floor"), pytest.param(0.1, 2**21, id="far-above-a-large-batch-s-floor")],
)
def test_a_small_slow_swing_is_a_healthy_controllers_momentum(size: float, routed: int) -> None:
    assert "expert-oscillation" not in told(window(swinging(8, size), routed, top_k=1))


def test_steps_without_order_and_a_lasting_imbalance_are_no_swing() -> None:
    weights = np.ones((STEPS, LAYERS, 16))
    weights[np.arange(STEPS), :, np.random.default_rng(1).integers(0, 16, STEPS)] += 5
    assert "expert-oscillation" not in told(window(weights, 8192, top_k=1))
    tilted = 1 + 0.15 * (swinging(8, 1) - 1) + np.where(np.arange(16) < 4, 3.0, 0.0)
    lasting = told(window(tilted, 8192, top_k=1))
    assert "expert-imbalance" in lasting and "expert-oscillation" not in lasting

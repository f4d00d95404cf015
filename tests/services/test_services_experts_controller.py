"""What moves each layer's biases, row by row: inverted and swinging are the alarms' words, of the alarms' own steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controlplane.rules import alarms, book
from controlplane.rules.book import RuleBook
from controlplane.rules.expert_window import ExpertWindow
from controlplane.services import experts_controller, experts_frame
from controlplane.store.expert_records import ExpertStep, Shape

BOOK = book.load()
STEPS = 64


def steered(gain: float, *, by_sign: bool, first: int = 301, experts: int = 64, tokens: int = 8192) -> list[ExpertStep]:
    """STEPS steps of two layers whose router answers its biases, which go against (or, below zero, with) the error."""
    dice = np.random.default_rng(0)
    logits, bias = dice.normal(0, 0.02, (2, experts)), np.zeros((2, experts))
    shape, made = Shape(2, experts, experts, 1), []
    for step in range(first - 32, first + STEPS):
        chances = np.exp(logits + bias)
        counts = np.array([dice.multinomial(tokens, layer / layer.sum()) for layer in chances])
        error = counts / tokens - 1 / experts
        bias = bias - gain * (np.sign(error) if by_sign else error)
        made.append(
            ExpertStep("r", 1, step, 2e9 + step, 1, tokens, 0, shape, counts.astype(np.uint32), bias.astype(np.float32))
        )
    return made[-STEPS:]


def rows(steps: Sequence[ExpertStep], rules: RuleBook = BOOK) -> list[dict[str, Any]]:
    return experts_controller.of_layers(steps, experts_frame.picture(steps, rules), rules)


def alarmed(steps: Sequence[ExpertStep]) -> set[str]:
    """What the alarms say of these steps."""
    window = ExpertWindow(
        "r", "r", 1, np.array([one.step for one in steps]), np.array([one.at_s for one in steps]),
        np.stack([one.counts for one in steps]), np.stack([one.bias for one in steps]), steps[0].shape.experts, 1,
    )  # fmt: skip
    return {found.rule for found in alarms.judge(window, BOOK).findings if "feeds the error" in found.sentence}


@pytest.mark.parametrize(("gain", "by_sign", "told_by"), [(-3.0, False, "ki"), (-0.02, True, "sign_gain")])
def test_the_gain_that_tells_an_inverted_sign_is_the_alarms(gain: float, by_sign: bool, told_by: str) -> None:
    steps = steered(gain, by_sign=by_sign)
    assert alarmed(steps) == {"expert-runaway"}
    for row in rows(steps):
        assert (row["inverted"], row["inverted_by"]) == (True, told_by)
        assert row[told_by] == pytest.approx(gain, rel=1e-3)


def test_a_gain_below_zero_is_not_inverted_where_the_alarm_does_not_say_so() -> None:
    steps = steered(-3.0, by_sign=False)
    rule = BOOK["expert-runaway"]
    calm = RuleBook({**BOOK.rules, rule.id: replace(rule, thresholds={**rule.thresholds, "inverted_cv_floor": 99.0})})
    young = [replace(one, step=one.step - 150) for one in steps]
    later = [replace(one, attempt_no=2) for one in steps[32:]]
    for found in (rows(steps, calm), rows(young), rows([*steps[:32], *later])):
        assert [(row["inverted"], row["inverted_by"]) for row in found] == [(False, None)] * 2
        assert found[0]["ki"] == pytest.approx(-3.0, rel=1e-3), "the figure is told all the same"


def test_figures_are_of_the_attempt_alone() -> None:
    steps = steered(0.001, by_sign=True)
    later = [replace(one, attempt_no=2, bias=one.bias + 5) for one in steps[-20:]]
    assert rows([*steps[:-20], *later]) == rows(later)
    first = rows(later[:1])[0]
    assert (first["kind"], first["drift"], first["ki"], first["sign_flips"]) == ("unknown", None, None, None)


def test_a_healthy_sign_controller_turns_often_and_does_not_swing() -> None:
    steps = steered(0.04, by_sign=True, experts=16)
    for row in rows(steps):
        assert row["kind"] == "sign" and row["sign_flips"] > 0.6 and not row["swings"] and not row["inverted"]
    wild = [replace(one, counts=one.counts + 900 * np.uint32(one.step % 2) * (np.arange(16) < 8)) for one in steps]
    wild = [replace(one, counts=one.counts.astype(np.uint32)) for one in wild]
    assert [row["swings"] for row in rows(wild)] == [True, True]

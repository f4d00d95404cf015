"""The arithmetic of the RSA experiment and the words that it lets itself say."""

from __future__ import annotations

from statistics import mean, stdev

import pytest

from benchmarks.rsa import SEEDS, Trained, facts, interval, lines_of, one_seed, word_for
from benchmarks.rsa_page import page
from jobs.zaya.rsa import Aggregation


def trained(seed: int, arm: str, plain: float, majority: float, rsa: float) -> Trained:
    metrics = {"pass@1": plain, "maj": majority, "rsa": rsa, "tokens_per_problem": 90.0}
    return Trained(seed, arm, 0.1, metrics | {"plain_tokens_per_problem": 92.0}, 1.0)


FOUND = [
    trained(seed, arm, 0.5, 0.6, (0.8 if arm == "with" else 0.1) + 0.01 * seed)
    for seed in (1, 2, 3, 4)
    for arm in ("with", "without")
]


def test_an_interval_is_students() -> None:
    values = [0.1, 0.3, 0.2, 0.4]
    middle, low, high = interval(values)
    half = 3.182 * stdev(values) / 2
    assert (middle, low, high) == pytest.approx((mean(values), mean(values) - half, mean(values) + half))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.2, "gain"), (-0.2, -0.01, "loss"), (-0.1, 0.1, "no effect"), (0, 0, "no effect")]
)
def test_an_interval_that_holds_zero_is_no_effect(low: float, high: float, word: str) -> None:
    assert word_for(low, high) == word


def test_effects_are_differences_of_uplifts_within_each_seed() -> None:
    lines = {line["name"]: line for line in lines_of(FOUND, 1.0)}
    assert len(lines) == len(FOUND) + 10
    effect = lines["effect of the prompts on RSA less maj"]
    assert effect["each"] == [0.7] * 4 and effect["found"] == "gain"
    assert lines["RSA less maj, without aggregation prompts"]["found"] == "loss"
    assert lines["effect of the prompts on pass@1"]["found"] == "no effect"
    assert lines["RSA with the prompts less the better plain method without them"]["value"] == pytest.approx(0.225)
    assert lines["RSA, seed 2, with"]["peer_value"] == 0.6


def test_the_page_has_every_figure_and_says_what_it_does_not() -> None:
    text = page(lines_of(FOUND, 1.0), facts())
    assert text.count("| with |") == text.count("| without |") == 4
    assert "| effect of the prompts on pass@1 | +0.000 | +0.000 to +0.000 | no effect |" in text
    assert "What this does not say" in text and "{" not in text


def test_the_experiment_really_trains_and_answers_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Aggregation(rollouts=2, candidates=1, rounds=1, limit=4, tail=4)
    monkeypatch.setattr("benchmarks.rsa.NUMBERS", numbers)
    found = one_seed((SEEDS[0], 0.005))
    assert [one.arm for one in found] == ["before", "with", "without"]
    for one in found:
        assert one.loss > 0 and one.cpu_s > 0
        tokens = one.metrics["tokens_per_problem"]
        assert 0 < tokens <= numbers.rollouts * (1 + numbers.rounds) * numbers.limit
        assert tokens <= one.metrics["plain_tokens_per_problem"] < tokens + numbers.limit

"""The arithmetic of the RSA experiment, its reinforcement learning, and the words that it lets itself say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from benchmarks.rsa import SEEDS, facts, one_seed, rl_of
from benchmarks.rsa_figures import ARMS, STAGES, WORTH_IT, Trained, interval, lines_of, word_for
from benchmarks.rsa_page import page
from benchmarks.rsa_rl import generated, questions, reinforced
from jobs.zaya.envs.base import Problem
from jobs.zaya.model.generate import generate
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rewards import Worth
from jobs.zaya.rl.rollout import RolloutWorker, Task, Weights
from jobs.zaya.rl.sampler import Sampler
from jobs.zaya.rsa import Aggregation, cost
from jobs.zaya.tokens import MARKS, prompt
from tests.jobs.zaya_small import MODEL

RL = RLConfig(
    steps=8,
    seed=3,
    sequences=32,
    length=64,
    learning_rate=3e-2,
    warmup=0,
    prompts=8,
    samples=4,
    limit=5,
    candidates=2,
    tail=4,
    aggregate=0.5,
    environments="micro/reverse@2-5",
)


class Printable:
    """Rewards the share of an answer that can be printed: a model that has learned nothing gets some of it."""

    def worth(self, problem: Problem, answer: str, ended: bool) -> Worth:
        share = sum(32 <= ord(one) < 127 for one in answer) / max(1, len(answer))
        return Worth(share, share)


def trained(seed: int, arm: str, stage: str, majority: float, rsa: float) -> Trained:
    metrics = {"pass@1": 0.5, "maj": majority, "rsa": rsa, "tokens_per_problem": 90.0, "plain_tokens_per_problem": 92.0}
    told = {"loss": 0.1} if stage != STAGES[1] else {"first_reward": 0.4, "reward": 0.6, "generated_tokens": 1200}
    return Trained(seed, arm, stage, metrics, 1.0, told)


def found(last: float, seeds: Sequence[int] = (1, 2, 3, 4)) -> list[Trained]:
    """Models whose RSA with the prompts is 0.8 after SFT and `last` after RL, a little more from seed to seed."""
    rsa = {("with", STAGES[0]): 0.8, ("with", STAGES[1]): last}
    return [
        trained(seed, arm, stage, 0.6, rsa.get((arm, stage), 0.1) + 0.01 * seed)
        for seed in seeds
        for arm, stage in [("before", "before"), *((arm, stage) for arm in ARMS for stage in STAGES)]
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


def test_effects_are_differences_of_uplifts_within_each_seed_after_each_stage() -> None:
    models = found(0.9)
    lines: dict[str, Any] = {line["name"]: line for line in lines_of(models, 1.0)}
    assert len(lines) == len(models) + 2 * 10 + 3 * 5
    assert all(
        {"name", "value", "unit", "target", "better", "peer", "peer_value"} <= line.keys() for line in lines.values()
    )
    for stage, effect in zip(STAGES, (0.7, 0.8), strict=True):
        line = lines[f"effect of the prompts on RSA less maj, after {stage}"]
        assert line["each"] == pytest.approx([effect] * 4) and line["found"] == "gain"
        assert lines[f"RSA less maj, without the prompts, after {stage}"]["found"] == "loss"
        assert lines[f"effect of the prompts on pass@1, after {stage}"]["found"] == "no effect"
        assert lines[f"{WORTH_IT}, after {stage}"]["value"] == pytest.approx(effect + 0.1 - 0.6 + 0.025)
    assert lines["what RL changes in RSA less pass@1, with"]["value"] == pytest.approx(0.1)
    assert lines["what RL changes in rsa, without"]["found"] == "no effect"
    assert lines["what RL changes in rsa, with less without"]["found"] == "gain"
    assert lines["RSA, seed 2, with, SFT"]["peer_value"] == 0.6


@pytest.mark.parametrize(("last", "word"), [(0.9, "gain"), (0.575, "no effect"), (0.2, "loss")])
def test_the_page_has_every_figure_and_its_answer_follows_them(last: float, word: str) -> None:
    text = page(lines_of(found(last), 1.0), facts())
    for arm in ARMS:
        assert all(text.count(f"| {arm}, {stage} |") == 4 for stage in STAGES)
    row = next(line for line in text.splitlines() if line.startswith(f"| {WORTH_IT}"))
    assert row.split(" | ")[-1].startswith(f"{last - 0.575:+.3f} (") and row.endswith(f"), {word} |")
    said = text.partition("**Answer of this run: ")[2].partition("\n")[0]
    assert said.startswith({"gain": "they pay", "loss": "they do not pay", "no effect": "no effect"}[word])
    assert "What this does not say" in text and "{" not in text and "35 intervals" in text


def test_both_arms_generate_as_many_completions_in_reinforcement_learning() -> None:
    arms = {arm: rl_of(arm, 11, 1.0) for arm in ARMS}
    assert arms["with"].aggregate > 0 == arms["without"].aggregate
    assert arms["with"].steps == arms["without"].steps
    each = {arm: one.prompts * (one.samples + one.aggregate * one.candidates) for arm, one in arms.items()}
    assert each["with"] == pytest.approx(each["without"], rel=0.03)
    assert questions(replace(RL, aggregate=0.0)) == RL.prompts


def test_candidates_are_counted_among_the_generated_tokens() -> None:
    worker = RolloutWorker(asdict(MODEL), Printable())
    torch.manual_seed(0)
    worker.load(Weights.of(0, ZayaForCausalLM(MODEL)))
    config = replace(RL, aggregate=1.0, prompts=4)
    asked = [Sampler(config).draw(1, slot) for slot in range(config.prompts)]
    task = Task(asked, 23, config.samples, config.limit, 1.0, config.candidates, config.tail, config.length)
    groups = worker.roll(task)
    prompts = [prompt(one.problem.question) for one in asked for _ in range(config.candidates)]
    candidates = generate(worker.model, prompts, limit=config.limit, generator=torch.Generator().manual_seed(23))
    assert not any(MARKS & set(one.tokens[-config.tail :]) for one in candidates)  # a prompt leaves marks out
    assert {one.ended for one in candidates} == {True, False}
    completions = [one for group in groups for one in group.completions]
    assert generated(groups) == sum(map(cost, [*completions, *candidates]))


def test_reinforcement_learning_moves_a_copy_towards_what_is_rewarded() -> None:
    torch.manual_seed(0)
    model = ZayaForCausalLM(MODEL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = reinforced(model, MODEL, RL, Printable())
    told = done.told()
    assert len(done.rewards) == RL.steps and told["reward"] > told["first_reward"] + 0.2
    assert done.generated > done.learned > 0
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items() if "tokens_per" not in name
    )
    again = reinforced(model, MODEL, replace(RL, steps=2), Printable())
    assert again.rewards == done.rewards[:2]


def test_the_experiment_really_trains_and_answers_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Aggregation(rollouts=2, candidates=1, rounds=1, limit=4, tail=4)
    monkeypatch.setattr("benchmarks.rsa.NUMBERS", numbers)
    monkeypatch.setattr("benchmarks.rsa.ASKED", 2)
    models = one_seed((SEEDS[0], 0.005))
    stages = [("before", "before"), *((arm, stage) for arm in ARMS for stage in STAGES)]
    assert [(one.arm, one.stage) for one in models] == stages
    for one in models:
        assert one.told["generated_tokens" if one.stage == STAGES[1] else "loss"] > 0 and one.cpu_s > 0
        tokens = one.metrics["tokens_per_problem"]
        assert 0 < tokens <= numbers.rollouts * (1 + numbers.rounds) * numbers.limit
        assert tokens <= one.metrics["plain_tokens_per_problem"] < tokens + numbers.limit

"""SkipStep: which steps move nothing, what ends an attempt, and a planted bad shard that is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from jobs.contract import ContractError, data_index, parse_ranges
from jobs.zaya.config import problems, read_config
from jobs.zaya.phases import Phase, SkipRule
from jobs.zaya.training.learner import Learner, NumericsError
from jobs.zaya.training.skipstep import SkipStep
from tests.jobs.zaya_small import learner, train

RULE = SkipRule(window=8, sigmas=4, consecutive=3)
POISON = "17-24"


def fed(values: list[float]) -> SkipStep:
    """A guard that has seen losses, with a gradient norm of 1 each."""
    guard = SkipStep(RULE)
    assert [guard.judge(value, 1.0, index) for index, value in enumerate(values, 1)] == [""] * len(values)
    return guard


def test_a_value_counts_from_its_limit_on_and_only_upwards() -> None:
    values = [2.0, 2.2, 2.0, 2.2, 2.0, 2.2, 2.0, 2.2]  # mean 2.1, standard deviation 0.1069
    assert fed(values).judge(2.527, 1.0, 9) == ""
    assert "the loss 2.530 is above 2.528, mean and 4 deviations of 8 steps" in fed(values).judge(2.53, 1.0, 9)
    assert fed(values).judge(0.1, 1.0, 9) == ""
    assert "gradient norm" in fed(values).judge(2.1, 1.1, 9)


def test_nothing_is_judged_before_half_a_window() -> None:
    assert fed([2.0, 2.1, 2.0]).judge(1e9, 1e9, 4) == ""
    assert fed([2.0, 2.1, 2.0, 2.1]).judge(1e9, 1.0, 5)


def test_outliers_stay_out_of_the_window_and_a_row_of_them_ends_the_attempt() -> None:
    guard = fed([2.0, 2.2] * 4)
    assert guard.judge(9.0, 1.0, 9)
    assert guard.judge(9.0, 1.0, 10)
    assert guard.judge(2.1, 1.0, 11) == ""
    assert guard.skipped == []
    assert max(guard.losses) < 3
    assert guard.judge(9.0, 1.0, 12)
    assert guard.judge(9.0, 1.0, 15)
    with pytest.raises(NumericsError, match=r"3 steps in a row, on data indices 12-12,15-16, were skipped: at"):
        guard.judge(9.0, 1.0, 16)


def test_a_guard_goes_on_from_its_state_to_the_bit() -> None:
    guard, other = fed([2.0, 2.2] * 4), SkipStep(RULE)
    guard.judge(9.0, 1.0, 9)
    guard.phase = 2
    other.load_state_dict(guard.state_dict())
    assert vars(other) == vars(guard)
    shorter = SkipStep(SkipRule(window=4, sigmas=4, consecutive=3))
    shorter.load_state_dict(guard.state_dict())
    assert shorter.losses == guard.losses[-4:]


def test_a_rule_that_allows_fewer_steps_in_a_row_keeps_the_newest_skipped() -> None:
    guard, stricter = fed([2.0, 2.2] * 4), SkipStep(SkipRule(window=8, sigmas=4, consecutive=2))
    assert guard.judge(9.0, 1.0, 9) and guard.judge(9.0, 1.0, 10)
    stricter.load_state_dict(guard.state_dict())
    assert stricter.skipped == [10] and stricter.state_dict()["skipped"].tolist() == [10, 0]
    with pytest.raises(NumericsError, match="10-11"):
        stricter.judge(9.0, 1.0, 11)


def guarded(poison: str = POISON, **more: Any) -> Learner:
    return learner(steps=30, learning_rate=0.01, skip_step=SkipRule(8, 5, 3), poison=poison, **more)


def test_a_poisoned_shard_is_seen_moves_nothing_and_when_it_lasts_ends_the_attempt() -> None:
    one = guarded()
    losses = train(one, 1, 16)
    weights, biases = one.optimizer.values.clone(), one.balancer.biases.clone()
    first = one.step(17, 17)
    assert first.loss > max(losses[8:]) + 1
    assert "is above" in first.skipped
    assert first.learning_rate == 0
    assert one.step(18, 18).skipped
    with pytest.raises(NumericsError, match="3 steps in a row, on data indices 17-19, were skipped"):
        one.step(19, 19)
    assert torch.equal(weights, one.optimizer.values)
    assert torch.equal(biases, one.balancer.biases)


def test_the_attempt_that_leaves_the_shard_out_trains_on() -> None:
    skipped = parse_ranges(POISON)
    one = guarded()
    done = [one.step(number, data_index(number, skipped)) for number in range(1, 23)]
    assert max(step.loss for step in done[16:]) < 4.5, "none of the noise, which costs more than 6"
    assert sum(step.loss for step in done[-5:]) < sum(step.loss for step in done[4:9])


def test_without_a_rule_poison_is_learned() -> None:
    one = learner(steps=30, learning_rate=0.01, poison="1-9")
    before = one.optimizer.values.clone()
    assert one.step(1, 1).learning_rate > 0
    assert not torch.equal(before, one.optimizer.values)


def test_poison_is_a_function_of_seed_and_index_and_differs_by_rank() -> None:
    one, clean = guarded().rows, guarded("").rows
    assert torch.equal(one.batch(17, 0, 2, 4), guarded().rows.batch(17, 0, 2, 4))
    assert not torch.equal(one.batch(17, 0, 2, 4), one.batch(17, 1, 2, 4))
    assert not torch.equal(one.batch(17, 0, 1, 4), clean.batch(17, 0, 1, 4))
    assert torch.equal(one.batch(16, 0, 1, 4), clean.batch(16, 0, 1, 4))
    assert one.batch(17, 0, 1, 64).min() >= 32
    assert one.sha256 == clean.sha256


def test_a_phase_with_other_data_is_not_judged_by_the_one_before() -> None:
    phases = (Phase(6, 0.01), Phase(24, 0.01))
    one = guarded("", phases=phases)
    train(one, 1, 6)
    assert one.guard is not None
    assert len(one.guard.losses) == 6
    train(one, 7, 7)
    assert len(one.guard.losses) == 1


def test_the_rule_is_read_from_the_jobs_words() -> None:
    words = '{"skipStep": {"window": 16, "sigmas": 3.5, "consecutive": 2}}'
    _, config = read_config({"TRIMTAB_TRAIN_JSON": words, "TRIMTAB_DATA_JSON": '{"poison": "3-5,9-9"}'})
    assert config.skip_step == SkipRule(16, 3.5, 2)
    assert config.poison == "3-5,9-9"
    assert read_config({})[1].skip_step is None


@pytest.mark.parametrize(
    ("maps", "path", "said"),
    [
        ({"train": {"skipStep": {"window": 3}}}, "train.skipStep.window", "must be a whole number ≥ 4, not 3"),
        ({"train": {"skipStep": {"sigmas": 0}}}, "train.skipStep.sigmas", "must be a number > 0, not 0"),
        ({"train": {"skipStep": {"size": 9}}}, "train.skipStep.size", "is not known"),
        ({"train": {"skipStep": True}}, "train.skipStep", "must be a mapping"),
        ({"data": {"poison": "9-3"}}, "data.poison", "must be ranges of data indices"),
        ({"data": {"poison": ""}}, "data.poison", "must be a range of data indices"),
    ],
)
def test_a_rule_or_poison_that_means_nothing_is_named(maps: dict[str, dict[str, object]], path: str, said: str) -> None:
    found = problems(maps)
    assert [where for where, _ in found] == [path]
    assert said in found[0][1]
    with pytest.raises(ContractError, match=path):
        read_config({f"TRIMTAB_{name.upper()}_JSON": json.dumps(one) for name, one in maps.items()})

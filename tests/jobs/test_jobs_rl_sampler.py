"""What is drawn, when it is drawn again, what counts as stale, and what rewards: without a cluster."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.contract import ContractError
from jobs.zaya.envs.base import Problem, draw, held_out, write_problems
from jobs.zaya.envs.registry import find
from jobs.zaya.judge.pairs import PREFERENCES, pairs, write_pairs
from jobs.zaya.model.generate import Completion
from jobs.zaya.rl.actors import Pool
from jobs.zaya.rl.batches import Batches, StaleError, Taken
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rewards import ProxyScorer, Worth
from jobs.zaya.rl.rollout import Asked, Group, Task
from jobs.zaya.rl.sampler import Sampler, seed_of

CONFIG = RLConfig(steps=9, prompts=4, samples=2, environments="micro/reverse@2-9, micro/sort@2-9", curriculum="zyphra")


class Answers:
    """Stands where the pool does: it completes a task at once, each group with the rewards that `say` tells of its
    problem, by weights of version `version`. What a real pool does is tested on a real Ray."""

    def __init__(self, say: Callable[[Problem], list[float]]) -> None:
        self.say, self.version = say, 0
        self.tasks: list[Task] = []

    def send(self, tasks: Sequence[Task]) -> list[Task]:
        self.tasks += tasks
        return list(tasks)

    def collect(self, sent: Sequence[Task], _stopped: Callable[[], bool], told: Callable[[], None]) -> list[Group]:
        told()
        return [self._group(asked) for task in sent for asked in task.asked]

    def _group(self, asked: Asked) -> Group:
        worths = [Worth(reward, reward) for reward in self.say(asked.problem)]
        return Group(asked.problem, [1], [Completion([], [0.0], True)] * len(worths), worths, self.version)


def batches(pool: Answers, config: RLConfig = CONFIG, skipped: Any = ()) -> Batches:
    return Batches(config, Sampler(config), cast(Pool, pool), skipped, config.steps)


def take(found: Batches, number: int) -> Taken:
    return found.take(number, lambda: False, lambda: None)


def drawn(pool: Answers) -> list[str]:
    return [asked.problem.id for task in pool.tasks for asked in task.asked]


def half(_problem: Problem) -> list[float]:
    return [1.0, 0.0]


def test_a_draw_is_a_function_of_seed_index_and_slot_and_of_no_held_out_question() -> None:
    one, same, other = Sampler(CONFIG), Sampler(CONFIG), Sampler(replace(CONFIG, seed=1))
    places = [(index, slot) for index in range(1, 60) for slot in range(4)]
    found = [one.draw(*place).problem for place in places]
    assert found == [same.draw(*place).problem for place in reversed(places)][::-1]
    assert found != [other.draw(*place).problem for place in places]
    assert not any(held_out(problem) for problem in found)
    assert [problem.environment for problem in found[:4]] == ["micro/reverse", "micro/sort"] * 2
    assert len({problem.id for problem in found}) > 100


def test_a_question_that_leaves_no_room_for_an_answer_is_drawn_anew_or_refused(tmp_path: Path) -> None:
    whole = replace(CONFIG, environments="micro/sum@2", curriculum="fixed", limit=4, length=32)
    short = replace(whole, length=14)  # two marks, "sum 7+13" and the answer
    before, found = ([Sampler(config).draw(index, 0).problem for index in range(1, 40)] for config in (whole, short))
    assert max(len(problem.question) for problem in found) == 8 < max(len(problem.question) for problem in before)
    assert all(one == other for one, other in zip(found, before, strict=True) if len(other.question) <= 8)
    with pytest.raises(ContractError, match=r"no question of micro/sum at difficulty 2 leaves room for train\.limit 4"):
        Sampler(replace(short, length=12)).draw(1, 0)
    write_problems(tmp_path / "problems.jsonl", before)
    sampler = Sampler(replace(short, problems="prepared"), tmp_path)
    assert max(len(sampler.draw(index, 0).problem.question) for index in range(40)) == 8
    with pytest.raises(ContractError, match="leaves room for"):
        Sampler(replace(short, problems="prepared", length=12), tmp_path)


def test_seeds_are_the_same_in_every_process() -> None:
    assert seed_of(0, 1, "a") == 27829028896010550
    assert seed_of(1, 1) != seed_of(11)


def test_what_was_sampled_moves_the_curriculum_once_the_step_is_done() -> None:
    pool = Answers(lambda _: [1.0, 1.0])
    found = batches(pool, replace(CONFIG, redraws=0))
    take(found, 1)
    assert {asked.problem.difficulty for task in pool.tasks for asked in task.asked} == {2}
    take(found, 2)
    assert {asked.problem.difficulty for task in pool.tasks[1:] for asked in task.asked} == {3}


def test_groups_that_teach_nothing_are_counted_and_drawn_anew_so_often_as_allowed() -> None:
    def sorts(problem: Problem) -> list[float]:
        return [1.0, 0.0] if problem.environment == "micro/sort" else [0.0, 0.0]

    pool = Answers(sorts)
    taken = take(batches(pool), 1)
    assert [len(task.asked) for task in pool.tasks] == [4, 2, 1]
    assert (len(taken.sampled), len(taken.teaching), taken.all_fail, taken.all_pass) == (7, 3, 4, 0)
    assert len(set(drawn(pool))) == 7, "none is drawn twice"
    assert taken.reward == taken.accuracy == pytest.approx(3 / 14)
    assert len({task.seed for task in pool.tasks}) == 3
    none = take(batches(Answers(sorts), replace(CONFIG, redraws=0)), 1)
    assert (len(none.sampled), len(none.teaching)) == (4, 2)


def test_completions_of_weights_too_far_behind_are_dropped_and_counted() -> None:
    pool = Answers(half)
    found = batches(pool, replace(CONFIG, staleness=2, redraws=0))
    pool.version = 1
    assert (take(found, 4).stale, len(pool.tasks)) == (0, 1)
    taken = take(found, 5)
    assert (taken.stale, taken.sampled, taken.gold) == (4, [], None) and math.isnan(taken.reward)
    pool.version = 4
    assert take(found, 6).staleness == 1


def test_steps_on_end_with_nothing_fresh_end_the_attempt() -> None:
    pool = Answers(half)
    found = batches(pool, replace(CONFIG, staleness=0, redraws=0))
    for number, version in ((1, 0), (2, 0), (3, 0), (4, 3), (5, 0), (6, 0)):
        pool.version = version
        assert bool(take(found, number).sampled) == (number - 1 == version)
    with pytest.raises(StaleError, match="in 3 steps in a row up to step 7"):
        take(found, 7)
    pool.version = -9
    short = batches(pool, replace(CONFIG, steps=1))
    with pytest.raises(StaleError, match="in 1 steps"):
        take(short, 1)


def test_batches_sent_ahead_are_in_the_state_and_sent_again_by_who_resumes() -> None:
    config = replace(CONFIG, ahead=1, aggregate=0.5)
    whole, first = Answers(half), Answers(half)
    one, before = batches(whole, config), batches(first, config)
    for number in (1, 2, 3, 4):
        take(one, number)
    for number in (1, 2):
        take(before, number)
    state = json.loads(json.dumps(before.state()))
    assert list(state["drawn"]) == ["3"]
    second = Answers(half)
    after = batches(second, config)
    after.load(state)
    for number in (3, 4):
        take(after, number)
    assert second.tasks == whole.tasks[2:], "the same prompts, seeds and kinds"
    assert first.tasks + second.tasks[1:] == whole.tasks
    assert after.state() == one.state()


def test_skipped_indices_are_not_drawn_and_those_on_their_way_are_let_go() -> None:
    config = replace(CONFIG, ahead=1)
    pool = Answers(half)
    take(batches(pool, config, ((1, 2),)), 1)
    assert pool.tasks[0].asked == [Sampler(config).draw(3, slot) for slot in range(4)]
    before = batches(Answers(half), config)
    take(before, 1)
    later = Answers(half)
    after = batches(later, config, ((2, 2),))
    after.load(before.state())
    take(after, 2)
    assert later.tasks[0].asked == [Sampler(config).draw(3, slot) for slot in range(4)]


def test_prompts_are_shared_out_over_the_actors() -> None:
    pool = Answers(half)
    take(batches(pool, replace(CONFIG, rollouts=3, redraws=0)), 1)
    assert [len(task.asked) for task in pool.tasks] == [2, 2]
    assert len({task.seed for task in pool.tasks}) == 2


def test_a_state_of_other_environments_is_refused() -> None:
    state = batches(Answers(half)).state()
    with pytest.raises(ContractError, match="not from 'micro/sort'"):
        batches(Answers(half), replace(CONFIG, environments="micro/sort")).load(state)


def test_a_calibration_says_where_a_curriculum_starts(tmp_path: Path) -> None:
    environments = {"micro/reverse": {"bound": 5}, "micro/sort": {"bound": 99}, "micro/copy": {"bound": 3}}
    (tmp_path / "calibration.json").write_text(json.dumps({"environments": environments}))
    found = Sampler(CONFIG, tmp_path).curriculum
    assert (found.bound("micro/reverse"), found.bound("micro/sort")) == (5, 9)
    (tmp_path / "calibration.json").write_text('{"environments": {"micro/reverse": 5}}')
    with pytest.raises(ContractError, match=r"calibration\.json"):
        Sampler(CONFIG, tmp_path)


def test_prepared_problems_are_drawn_in_place_of_new_ones(tmp_path: Path) -> None:
    config = replace(CONFIG, problems="prepared", environments="micro/reverse, micro/copy, micro/sort")
    with pytest.raises(ContractError, match="TRIMTAB_PREPARED_DIR"):
        Sampler(config)
    kept = [find(name).problem(3, seed) for name in ("micro/reverse", "micro/sort", "micro/add") for seed in range(5)]
    held = draw(find("micro/sort"), 3, 0, held=True)
    kept = [problem for problem in kept if not held_out(problem)]
    write_problems(tmp_path / "problems.jsonl", [*kept, held])
    sampler = Sampler(config, tmp_path)
    found = [sampler.draw(index, slot).problem for index in range(9) for slot in range(4)]
    assert all(problem in kept for problem in found)
    assert {problem.environment for problem in found} == {"micro/reverse", "micro/sort"}
    with pytest.raises(ContractError, match="none of the problems"):
        Sampler(replace(config, environments="micro/copy"), tmp_path)


def test_a_preference_model_rewards_and_the_rubric_looks_on(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="TRIMTAB_PREPARED_DIR"):
        ProxyScorer.fitted(None, 0)
    write_pairs(tmp_path / PREFERENCES, pairs([(find("micro/reverse"), range(2, 5))], 200, 0))
    scorer = ProxyScorer.fitted(tmp_path, 0)
    problem = find("micro/reverse").problem(3, 1)
    polite = scorer.worth(problem, f"sure: {problem.answer}.", ended=True)
    plain = scorer.worth(problem, problem.answer, ended=True)
    cut = scorer.worth(problem, f"sure: {problem.answer}.", ended=False)
    assert 0 < plain.reward < polite.reward < 1
    assert (plain.score, polite.score, cut.reward) == (1, 0, 0)
    assert plain.gold is not None and polite.gold is not None and plain.gold < polite.gold
    assert scorer.worth(problem, "\ud800" * 9, ended=True).reward < 1
    assert asdict(plain)["gold"] == plain.gold

"""The micro-tasks: pure, exactly scored, short, not to be had by a constant answer; problem lines; what is held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import ContractError
from jobs.zaya.envs.base import (
    HELD_OUT_IN,
    Problem,
    ProblemSet,
    constant_baseline,
    constant_baseline_of,
    draw,
    held_out,
    read_problems,
    write_problems,
)
from jobs.zaya.envs.micro import TASKS, MicroTask, answer_to, names
from jobs.zaya.envs.registry import find
from jobs.zaya.envs.registry import names as names_of

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
# Each answered here by hand, from the question alone.
BY_HAND = {
    "copy abba": "abba", "reverse dcba": "abcd", "sort hab": "abh", "upper fab": "FAB", "after ahc": "bid",
    "rotate abc": "bca", "unique abcab": "abc", "first gab": "g", "last gab": "b", "max 0352": "5", "min 4725": "2",
    "count a abaca": "3", "add 7+8+6": "1", "sum 64+51": "15", "parity 10110": "odd",
}  # fmt: skip
SOLVE = {
    "copy": str, "reverse": lambda t: "".join(reversed(t)), "sort": lambda t: "".join(sorted(t)), "upper": str.upper,
    "after": lambda t: t.translate(str.maketrans("abcdefgh", "bcdefghi")), "rotate": lambda t: (t * 2)[1 : len(t) + 1],
    "unique": lambda t: "".join(c for i, c in enumerate(t) if c not in t[:i]),
    "first": lambda t: t[:1], "last": lambda t: t[len(t) - 1 :], "max": max, "min": min,
    "count": lambda t: str(t[2:].count(t[0])), "add": lambda t: str(sum(map(int, t.split("+"))))[-1],
    "sum": lambda t: str(sum(map(int, t.split("+"))) % 100), "parity": lambda t: ("even", "odd")[t.count("1") & 1],
}  # fmt: skip


def solve(question: str) -> str:
    word, about = question.split(" ", 1)
    return str(SOLVE[word](about))  # type: ignore[operator]  # a table of functions of text


def test_what_is_asked_is_what_a_reader_would_answer() -> None:
    assert {question: solve(question) for question in BY_HAND} == BY_HAND
    assert {question: answer_to(question) for question in BY_HAND} == BY_HAND
    assert [answer_to(text) for text in ("", "sort", "hello you", "add x+1", "max ", "first ")] == [
        None,
        "",
        *[None] * 4,
    ]
    assert set(SOLVE) == set(TASKS) and len(TASKS) >= 8


@EVERY
def test_a_problem_is_a_pure_function_short_and_scored_exactly(task: MicroTask) -> None:
    for difficulty in range(task.easiest, task.hardest + 1):
        for seed in range(20):
            problem = task.problem(difficulty, seed)
            assert problem == task.problem(difficulty, seed)
            assert len(problem.question) <= 24 and len(problem.answer) <= 24
            assert (problem.question + problem.answer).isascii()
            assert problem.answer == solve(problem.question)
            assert task.score(problem, f" {problem.answer}\n") == 1.0
            assert task.score(problem, problem.answer + "x") == task.score(problem, "") == 0.0


@EVERY
def test_harder_is_longer_and_seeds_differ(task: MicroTask) -> None:
    sizes = [len(task.problem(difficulty, 3).question) for difficulty in range(task.easiest, task.hardest + 1)]
    assert sizes[0] < sizes[-1]
    assert len({task.problem(task.hardest, seed).question for seed in range(20)}) > 10
    for outside in (task.easiest - 1, task.hardest + 1):
        with pytest.raises(ContractError, match=f"{task.easiest} to {task.hardest}"):
            task.problem(outside, 0)


@EVERY
def test_a_constant_answer_stays_below_its_bound(task: MicroTask) -> None:
    for difficulty in (task.easiest, (task.easiest + task.hardest) // 2, task.hardest):
        assert 0.0 < constant_baseline(task, difficulty, 200, 1) < task.constant_bound


def test_the_baseline_is_the_best_constants() -> None:
    task = TASKS["parity"]
    drawn = [task.problem(4, seed) for seed in range(40)]
    odd = sum(problem.answer == "odd" for problem in drawn)
    assert constant_baseline_of(task, drawn) == constant_baseline(task, 4, 40, 0) == max(odd, 40 - odd) / 40
    with pytest.raises(ContractError, match="at least one"):
        constant_baseline(task, 4, 0, 0)
    with pytest.raises(ContractError, match="at least one"):
        constant_baseline_of(task, [])


class Counting(ProblemSet):
    """Counts what is scored, and how often somebody was told meanwhile."""

    scored = told = 0

    def score(self, problem: Problem, answer: str) -> float:
        assert self.told == self.scored, "told after each scoring"
        self.scored += 1
        return super().score(problem, answer)

    def tell(self) -> None:
        self.told += 1


def test_the_baseline_costs_no_more_than_so_many_scorings_a_problem() -> None:
    task = TASKS["reverse"]
    drawn = [task.problem(12, seed) for seed in range(60)]
    drawn += [replace(drawn[0], answer=f" {drawn[7].answer}"), drawn[7], drawn[7]]
    counting = Counting(task, drawn)
    assert constant_baseline_of(counting, drawn, counting.tell) == 3 / 63, "one answer is right of three problems"
    assert counting.scored == counting.told == 17 * 63


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000), name=st.sampled_from(names()), data=st.dictionaries(st.text(), st.text() | st.none())
)
def test_a_problem_is_a_line_both_ways(seed: int, name: str, data: dict[str, str | None]) -> None:
    made = find(name).problem(3, seed)
    problem = Problem(made.environment, made.id, made.question, made.answer, made.difficulty, data)
    line = problem.to_json()
    assert "\n" not in line and Problem.from_json(line) == problem


@pytest.mark.parametrize(
    "line",
    ["", "[]", "{}", "null", '{"environment": "a", "id": "b", "question": 3, "answer": "c", "difficulty": 1}',
     '{"environment": "a", "id": "b", "question": "q", "answer": "c", "difficulty": true}',
     '{"environment": "a", "id": "b", "question": "q", "answer": "c", "difficulty": 1, "data": []}',
     '{"environment": "a", "id": "b", "question": "q", "answer": "c", "difficulty": 1, "more": 1}', "[" * 90_000],
)  # fmt: skip
def test_a_line_that_is_no_problem_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(ContractError):
        Problem.from_json(line)
    path = tmp_path / "set.jsonl"
    write_problems(path, [TASKS["copy"].problem(2, 0)])
    path.write_text(path.read_text() + "\n" + (line or "{") + "\n")
    with pytest.raises(ContractError, match=r"set\.jsonl, line 3"):
        list(read_problems(path))


def test_a_problem_set_comes_back(tmp_path: Path) -> None:
    problems = [TASKS["sort"].problem(size, size) for size in range(2, 9)]
    write_problems(tmp_path / "set.jsonl", problems)
    assert list(read_problems(tmp_path / "set.jsonl")) == problems
    with pytest.raises(ContractError, match="cannot be read"):
        list(read_problems(tmp_path / "none.jsonl"))


def test_what_is_held_out_hangs_on_the_question_alone() -> None:
    task = TASKS["reverse"]
    train = {draw(task, 4, seed, held=False).question for seed in range(200)}
    kept = {draw(task, 4, seed, held=True).question for seed in range(100)}
    assert not train & kept and len(kept) > 50
    share = sum(held_out(task.problem(8, seed)) for seed in range(2000)) / 2000
    assert abs(share - 1 / HELD_OUT_IN) < 0.03
    assert draw(task, 4, 7, held=True) == draw(task, 4, 7, held=True)


def test_an_environment_with_too_few_questions_is_told() -> None:
    tiny = MicroTask("one", lambda _rng, _size: "a", str, 1, 1, 1.0)
    held = held_out(tiny.problem(1, 0))
    with pytest.raises(ContractError, match="harder"):
        draw(tiny, 1, 0, held=not held)


def test_a_name_that_is_wrong_is_told_with_near_ones() -> None:
    assert find("micro/reverse") is TASKS["reverse"] and names_of("micro") == names()
    with pytest.raises(ContractError, match="micro/reverse"):
        find("micro/revers")
    with pytest.raises(ContractError, match="begins with micro/"):
        find("mikro/reverse")
    with pytest.raises(ContractError, match="micro/ or rlve/"):
        find("zzz")
    with pytest.raises(ContractError, match="no family"):
        names_of("zzz")

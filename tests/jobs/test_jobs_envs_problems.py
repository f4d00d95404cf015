"""Mathematics and code: what is asked is right, equal answers count however written, wrong ones and attacks do not."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from jobs.contract import ContractError
from jobs.zaya.envs import code, mathematics
from jobs.zaya.envs.base import (
    Environment,
    Problem,
    ProblemSet,
    constant_baseline,
    constant_baseline_of,
    held_out,
    read_problems,
    write_problems,
)
from jobs.zaya.envs.registry import find, names
from jobs.zaya.sandbox import outer as sandbox

pytest.importorskip("math_verify", reason="needs the extra problems")


@pytest.fixture(scope="module", autouse=True)
def _verifier_ends() -> Iterator[None]:
    yield
    mathematics.VERIFIER.close()


def generated(family: str) -> list[str]:
    return [name for name in names(family) if not name.endswith("/set")]


@pytest.mark.parametrize("name", generated("math") + generated("code"))
def test_a_problem_is_pure_and_its_reference_answer_is_right(name: str) -> None:
    environment = find(name)
    for difficulty in range(environment.easiest, environment.hardest + 1):
        problem = environment.problem(difficulty, 3)
        assert problem == environment.problem(difficulty, 3) == Problem.from_json(problem.to_json())
        assert problem.question.isascii() and len(problem.question) <= 48
        assert environment.score(problem, problem.answer) == 1.0
        assert environment.score(problem, "") == environment.score(problem, "zz top") == 0.0
    assert len(environment.problem(environment.easiest, 0).question) <= 24
    for outside in (environment.easiest - 1, environment.hardest + 1):
        with pytest.raises(ContractError, match="difficulties"):
            environment.problem(outside, 0)


def test_a_function_held_out_as_an_expression_is_held_out_as_a_function_too() -> None:
    expressions, functions = (
        {problem.question[5:]: held_out(problem) for problem in (find(name).problem(1, seed) for seed in range(300))}
        for name in ("code/expression", "code/function")
    )
    shared = expressions.keys() & functions.keys()
    assert len(shared) > 15 and any(expressions[body] for body in shared)
    assert all(expressions[body] == functions[body] for body in shared)


@pytest.mark.parametrize(
    ("name", "problems", "bound"),
    [("math/arithmetic", 60, 0.25), ("math/linear", 60, 0.2), ("math/union", 60, 0.15)]
    + [("code/expression", 60, 0.2), ("code/fold", 30, 0.15)],
)
def test_a_constant_answer_stays_below_its_bound(name: str, problems: int, bound: float) -> None:
    assert 0.0 < constant_baseline(find(name), find(name).easiest, problems, 0) < bound


@pytest.mark.parametrize(
    ("name", "difficulties"),
    [("math/union", (2, 3)), ("math/linear", (1, 2)), ("code/fold", (1, 2)), ("code/expression", (1, 2))],
)
def test_the_baseline_is_that_of_all_references_where_equal_answers_are_told_without_scoring(
    name: str, difficulties: tuple[int, ...]
) -> None:
    """Though it scores the commonest alone: `ba` and `ab` are one union, `a+b` and `b+a` one function."""
    one = find(name)
    drawn = [one.problem(difficulty, seed) for seed in range(20) for difficulty in difficulties]
    answers = {problem.answer for problem in drawn}
    assert len(answers) > 16
    best = max(sum(one.score(problem, answer) for problem in drawn) for answer in answers)
    assert constant_baseline_of(one, drawn) == best / len(drawn) > 1 / len(drawn)


def test_the_first_program_that_fails_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    outcome = code.sandbox.Outcome("cpu")
    monkeypatch.setattr(code.sandbox, "run_program", lambda _source, stdin: ran.append(stdin) or outcome)
    assert not code.passes("while 1: pass", {"programs": [{"stdin": each, "stdout": ""} for each in "abc"]})
    assert ran == ["a"]


@pytest.mark.parametrize("name", ["code/expression", "code/function", "code/fold"])
def test_a_reference_is_right_when_it_is_run(name: str) -> None:
    """`score` takes it unread, so that it must be."""
    one = code.ENVIRONMENTS[name.partition("/")[2]]
    assert isinstance(one, code.MicroCode | code.Fold)
    for difficulty in range(one.easiest, one.hardest + 1):
        problem = one.problem(difficulty, 5)
        assert code.passes(one.wrap(problem.answer), problem.data)
        assert one.score(problem, f"({problem.answer})") == (name != "code/function"), "other words are run"


def test_a_union_has_each_element_once_in_any_order() -> None:
    union = find("math/union")
    for difficulty in range(union.easiest, union.hardest + 1):
        one, other = union.problem(difficulty, 1).question.split()[1:]
        assert len(one) + len(other) == difficulty and set(union.problem(difficulty, 1).answer) == {*one, *other}
    problem = next(one for seed in range(99) if len((one := union.problem(4, seed)).answer) == 3)
    for right in (problem.answer, problem.answer[::-1], f" {problem.answer}\n"):
        assert union.score(problem, right) == 1.0
    one, other = problem.question.split()[1:]
    for wrong in (one + other, problem.answer[:2], f"{one} {other}", problem.answer + "z"):
        assert union.score(problem, wrong) == 0.0


@pytest.mark.parametrize("name", ["math/arithmetic", "math/fraction"])
def test_a_question_is_no_answer_to_itself(name: str) -> None:
    problem = find(name).problem(1, 3)
    for undone in (problem.question, f"={problem.question}", f"({problem.question})", f"{problem.answer} + 0"):
        assert find(name).score(problem, undone) == 0.0
    for done in (f"{problem.question}={problem.answer}", rf"\boxed{{{problem.answer}}}"):
        assert find(name).score(problem, done) == 1.0


def test_a_fold_is_right_in_any_order_that_has_its_value_and_in_no_other() -> None:
    fold = find("code/fold")
    values: dict[tuple[int, ...], set[str]] = {}
    for difficulty in (1, 2):
        for seed in range(600):
            problem = fold.problem(difficulty, seed)
            key = problem.answer[0] * ("-" in problem.answer) + "".join(sorted(problem.answer))
            values.setdefault(tuple(problem.data["expected"]), set()).add(key)
    assert len(values) > 300 and all(len(same) == 1 for same in values.values()), "no two agree by accident"
    problem = next(one for seed in range(50) if (one := fold.problem(2, seed)).question.startswith("minus"))
    first, second, third = problem.question.removeprefix("minus ")
    assert problem.answer == f"{first}-{second}-{third}"
    assert fold.score(problem, f"{first}-({third}+{second})") == 1.0
    for wrong in (f"{second}-{first}-{third}", f"{first}-{second}", "0", f"{first}-({second}", "__import__('os')"):
        assert fold.score(problem, wrong) == 0.0


def test_arithmetic_is_worked_by_the_usual_precedence() -> None:
    for difficulty in range(1, 9):
        for seed in range(30):
            problem = find("math/arithmetic").problem(difficulty, seed)
            assert eval(problem.question) == int(problem.answer)  # an expression of ours, of digits and + - *


def test_equations_and_fractions_hold() -> None:
    for seed in range(40):
        equation = find("math/linear").problem(2, seed)
        factor, offset, total = map(int, re.fullmatch(r"(\d+)x\+(\d+)=(-?\d+)", equation.question).groups())  # type: ignore[union-attr]  # it matches, or the test fails
        assert factor * int(equation.answer) + offset == total
        fraction = find("math/fraction").problem(2, seed)
        assert sum(map(Fraction, fraction.question.split("+"))) == Fraction(fraction.answer)


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [("5/6", "10/12", True), ("5/6", r"so it is \boxed{\frac{5}{6}}", True), ("5/6", "0.8333", False),
     ("5/6", "5/7", False),
     ("7", "x=7", True), ("7", "+7", True), ("7", "8", False), ("7", "", False), ("7", "seven", False),
     (r"\frac{1}{2}", "0.5", True), ("x^2+1", "$1+x^2$", True), ("7", "((((", False), ("7", "\ud800", False),
     ("7", "7" * 9000, False), ("7", "\0", False), (r"\{1,2\}", r"$\{2,1\}$", True), ("12", "12\n", True)],
)  # fmt: skip
def test_an_equal_value_is_right_however_it_is_written(reference: str, answer: str, right: bool) -> None:
    assert mathematics.equal(reference, answer) is right


def test_mathematics_is_checked_from_threads_too() -> None:
    found: list[bool] = []
    asked = [("5/6", "10/12"), ("1/2", "2/4"), ("1/3", "2/7"), ("1/3", "3/9")]
    threads = [threading.Thread(target=lambda pair=pair: found.append(mathematics.equal(*pair))) for pair in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, True, True, True]


def test_a_checker_that_is_stuck_or_dead_is_replaced_and_the_answer_is_wrong() -> None:
    verifier = mathematics.Verifier()
    try:
        assert verifier.same("1/2", "2/4")
        first = verifier._process
        assert not verifier.same("7", "$9^{9^{9^9}}$", wait_s=0.0)  # some seconds of work
        assert verifier.same("1/2", "2/4")
        assert verifier._process is not None and verifier._process is not first
        verifier._process.kill()
        verifier._process.wait()
        assert verifier.same("1/2", "2/4")
    finally:
        verifier.close()


def test_without_math_verify_it_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ContractError, match="install it"):
        mathematics.Verifier().same("1/2", "2/4")


@pytest.mark.parametrize(
    ("answer", "score"),
    [("x+3", 1.0), ("3+x", 1.0), ("x - -3", 1.0), ("x+4", 0.0), ("x+3.0", 0.0), ("str(x+3)", 0.0), ("x+", 0.0),
     ("```python\nx+3\n```", 1.0), ("open('/etc/passwd')", 0.0), ("(lambda: x+3)()", 1.0),
     ("x+3 if x < 9 else 0", 0.0)],
)  # fmt: skip
def test_an_expression_is_right_when_it_does_the_same(answer: str, score: float) -> None:
    data = {"function": "f", "calls": [[1], [10]], "expected": [4, 13]}
    assert find("code/expression").score(Problem("code/expression", "1", "", "x+3", 1, data), answer) == score


def test_a_set_of_functions_and_programs_is_scored_from_its_file(tmp_path: Path) -> None:
    calls = {"function": "mean", "calls": [[[1, 2]], [[]]], "expected": [1.5, None]}
    programs = {"programs": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 6\n", "stdout": "11"}]}
    write_problems(tmp_path / "set.jsonl", [
        Problem("code/set", "mean", "the mean, None of nothing", "", 1, calls),
        Problem("code/set", "sum", "the sum of a line", "", 2, programs),
    ])  # fmt: skip
    problems = ProblemSet(find("code/set"), read_problems(tmp_path / "set.jsonl"))
    assert (problems.easiest, problems.hardest, problems.name) == (1, 2, "code/set")
    mean, total = problems.problem(1, 9), problems.problem(2, 0)
    assert problems.score(mean, "def mean(x): return sum(x) / len(x) if x else None") == 1.0
    assert problems.score(mean, "def mean(x): return sum(x) / len(x)") == 0.0
    assert problems.score(total, "print(sum(map(int, input().split())))") == 1.0
    assert problems.score(total, "print(3)") == 0.0
    with pytest.raises(ContractError, match="as many expected"):
        problems.score(Problem("code/set", "none", "", "", 1, {"calls": [[1]], "expected": []}), "x = 1")


def test_a_set_of_mathematics_is_scored_from_its_file(tmp_path: Path) -> None:
    write_problems(tmp_path / "set.jsonl", [Problem("math/set", "1", "half of a third", "1/6", 4)])
    problems: Environment = ProblemSet(find("math/set"), read_problems(tmp_path / "set.jsonl"))
    assert problems.score(problems.problem(4, 0), "2/12") == 1.0
    with pytest.raises(ContractError, match="from a file"):
        find("math/set").problem(1, 0)
    with pytest.raises(ContractError, match=r"is of math/set, this set is of code/set"):
        ProblemSet(find("code/set"), read_problems(tmp_path / "set.jsonl"))
    with pytest.raises(ContractError, match="empty"):
        ProblemSet(find("math/set"), [])


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [(1, True, False), (True, 1, False), (1, 1.0, True), (0.1 + 0.2, 0.3, True), ([1, [2]], [1, [2]], True),
     ([1], [1, 2], False), ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"b": 1}, False), ("1", 1, False),
     (None, None, True)],
)  # fmt: skip
def test_values_are_compared_with_their_types(found: object, expected: object, equal: bool) -> None:
    assert code.same(found, expected) is equal


def test_an_outcome_that_hung_on_the_load_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = iter([sandbox.Outcome("wall"), sandbox.Outcome("done", (sandbox.Call(1),))])
    monkeypatch.setattr(sandbox, "run_calls", lambda *_: next(ended))
    data = {"function": "f", "calls": [[0]], "expected": [1]}
    assert [code.passes("# a source of its own", data) for _ in range(3)] == [False, True, True]


def test_where_there_is_no_sandbox_no_code_environment_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "why_not", lambda: "no seccomp here")
    code._need_a_sandbox.cache_clear()
    with pytest.raises(ContractError, match="no seccomp here"):
        find("code/expression")
    code._need_a_sandbox.cache_clear()

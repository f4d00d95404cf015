"""Code: small functions described in words, and problem sets of your own as JSONL; candidates run in the sandbox.

`code/expression` asks for the expression (`x+3`), `code/function` for the whole of it (`def f(x): return x+3`),
`code/fold` for one operation over several arguments (`c-a-h`), which a model of toy size can learn since it has to copy
nothing but letters; difficulty counts the operations. `code/set` has no generator: it scores the problems of a file. An
answer is right when every call returns what is expected: 1 or 0, no partial credit, since a constant gets some calls
right. An answer in the reference's own words is not run. Expected values stay outside the sandbox. No torch.

A set's problem carries in `data` either `function`, `calls` (lists of arguments) and `expected` (a value a call), or
`programs`, a list of `{"stdin", "stdout"}`.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jobs.manifest import ContractError
from jobs.zaya.envs.base import TASK, Problem, within
from jobs.zaya.sandbox import outer as sandbox

FAMILY = "code"
_INPUTS = (-7, -2, 0, 1, 2, 3, 10, 25)
_LETTERS = "abcdefgh"
_ROWS = ((31, 47, 59, 73, 83, 97, 109, 127), (-19, 23, 5, -43, 11, 61, 2, -7), (3, -5, 89, 17, -67, 29, 13, 41))
"""Values of the letters at which no two of them of one or two operations agree by accident."""
_FENCED = re.compile(r"```[a-z0-9]*\n(.*?)```", re.DOTALL)
_WORDS = {"plus": "+", "minus": "-", "times": "*"}
_TOLERANCE = 1e-9


class _NotKept(Exception):
    """Carries an outcome that hung on the machine's load and so is not remembered."""


@lru_cache(maxsize=4096)
def _remembered(source: str, function: str, calls: str) -> sandbox.Outcome:
    outcome = sandbox.run_calls(source, function, json.loads(calls))
    if outcome.ended in ("wall", "killed"):
        raise _NotKept(outcome)
    return outcome


def _outcome(source: str, function: str, calls: list[list[Any]]) -> sandbox.Outcome:
    """Runs a candidate, the same one once: samples of a group are often equal."""
    try:
        return _remembered(source, function, json.dumps(calls))
    except _NotKept as found:
        outcome: sandbox.Outcome = found.args[0]
        return outcome


def code_in(answer: str) -> str:
    """The code of an answer: its last fenced block, or all of it."""
    blocks = _FENCED.findall(answer)
    return textwrap.dedent(blocks[-1] if blocks else answer).strip()


def same(found: Any, expected: Any) -> bool:
    """Equal values of equal types, floats within a relative 1e-9; 1 is not True, and a list is not a text."""
    if isinstance(expected, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return bool(found == expected)


def passes(source: str, data: Mapping[str, Any]) -> bool:
    """Whether a candidate passes a problem's tests. ContractError where there is no sandbox, or no test."""
    programs = data.get("programs")
    if programs:
        # one at a time: the first that fails decides, and a candidate that hangs costs one limit
        outcomes = ((sandbox.run_program(source, one["stdin"]), one["stdout"]) for one in programs)
        return all(one.ended == "done" and one.output.split() == wanted.split() for one, wanted in outcomes)
    calls, expected = data.get("calls"), data.get("expected")
    if not calls or not expected or len(calls) != len(expected):
        raise ContractError("a code problem needs calls and as many expected values, or programs")
    outcome = _outcome(source, data.get("function", "f"), calls)
    if outcome.ended != "done" or len(outcome.calls) != len(expected):
        return False
    pairs = zip(outcome.calls, expected, strict=True)
    return all(not call.error and same(call.value, wanted) for call, wanted in pairs)


def _tests(problem: Problem) -> str:
    """What decides which answers are right: equal tests are passed by the same functions, however written."""
    names = ("function", "calls", "expected", "programs")
    return json.dumps([problem.data.get(name) for name in names], sort_keys=True)


def _score(wrap: Callable[[str], str], problem: Problem, answer: str) -> float:
    """The reference's own text is right without being run."""
    code = code_in(answer)
    return float(code == problem.answer or (bool(code) and passes(wrap(code), problem.data)))


@dataclass(frozen=True)
class MicroCode:
    """Functions of one whole number: `f(x) = x plus 3 times 2` is worked from left to right."""

    word: str
    wrap: Callable[[str], str]
    """From an answer to the source of a function f."""
    answer: Callable[[str], str]
    """From the expression to the reference answer."""
    easiest: int = 1
    hardest: int = 4

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        """A question of at most 48 characters, at most 16 at difficulty 1."""
        within(self, difficulty)
        rng = random.Random(f"{self.name}/{difficulty}/{seed}")
        expression, words = "x", []
        for _ in range(difficulty):
            word, number = rng.choice(list(_WORDS)), rng.randint(2, 9)
            inner = f"({expression})" if word == "times" and expression != "x" else expression
            expression = f"{inner}{_WORDS[word]}{number}"
            words.append(f"{word} {number}")
        task = f"x {' '.join(words)}"
        data = {
            TASK: task,
            "function": "f",
            "calls": [[x] for x in _INPUTS],
            "expected": [_value(ast.parse(expression, mode="eval").body, {"x": x}) for x in _INPUTS],
        }
        question = f"{self.word[:4]} {task}"
        return Problem(
            self.name, f"{self.name}/{difficulty}/{seed}", question, self.answer(expression), difficulty, data
        )

    def score(self, problem: Problem, answer: str) -> float:
        """ContractError only where there is no sandbox or the problem has no tests; never for an answer."""
        return _score(self.wrap, problem, answer)

    def alike(self, problem: Problem) -> str:
        return _tests(problem)


@dataclass(frozen=True)
class Fold:
    """Functions of the whole numbers a to h: `minus cah` is worked from left to right. No letter twice."""

    word: str = "fold"
    easiest: int = 1
    hardest: int = 6

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        """A question of at most 13 characters."""
        within(self, difficulty)
        rng = random.Random(f"{self.name}/{difficulty}/{seed}")
        word, letters = rng.choice(list(_WORDS)), rng.sample(_LETTERS, difficulty + 1)
        task, expression = f"{word} {''.join(letters)}", _WORDS[word].join(letters)
        tree = ast.parse(expression, mode="eval").body
        data = {
            TASK: task,
            "function": "f",
            "calls": [list(row) for row in _ROWS],
            "expected": [_value(tree, dict(zip(_LETTERS, row, strict=True))) for row in _ROWS],
        }
        return Problem(self.name, f"{self.name}/{difficulty}/{seed}", task, expression, difficulty, data)

    def score(self, problem: Problem, answer: str) -> float:
        """ContractError only where there is no sandbox or the problem has no tests; never for an answer."""
        return _score(self.wrap, problem, answer)

    def alike(self, problem: Problem) -> str:
        return _tests(problem)

    @staticmethod
    def wrap(answer: str) -> str:
        """From an answer to the source of a function f."""
        return f"def f({', '.join(_LETTERS)}): return {answer}"


@dataclass(frozen=True)
class CodeSet:
    """Scores the problems of a file; `read_problems` and `ProblemSet` of envs/base.py bring them here."""

    name: str = f"{FAMILY}/set"
    easiest: int = 0
    hardest: int = 0

    def problem(self, difficulty: int, seed: int) -> Problem:
        raise ContractError(
            f"{self.name} has no problem {difficulty}/{seed} of its own: read them from a file of JSONL"
        )

    def score(self, problem: Problem, answer: str) -> float:
        """ContractError only where there is no sandbox or the problem has no tests; never for an answer."""
        code = code_in(answer)
        return float(bool(code) and passes(code, problem.data))

    def alike(self, problem: Problem) -> str:
        return _tests(problem)


def _value(node: ast.expr, at: Mapping[str, int]) -> int:
    """An expression of ours where its names have these values, worked out without running anything."""
    match node:
        case ast.Name(id=name):
            return at[name]
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            one, two = _value(left, at), _value(right, at)
            return one + two if isinstance(op, ast.Add) else one - two if isinstance(op, ast.Sub) else one * two
    raise ValueError(ast.dump(node))


ENVIRONMENTS: dict[str, MicroCode | Fold | CodeSet] = {
    "expression": MicroCode("expression", lambda answer: f"def f(x): return {answer}", str),
    "function": MicroCode("function", str, lambda expression: f"def f(x): return {expression}"),
    "fold": Fold(),
    "set": CodeSet(),
}


def names() -> list[str]:
    """The environments of this family."""
    return [one.name for one in ENVIRONMENTS.values()]


@lru_cache(maxsize=1)
def _need_a_sandbox() -> None:
    reason = sandbox.why_not()
    if reason:
        raise ContractError(f"code cannot be judged on this machine: {reason}")


def environment(rest: str) -> MicroCode | Fold | CodeSet | None:
    """The environment with this word, None if there is none. ContractError where no sandbox can be had."""
    _need_a_sandbox()
    return ENVIRONMENTS.get(rest)

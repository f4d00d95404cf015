"""Micro-tasks over bytes, which a model of some 2.5 million parameters can learn at toy size.

They stand in for the large reasoning environments with the same interface and are no measure of reasoning. Difficulty
is the number of letters, digits or addends. Answers are scored exactly: 1 or 0, no partial credit; white space around
an answer does not count. Where a plain draw would favour one answer (the largest of many digits is mostly 9), the
answer is drawn first and the question built around it, so that a constant answer stays below `constant_bound`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.zaya.envs.base import Problem, within

FAMILY = "micro"

Draw = Callable[[random.Random, int], str]
"""A generator of numbers and a size to what is asked about."""


@dataclass(frozen=True)
class MicroTask:
    """One task: the question is its word and what is asked about, `reverse dcba`.

    `constant_bound` is what the best constant answer must stay below at every difficulty (200 problems).
    """

    word: str
    draw: Draw
    solve: Callable[[str], str]
    """From what is asked about to the answer."""
    easiest: int
    hardest: int
    constant_bound: float

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        """A question of at most 24 characters of ASCII."""
        within(self, difficulty)
        about = self.draw(random.Random(f"{self.name}/{difficulty}/{seed}"), difficulty)
        name, question = f"{self.name}/{difficulty}/{seed}", f"{self.word} {about}"
        return Problem(self.name, name, question, self.solve(about), difficulty)

    def score(self, problem: Problem, answer: str) -> float:
        return float(answer.strip() == problem.answer)

    def alike(self, problem: Problem) -> str:
        return problem.answer


def _letters(alphabet: str = "abcdefgh") -> Draw:
    """Letters, each drawn evenly."""
    return lambda rng, size: "".join(rng.choice(alphabet) for _ in range(size))


def _extreme(largest: bool) -> Draw:
    """Digits whose largest or smallest is drawn evenly from all ten."""

    def draw(rng: random.Random, size: int) -> str:
        answer = rng.randrange(10)
        others = range(answer + 1) if largest else range(answer, 10)
        digits = [answer, *(rng.choice(others) for _ in range(size - 1))]
        rng.shuffle(digits)
        return "".join(map(str, digits))

    return draw


def _count(rng: random.Random, size: int) -> str:
    """A letter and letters, of which none to all are that one, drawn evenly."""
    wanted = rng.choice("abcdefgh")
    times = rng.randint(0, min(size, 9))
    letters = [wanted] * times + [rng.choice("abcdefgh".replace(wanted, "")) for _ in range(size - times)]
    rng.shuffle(letters)
    return f"{wanted} {''.join(letters)}"


def _addends(below: int) -> Draw:
    return lambda rng, size: "+".join(str(rng.randrange(below)) for _ in range(size))


def _sum(modulus: int) -> Callable[[str], str]:
    """A sum by the modulus, without leading zeros."""
    return lambda about: str(sum(map(int, about.split("+"))) % modulus)


def _after(text: str) -> str:
    return "".join(chr(ord(letter) + 1) for letter in text)


TASKS: Mapping[str, MicroTask] = {
    task.word: task
    for task in (
        MicroTask("copy", _letters(), str, 2, 12, 0.1),
        MicroTask("reverse", _letters(), lambda about: about[::-1], 2, 12, 0.1),
        MicroTask("sort", _letters(), lambda about: "".join(sorted(about)), 2, 12, 0.12),
        MicroTask("upper", _letters(), str.upper, 2, 12, 0.1),
        MicroTask("after", _letters(), _after, 2, 12, 0.1),
        MicroTask("rotate", _letters(), lambda about: about[1:] + about[:1], 2, 12, 0.1),
        MicroTask("unique", _letters("abcde"), lambda about: "".join(dict.fromkeys(about)), 2, 12, 0.15),
        MicroTask("first", _letters(), lambda about: about[0], 2, 12, 0.25),
        MicroTask("last", _letters(), lambda about: about[-1], 2, 12, 0.25),
        MicroTask("max", _extreme(True), max, 2, 12, 0.2),
        MicroTask("min", _extreme(False), min, 2, 12, 0.2),
        MicroTask("count", _count, lambda about: str(about[2:].count(about[0])), 2, 12, 0.45),
        MicroTask("add", _addends(10), _sum(10), 2, 8, 0.2),
        MicroTask("sum", _addends(100), _sum(100), 2, 6, 0.1),
        MicroTask("parity", _letters("01"), lambda about: "odd" if about.count("1") % 2 else "even", 2, 12, 0.65),
    )
}


def answer_to(question: str) -> str | None:
    """The answer to a question of one of these tasks; None for any other text."""
    word, _, about = question.partition(" ")
    try:
        return TASKS[word].solve(about)
    except (KeyError, ValueError, IndexError):
        return None


def names() -> list[str]:
    """The environments of this family."""
    return [task.name for task in TASKS.values()]


def environment(rest: str) -> MicroTask | None:
    """The task with this word, None if there is none."""
    return TASKS.get(rest)

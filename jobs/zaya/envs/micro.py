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
_LETTERS = "abcdefgh"
_DIGITS = "0123456789"

Draw = Callable[[random.Random, int], tuple[str, str]]
"""A generator and a size to what is asked about and the answer to it."""


@dataclass(frozen=True)
class MicroTask:
    """One task: the question is its word and what is asked about, `reverse dcba`.

    `constant_bound` is what the best constant answer must stay below at every difficulty (200 problems).
    """

    word: str
    draw: Draw
    easiest: int
    hardest: int
    constant_bound: float

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.word}"

    def problem(self, difficulty: int, seed: int) -> Problem:
        """A question of at most 24 characters of ASCII."""
        within(self, difficulty)
        about, answer = self.draw(random.Random(f"{self.name}/{difficulty}/{seed}"), difficulty)
        return Problem(self.name, f"{self.name}/{difficulty}/{seed}", f"{self.word} {about}", answer, difficulty)

    def score(self, problem: Problem, answer: str) -> float:
        return float(answer.strip() == problem.answer)


def _letters(rng: random.Random, size: int, alphabet: str = _LETTERS) -> str:
    return "".join(rng.choice(alphabet) for _ in range(size))


def _mapped(change: Callable[[str], str], alphabet: str = _LETTERS) -> Draw:
    """A task that changes a string of letters."""

    def draw(rng: random.Random, size: int) -> tuple[str, str]:
        text = _letters(rng, size, alphabet)
        return text, change(text)

    return draw


def _extreme(largest: bool) -> Draw:
    """The largest or smallest digit, itself drawn evenly from all ten."""

    def draw(rng: random.Random, size: int) -> tuple[str, str]:
        answer = rng.randrange(10)
        others = range(answer + 1) if largest else range(answer, 10)
        digits = [answer, *(rng.choice(others) for _ in range(size - 1))]
        rng.shuffle(digits)
        return "".join(map(str, digits)), str(answer)

    return draw


def _count(rng: random.Random, size: int) -> tuple[str, str]:
    """How many of the letters are the named one: drawn evenly from none to all."""
    wanted = rng.choice(_LETTERS)
    times = rng.randint(0, min(size, 9))
    letters = [wanted] * times + [rng.choice(_LETTERS.replace(wanted, "")) for _ in range(size - times)]
    rng.shuffle(letters)
    return f"{wanted} {''.join(letters)}", str(times)


def _sum(modulus: int) -> Draw:
    """A sum of numbers below the modulus, by the modulus, without leading zeros."""

    def draw(rng: random.Random, size: int) -> tuple[str, str]:
        numbers = [rng.randrange(modulus) for _ in range(size)]
        return "+".join(map(str, numbers)), str(sum(numbers) % modulus)

    return draw


def _parity(rng: random.Random, size: int) -> tuple[str, str]:
    bits = _letters(rng, size, "01")
    return bits, "odd" if bits.count("1") % 2 else "even"


def _after(text: str) -> str:
    return "".join(chr(ord(letter) + 1) for letter in text)


TASKS: Mapping[str, MicroTask] = {
    task.word: task
    for task in (
        MicroTask("copy", _mapped(str), 2, 12, 0.1),
        MicroTask("reverse", _mapped(lambda text: text[::-1]), 2, 12, 0.1),
        MicroTask("sort", _mapped(lambda text: "".join(sorted(text))), 2, 12, 0.12),
        MicroTask("upper", _mapped(str.upper), 2, 12, 0.1),
        MicroTask("after", _mapped(_after), 2, 12, 0.1),
        MicroTask("rotate", _mapped(lambda text: text[1:] + text[:1]), 2, 12, 0.1),
        MicroTask("unique", _mapped(lambda text: "".join(dict.fromkeys(text)), "abcde"), 2, 12, 0.15),
        MicroTask("first", _mapped(lambda text: text[0]), 2, 12, 0.25),
        MicroTask("last", _mapped(lambda text: text[-1]), 2, 12, 0.25),
        MicroTask("max", _extreme(True), 2, 12, 0.2),
        MicroTask("min", _extreme(False), 2, 12, 0.2),
        MicroTask("count", _count, 2, 12, 0.45),
        MicroTask("add", _sum(10), 2, 8, 0.2),
        MicroTask("sum", _sum(100), 2, 6, 0.1),
        MicroTask("parity", _parity, 2, 12, 0.65),
    )
}


def names() -> list[str]:
    """The environments of this family."""
    return [task.name for task in TASKS.values()]


def environment(rest: str) -> MicroTask | None:
    """The task with this word, None if there is none."""
    return TASKS.get(rest)

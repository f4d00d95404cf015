"""Candidates for aggregation prompts that no policy wrote: right answers, of which some are spoilt.

Shown to a model in fine-tuning, they teach it that the tails of a prompt may be wrong. What a real policy gets wrong
is different; `source: policy` (jobs/zaya/prepare.py) takes its own answers instead. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from jobs.zaya.envs.base import Problem

_TRIES = 20


def _replaced(answer: str, other: str, rng: random.Random) -> str:
    """One character is another of the two answers'."""
    letters: list[str] = sorted({*answer, *other}) or ["0"]
    place = rng.randrange(max(1, len(answer)))
    return answer[:place] + rng.choice(letters) + answer[place + 1 :]


def _swapped(answer: str, _other: str, rng: random.Random) -> str:
    """Two neighbours change places."""
    if len(answer) < 2:
        return answer
    place = rng.randrange(len(answer) - 1)
    return answer[:place] + answer[place + 1] + answer[place] + answer[place + 2 :]


def _dropped(answer: str, _other: str, rng: random.Random) -> str:
    """One character is missing."""
    place = rng.randrange(max(1, len(answer)))
    return answer[:place] + answer[place + 1 :]


def _of_another(_answer: str, other: str, _rng: random.Random) -> str:
    return other


_WAYS: tuple[Callable[[str, str, random.Random], str], ...] = (_replaced, _swapped, _dropped, _of_another)


def spoilt(problem: Problem, other: str, score: Callable[[Problem, str], float], rng: random.Random) -> str:
    """A wrong answer near the right one, or `other`, that of another problem; it scores below 1.

    An answer that stays right whatever is done to it gets a question mark behind it.
    """
    for _ in range(_TRIES):
        found = rng.choice(_WAYS)(problem.answer, other, rng)
        if found != problem.answer and score(problem, found) < 1:
            return found
    return f"{problem.answer}?"


def noisy(
    problem: Problem,
    other: str,
    count: int,
    corrupted: float,
    score: Callable[[Problem, str], float],
    rng: random.Random,
) -> list[str]:
    """`count` candidates, each spoilt with the probability `corrupted`, else the right answer."""
    return [spoilt(problem, other, score, rng) if rng.random() < corrupted else problem.answer for _ in range(count)]

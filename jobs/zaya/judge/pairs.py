"""Preference pairs: two answers to a question, the better one named by the rubric's judge, sometimes wrongly.

A line of `preferences.jsonl` is `{"question", "better", "worse"}`. Where a policy's own samples are at hand they are
labelled; before there are any, answers in many manners are made up from a problem's reference answer. A share of the
labels is turned round, as labels of people are: a preference model fitted to them is a proxy, not the rubric. No torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.manifest import ContractError, is_text
from jobs.zaya.envs.base import Environment, Problem, draw
from jobs.zaya.judge.rubric import gold

PREFERENCES = "preferences.jsonl"
NOISE = 0.1
"""The share of labels that are turned round."""
_BEFORE = ("", "", "", "sure: ", "sure, ", "gladly: ", "well, ", "it is ", "the answer to that is ")
_AFTER = ("", "", ".", ".", ".", "..", "!", " thanks.", ", please.", " and that is it")


@dataclass(frozen=True)
class Pair:
    """Two answers to a question."""

    question: str
    better: str
    worse: str


def labelled(samples: Iterable[tuple[str, Sequence[str]]], seed: int, noise: float = NOISE) -> Iterator[Pair]:
    """Pairs of neighbours among the answers to each question; those that the judge finds equal are left out.

    ContractError for a noise that is not from 0 to below one half: beyond it the labels say the opposite.
    """
    if not 0.0 <= noise < 0.5:
        raise ContractError(f"a noise of {noise} is not from 0 to below 0.5")
    rng = random.Random(f"labels/{seed}")
    for question, answers in samples:
        for first, second in zip(answers[::2], answers[1::2], strict=False):
            one, other = gold(question, first), gold(question, second)
            if one != other:
                better, worse = (first, second) if (one > other) != (rng.random() < noise) else (second, first)
                yield Pair(question, better, worse)


def manners(problem: Problem, rng: random.Random) -> str:
    """An answer in some manner: right or not, polite or not, brief or not, ended or not."""
    core = problem.answer if rng.random() < 0.6 else "".join(rng.sample(problem.answer, len(problem.answer))) or "?"
    if rng.random() < 0.15:
        core = " ".join([core] * rng.randint(2, 4))
    before = rng.choice(_BEFORE)
    if before and rng.random() < 0.15:
        before *= rng.randint(2, 3)
    return f"{before}{core}{rng.choice(_AFTER)}"


def pairs(
    environments: Sequence[tuple[Environment, range]],
    count: int,
    seed: int,
    noise: float = NOISE,
    *,
    held: bool = False,
) -> list[Pair]:
    """`count` pairs over questions of these environments in turn, each drawn over its difficulties here.

    The same for the same seed. Questions are for training unless `held`; ContractError where there are none.
    """
    if not environments or count < 1:
        raise ContractError("preference pairs need an environment and a count of at least 1")
    found = labelled(_made_up(environments, seed, held=held), seed, noise)
    return [next(found) for _ in range(count)]


def _made_up(
    environments: Sequence[tuple[Environment, range]], seed: int, *, held: bool
) -> Iterator[tuple[str, list[str]]]:
    """Questions with two answers each, without end."""
    rng, number = random.Random(f"manners/{seed}/{held}"), 0
    while True:
        environment, difficulties = environments[number % len(environments)]
        problem = draw(environment, rng.choice(difficulties), rng.randrange(2**40), held=held)
        yield problem.question, [manners(problem, rng), manners(problem, rng)]
        number += 1


def write_pairs(path: Path, found: Iterable[Pair]) -> None:
    """Writes pairs, a line each."""
    path.write_text("".join(f"{json.dumps(asdict(pair))}\n" for pair in found), encoding="utf-8")


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file; ContractError names the line that is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ContractError(f"the preferences {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            pair = Pair(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise ContractError(f"{path.name}, line {number} is no pair: {error}") from error
        if not all(is_text(text) for text in (pair.question, pair.better, pair.worse)):
            raise ContractError(f"{path.name}, line {number} is no pair of texts")
        found.append(pair)
    return found

"""The lines that a stage's training reads, made from problems and a policy's answers. No files.

Every function is pure over its arguments: equal seeds and policies give equal lines, in the order of the problems.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jobs.zaya.envs.base import Problem
from jobs.zaya.evaluation.compare import Score, answer_of
from jobs.zaya.evaluation_config import PrepareConfig
from jobs.zaya.judge.pairs import manners
from jobs.zaya.preparation.candidates import noisy
from jobs.zaya.rsa import Generate
from jobs.zaya.tokens import decode, encode, prompt
from jobs.zaya.training.examples import tokens_of

Line = dict[str, Any]
_LONGEST_MANNER = 40
"""characters of an answer in some manner: what was never said in more is not what a judge is to choose from"""


@dataclass(frozen=True)
class Answered:
    """A problem with a policy's answers, "" for one that did not end, and what each scored."""

    problem: Problem
    answers: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The mean score."""
        return fmean(self.scores)


def answered(problems: Sequence[Problem], generate: Generate, config: PrepareConfig, score: Score) -> list[Answered]:
    """`config.samples` answers of the policy to each problem; equal answers are scored once."""
    prompts = [prompt(problem.question) for problem in problems for _ in range(config.samples)]
    given = [answer_of(one) for one in generate(prompts, config.limit)]
    found = []
    for place, problem in enumerate(problems):
        own = given[place * config.samples : (place + 1) * config.samples]
        scores = {answer: score(problem, answer) for answer in set(own) if answer is not None}
        found.append(
            Answered(
                problem,
                tuple(answer or "" for answer in own),
                tuple(0.0 if answer is None else scores[answer] for answer in own),
            )
        )
    return found


def sft_lines(
    problems: Sequence[Problem],
    config: PrepareConfig,
    score: Score,
    tails: Callable[[Sequence[Problem]], list[list[str]]] | None = None,
    others: Mapping[str, Sequence[str]] | None = None,
) -> list[Line]:
    """A line a problem: question, answer and, for the share `config.aggregation`, the ends of C candidates.

    `tails` gives the policy's candidates for those problems; without it they are noise, for which `others` has the
    answers of each environment's problems (without: of these).
    """
    pool = answers_by_environment(problems) if others is None else others
    rngs = [random.Random(f"{config.seed}/{problem.id}") for problem in problems]
    shown = [place for place, rng in enumerate(rngs) if rng.random() < config.aggregation]
    found: dict[int, list[str]] = {}
    if tails is not None and shown:
        found = dict(zip(shown, tails([problems[place] for place in shown]), strict=True))
    elif tails is None:
        for place in shown:
            other = rngs[place].choice(pool[problems[place].environment])
            found[place] = noisy(problems[place], other, config.candidates, config.corrupted, score, rngs[place])
    return [
        {
            "id": problem.id,
            "question": problem.question,
            "tails": [tail_of(one, config.tail) for one in found.get(place, [])],
            "answer": problem.answer,
            "environment": problem.environment,
            "difficulty": problem.difficulty,
        }
        for place, problem in enumerate(problems)
    ]


def manner_lines(problems: Sequence[Problem], seed: int) -> list[Line]:
    """A line a problem, answered in some manner of jobs/zaya/judge/pairs.py: not each is right, polite or brief."""
    rngs = [random.Random(f"manners/{seed}/{problem.id}") for problem in problems]
    return [
        {
            "id": problem.id,
            "question": problem.question,
            "tails": [],
            "answer": manners(problem, rng)[:_LONGEST_MANNER].rstrip(),
            "environment": problem.environment,
            "difficulty": problem.difficulty,
        }
        for problem, rng in zip(problems, rngs, strict=True)
    ]


def answers_by_environment(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """The reference answers of each environment's problems, in their order."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem.environment, []).append(problem.answer)
    return found


def tail_of(text: str, tail: int) -> str:
    """The last `tail` tokens of a text, as text; a character that the cut would halve goes with the rest."""
    kept = encode(text)[-tail:]
    while kept and 0x80 <= kept[0] < 0xC0:
        kept = kept[1:]
    return decode(kept)


def policy_tails(problems: Sequence[Problem], generate: Generate, config: PrepareConfig) -> list[list[str]]:
    """C answers of the policy to each problem, whether they ended or not: what RSA would show."""
    prompts = [prompt(problem.question) for problem in problems for _ in range(config.candidates)]
    given = [decode(one.tokens) for one in generate(prompts, config.limit)]
    return [given[place * config.candidates :][: config.candidates] for place in range(len(problems))]


def calibrated(found: Sequence[Answered], threshold: float) -> dict[str, dict[str, Any]]:
    """Each environment's accuracy by difficulty and its starting bound: the hardest difficulty up to which the policy
    reaches the threshold at every one, or the easiest."""
    by_name: dict[str, dict[int, list[float]]] = {}
    for one in found:
        of = by_name.setdefault(one.problem.environment, {})
        of.setdefault(one.problem.difficulty, []).append(one.accuracy)
    calibrations: dict[str, dict[str, Any]] = {}
    for name, accuracies in by_name.items():
        means = {difficulty: fmean(values) for difficulty, values in sorted(accuracies.items())}
        bound = min(means)
        for difficulty, mean in means.items():
            if mean < threshold:
                break
            bound = difficulty
        calibrations[name] = {
            "bound": bound,
            "accuracy": {str(difficulty): round(mean, 4) for difficulty, mean in means.items()},
        }
    return calibrations


def taught_by(found: Sequence[Answered]) -> list[Answered]:
    """Those that the policy neither always nor never solves: of the others a group's advantages are all zero."""
    return [one for one in found if min(one.scores) < max(one.scores)]


def trimmed(line: Line, length: int) -> Line | None:
    """A line whose example fits into `length` tokens, its tails cut from the front, all alike; None if none does."""
    tails = [encode(tail) for tail in line.get("tails", [])]
    fixed = len(prompt(line["question"])) + len(encode(line["answer"])) + 1 + len(tails)
    room = length - fixed
    if room < 0:
        return None
    if sum(map(len, tails)) <= room:
        return line
    longest = max(limit for limit in range(room + 1) if sum(min(limit, len(tail)) for tail in tails) <= room)
    return line | {"tails": [tail_of(decode(tail), longest) if longest else "" for tail in tails]}


def packed(lines: Sequence[Line], length: int) -> tuple[list[Line], dict[str, float]]:
    """The lines whose examples fit into rows of `length` tokens, and how full such rows are, one example in each and
    as many as fit; raises KeyError, TypeError or AttributeError for a line that is no example."""
    pairs = [(line, trimmed(line, length)) for line in lines]
    kept = [one for _, one in pairs if one is not None]
    sizes = [len(tokens_of(one)) for one in kept]
    whole = max(1, len(sizes)) * length
    return kept, {
        "lines": float(len(kept)),
        "dropped": float(len(lines) - len(kept)),
        "trimmed": float(sum(one is not None and one is not line for line, one in pairs)),
        "fill_alone": sum(sizes) / whole,
        "fill_packed": sum(sizes) / (max(1, rows_needed(sizes, length)) * length),
    }


def rows_needed(sizes: Sequence[int], length: int) -> int:
    """Rows of `length` tokens that hold examples of these sizes: first fit, the largest first (11/9 of the best)."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        for place, used in enumerate(rows):
            if used + size <= length:
                rows[place] += size
                break
        else:
            rows.append(size)
    return len(rows)

"""How a policy does on problems by plain sampling, by majority and by Markovian RSA, at equal generated tokens.

RSA is run first; its first rollouts are plain samples already, and more are drawn until each problem has cost plain
sampling as many tokens as it cost RSA. pass@1 is the mean score over these samples, maj the score of the answer that
most of them give, rsa the mean over the candidates of the last round. Pure over a callable that generates; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from jobs.zaya.envs.base import Problem
from jobs.zaya.rsa import Aggregation, Generate, Generated, Trace, aggregate, cost, majority, sample_within
from jobs.zaya.tokens import decode

Score = Callable[[Problem, str], float]


@dataclass(frozen=True)
class Compared:
    """One problem's scores, 0 to 1, with the generated tokens that they cost and the answers behind them."""

    problem: Problem
    first: float
    """mean of RSA's first rollouts, which have seen no candidate"""
    pass_at_1: float
    maj: float
    rsa: float
    rsa_tokens: int
    plain_tokens: int
    """at least `rsa_tokens`, by less than one completion"""
    samples: int
    answers: tuple[str, ...]
    """of the plain samples, those that ended"""
    majority_answer: str
    rsa_answer: str
    """what most candidates of the last round say; shown, not scored"""
    longest_prompt: int
    longest_completion: int


def compare(
    problems: Sequence[Problem], generate: Generate, numbers: Aggregation, seed: int, score: Score
) -> list[Compared]:
    """All three methods on each problem; equal answers to a problem are scored once."""
    questions = [problem.question for problem in problems]
    traces = aggregate(questions, generate, numbers, seed)
    budgets = [trace.generated for trace in traces]
    samples = sample_within(questions, generate, numbers.limit, budgets, [trace.first for trace in traces])
    return [
        _compared(problem, trace, plain, score) for problem, trace, plain in zip(problems, traces, samples, strict=True)
    ]


def _compared(problem: Problem, trace: Trace, plain: Sequence[Generated], score: Score) -> Compared:
    said, last = [answer_of(one) for one in plain], [answer_of(one) for one in trace.last]
    chosen, rsa_chosen = _chosen(said), _chosen(last)
    scored: dict[str | None, float] = {None: 0.0}
    scored |= {answer: score(problem, answer) for answer in {*said, *last} if answer is not None}
    if chosen is not None and chosen not in scored:  # a majority is told without outer blanks
        scored[chosen] = score(problem, chosen)
    return Compared(
        problem=problem,
        first=fmean(scored[answer] for answer in said[: len(trace.first)]),
        pass_at_1=fmean(scored[answer] for answer in said),
        maj=scored[chosen],
        rsa=fmean(scored[answer] for answer in last),
        rsa_tokens=trace.generated,
        plain_tokens=sum(map(cost, plain)),
        samples=len(plain),
        answers=tuple(answer for answer in said if answer is not None),
        majority_answer=chosen or "",
        rsa_answer=rsa_chosen or "",
        longest_prompt=trace.longest_prompt,
        longest_completion=trace.longest_completion,
    )


def answer_of(completion: Generated) -> str | None:
    """A completion's text; None when it did not end within its limit."""
    return decode(completion.tokens) if completion.ended else None


def _chosen(answers: Sequence[str | None]) -> str | None:
    """What most say, of those that say anything."""
    given = [answer for answer in answers if answer is not None]
    return majority(given) if given else None


def means(found: Sequence[Compared]) -> dict[str, float]:
    """The metrics of problems together: pass@1, maj, rsa, the share of plain samples that ended within their limit,
    and what the methods cost in generated tokens a problem."""
    return {
        "pass@1": fmean(one.pass_at_1 for one in found),
        "maj": fmean(one.maj for one in found),
        "rsa": fmean(one.rsa for one in found),
        "ended": sum(len(one.answers) for one in found) / sum(one.samples for one in found),
        "tokens_per_problem": fmean(one.rsa_tokens for one in found),
        "plain_tokens_per_problem": fmean(one.plain_tokens for one in found),
    }

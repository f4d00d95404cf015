"""Markovian recursive self-aggregation, plain sampling and majority, compared at equal generated tokens. No torch.

RSA with (N, C, T, β, τ): N rollouts of at most β tokens, of which the last τ are kept; then T times N prompts, each the
question and C of the N tails drawn without replacement, are answered with at most β tokens. The next round knows
nothing of a round but its tails, so no context grows with T: question + C·τ + β and the marks between them. The score
is the mean over the last N (report arXiv 2605.05365; recursive self-aggregation: arXiv 2509.26626). T = 0 is plain
sampling, τ = β hands on whole candidates, C = 1 lets each answer revise one.

It is pure over a callable that generates, so any policy can be put in; it scores nothing (jobs/zaya/evaluate.py does).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobs.contract import ContractError
from jobs.zaya.tokens import encode, prompt


class Generated(Protocol):
    """One completion: its tokens without END, and whether END came within the limit."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def ended(self) -> bool: ...


Generate = Callable[[Sequence[Sequence[int]], int], Sequence[Generated]]
"""(prompts, limit) → a completion of at most `limit` generated tokens, END counted, for each prompt in order."""


@dataclass(frozen=True)
class Aggregation:
    """N, C, T, β and τ; ContractError for numbers with which nothing can be aggregated."""

    rollouts: int = 16
    """N: candidates a round"""
    candidates: int = 4
    """C: tails in a prompt"""
    rounds: int = 2
    """T: rounds after the first rollouts"""
    limit: int = 16_384
    """β: generated tokens of one completion, END counted"""
    tail: int = 4_096
    """τ: tokens of a candidate that the next round sees"""

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.limit < 1 or self.rounds < 0:
            raise ContractError("RSA needs rollouts ≥ 1, limit ≥ 1 and rounds ≥ 0")
        if not 1 <= self.candidates <= self.rollouts:
            raise ContractError(f"RSA's candidates must be 1 to {self.rollouts}, its rollouts, not {self.candidates}")
        if not 1 <= self.tail <= self.limit:
            raise ContractError(f"RSA's tail must be 1 to {self.limit}, its limit, not {self.tail}")

    def longest_prompt(self, question: str) -> int:
        """The bound on a prompt in tokens: ASK, the question, C times TAIL and τ tokens, REPLY."""
        return 2 + len(encode(question)) + (self.candidates * (1 + self.tail) if self.rounds else 0)


@dataclass(frozen=True)
class Trace:
    """What aggregation made of one problem."""

    first: tuple[Generated, ...]
    """the N rollouts, which saw the question alone"""
    last: tuple[Generated, ...]
    """the N completions of the last round"""
    generated: int
    """tokens generated in all rounds, ENDs counted"""
    longest_prompt: int
    longest_completion: int


def cost(completion: Generated) -> int:
    """Generated tokens of a completion, its END counted."""
    return len(completion.tokens) + completion.ended


def aggregate(questions: Sequence[str], generate: Generate, numbers: Aggregation, seed: int) -> list[Trace]:
    """RSA on each question, all questions and candidates of a round in one call of `generate`.

    Which tails meet in a prompt depends on the seed and the question alone, not on the others of the batch.
    """
    draws = [random.Random(f"{seed}/{question}") for question in questions]
    prompts = [[prompt(question)] * numbers.rollouts for question in questions]
    rounds = [_round(prompts, generate, numbers.limit)]
    longest = [max(map(len, each)) for each in prompts]
    for _ in range(numbers.rounds):
        prompts = [
            _aggregation_prompts(question, before, numbers, draw)
            for question, before, draw in zip(questions, rounds[-1], draws, strict=True)
        ]
        longest = [max(so_far, *map(len, each)) for so_far, each in zip(longest, prompts, strict=True)]
        rounds.append(_round(prompts, generate, numbers.limit))
    return [_trace([each[place] for each in rounds], longest[place]) for place in range(len(questions))]


def _aggregation_prompts(
    question: str, before: Sequence[Generated], numbers: Aggregation, draw: random.Random
) -> list[list[int]]:
    tails = [one.tokens[-numbers.tail :] for one in before]
    return [prompt(question, draw.sample(tails, numbers.candidates)) for _ in range(numbers.rollouts)]


def _round(prompts: Sequence[Sequence[Sequence[int]]], generate: Generate, limit: int) -> list[list[Generated]]:
    """Completions of each problem's prompts; ContractError when the policy breaks the limit."""
    done = list(generate([one for each in prompts for one in each], limit))
    if len(done) != sum(map(len, prompts)) or any(cost(one) > limit for one in done):
        raise ContractError(f"the policy did not answer each prompt with at most {limit} tokens")
    places = iter(done)
    return [[next(places) for _ in each] for each in prompts]


def _trace(rounds: Sequence[Sequence[Generated]], longest_prompt: int) -> Trace:
    costs = [cost(one) for each in rounds for one in each]
    return Trace(tuple(rounds[0]), tuple(rounds[-1]), sum(costs), longest_prompt, max(costs))


def sample_within(
    questions: Sequence[str],
    generate: Generate,
    limit: int,
    budgets: Sequence[int],
    begun: Sequence[Sequence[Generated]] | None = None,
) -> list[tuple[Generated, ...]]:
    """Plain samples of each question until they cost its budget of generated tokens, at least one.

    The last one may end past the budget, by less than `limit`: plain sampling gets no fewer tokens than what it is
    compared with. `begun` are samples that were drawn already (RSA's first rollouts); they are counted, in order.
    """
    kept = [list(each) for each in begun] if begun is not None else [[] for _ in questions]
    while True:
        missing = [_missing(each, budget, limit) for each, budget in zip(kept, budgets, strict=True)]
        if not any(missing):
            return [_until(each, budget) for each, budget in zip(kept, budgets, strict=True)]
        prompts = [[prompt(question)] * count for question, count in zip(questions, missing, strict=True)]
        for each, more in zip(kept, _round(prompts, generate, limit), strict=True):
            each.extend(more)


def _missing(samples: Sequence[Generated], budget: int, limit: int) -> int:
    """How many samples are worth drawing now: as many as the budget holds at the length seen so far, at least one."""
    spent = sum(map(_progress, samples))
    if samples and spent >= budget:
        return 0
    typical = spent / len(samples) if samples else limit
    return max(1, int((budget - spent) / typical))


def _progress(one: Generated) -> int:
    """A completion's cost, at least 1: a policy that answers with nothing still uses its budget up."""
    return max(1, cost(one))


def _until(samples: Sequence[Generated], budget: int) -> tuple[Generated, ...]:
    """The shortest beginning that costs the budget."""
    spent = 0
    for count, one in enumerate(samples, 1):
        spent += _progress(one)
        if spent >= budget:
            return tuple(samples[:count])
    return tuple(samples)


def majority(answers: Sequence[str]) -> str:
    """The answer given most often, of equals the one given first; equal means the same text without outer blanks."""
    if not answers:
        raise ContractError("a majority needs an answer")
    return Counter(answer.strip() for answer in answers).most_common(1)[0][0]

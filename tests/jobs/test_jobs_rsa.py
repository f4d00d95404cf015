"""Markovian RSA: what it may show a policy and ask of it, its special cases, and that methods cost the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import ContractError
from jobs.zaya.rsa import Aggregation, aggregate, cost, majority, sample_within
from jobs.zaya.tokens import ASK, END, MARKS, REPLY, TAIL, encode, prompt


@dataclass(frozen=True)
class Done:
    """A completion."""

    tokens: list[int]
    ended: bool = True


@dataclass
class Policy:
    """Answers with bytes drawn by its seed, up to the limit, and keeps what it was asked."""

    seed: int
    calls: list[tuple[list[list[int]], int]] = field(default_factory=list)

    def __call__(self, prompts: Sequence[Sequence[int]], limit: int) -> list[Done]:
        draw = random.Random(self.seed + len(self.calls))
        self.calls.append(([list(one) for one in prompts], limit))
        done = []
        for _ in prompts:
            length = draw.randint(0, limit)
            ended = length < limit
            done.append(Done([draw.randint(0, 255) for _ in range(length)], ended))
        return done


@st.composite
def numbers(draw: st.DrawFn) -> Aggregation:
    rollouts, limit = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    return Aggregation(
        rollouts, draw(st.integers(1, rollouts)), draw(st.integers(0, 3)), limit, draw(st.integers(1, limit))
    )


@settings(max_examples=60, deadline=None)
@given(numbers(), st.lists(st.text(max_size=12), min_size=1, max_size=3), st.integers(0, 1000))
def test_no_prompt_exceeds_question_and_tails_and_no_generation_the_limit(
    given_numbers: Aggregation, questions: list[str], seed: int
) -> None:
    policy = Policy(seed)
    traces = aggregate(questions, policy, given_numbers, seed)
    n, c, tau = given_numbers.rollouts, given_numbers.candidates, given_numbers.tail
    assert len(policy.calls) == 1 + given_numbers.rounds
    for number, (prompts, limit) in enumerate(policy.calls):
        assert limit == given_numbers.limit and len(prompts) == n * len(questions)
        for place, one in enumerate(prompts):
            asked = encode(questions[place // n])
            marks = 2 + (c if number else 0)
            assert len(one) <= len(asked) + (c * tau if number else 0) + marks
            assert one[0] == ASK and one[1 : 1 + len(asked)] == asked and one[-1] == REPLY
            assert one.count(TAIL) == (c if number else 0) and one.count(END) == 0
    for question, trace in zip(questions, traces, strict=True):
        assert len(trace.first) == len(trace.last) == n
        assert max(map(cost, [*trace.first, *trace.last])) <= trace.longest_completion <= given_numbers.limit
        assert trace.longest_prompt <= given_numbers.longest_prompt(question)
        assert trace.generated <= n * (1 + given_numbers.rounds) * given_numbers.limit


def test_the_bound_is_met_so_it_is_no_larger_than_it_must_be() -> None:
    given_numbers = Aggregation(3, 2, 1, 5, 4)
    trace = aggregate(["abc"], lambda prompts, limit: [Done([65] * limit, False)] * len(prompts), given_numbers, 0)[0]
    assert trace.longest_prompt == given_numbers.longest_prompt("abc") == 1 + 3 + 2 * (1 + 4) + 1


def test_tails_are_the_ends_of_different_candidates_of_the_round_before() -> None:
    policy = Policy(4)
    given_numbers = Aggregation(4, 3, 2, 9, 2)
    aggregate(["q"], policy, given_numbers, 1)
    again = Policy(4)
    rounds = [again(prompts, limit) for prompts, limit in policy.calls]
    for before, (prompts, _) in zip(rounds, policy.calls[1:], strict=False):
        ends = [[token for token in one.tokens[-2:] if token not in MARKS] for one in before]
        for one in prompts:
            shown = [list(part) for part in bytes(one[:-1]).split(bytes([TAIL]))[1:]]
            left = list(ends)
            for tail in shown:
                left.remove(tail)  # raises for a tail that no candidate has, or that was taken before


def test_no_round_is_plain_sampling() -> None:
    policy = Policy(2)
    trace = aggregate(["why"], policy, Aggregation(5, 2, 0, 7, 7), 0)[0]
    assert [prompts for prompts, _ in policy.calls] == [[prompt("why")] * 5]
    assert trace.last == trace.first and trace.generated == sum(map(cost, trace.last))


def test_a_tail_as_long_as_the_limit_hands_on_whole_candidates_and_one_candidate_is_revised_alone() -> None:
    policy = Policy(3)
    trace = aggregate(["why"], policy, Aggregation(3, 1, 1, 6, 6), 0)[0]
    whole = [prompt("why", [one.tokens]) for one in trace.first]
    assert all(one in whole for one in policy.calls[1][0])


def test_a_seed_decides_which_tails_meet_and_the_rest_of_the_batch_does_not() -> None:
    given_numbers = Aggregation(6, 3, 1, 4, 4)

    def asked(questions: list[str], seed: int) -> list[list[int]]:
        calls: list[list[list[int]]] = []

        def generate(prompts: Sequence[Sequence[int]], _limit: int) -> list[Done]:
            calls.append([list(one) for one in prompts])
            return [Done([65 + place % 6]) for place in range(len(prompts))]

        aggregate(questions, generate, given_numbers, seed)
        return calls[1]

    assert asked(["a"], 1) == asked(["a"], 1) == asked(["a", "b"], 1)[:6]
    assert asked(["a"], 1) != asked(["a"], 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 99))
def test_plain_sampling_costs_what_it_is_compared_with_and_less_than_one_completion_more(
    budgets: list[int], limit: int, seed: int
) -> None:
    found = sample_within([str(b) for b in budgets], Policy(seed), limit, budgets)
    for samples, budget in zip(found, budgets, strict=True):
        spent = sum(map(cost, samples))
        assert spent >= budget and samples
        assert spent - cost(samples[-1]) < max(1, budget)


def test_samples_that_were_drawn_already_are_counted_and_a_silent_policy_ends() -> None:
    begun = [[Done([65, 66]), Done([67])]]
    found = sample_within(["q"], Policy(1), 4, [4], begun)
    assert list(found[0]) == begun[0]

    def silent(prompts: Sequence[Sequence[int]], _limit: int) -> list[Done]:
        return [Done([], False) for _ in prompts]

    assert len(sample_within(["q"], silent, 4, [10])[0]) == 10


def test_a_majority_is_the_text_given_most_often_and_of_equals_the_first() -> None:
    assert majority(["b", " a", "a ", "b", "a"]) == "a"
    assert majority(["x", "y"]) == "x"
    with pytest.raises(ContractError, match="needs an answer"):
        majority([])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((0, 1, 1, 4, 2), "rollouts ≥ 1"),
        ((2, 3, 1, 4, 2), "candidates must be 1 to 2"),
        ((2, 1, -1, 4, 2), "rounds ≥ 0"),
        ((2, 1, 1, 4, 5), "tail must be 1 to 4"),
        ((2, 1, 1, 4, 0), "tail must be 1 to 4"),
    ],
)
def test_numbers_that_aggregate_nothing_are_refused(wrong: tuple[int, ...], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        Aggregation(*wrong)


def test_a_policy_that_breaks_the_limit_or_forgets_a_prompt_is_refused() -> None:
    with pytest.raises(ContractError, match="at most 2 tokens"):
        aggregate(["q"], lambda prompts, _: [Done([1, 2, 4])] * len(prompts), Aggregation(2, 1, 0, 2, 1), 0)
    with pytest.raises(ContractError, match="at most 2 tokens"):
        aggregate(["q"], lambda prompts, _: [Done([1])], Aggregation(2, 1, 0, 2, 1), 0)

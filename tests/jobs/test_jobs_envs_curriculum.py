"""The curricula: each rule's numbers, never outside the span, RLVE's never down, and a state that draws on the same."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import ContractError
from jobs.zaya.envs.curriculum import RULES, WINDOW, Curriculum

SPANS = {"micro/sort": (2, 9), "micro/add": (1, 3)}
SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=6)
TOLD = st.lists(st.tuples(st.sampled_from(sorted(SPANS)), st.integers(-1, 2), SCORES), max_size=80)


def all_right(curriculum: Curriculum, prompts: int, score: float = 1.0) -> None:
    for _ in range(prompts):
        curriculum.told("micro/sort", curriculum.bound("micro/sort"), [score] * 4)


def test_rlve_rises_after_eight_prompts_at_the_bound_of_which_nine_tenths_are_right() -> None:
    curriculum = Curriculum("rlve", SPANS)
    all_right(curriculum, 7)
    assert curriculum.bound("micro/sort") == 2
    all_right(curriculum, 1)
    assert curriculum.bound("micro/sort") == 3
    for scores in ([1.0] * 9 + [0.0], [1.0] * 8 + [0.99, 0.0]):
        before = curriculum.bound("micro/sort")
        for _ in range(8):
            curriculum.told("micro/sort", before, scores)
        assert curriculum.bound("micro/sort") - before == (scores.count(1.0) == 9)


def test_rlve_counts_anew_after_each_judgement() -> None:
    curriculum = Curriculum("rlve", SPANS)
    all_right(curriculum, 8, 0.0)
    all_right(curriculum, 8)
    assert curriculum.bound("micro/sort") == 3


def test_zyphras_rule_moves_by_a_groups_mean() -> None:
    curriculum = Curriculum("zyphra", SPANS, starts={"micro/sort": 4})
    for scores, bound in (([0.7, 0.7], 4), ([1.0, 0.5], 5), ([0.1, 0.0], 5), ([0.0, 0.0], 4), ([], 4)):
        curriculum.told("micro/sort", curriculum.bound("micro/sort"), scores)
        assert curriculum.bound("micro/sort") == bound == curriculum.draw("micro/sort", random.Random(0))


def test_groups_drawn_before_a_move_count_as_one() -> None:
    curriculum = Curriculum("zyphra", SPANS)
    for _ in range(5):
        curriculum.told("micro/sort", 2, [1.0])
    assert curriculum.bound("micro/sort") == 3


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=30)
@given(told=TOLD)
def test_no_rule_leaves_its_span_and_moves_are_of_one(rule: str, told: list[tuple[str, int, list[float]]]) -> None:
    curriculum, rng = Curriculum(rule, SPANS, prompts=2), random.Random(1)
    for name, off, scores in told:
        before = curriculum.bound(name)
        curriculum.told(name, before + off, scores)
        after, drawn = curriculum.bound(name), curriculum.draw(name, rng)
        low, high = SPANS[name]
        assert low <= drawn <= after <= high
        assert after in (before, before + 1) or (rule == "zyphra" and after == before - 1)
        assert off == 0 or after == before
        if rule == "rlve":
            assert drawn > after - WINDOW


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=30)
@given(first=TOLD, then=TOLD)
def test_a_state_that_is_loaded_goes_on_as_if_nothing_had_been(
    rule: str, first: list[tuple[str, int, list[float]]], then: list[tuple[str, int, list[float]]]
) -> None:
    one, other = Curriculum(rule, SPANS, prompts=3), Curriculum(rule, SPANS, prompts=3)
    for name, off, scores in first:
        one.told(name, one.bound(name) + off, scores)
    other.load(json.loads(json.dumps(one.state())))
    for curriculum in (one, other):
        for name, off, scores in then:
            curriculum.told(name, curriculum.bound(name) + off, scores)
    assert one.state() == other.state()
    draws = [
        [curriculum.draw(name, random.Random(seed)) for name in SPANS for seed in range(9)]
        for curriculum in (one, other)
    ]
    assert draws[0] == draws[1]


def test_the_window_is_the_four_up_to_the_bound_and_each_is_drawn() -> None:
    curriculum, rng = Curriculum("rlve", SPANS, starts={"micro/sort": 7}), random.Random(0)
    assert {curriculum.draw("micro/sort", rng) for _ in range(200)} == {4, 5, 6, 7}
    assert {curriculum.draw("micro/add", rng) for _ in range(20)} == {1}
    assert {Curriculum("fixed", SPANS).draw("micro/sort", rng) for _ in range(300)} == set(range(2, 10))


@pytest.mark.parametrize(
    ("change", "match"),
    [({"rule": "zyphra"}, "not of rlve"), ({"levels": {}}, "not of rlve"), ({"levels": 3}, "not of rlve"),
     ({"levels": {"micro/sort": 3, "micro/add": 3}}, "cannot be read"), ({"bound": 99}, "outside 2 to 9"),
     ({"bound": "4"}, "outside"), ({"right": -1}, "whole numbers"), ({"right": 0.5}, "whole numbers")],
)  # fmt: skip
def test_a_state_that_is_not_its_own_is_refused(change: dict[str, object], match: str) -> None:
    curriculum = Curriculum("rlve", SPANS)
    state = curriculum.state()
    if set(change) <= set(state):
        state |= change
    else:
        state["levels"]["micro/sort"] |= change
    with pytest.raises(ContractError, match=match):
        curriculum.load(state)
    assert curriculum.state() == Curriculum("rlve", SPANS).state()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ContractError, match="rlve, zyphra, fixed"):
        Curriculum("steep", SPANS)
    with pytest.raises(ContractError, match="empty"):
        Curriculum("rlve", {"a": (3, 2)})
    with pytest.raises(ContractError, match="outside 1 to 3"):
        Curriculum("rlve", SPANS, starts={"micro/add": 4})
    with pytest.raises(ContractError, match="at least one"):
        Curriculum("rlve", SPANS, prompts=0)
    with pytest.raises(ContractError, match="not in this curriculum"):
        Curriculum("rlve", SPANS).told("micro/max", 2, [1.0])

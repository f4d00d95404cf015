"""What the bench of the expert alarms counts: episodes, judged steps, bounds; and what a corpus run is a run of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import corpus
from benchmarks import expert_judgement as bench
from benchmarks.corpus import Recipe
from benchmarks.expert_judgement import Judged
from controlplane.rules import book as rule_book

BOOK = rule_book.load()
CHECKS = list(range(264, 1101, 8))
DEAD = Recipe("dead", 5, 2, 1100, onset=800)


def test_an_alarm_that_stood_before_the_plant_does_not_find_it_and_is_false() -> None:
    standing = Judged(DEAD, {"expert-dead": list(range(784, 900, 8))}, CHECKS)
    assert standing.first("expert-dead") is None and standing.false("expert-dead") == 1
    again = replace(standing, fired={"expert-dead": [784, 792, 872]})
    assert (again.first("expert-dead"), again.false("expert-dead")) == (872, 1), "80 steps of silence end an episode"
    got = bench.score([standing, again], BOOK)
    assert (got.found, got.planted, got.delays) == (1, 2, (72,))


def test_before_the_plant_false_alarms_count_once_for_all_runs_that_trained_the_same_and_steps_never() -> None:
    early = {"expert-skip": [300]}
    same = [Judged(DEAD, early, CHECKS, "a"), Judged(replace(DEAD, scenario="frozen"), early, CHECKS, "a")]
    other = Judged(replace(DEAD, seed=6), {}, CHECKS, "b")
    healthy = Judged(Recipe("healthy", 5, 2, 1100), {"expert-dead": [1000]}, CHECKS, "c")
    got = bench.score([*same, other, healthy], BOOK)
    assert got.healthy_steps == 8 * 105, "no step that no whole window was judged for"
    assert got.false_alarms == 2


def test_what_is_neither_healthy_nor_a_fault_counts_nowhere() -> None:
    between = Judged(Recipe("fast-adamw", 5, 2, 1100, rate=0.06), {"expert-oscillation": [300]}, CHECKS)
    got = bench.score([between], BOOK)
    assert (got.planted, got.false_alarms, got.healthy_steps) == (0, 0, 1)
    assert set(corpus.SCENARIOS) - set(bench.WANTED) == {"healthy", "fast-adamw"}


def test_the_bounds_are_those_of_the_textbooks() -> None:
    assert bench.poisson_upper(0) == pytest.approx(2.996, abs=1e-3)
    assert bench.poisson_upper(3) == pytest.approx(7.754, abs=1e-3)
    assert bench.binomial_lower(22, 22) == pytest.approx(0.05 ** (1 / 22))
    assert bench.binomial_lower(19, 20) == pytest.approx(0.7839, abs=1e-4)
    assert bench.binomial_lower(0, 20) == 0.0


@pytest.mark.parametrize("constant", ["RANKS", "LENGTH", "RESUMED", "EXPERT_PARALLEL"])
def test_a_constant_that_shapes_a_run_is_part_of_its_key(constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "behaviour", lambda _controller: b"as it is")
    before = [corpus.key_of(recipe) for recipe in corpus.recipes()]
    monkeypatch.setattr(corpus, constant, getattr(corpus, constant) * 2)
    assert not set(before) & {corpus.key_of(recipe) for recipe in corpus.recipes()}

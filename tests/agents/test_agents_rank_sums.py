"""What a node's agent makes of its ranks' records, beside numpy's answer to the same question."""

from __future__ import annotations

import math
from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agents.node import rank_sums
from agents.probe.ring import RingMeta

META = RingMeta("run", 1, 1, 0, 4, layers=2, slots=4, experts=3, top_k=1, pid=1)
counts = st.lists(st.integers(0, 2**20), min_size=8, max_size=8)


@given(st.lists(counts, min_size=2, max_size=5))
def test_the_spread_is_the_sum_of_squares_about_the_mean_rank(ranks: list[list[int]]) -> None:
    told = rank_sums.spread([array("I", rank).tobytes() for rank in ranks], META)
    squares, routed = np.array(told).reshape(2, 2)
    for layer in range(2):
        rows = np.array(ranks, np.float64).reshape(-1, 2, 4)[:, layer, :3]
        rows = rows[rows.any(axis=1)]
        assert routed[layer] == len(rows)
        expected = ((rows - rows.mean(axis=0)) ** 2).sum() if len(rows) else 0.0
        assert math.isclose(squares[layer], expected, rel_tol=1e-9, abs_tol=1e-3)


def test_one_rank_has_no_spread() -> None:
    assert len(rank_sums.spread([array("I", range(8)).tobytes()], META)) == 0


def test_a_layer_of_another_stage_takes_that_stage_s_bias() -> None:
    first = array("f", [1, 2, 3, 4, *[math.nan] * 4])
    second = array("f", [*[math.nan] * 4, 5, 6, 7, 8])
    for order in ((first, second), (second, first)):
        assert rank_sums.joined_bias([part.tobytes() for part in order], 2).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    alone = rank_sums.joined_bias([first.tobytes()], 2)
    assert alone[:4].tolist() == [1, 2, 3, 4] and all(math.isnan(value) for value in alone[4:])


def test_facts_are_means_over_the_ranks_that_know_them() -> None:
    told = [array("f", [1.0, math.nan, math.nan]), array("f", [3.0, 5.0, math.nan])]
    mean = rank_sums.mean_facts([part.tobytes() for part in told])
    assert mean[:2].tolist() == [2.0, 5.0] and math.isnan(mean[2])
    assert len(rank_sums.mean_facts([])) == 0

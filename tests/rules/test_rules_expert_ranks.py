"""Expert-parallel ranks: loads, skew, the tax of unevenness, and who lives where."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.rules.expert_ranks import home, imbalance_tax, rank_loads, skew, skew_floor


def test_a_ranks_load_is_that_of_its_block_without_the_skip_slot() -> None:
    counts = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 100]])
    assert rank_loads(counts, 8, 4).tolist() == [[3, 7, 11, 15]]
    assert skew(rank_loads(counts, 8, 4)) == pytest.approx([15 / 9])
    with pytest.raises(ValueError, match="8 experts do not lie on 3 ranks"):
        rank_loads(counts, 8, 3)


def test_the_tax_is_the_time_above_even_ranks() -> None:
    dice = np.random.default_rng(1)
    loads = dice.uniform(50, 150, (64, 3, 4))
    fullest = skew(loads).sum(axis=-1)
    seconds = 0.5 + 0.1 * fullest
    tax = imbalance_tax(seconds, loads)
    assert tax is not None
    assert tax.seconds_a_load == pytest.approx(0.1) and tax.r2 == pytest.approx(1.0)
    assert tax.seconds == pytest.approx(0.1 * (fullest.mean() - 3))
    assert tax.share == pytest.approx(tax.seconds / seconds.mean())
    noise = imbalance_tax(dice.normal(1.0, 0.1, 64), loads)
    assert noise is not None and noise.r2 < 0.2


def test_layers_without_tokens_cost_nothing_and_hide_no_tax() -> None:
    loads = np.random.default_rng(1).uniform(50, 150, (64, 3, 4))
    seconds = 0.5 + 0.1 * (skew(loads) - 1).sum(axis=-1)
    tax = imbalance_tax(seconds, loads)
    silent = np.concatenate([loads, np.zeros((64, 2, 4))], axis=1)
    assert tax is not None and imbalance_tax(seconds, silent) == tax
    silent[5] = 0
    once = imbalance_tax(seconds, silent)
    assert once is not None and once.seconds_a_load == pytest.approx(tax.seconds_a_load)
    assert imbalance_tax(seconds, np.zeros((64, 3, 4))) is None


def test_no_tax_is_told_of_too_few_steps_or_a_load_that_never_moved() -> None:
    assert imbalance_tax(np.ones(8), np.ones((8, 2, 2))) is None
    assert imbalance_tax(np.ones(64), np.ones((64, 2, 2))) is None
    assert imbalance_tax(np.full(64, np.nan), np.random.default_rng(1).uniform(1, 2, (64, 2, 2))) is None


def test_every_expert_of_every_layer_has_as_many_homes_as_copies() -> None:
    world, experts, layers, layout = 64, 16, 8, (4, 2, 2)
    held = np.zeros((layers, experts), int)
    copies = set()
    for rank in range(world):
        found = home(rank, world, experts, layers, layout)
        assert found is not None
        held[found.layers[0] : found.layers[1] + 1, found.experts[0] : found.experts[1] + 1] += 1
        copies.add(found.copies)
    assert copies == {4} and set(held.ravel().tolist()) == {4 * 2}  # tensor-parallel ranks share an expert
    assert home(1, world, experts, layers, layout) == home(0, world, experts, layers, layout)
    first, next_block = home(0, world, experts, layers, layout), home(2, world, experts, layers, layout)
    assert first is not None and next_block is not None
    assert first.experts == (0, 3) and next_block.experts == (4, 7)


@pytest.mark.parametrize("layout", [(3, 1, 1), (4, 1, 3), (4, 32, 1), (0, 1, 1)])
def test_sizes_that_do_not_divide_have_no_home(layout: tuple[int, int, int]) -> None:
    assert home(0, 64, 16, 8, layout) is None


def test_the_floor_of_skew_is_about_what_chance_shows() -> None:
    dice = np.random.default_rng(1)
    loads = dice.multinomial(4096, [1 / 8] * 8, 2000)
    assert (skew(loads) - 1).mean() == pytest.approx(skew_floor(loads, 1.0).mean(), rel=0.4)
    assert skew_floor(loads, 4.0) == pytest.approx(2 * skew_floor(loads, 1.0))

"""The spread between ranks on its way to a design effect: within nodes, between them, and through the store."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.node import rank_sums
from agents.probe.ring import RingMeta
from agents.readings import ExpertRecord
from controlplane.rules.experts import design_effect
from controlplane.store import arrays
from controlplane.store.expert_coding import decode_all, encode_steps, pack_part, read_steps, unpack_part
from controlplane.store.expert_records import ExpertStep, summed

LAYERS, EXPERTS, RANKS = 3, 8, 8
META = RingMeta("run", 1, 1, 0, RANKS, LAYERS, EXPERTS, EXPERTS, 1, 1)


def drawn(step: int, run_tokens: int) -> NDArray[np.uint32]:
    """Counts of each rank [R, L, E]; tokens come in runs of one choice, the true design effect is a run's length."""
    dice = np.random.default_rng([step, run_tokens])
    share = dice.dirichlet([8.0] * EXPERTS, LAYERS)
    runs = np.stack([dice.multinomial(2048 // run_tokens, share[layer], RANKS) for layer in range(LAYERS)], axis=1)
    return (runs * run_tokens).astype(np.uint32)


def node_record(step: int, ranks: NDArray[np.uint32], told: bool) -> ExpertStep:
    """What the agent of a node with these ranks sends."""
    rows = [array("I", rank.ravel().tolist()).tobytes() for rank in ranks]
    record = ExpertRecord(
        *("run", 1, 1, step, 1.0 + step, len(ranks), LAYERS, EXPERTS, EXPERTS, 1, 2048 * len(ranks), 0),
        array("I", rank_sums.summed(rows)),
        array("f", [0.0] * LAYERS * EXPERTS),
        spread=rank_sums.spread(rows, META) if told else array("d"),
    )
    return ExpertStep.of(record)


def effect(step: ExpertStep) -> NDArray[np.float64]:
    assert step.spread is not None
    return design_effect(step.counts, step.spread.squares, step.spread.freedom, step.spread.ranks, 1)


@pytest.mark.parametrize("run_tokens", [1, 4])
@pytest.mark.parametrize("nodes", [1, 2, 8])
@pytest.mark.parametrize("told", [True, False])
def test_the_design_effect_is_the_clusters_size_however_ranks_are_placed(
    run_tokens: int, nodes: int, told: bool
) -> None:
    found = []
    for step in range(60):
        ranks = drawn(step, run_tokens)
        parts = [node_record(step, part, told) for part in np.split(ranks, nodes)]
        whole = summed([unpack_part("run", 1, step, pack_part(part)) for part in parts])
        if nodes == 1 and (not told or whole.spread is None):
            assert (whole.spread is None) == (not told)
            return
        found.append(effect(whole))
    assert np.mean(found) == pytest.approx(run_tokens, rel=0.15)


def test_within_and_between_nodes_add_up_to_all_ranks() -> None:
    ranks = drawn(1, 4)
    whole = summed([node_record(1, part, True) for part in np.split(ranks, 4)])
    assert whole.spread is not None
    real = ranks.astype(np.float64)
    assert whole.spread.squares == pytest.approx(((real - real.mean(axis=0)) ** 2).sum(axis=(0, 2)))
    assert whole.spread.freedom.tolist() == [RANKS - 1] * LAYERS
    assert whole.spread.ranks.tolist() == [RANKS] * LAYERS


def test_what_is_stored_comes_back() -> None:
    steps = [summed([node_record(n, part, True) for part in np.split(drawn(n, 4), 2)]) for n in (1, 2)]
    steps.append(node_record(3, drawn(3, 1), False))
    coded = encode_steps(steps)
    matrices = decode_all(steps[0].shape, coded, 3)
    back = read_steps("run", 1, steps[0].shape, arrays.Arrays(coded.stats), matrices)
    assert [one.key for one in back] == [one.key for one in steps]
    assert effect(back[0]) == pytest.approx(effect(steps[0]), rel=1e-6)
    assert back[2].spread is None and back[2].facts is None


def test_a_node_that_told_and_one_that_did_not_are_of_one_measure() -> None:
    """Half of the ranks are duplicates that write zeros; the agents tell their spreads in different steps."""
    found = []
    for step in range(60):
        ranks = drawn(step, 1)
        ranks[::2] = 0
        parts = []
        for node, told in ((ranks[:4], True), (ranks[4:], False)):
            rows = [array("I", rank.ravel().tolist()).tobytes() for rank in node]
            spread = rank_sums.spread(rows, META)
            if not told:
                spread[:LAYERS] = array("d", [float("nan")] * LAYERS)
            values = ("run", 1, 1, step, 1.0 + step, 4, LAYERS, EXPERTS, EXPERTS, 1, 4096, 0)
            counts, bias = array("I", rank_sums.summed(rows)), array("f", [0.0] * LAYERS * EXPERTS)
            parts.append(ExpertStep.of(ExpertRecord(*values, counts, bias, spread=spread)))
        found.append(effect(summed(parts)))
    assert np.mean(found) == pytest.approx(1.0, rel=0.15)

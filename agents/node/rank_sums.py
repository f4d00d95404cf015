"""What a node's agent makes of its ranks' records of one step, without numpy: sums, one bias, means, and their spread.

A rank that routed nothing in a layer has no part in that layer's spread: another tells its tokens already, or another
stage of the pipeline holds the layer.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from operator import mul

from agents.probe.ring import RingMeta


def summed(counts: Sequence[bytes]) -> bytes:
    """Adds uint32 arrays elementwise as single large integers: no sum of a step's tokens reaches 2^32, so no element
    carries into the next. Native little-endian, as the ring is."""
    if len(counts) == 1:
        return counts[0]
    size = len(counts[0])
    total = sum(int.from_bytes(part, "little") for part in counts)
    return total.to_bytes(size + 8, "little")[:size]


def joined_bias(biases: Sequence[bytes], layers: int) -> array[float]:
    """The first rank's float32 biases, and of each layer that it does not hold (its row begins with NaN) another's."""
    joined = array("f", biases[0])
    slots = len(joined) // layers
    missing = [layer for layer in range(layers) if math.isnan(joined[layer * slots])]
    for part in biases[1:] if missing else ():
        other = array("f", part)
        for layer in [layer for layer in missing if not math.isnan(other[layer * slots])]:
            joined[layer * slots : (layer + 1) * slots] = other[layer * slots : (layer + 1) * slots]
            missing.remove(layer)
    return joined


def mean_facts(facts: Sequence[bytes]) -> array[float]:
    """The mean over ranks of float32 arrays, each value's over those who know it; empty of none."""
    ranks = [array("f", part) for part in facts]
    if len(ranks) < 2:
        return ranks[0] if ranks else array("f")
    means = array("f")
    for told in zip(*ranks, strict=True):
        known = [value for value in told if not math.isnan(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    return means


def spread(counts: Sequence[bytes], meta: RingMeta) -> array[float]:
    """[2, layers]: Σ over ranks and real experts of (count − mean over ranks)², and the ranks; empty of one rank.

    Σ (c − m)² = Σ c² − (Σ c)² ÷ R, exact in integers up to the division.
    """
    if len(counts) < 2:
        return array("d")
    ranks = [array("I", part) for part in counts]
    squares, routed = array("d"), array("d")
    for begin in range(0, meta.layers * meta.slots, meta.slots):
        rows = [row for rank in ranks if any(row := rank[begin : begin + meta.experts])]
        totals = list(map(sum, zip(*rows, strict=True)))
        within = sum(sum(map(mul, row, row)) for row in rows)
        squares.append(within - sum(map(mul, totals, totals)) / len(rows) if rows else 0.0)
        routed.append(len(rows))
    return squares + routed

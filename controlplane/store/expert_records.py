"""Expert records as values: one step's counts and biases, and the sum over nodes. Pure; as bytes: expert_coding.py.

Shapes: L layers, X slots of which the first `experts` are experts and the rest skip slots, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.readings import LAYER_FACTS, ExpertRecord

Counts = NDArray[np.uint32]
Float32 = NDArray[np.float32]
Matrices = tuple[Counts, Float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """What must agree before steps can be summed or joined."""

    layers: int
    slots: int
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How far ranks lie apart: of each layer [L] the sum of squares of the experts' counts about their mean over the
    ranks (or over groups of ranks, each weighing as many), its degrees of freedom, and how many ranks routed."""

    squares: NDArray[np.float64]
    freedom: NDArray[np.float64]
    ranks: NDArray[np.float64]

    def stacked(self) -> NDArray[np.float64]:
        """[3, L]"""
        return np.stack([self.squares, self.freedom, self.ranks])


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """One optimizer step, summed over `ranks` ranks: counts and biases [L, X].

    `layout` are the sizes of the expert-, tensor- and pipeline-parallel groups; start_bias, route_mismatch and facts
    [3, L] as in agents.readings.ExpertRecord.
    """

    run_id: str
    attempt_no: int
    step: int
    at_s: float
    ranks: int
    tokens: int
    dropped: int
    shape: Shape
    counts: Counts
    bias: Float32
    layout: tuple[int, int, int] = (1, 1, 1)
    start_bias: int = 0
    route_mismatch: float = math.nan
    facts: Float32 | None = None
    spread: Spread | None = None

    @property
    def expert_parallel(self) -> int:
        """Over how many ranks the experts of a layer are laid out, in blocks; 1: every rank holds them all."""
        return self.layout[0]

    @property
    def key(self) -> tuple[str, int, int]:
        return (self.run_id, self.attempt_no, self.step)

    @classmethod
    def of(cls, record: ExpertRecord) -> ExpertStep:
        """A record as it came. ValueError if its sizes contradict each other."""
        shape = Shape(record.layers, record.slots, record.experts, record.top_k)
        if not (0 < shape.experts <= shape.slots and shape.layers > 0 and 0 < shape.top_k <= shape.experts):
            raise ValueError(f"no router has {shape}")
        if record.step < 0 or record.ranks < 1:
            raise ValueError(f"a record of step {record.step} by {record.ranks} ranks cannot be")
        return cls(
            run_id=record.run_id,
            attempt_no=record.attempt_no,
            step=record.step,
            at_s=record.at_s,
            ranks=record.ranks,
            tokens=record.tokens,
            dropped=record.dropped,
            shape=shape,
            counts=np.array(record.counts, np.uint32).reshape(shape.layers, shape.slots),
            bias=np.array(record.bias, np.float32).reshape(shape.layers, shape.slots),
            layout=(record.expert_parallel, record.tensor_parallel, record.pipeline_parallel),
            start_bias=record.start_bias,
            route_mismatch=record.route_mismatch,
            facts=_facts(np.array(record.facts, np.float32), shape.layers),
            spread=_spread(np.array(record.spread, np.float64), shape.layers),
        )


def _facts(flat: Float32, layers: int) -> Float32 | None:
    return flat.reshape(len(LAYER_FACTS), layers) if len(flat) else None


def _spread(flat: NDArray[np.float64], layers: int) -> Spread | None:
    if not len(flat):
        return None
    squares, ranks = flat.reshape(2, layers)
    known = np.isfinite(squares)
    return Spread(np.where(known, squares, 0.0), np.where(known, np.maximum(ranks - 1, 0), 0.0), ranks)


def summed(parts: Sequence[ExpertStep]) -> ExpertStep:
    """One step over all its parts. Biases are the same on every rank: the newest part's are kept, and in layers that it
    does not hold (NaN, another stage of a pipeline) another's."""
    if len(parts) == 1:
        return parts[0]
    newest = max(parts, key=lambda part: part.at_s)
    bias = newest.bias
    for part in parts:
        bias = np.where(np.isnan(bias), part.bias, bias)
    mismatches = [part.route_mismatch for part in parts if not math.isnan(part.route_mismatch)]
    counts = np.sum([part.counts for part in parts], axis=0, dtype=np.uint64)
    return ExpertStep(
        run_id=newest.run_id,
        attempt_no=newest.attempt_no,
        step=newest.step,
        at_s=newest.at_s,
        ranks=sum(part.ranks for part in parts),
        tokens=sum(part.tokens for part in parts),
        dropped=sum(part.dropped for part in parts),
        shape=newest.shape,
        counts=np.minimum(counts, np.iinfo(np.uint32).max).astype(np.uint32),
        bias=bias,
        layout=newest.layout,
        start_bias=newest.start_bias,
        route_mismatch=sum(mismatches) / len(mismatches) if mismatches else math.nan,
        facts=_mean_facts([part.facts for part in parts if part.facts is not None]),
        spread=_joined_spread(parts),
    )


def _mean_facts(told: Sequence[Float32]) -> Float32 | None:
    """Each value's mean over the parts that know it."""
    if not told:
        return None
    values = np.stack(told)
    known = np.isfinite(values).sum(axis=0)
    mean: Float32 = np.where(known > 0, np.nansum(values, axis=0) / np.maximum(known, 1), np.nan).astype(np.float32)
    return mean


def _joined_spread(parts: Sequence[ExpertStep]) -> Spread:
    """The spread over all ranks: within the parts, as far as they told it, and between them.

    Between: Σ over parts and experts of R·(c ÷ R − m)², R a part's ranks, c its count and m the mean a rank: where
    ranks are alike each degree of freedom is worth as much there as within a part. A part without tokens in a layer
    (another stage of a pipeline) has no say in it.
    """
    experts = parts[0].shape.experts
    counts = np.stack([part.counts[:, :experts] for part in parts]).astype(np.float64)
    routed = np.asarray(counts.any(axis=-1))
    ranks = np.stack(
        [
            part.spread.ranks if part.spread is not None else part.ranks * routed[index]
            for index, part in enumerate(parts)
        ]
    ).astype(np.float64)
    total = ranks.sum(axis=0)
    each = counts / np.maximum(ranks, 1)[..., None]
    mean = counts.sum(axis=0) / np.maximum(total, 1)[:, None]
    squares = (ranks[..., None] * (each - mean) ** 2).sum(axis=(0, 2))
    told = [part.spread for part in parts if part.spread is not None]
    return Spread(
        np.sum([squares, *(one.squares for one in told)], axis=0),
        np.sum([np.maximum(routed.sum(axis=0) - 1.0, 0.0), *(one.freedom for one in told)], axis=0),
        total,
    )

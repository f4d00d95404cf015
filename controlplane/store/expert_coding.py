"""Expert records as bytes: a node's part of a step until the others are there, and a stretch of steps as a chunk. Pure.

Shapes: L layers, X slots of which the first `experts` are experts and the rest skip slots, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.readings import LAYER_FACTS
from controlplane.rules.experts import design_effect, layer_statistics, mean_of_known, rank_variance
from controlplane.store import arrays
from controlplane.store.codec import COLUMNS, RAW, CodecError, decode_low, encode_column
from controlplane.store.compression import FAST, SMALL, compress, decompress
from controlplane.store.expert_records import Counts, ExpertStep, Float32, Matrices, Shape, Spread

STATISTICS = (
    *("maxvio", "cv", "cv_floor", "effective", "dead_count", "skip_share", "bias_spread"),
    *("avgvio", "gini", "min_load", "bias_mean"),
)
"""The statistics a layer that are stored beside the counts; controlplane.rules.experts says what they mean. The second
row came later: chunks that were written before lack it (`of_layers`)."""
_SPREAD = ("design_effect", "spread_freedom", "spread_ranks")
OF_LAYERS = (*STATISTICS, *_SPREAD, *LAYER_FACTS)
"""All that is stored a layer: [L, S] in a chunk, NaN where unknown."""
_OF_STEPS = ("floor_cv", "mean_maxvio")
_LAYOUT = ("expert_parallel", "tensor_parallel", "pipeline_parallel")
_PLAIN = ("step", "at_s", "ranks", "tokens", "dropped", "start_bias", "route_mismatch", *_LAYOUT)


def pack_part(part: ExpertStep) -> bytes:
    """One node's part of a step, until the others are there."""
    shape = part.shape
    numbers = [part.ranks, part.tokens, part.dropped, shape.experts, shape.top_k, *part.layout]
    packed: dict[str, NDArray[Any]] = {
        "numbers": np.array(numbers, np.int64),
        "start_bias": np.array([part.start_bias], np.uint64),
        "at_s": np.array([part.at_s, part.route_mismatch]),
        "counts": part.counts,
        "bias": part.bias,
    }
    if part.facts is not None:
        packed["facts"] = part.facts
    if part.spread is not None:
        packed["spread"] = part.spread.stacked()
    return arrays.pack(packed)


def unpack_part(run_id: str, attempt_no: int, step: int, blob: bytes) -> ExpertStep:
    """A part that was packed."""
    found = arrays.Arrays(blob)
    ranks, tokens, dropped, experts, top_k, *layout = (int(number) for number in found["numbers"])
    counts = found["counts"]
    at_s, route_mismatch = found["at_s"].tolist()
    return ExpertStep(
        run_id=run_id,
        attempt_no=attempt_no,
        step=step,
        at_s=at_s,
        ranks=ranks,
        tokens=tokens,
        dropped=dropped,
        shape=Shape(counts.shape[0], counts.shape[1], experts, top_k),
        counts=counts,
        bias=found["bias"],
        layout=(layout[0], layout[1], layout[2]),
        start_bias=int(found["start_bias"][0]),
        route_mismatch=route_mismatch,
        facts=found["facts"] if "facts" in found else None,  # noqa: SIM401 - a bundle has no get
        spread=Spread(*found["spread"]) if "spread" in found else None,
    )


# --- a stretch of steps as bytes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coded:
    """What an expert chunk stores: counts and biases whole in `blob` (RAW) or as a pair a layer (COLUMNS)."""

    codec: str
    blob: bytes
    stats: bytes
    """scalars and statistics, as arrays"""
    layers: tuple[tuple[bytes, bytes], ...] = ()


def encode_steps(steps: Sequence[ExpertStep]) -> Coded:
    """Steps of one shape as they came, with their statistics: quick to make."""
    counts = np.stack([step.counts for step in steps])
    bias = np.stack([step.bias for step in steps])
    shape = steps[0].shape
    with np.errstate(invalid="ignore", over="ignore"):  # a bias that diverged is infinite, and its statistics unknown
        found = layer_statistics(counts, bias, shape.experts, shape.top_k)
    stats: dict[str, NDArray[Any]] = {
        "step": np.array([step.step for step in steps], np.int64),
        "at_s": np.array([step.at_s for step in steps]),
        "ranks": np.array([step.ranks for step in steps], np.int64),
        "tokens": np.array([step.tokens for step in steps], np.int64),
        "dropped": np.array([step.dropped for step in steps], np.int64),
        "start_bias": np.array([step.start_bias for step in steps], np.uint64),
        "route_mismatch": np.array([step.route_mismatch for step in steps], np.float32),
        "floor_cv": found.floor_cv.astype(np.float32),
        "mean_maxvio": mean_of_known(found.maxvio).astype(np.float32),
    }
    for name, sizes in zip(_LAYOUT, zip(*(step.layout for step in steps), strict=True), strict=True):
        stats[name] = np.array(sizes, np.int64)
    unknown = np.full((len(LAYER_FACTS), shape.layers), np.nan, np.float32)
    facts = np.stack([unknown if step.facts is None else step.facts for step in steps], axis=-1)
    spreads = np.stack([_spread_told(step) for step in steps], axis=-1)
    stats |= dict(zip((*LAYER_FACTS, *_SPREAD), np.concatenate([facts, spreads.astype(np.float32)]), strict=True))
    for name in STATISTICS:
        stats[name] = getattr(found, name).T.astype(np.float32)
    blob = compress(counts.astype("<u4").tobytes() + bias.astype("<f4").tobytes(), FAST)
    return Coded(RAW, blob, arrays.pack(stats))


def read_steps(
    run_id: str, attempt_no: int, shape: Shape, stats: arrays.Arrays, matrices: Matrices
) -> list[ExpertStep]:
    """The steps of a chunk from its statistics and its counts and biases [S, L, X]."""
    known = {name: stats[name] for name in (*_PLAIN, *LAYER_FACTS, *_SPREAD)}
    plain = zip(*(known[name].tolist() for name in _PLAIN), strict=True)
    facts = np.stack([known[name] for name in LAYER_FACTS])
    spreads = np.stack([known[name] for name in _SPREAD]).astype(np.float64)
    return [
        ExpertStep(
            *(run_id, attempt_no, step, at_s, ranks, tokens, dropped, shape),
            *(matrices[0][index], matrices[1][index], (layout[0], layout[1], layout[2]), start_bias, route_mismatch),
            None if np.isnan(facts[..., index]).all() else facts[..., index],
            _spread_back(spreads[..., index], matrices[0][index, :, : shape.experts], shape.top_k),
        )
        for index, (step, at_s, ranks, tokens, dropped, start_bias, route_mismatch, *layout) in enumerate(plain)
    ]


def _spread_told(step: ExpertStep) -> NDArray[np.float64]:
    """[3, L] of _SPREAD: the sum of squares is kept as the design effect that it makes."""
    if step.spread is None:
        return np.stack([np.full(step.shape.layers, np.nan), *np.zeros((2, step.shape.layers))])
    spread, counts = step.spread, step.counts[:, : step.shape.experts]
    effect = design_effect(counts, spread.squares, spread.freedom, spread.ranks, step.shape.top_k)
    return np.stack([effect, spread.freedom, spread.ranks])


def _spread_back(told: NDArray[np.float64], counts: Counts, top_k: int) -> Spread | None:
    effect, freedom, ranks = told
    if not freedom.any():
        return None
    return Spread(np.nan_to_num(effect * freedom * rank_variance(counts, ranks, top_k)), freedom, ranks)


def merge_coded(parts: Sequence[tuple[Shape, Coded, int]]) -> tuple[Coded, int]:
    """Chunks of one shape, each with its number of steps, as one that can be read a layer at a time, and its steps.

    The chunks come in the order in which they were written. Of a step that was written more than once, since a rank's
    part came late, the last writing is kept.
    """
    shape = parts[0][0]
    stats = [arrays.Arrays(coded.stats) for _, coded, _ in parts]
    whole = [decode_all(shape, coded, steps) for _, coded, steps in parts]
    written = np.concatenate([one["step"] for one in stats])
    order = np.argsort(written, kind="stable")
    keep = order[np.append(np.diff(written[order]) != 0, True)]
    counts = np.concatenate([one[0] for one in whole])[keep]
    bias = np.concatenate([one[1] for one in whole])[keep]
    layers = tuple(
        (encode_column(counts[:, layer].T.astype(np.int64)), encode_column(_to_ordered(bias[:, layer].T)))
        for layer in range(shape.layers)
    )
    joined = {name: np.concatenate([one[name] for one in stats], axis=-1)[..., keep] for name in (*_PLAIN, *_OF_STEPS)}
    for name in OF_LAYERS:
        joined[name] = np.concatenate([of_layers(one, name, shape.layers) for one in stats], axis=-1)[..., keep]
    return Coded(COLUMNS, b"", arrays.pack(joined, level=SMALL), layers), len(keep)


def of_layers(stats: arrays.Arrays, name: str, layers: int) -> Float32:
    """One of OF_LAYERS of a chunk, [L, S]; NaN where the chunk is older than the statistic."""
    if name in stats:
        found: Float32 = stats[name]
        return found
    return np.full((layers, len(stats["step"])), np.nan, np.float32)


def decode_all(shape: Shape, coded: Coded, steps: int) -> tuple[Counts, Float32]:
    """Counts and biases [S, L, X] of a chunk of `steps` steps."""
    if coded.codec == RAW:
        return _decode_raw(shape, coded.blob, steps)
    if len(coded.layers) != shape.layers:
        raise CodecError(f"an expert chunk has {len(coded.layers)} of its {shape.layers} layers")
    layers = [decode_layer(shape, layer, steps) for layer in coded.layers]
    return np.stack([one[0] for one in layers], axis=1), np.stack([one[1] for one in layers], axis=1)


def decode_layer(shape: Shape, layer: tuple[bytes, bytes], steps: int) -> tuple[Counts, Float32]:
    """Counts and biases [S, X] of one layer of a COLUMNS chunk."""
    counts, bias = (decode_low(frame, shape.slots, steps) for frame in layer)
    return counts.T, _from_ordered(bias.view(np.int32)).T


def decode_raw_layer(shape: Shape, blob: bytes, layer: int, steps: int) -> tuple[Counts, Float32]:
    """Counts and biases [S, X] of one layer of a RAW chunk."""
    counts, bias = _decode_raw(shape, blob, steps)
    return counts[:, layer], bias[:, layer]


def _decode_raw(shape: Shape, blob: bytes, steps: int) -> tuple[Counts, Float32]:
    plain = decompress(blob)
    size = (steps, shape.layers, shape.slots)
    items = steps * shape.layers * shape.slots
    if len(plain) != 8 * items:
        raise CodecError("an expert chunk is not as long as its row says")
    return (
        np.frombuffer(plain, "<u4", items).reshape(size),
        np.frombuffer(plain, "<f4", items, 4 * items).reshape(size),
    )


def _to_ordered(values: Float32) -> NDArray[np.int64]:
    """Floats as integers in the same order, so that small changes are small differences (exact both ways)."""
    bits = np.ascontiguousarray(values).view(np.int32)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)


def _from_ordered(ordered: NDArray[np.int32]) -> Float32:
    """The floats, in the place of the integers."""
    ordered ^= (ordered >> np.int32(31)) & np.int32(0x7FFFFFFF)
    return ordered.view(np.float32)

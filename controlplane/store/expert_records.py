"""Expert records as values: one step's counts and biases, the sum over nodes, a stretch of steps as bytes. Pure.

Shapes: L layers, X slots of which the first `experts` are experts and the rest skip slots, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.readings import ExpertRecord
from controlplane.rules.experts import layer_statistics
from controlplane.store import arrays
from controlplane.store.codec import COLUMNS, RAW, CodecError, decode_column, encode_column
from controlplane.store.compression import FAST, SMALL, compress, decompress

Counts = NDArray[np.uint32]
Float32 = NDArray[np.float32]

STATISTICS = ("maxvio", "cv", "cv_floor", "effective", "dead_count", "skip_share")
"""The statistics a layer that are stored beside the counts; controlplane.rules.experts says what they mean."""
_PLAIN = ("step", "at_s", "ranks", "tokens", "dropped")


@dataclass(frozen=True, slots=True)
class Shape:
    """What must agree before steps can be summed or joined."""

    layers: int
    slots: int
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """One optimizer step, summed over `ranks` ranks: counts and biases [L, X]."""

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
        )


def summed(parts: Sequence[ExpertStep]) -> ExpertStep:
    """One step over all its parts. Biases are the same on every rank; the newest part's are kept."""
    if len(parts) == 1:
        return parts[0]
    newest = max(parts, key=lambda part: part.at_s)
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
        bias=newest.bias,
    )


def pack_part(part: ExpertStep) -> bytes:
    """One node's part of a step, until the others are there."""
    shape = part.shape
    numbers = [part.ranks, part.tokens, part.dropped, shape.experts, shape.top_k]
    return arrays.pack(
        {
            "numbers": np.array(numbers, np.int64),
            "at_s": np.array([part.at_s]),
            "counts": part.counts,
            "bias": part.bias,
        }
    )


def unpack_part(run_id: str, attempt_no: int, step: int, blob: bytes) -> ExpertStep:
    """A part that was packed."""
    found = arrays.Arrays(blob)
    ranks, tokens, dropped, experts, top_k = (int(number) for number in found["numbers"])
    counts = found["counts"]
    return ExpertStep(
        run_id=run_id,
        attempt_no=attempt_no,
        step=step,
        at_s=float(found["at_s"][0]),
        ranks=ranks,
        tokens=tokens,
        dropped=dropped,
        shape=Shape(counts.shape[0], counts.shape[1], experts, top_k),
        counts=counts,
        bias=found["bias"],
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
    stats = {
        "step": np.array([step.step for step in steps], np.int64),
        "at_s": np.array([step.at_s for step in steps]),
        "ranks": np.array([step.ranks for step in steps], np.int64),
        "tokens": np.array([step.tokens for step in steps], np.int64),
        "dropped": np.array([step.dropped for step in steps], np.int64),
        "floor_cv": found.floor_cv.astype(np.float32),
    }
    for name in STATISTICS:
        stats[name] = getattr(found, name).T.astype(np.float32)
    blob = compress(counts.astype("<u4").tobytes() + bias.astype("<f4").tobytes(), FAST)
    return Coded(RAW, blob, arrays.pack(stats))


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
    joined = {
        name: np.concatenate([one[name] for one in stats], axis=-1)[..., keep]
        for name in (*_PLAIN, "floor_cv", *STATISTICS)
    }
    return Coded(COLUMNS, b"", arrays.pack(joined, level=SMALL), layers), len(keep)


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
    counts, bias = (decode_column(frame, shape.slots, steps).T for frame in layer)
    return counts.astype(np.uint32), _from_ordered(bias)


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


def _from_ordered(ordered: NDArray[np.int64]) -> Float32:
    bits = ordered.astype(np.int32)
    return np.ascontiguousarray(np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)).view(np.float32)

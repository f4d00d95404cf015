"""A run's expert records as an NPZ file (numpy.load reads it), made while it is sent and never in memory whole.

Arrays of N steps, M layers, X slots: step, attempt, at_s, ranks, tokens [N]; layer [M]; experts (how many of the slots
are; the others are skip slots) and top_k; then counts u4 and bias f4 [N, M, X] with the ranks' design effect and its
degrees of freedom f4 [N, M], or a statistic f4 [N, M] each. A file says how
long an array is before the first of its numbers: the steps are counted first, then every large array is read in a pass
of its own. Steps of another shape than the newest one's are left out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.store.engine import Store
from controlplane.store.expert_records import Shape
from controlplane.store.expert_stretches import Wanted, stretches

SPREAD = ("design_effect", "spread_freedom")


class RecordsChanged(RuntimeError):
    """Steps that were counted are not there any more: the file cannot be ended as it was begun."""


class Sink:
    """What a writer of files writes to, and what is taken from it to be sent."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at, self.closed = 0, False

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        """What was written since it was last asked."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def matrices(store: Store, run_id: str, wanted: Wanted) -> Iterator[bytes]:
    """The file a piece at a time. RecordsChanged if the steps counted at first are no longer all there."""
    shape, small = _plan(store, run_id, wanted)
    steps, layers = len(small["step"]), len(small["layer"])
    wanted = replace(wanted, last=int(small["step"][-1]))
    if wanted.matrices:  # how correlated the tokens are, without which counts cannot be judged
        wanted = replace(wanted, statistics=(*wanted.statistics, *SPREAD))
    large: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(wanted.statistics, ("<f4", (steps, layers)))
    if wanted.matrices:
        large |= {"counts": ("<u4", (steps, layers, shape.slots)), "bias": ("<f4", (steps, layers, shape.slots))}
    sink = Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)
        for name, (dtype, size) in large.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                head = {"descr": dtype, "fortran_order": False, "shape": size}
                np.lib.format.write_array_header_1_0(file, head)
                for part in _pass(store, run_id, wanted, shape, name, small["step"]):
                    file.write(part.astype(dtype).tobytes())
                    yield sink.take()
    yield sink.take()


def _plan(store: Store, run_id: str, wanted: Wanted) -> tuple[Shape, dict[str, NDArray[Any]]]:
    """The shape, and what is small enough to be kept: a few numbers a step."""
    found: list[tuple[Shape, dict[str, NDArray[Any]]]] = []
    for one in stretches(store, run_id, replace(wanted, layers=None, values=False, statistics=())):
        attempts = np.full(len(one.step), one.attempt_no, np.int64)
        row = {"step": one.step, "attempt": attempts, "at_s": one.at_s, "ranks": one.ranks, "tokens": one.tokens}
        found.append((one.shape, row))
    if not found:
        raise RecordsChanged(f"nothing is left of {run_id}'s steps")
    shape = found[-1][0]
    kept = [row for of, row in found if of == shape]
    small: dict[str, NDArray[Any]] = {name: np.concatenate([row[name] for row in kept]) for name in kept[0]}
    layers = np.array([layer for layer in wanted.layers or range(shape.layers) if layer < shape.layers], np.int64)
    return shape, small | {"layer": layers, "experts": np.array(shape.experts), "top_k": np.array(shape.top_k)}


def _pass(
    store: Store, run_id: str, wanted: Wanted, shape: Shape, name: str, planned: NDArray[np.int64]
) -> Iterator[NDArray[Any]]:
    """One array's part of each stretch; exactly of the planned steps."""
    asked = replace(wanted, statistics=(name,) if name in wanted.statistics else ())
    at = 0
    for one in stretches(store, run_id, asked):
        if one.shape != shape:
            continue
        chosen = np.isin(one.step, planned)
        values = one.statistics[name] if asked.statistics else one.counts if name == "counts" else one.bias
        if not np.array_equal(one.step[chosen], planned[at : at + int(chosen.sum())]):
            break
        at += int(chosen.sum())
        yield values[chosen]
    if at != len(planned):
        raise RecordsChanged(f"{run_id}'s records changed while they were read; ask again")

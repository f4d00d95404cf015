"""A run's expert records as a file for other programs, made while it is sent: a stretch of steps at a time in memory.

Long form (CSV, Parquet): `loads` has a row a step, layer and slot, `layers` a row a step and layer. Matrix form (NPZ)
is experts_matrices'. The steps are the current view's: of a step that was done twice, as it was done last. Of old steps
that were thinned `loads` has nothing, `layers` all but churn and lag1, which are made of counts while they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.readings import LAYER_FACTS
from controlplane.services.experts_derived import with_derived
from controlplane.services.experts_matrices import Sink, matrices
from controlplane.store import experts
from controlplane.store.engine import Store
from controlplane.store.expert_coding import STATISTICS
from controlplane.store.expert_stretches import Stretch, Wanted, nearest_kept, stretches

FORMATS = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "npz": "application/zip"}
WHAT = ("loads", "layers")
ROWS = {"csv": 50_000, "parquet": 400_000}
"""How many rows are made at a time; in Parquet they are a row group."""
OF_LAYER = (*STATISTICS, "design_effect", *LAYER_FACTS)
"""The stored columns of `layers` beside the step and the layer."""
Columns = dict[str, NDArray[Any]]


class ExportRefused(Exception):
    """There is nothing to send: with a word for programs, and what there is."""

    def __init__(self, status: int, code: str, title: str, hint: str = "") -> None:
        super().__init__(title)
        self.status, self.code, self.title, self.hint = status, code, title, hint


class ParquetMissing(Exception):
    """The library that writes Parquet is not installed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is exported of a run: the layers (None: all) and the steps from `first` to `last` (None: all)."""

    run_id: str
    form: str = "csv"
    what: str = "loads"
    layers: tuple[int, ...] | None = None
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """The file: its name, media type, and content a piece at a time."""

    name: str
    media_type: str
    pieces: Iterator[bytes]


def begin(store: Store, asked: Asked) -> Export:
    """The export, its first stretch read. ExportRefused if there is none, ParquetMissing."""
    parquet = _parquet() if asked.form == "parquet" else None
    with store.read() as session:
        bounds = experts.bounds(session, asked.run_id)
    if bounds is None:
        raise ExportRefused(404, "no_data", f"{asked.run_id} has no expert record yet")
    loads = asked.what == "loads"
    first, last = (bounds[0] if asked.first is None else asked.first), (bounds[1] if asked.last is None else asked.last)
    wanted = Wanted(first, last, asked.layers, matrices=loads, statistics=() if loads else OF_LAYER)
    found = stretches(store, asked.run_id, wanted)
    head = next(found, None)
    if head is None:
        raise _nothing(store, asked, (first, last), bounds)
    beyond = [layer for layer in asked.layers or () if not 0 <= layer < head.shape.layers]
    if beyond:
        hint = f"It has layers 0 to {head.shape.layers - 1}."
        raise ExportRefused(404, "not_found", f"{asked.run_id} has no layer {beyond[0]}", hint)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{asked.run_id}-experts-{asked.what}.{asked.form}")
    if asked.form == "npz":
        pieces = matrices(store, asked.run_id, wanted)
    else:
        blocks = _blocks(store, chain([head], found), asked)
        pieces = _csv(blocks) if parquet is None else _parquet_file(blocks, parquet)
    return Export(name, FORMATS[asked.form], pieces)


def _nothing(store: Store, asked: Asked, steps: tuple[int, int], bounds: tuple[int, int]) -> ExportRefused:
    title = f"{asked.run_id} has nothing stored of steps {steps[0]} to {steps[1]}"
    hint = f"There are steps {bounds[0]} to {bounds[1]}."
    thinned = next(stretches(store, asked.run_id, Wanted(*steps, matrices=False)), None)
    if thinned is None:
        return ExportRefused(404, "no_data", title, hint)
    with store.read() as session:
        near = nearest_kept(session, asked.run_id, int(thinned.step[0]))
    kept = f" The nearest step that has them is {near}." if near is not None else ""
    title = f"{asked.run_id} has only statistics left of steps {steps[0]} to {steps[1]}"
    return ExportRefused(404, "thinned", title, f"Counts and biases are thinned with age: ask for what=layers.{kept}")


def _parquet() -> Any:
    try:
        import pyarrow.parquet  # large, and not part of every installation
    except ImportError as error:
        raise ParquetMissing from error
    return pyarrow.parquet


# --- long form -------------------------------------------------------------------------------------------------------


def _blocks(store: Store, found: Iterator[Stretch], asked: Asked) -> Iterator[Columns]:
    """Columns of at most about ROWS rows each; a step is never cut."""
    columns = _loads if asked.what == "loads" else _layers
    for given in found:
        stretch = given if asked.what == "loads" else with_derived(store, asked.run_id, given)
        width = len(stretch.layers) * (stretch.shape.slots if asked.what == "loads" else 1)
        size = max(1, ROWS[asked.form] // max(width, 1))
        for at in range(0, len(stretch.step), size):
            yield columns(asked.run_id, stretch, slice(at, at + size))


def _common(run_id: str, stretch: Stretch, part: slice, each: int) -> Columns:
    steps = len(stretch.step[part])
    at = np.round(1000 * stretch.at_s[part]).astype("datetime64[ms]")
    return {
        "run": np.full(steps * each, run_id, object),
        "attempt": np.full(steps * each, stretch.attempt_no, np.int32),
        "step": np.repeat(stretch.step[part], each),
        "at": np.repeat(at, each),
    }


def _loads(run_id: str, stretch: Stretch, part: slice) -> Columns:
    counts, bias = stretch.counts[part], stretch.bias[part]
    steps, layers, slots = counts.shape
    experts_ = stretch.shape.experts
    real = counts[..., :experts_].sum(axis=-1, keepdims=True, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (counts / real).astype(np.float32)
    share[~np.isfinite(share)] = np.nan
    share[..., experts_:] = np.nan
    slot = np.tile(np.arange(slots, dtype=np.int32), steps * layers)
    return _common(run_id, stretch, part, layers * slots) | {
        "layer": np.tile(np.repeat(stretch.layers.astype(np.int32), slots), steps),
        "slot": slot,
        "is_skip": slot >= experts_,
        "count": counts.ravel(),
        "share": share.ravel(),
        "bias": bias.ravel(),
    }


def _layers(run_id: str, stretch: Stretch, part: slice) -> Columns:
    steps, layers = len(stretch.step[part]), len(stretch.layers)
    return _common(run_id, stretch, part, layers) | {
        "layer": np.tile(stretch.layers.astype(np.int32), steps),
        "ranks": np.repeat(stretch.ranks[part], layers),
        "tokens": np.repeat(stretch.tokens[part], layers),
        **{name: values[part].ravel() for name, values in stretch.statistics.items()},
    }


def _csv(blocks: Iterator[Columns]) -> Iterator[bytes]:
    head = True
    for columns in blocks:
        lines = list(map(",".join, zip(*map(_words, columns.values()), strict=True)))
        if head:
            lines.insert(0, ",".join(columns))
            head = False
        yield ("\n".join(lines) + "\n").encode()


def _words(column: NDArray[Any]) -> list[str]:
    """A column's cells: nine digits bring a float32 back exactly; what is not known is empty; moments are UTC."""
    if column.dtype.kind == "M":
        moments, places = np.unique(column, return_inverse=True)
        words = [f"{moment}Z" for moment in np.datetime_as_string(moments)]
        return [words[place] for place in places.tolist()]
    values = column.tolist()
    if column.dtype == np.bool_:
        return ["true" if value else "false" for value in values]
    if column.dtype.kind == "f":
        return ["" if value != value else f"{value:.9g}" for value in values]
    return list(map(str, values))


def _parquet_file(blocks: Iterator[Columns], parquet: Any) -> Iterator[bytes]:
    import pyarrow as pa  # as above: there, since _parquet found it

    sink, writer = Sink(), None
    for columns in blocks:
        made = {name: pa.array(column, from_pandas=True) for name, column in columns.items()}
        made["at"] = made["at"].cast(pa.timestamp("ms", "UTC"))
        table = pa.table(made)
        if writer is None:
            writer = parquet.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table)
        yield sink.take()
    if writer is not None:
        writer.close()
    yield sink.take()

"""What is kept of expert records and read back: the last heatmap, a raster of 10,000 steps, bytes a step on disk.

A SQLite store in a temporary directory, as ingest leaves it: a chunk a step as they come, merged and thinned by the
store's own calls. Each read is timed on the wall and on the reader's own thread clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ingest import RUN, steps_of
from benchmarks.probe_rounds import Line, line
from controlplane.clock import SystemClock
from controlplane.services import views_experts
from controlplane.services.live import Live
from controlplane.store import arrays, expert_merging, expert_raster, expert_thinning, experts
from controlplane.store.base import insert_many
from controlplane.store.engine import Store
from controlplane.store.expert_coding import Coded, encode_steps, merge_coded
from controlplane.store.expert_records import ExpertStep, Shape
from controlplane.store.tables import ExpertLayer

SHAPES = (Shape(40, 17, 16, 1), Shape(58, 256, 256, 8))
HEATMAP_MS, RASTER_MS = 2.0, 50.0
RASTER_STEPS, COLUMNS = 10_000, 1_000
KEPT_STEPS, YOUNG_STEPS = 6 * expert_merging.MERGED_STEPS, 200
READS, SLOW_READS = 100, 15
DAY_S = 86_400.0


@contextmanager
def new_store() -> Iterator[Store]:
    """A migrated store with synchronous=FULL, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        store = Store(f"sqlite:///{Path(folder) / 'store.db'}")
        store.migrate()
        try:
            yield store
        finally:
            store.close()


def name_of(shape: Shape) -> str:
    """40x17."""
    return f"{shape.layers}x{shape.slots}"


def timed(name: str, target: float | None, read: Callable[[int], object], times: int, **more: Any) -> Line:
    """The median wall milliseconds of a read; its 95th percentile and the thread's CPU beside it."""
    wall, cpu = [], []
    for index in range(times):
        begun, used = time.perf_counter(), time.thread_time()
        read(index)
        cpu.append(1000 * (time.thread_time() - used))
        wall.append(1000 * (time.perf_counter() - begun))
    facts = {"p95": round(float(np.percentile(wall, 95)), 3), "cpu": round(float(np.median(cpu)), 3)}
    facts["cpu_p95"] = round(float(np.percentile(cpu, 95)), 3)
    return line(name, round(float(np.median(wall)), 3), "ms", target, **facts, **more)


def add(store: Store, steps: Sequence[ExpertStep]) -> None:
    """A chunk a step, as they come."""
    for begin in range(0, len(steps), 64):
        with store.write() as session:
            for step in steps[begin : begin + 64]:
                bounds = (step.step, step.step, 1)
                row = experts.chunk_row(RUN, 1, step.shape, encode_steps([step]), level=0, steps=bounds)
                session.add(row)
                session.flush()


def live_heatmap(store: Store, shape: Shape) -> Line:
    """The API's frame of the newest step, from its arrival in memory; made anew for each step."""
    live = Live(store, SystemClock())
    steps = steps_of(shape, 64 + READS)
    live.take_steps(steps[:64], simulated=True, received_s=time.time())
    live.experts_frame(RUN)

    def read(index: int) -> None:
        live.take_steps([steps[64 + index]], simulated=True, received_s=time.time())
        if live.experts_frame(RUN) is None:
            raise RuntimeError("there is no frame")

    return timed(f"last heatmap, frame of the API, {name_of(shape)}", HEATMAP_MS, read, READS)


def kept(shape: Shape) -> list[Line]:
    """Bytes a step as they come, merged and thinned, and the last heatmap read from the store: a young run's, whose
    older steps are merged and whose newest are not yet."""
    found: list[Line] = []
    size = expert_merging.MERGED_STEPS
    with new_store() as store:
        for begin in range(0, KEPT_STEPS, size):
            add(store, steps_of(shape, size, begin))
        found += _bytes(store, shape, "as they come")
        expert_merging.compact_once(store)
        found += _bytes(store, shape, "merged")
        past = f"a step of the past from a merged chunk, {name_of(shape)}"
        found.append(timed(past, None, _step_reader(store, KEPT_STEPS - 1), SLOW_READS))
        add(store, steps_of(shape, YOUNG_STEPS, KEPT_STEPS))
        last = f"last heatmap, counts and biases from the store, {name_of(shape)}"
        found.append(timed(last, HEATMAP_MS, _step_reader(store, KEPT_STEPS + YOUNG_STEPS - 1), READS))
        for days in (8.0, 31.0):
            now = 1.8e9 + KEPT_STEPS + YOUNG_STEPS + days * DAY_S
            while expert_thinning.thin_once(store, now, expert_thinning.Policy()):
                pass
            found += _bytes(store, shape, f"thinned after {days - 1:.0f} days")
    return found


def _step_reader(store: Store, step: int) -> Callable[[int], None]:
    """Reads one step of the current view."""

    def read(_: int) -> None:
        with store.read() as session:
            found = experts.current_step(session, RUN, step)
        if found is None or found.step != step:
            raise RuntimeError(f"step {step} is not stored")

    return read


def _bytes(store: Store, shape: Shape, what: str) -> list[Line]:
    """One line of all levels together."""
    with store.read() as session:
        sizes = expert_thinning.sizes(session, RUN)
    steps = sum(size.steps for size in sizes.values())
    matrices, statistics = (
        sum(getattr(size, part) for size in sizes.values()) / steps for part in ("matrices", "statistics")
    )
    facts = {"matrices": round(matrices), "statistics": round(statistics), "plain": 8 * shape.layers * shape.slots}
    name = f"bytes a step on disk, {what}, {name_of(shape)}"
    return [line(name, round(matrices + statistics), "B", None, steps=steps, levels=sorted(sizes), **facts)]


def raster(shape: Shape) -> list[Line]:
    """One layer over 10,000 steps of merged chunks: read from the store, and as the API's frame."""
    with new_store() as store:
        _fill_merged(store, shape)
        live = f"raster of one layer over {RASTER_STEPS:,} steps"

        def read(index: int) -> None:
            with store.read() as session:
                layer = index % shape.layers
                found = expert_raster.read_raster(session, RUN, layer, first=0, last=RASTER_STEPS, columns=COLUMNS)
            if found is None or found.share.shape != (shape.experts, COLUMNS):
                raise RuntimeError("the raster is not whole")

        def frame(index: int) -> None:
            with store.read() as session:
                layer = index % shape.layers
                found = views_experts.raster_frame(session, RUN, layer, first=0, last=RASTER_STEPS, columns=COLUMNS)
            if found is None:
                raise RuntimeError("there is no raster")

        return [
            timed(f"{live}, from the store, {name_of(shape)}", RASTER_MS, read, SLOW_READS),
            timed(f"{live}, frame of the API, {name_of(shape)}", RASTER_MS, frame, SLOW_READS),
        ]


def _fill_merged(store: Store, shape: Shape) -> None:
    """Merged chunks of 10,000 steps. Two are made of steps and the others are these again, with numbers of their own:
    reading costs the same, and making steps of a large model takes minutes."""
    size = expert_merging.MERGED_STEPS
    made = [merge_coded([(shape, encode_steps(steps_of(shape, size, begin)), size)])[0] for begin in (0, size)]
    for index, begin in enumerate(range(0, RASTER_STEPS, size)):
        coded = _renumbered(made[index % 2], begin)
        row = experts.chunk_row(RUN, 1, shape, coded, level=1, steps=(begin, begin + size - 1, size))
        with store.write() as session:
            session.add(row)
            session.flush()
            insert_many(session, ExpertLayer, experts.layer_rows(row.id, coded))


def _renumbered(coded: Coded, begin: int) -> Coded:
    bundle = arrays.Arrays(coded.stats)
    found = bundle.all()
    found["step"] = begin + np.arange(len(found["step"]), dtype=np.int64)
    found["at_s"] = 1.8e9 + found["step"].astype(np.float64)
    return replace(coded, stats=arrays.pack(found))


def run() -> Iterator[Line]:
    """Every figure of the store."""
    for shape in SHAPES:
        with new_store() as store:
            yield live_heatmap(store, shape)
        yield from kept(shape)
        yield from raster(shape)

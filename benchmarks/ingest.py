"""What ingest and its reads cost: CPU a sample, bytes a sample, the last heatmap, a raster of 10,000 steps.

The samples are the simulated source's (committed noise, the hardware's resolution). CPU is the whole process's, from
the bytes of a batch to its committed row and its reply, in real time at 1 Hz: with the nodes' batches of a second
arriving together, and spread evenly over it, where every batch wakes an idle process and its cold caches. Merging has a
line of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select

from agents.node.sources.simulated import SimulatedSource
from agents.readings import GPU_METRICS, NIC_METRICS, NodeSample
from agents.wire import Batch, Columns, decode, encode
from controlplane.clock import SystemClock
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store import expert_merging, expert_raster, experts, telemetry
from controlplane.store.engine import Store
from controlplane.store.expert_coding import encode_steps
from controlplane.store.expert_records import ExpertStep, Shape
from controlplane.store.tables import TelemetryChunk

NODES, SECONDS = 64, 10
RUN = "bench"


def columns(kind: str, samples: Sequence[NodeSample]) -> Columns:
    """Samples as an agent sends them."""
    metrics = GPU_METRICS if kind == "gpu" else NIC_METRICS
    devices = [sample.gpus if kind == "gpu" else sample.nics for sample in samples]
    return Columns(
        tuple(metric.name for metric in metrics),
        len(devices[0]),
        array("d", [sample.at_s for sample in samples]),
        array("d", [sample.monotonic_s for sample in samples]),
        tuple(array("q", [device[index] for moment in devices for device in moment]) for index in range(len(metrics))),
    )


def batches(node: str, start_s: float, seconds: int) -> list[bytes]:
    """A training node's batches of so many seconds, one sample each, as bytes on the wire."""
    source = SimulatedSource(node, start_s)
    source.follow(1.0)
    found = []
    for second in range(seconds):
        at_s = start_s + second
        sample = source.sample(at_s, float(second))
        gpu, nic = columns("gpu", [sample]), columns("nic", [sample])
        found.append(encode(Batch(node, "boot", second, "simulated", True, "bench", at_s, second, gpu=gpu, nic=nic)))
    return found


def quantiles(call: Callable[[int], object], times: int) -> tuple[float, float]:
    """Median and 95th percentile of a call's milliseconds."""
    taken = []
    for index in range(times):
        begin = time.perf_counter()
        call(index)
        taken.append(1000 * (time.perf_counter() - begin))
    return float(np.median(taken)), float(np.percentile(taken, 95))


def line(name: str, value: float, unit: str, target: float | None, **detail: Any) -> dict[str, Any]:
    """One figure beside its target, if it has one."""
    judged = {"target": target, "better": "lower", "peer": None, "peer_value": None}
    return {"name": name, "value": round(value, 3), "unit": unit, **judged, **detail}


def ingest_cpu(store: Store, *, spread: bool) -> dict[str, Any]:
    """CPU a sample at NODES nodes, 1 Hz: each second's batches at once, or one after the other over the second."""
    start_s = time.time()
    name = "spread" if spread else "together"
    by_node = [batches(f"{name}-{index:03d}", start_s, SECONDS) for index in range(NODES)]
    ingest = Ingest(store, Live(store, SystemClock()), SystemClock())
    ingest.start()
    replies = []
    began, cpu = time.perf_counter(), time.process_time()
    for second in range(SECONDS):
        for index, of_node in enumerate(by_node):
            due = began + second + (index / NODES if spread else 0.0)
            time.sleep(max(0.0, due - time.perf_counter()))
            replies.append(ingest.submit(decode(of_node[second]), time.time()))
    for reply in replies:
        reply.result(30)
    cpu = time.process_time() - cpu
    ingest.stop()
    samples = NODES * SECONDS * 8 * (len(GPU_METRICS) + len(NIC_METRICS))
    return line(
        f"ingest_cpu_us_per_sample_{name}",
        1e6 * cpu / samples,
        "µs",
        3.0,
        nodes=NODES,
        transactions=ingest.counters.transactions,
    )


def bytes_a_sample(store: Store) -> list[dict[str, Any]]:
    """What merging half an hour of one node costs, and what a value then takes: all metrics of GPUs and NICs."""
    seconds = 1800
    live = Live(store, SystemClock())
    ingest = Ingest(store, live, SystemClock(), group_s=0.2)
    ingest.start()
    start_s = 1_800_000_000.0
    for reply in [ingest.submit(decode(body), start_s) for body in batches("solo", start_s, seconds)]:
        reply.result(60)
    ingest.stop()
    merging = time.process_time()
    telemetry.compact_once(store, start_s + 2 * seconds)
    merging = time.process_time() - merging
    with store.read() as session:
        query = select(func.sum(func.length(TelemetryChunk.blob)), func.count(), func.max(TelemetryChunk.level))
        size, chunks, level = session.execute(query.where(TelemetryChunk.node == "solo")).one()
    samples = seconds * 8 * (len(GPU_METRICS) + len(NIC_METRICS))
    begin_s, end_s = start_s, start_s + seconds

    def read(_: int) -> None:
        with store.read() as session:
            telemetry.read_points(session, "solo", "gpu", "power_w", 3, since_s=begin_s, until_s=end_s, points=300)

    median_ms, p95_ms = quantiles(read, 20)
    return [
        line("merge_cpu_us_per_sample", 1e6 * merging / samples, "µs", None),
        line("bytes_per_sample", size / samples, "B", 2.4, chunks=chunks, level=level),
        line("series_read_ms", median_ms, "ms", None, p95=round(p95_ms, 3), seconds=seconds),
    ]


def steps_of(shape: Shape, count: int, begin: int = 0) -> list[ExpertStep]:
    """Steps with tokens spread by chance and drifting biases."""
    dice = np.random.default_rng(begin)
    tokens = 16_384
    counts = np.zeros((count, shape.layers, shape.slots), np.uint32)
    counts[..., : shape.experts] = dice.multinomial(
        tokens * shape.top_k, np.full(shape.experts, 1 / shape.experts), size=(count, shape.layers)
    )
    bias = np.cumsum(dice.normal(0, 1e-3, (count, shape.layers, shape.slots)), axis=0).astype(np.float32)
    return [
        ExpertStep(RUN, 1, begin + index, 1.8e9 + index, 1, tokens, 0, shape, counts[index], bias[index])
        for index in range(count)
    ]


def heatmap(store: Store, shape: Shape) -> dict[str, Any]:
    """The frame of the newest step, made anew for each step."""
    live = Live(store, SystemClock())
    steps = steps_of(shape, 164)
    live.take_steps(steps[:64], simulated=True, received_s=time.time())

    def read(index: int) -> None:
        live.take_steps([steps[64 + index]], simulated=True, received_s=time.time())
        live.experts_frame(RUN)

    median_ms, p95_ms = quantiles(read, 100)
    name = f"heatmap_read_ms_{shape.layers}x{shape.slots}"
    return line(name, median_ms, "ms", 5.0, p95=round(p95_ms, 3))


def raster(store: Store) -> dict[str, Any]:
    """One layer of 10,000 steps from merged chunks."""
    shape, size = Shape(40, 17, 16, 1), expert_merging.MERGED_STEPS
    for begin in range(0, 10_000, size):
        steps = steps_of(shape, min(size, 10_000 - begin), begin)
        bounds = (steps[0].step, steps[-1].step, len(steps))
        with store.write() as session:
            session.add(experts.chunk_row(RUN, 1, shape, encode_steps(steps), level=0, steps=bounds))
    expert_merging.compact_once(store)

    def read(layer: int) -> None:
        with store.read() as session:
            found = expert_raster.read_raster(session, RUN, layer, first=0, last=10_000, columns=1_000)
            if found is None or found.share.shape != (16, 1_000):
                raise RuntimeError("the raster is not whole")

    median_ms, p95_ms = quantiles(read, 20)
    return line("raster_10000_steps_ms", median_ms, "ms", 50.0, p95=round(p95_ms, 3))


def run() -> list[dict[str, Any]]:
    """Every figure, on a SQLite store in a temporary directory with synchronous=FULL."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        store = Store(f"sqlite:///{Path(folder) / 'store.db'}")
        store.migrate()
        try:
            shapes = (Shape(40, 17, 16, 1), Shape(58, 256, 256, 8))
            return [
                ingest_cpu(store, spread=False),
                ingest_cpu(store, spread=True),
                *bytes_a_sample(store),
                *(heatmap(store, shape) for shape in shapes),
                raster(store),
            ]
        finally:
            store.close()


if __name__ == "__main__":
    for figure in run():
        sys.stdout.write(json.dumps(figure) + "\n")

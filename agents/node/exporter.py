"""/metrics of the agent: one collector that builds every family from the last sample when it is asked.

A scrape reads memory, never hardware. An UNKNOWN value has no sample rather than a zero.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.node.sources.base import Quality
from agents.readings import METRICS, UNKNOWN, Fault, NodeSample
from agents.readings import Metric as Column


@dataclass(frozen=True)
class AgentState:
    """What a scrape sees."""

    node: str
    simulated: bool
    sample: NodeSample | None
    faults: tuple[Fault, ...]
    batches_sent: int
    batches_failed: int
    batches_unreadable: int
    batches_dropped: int
    waiting_batches: int
    waiting_bytes: int
    last_acknowledged_s: float | None
    ring_records_missed: int
    sample_seconds: float
    blind: tuple[str, ...] = ()
    quality: Quality = field(default_factory=Quality)


UNITS: dict[str, tuple[str, str, float]] = {
    "W": ("_w", "_watts", 1.0),
    "J": ("_j", "_joules", 1.0),
    "°C": ("_c", "_celsius", 1.0),
    "%": ("_percent", "_ratio", 0.01),
    "MHz": ("_mhz", "_hertz", 1e6),
    "MiB": ("_mib", "_bytes", 1 << 20),
    "KB": ("_kb", "_bytes", 1024.0),
    "ms": ("_ms", "_seconds", 0.001),
    "GT/s": ("_gtps", "_transfers_per_second", 1e9),
    "Gb/s": ("_gbps", "_bytes_per_second", 1.25e8),
}
"""How a unit of ours ends a name, how Prometheus' base unit does, and how many of it one is."""


def exported(scope: str, column: Column) -> tuple[str, float]:
    """(name without `_total`, factor to its base unit) of a metric as Prometheus has it."""
    ours, base, factor = UNITS.get(column.unit, ("", "", 1.0))
    name = column.name.removesuffix("_total")
    return f"trimtab_{scope}_{name.removesuffix(ours)}{base}", column.resolution * factor


def _family(scope: str, column: Column, rows: tuple[tuple[int, ...], ...], at: int, node: str) -> Metric:
    """One column over all devices; the exposition adds a counter's `_total`. A node is its own host's only label."""
    name, factor = exported(scope, column)
    kind = CounterMetricFamily if column.kind == "counter" else GaugeMetricFamily
    family = kind(name, column.help, labels=["node"] if scope == "host" else ["node", scope])
    for number, values in enumerate(rows):
        if values[at] != UNKNOWN:
            family.add_metric([node] if scope == "host" else [node, str(number)], values[at] * factor)
    return family


class AgentCollector(Collector):
    """Builds metrics from `state()` at scrape time."""

    def __init__(self, state: Callable[[], AgentState]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing: names depend on the source, and an empty answer keeps registration from scraping."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        node = state.node
        info = GaugeMetricFamily(
            "trimtab_agent_info", "1; simulated says whether the node exists", labels=["node", "simulated"]
        )
        info.add_metric([node, str(state.simulated).lower()], 1)
        yield info
        if state.sample is not None:
            for scope, columns in METRICS.items():
                for at, column in enumerate(columns):
                    yield _family(scope, column, state.sample.rows(scope), at, node)
            yield _unknown(state.sample, node)
            stamp = GaugeMetricFamily(
                "trimtab_agent_last_sample_timestamp_seconds", "wall time of the last sample", labels=["node"]
            )
            stamp.add_metric([node], state.sample.at_s)
            yield stamp
        firing = GaugeMetricFamily(
            "trimtab_agent_fault_firing", "1 while a rule fires", labels=["node", "rule", "entity"]
        )
        for fault in state.faults:
            firing.add_metric([node, fault.rule, fault.entity], 1)
        yield firing
        yield from _quality(state)
        yield from self._own(state)

    @staticmethod
    def _own(state: AgentState) -> Iterator[Metric]:
        counters = {
            "batches_sent": (state.batches_sent, "batches that the server acknowledged"),
            "batches_failed": (state.batches_failed, "tries that did not succeed"),
            "batches_unreadable": (state.batches_unreadable, "batches that the server could not read"),
            "batches_dropped": (state.batches_dropped, "batches thinned from a full outbox"),
            "ring_records_missed": (state.ring_records_missed, "training records overwritten before they were read"),
        }
        for name, (value, help_) in counters.items():
            counter = CounterMetricFamily(f"trimtab_agent_{name}", help_, labels=["node"])
            counter.add_metric([state.node], value)
            yield counter
        gauges = {
            "outbox_batches": (state.waiting_batches, "batches not acknowledged yet"),
            "outbox_bytes": (state.waiting_bytes, "bytes not acknowledged yet"),
            "last_acknowledged_timestamp_seconds": (state.last_acknowledged_s, "wall time of the last acknowledgement"),
            "sample_seconds": (state.sample_seconds if state.sample else None, "how long the last sample took"),
        }
        for name, (number, help_) in gauges.items():
            gauge = GaugeMetricFamily(f"trimtab_agent_{name}", help_, labels=["node"])
            if number is not None:
                gauge.add_metric([state.node], number)
            yield gauge


def _unknown(sample: NodeSample, node: str) -> Metric:
    """The map of what is not available: how many devices have no value of each metric."""
    family = GaugeMetricFamily(
        "trimtab_agent_unknown_devices", "devices without a value of a metric", labels=["node", "scope", "metric"]
    )
    for scope, columns in METRICS.items():
        for at, column in enumerate(columns):
            missing = sum(row[at] == UNKNOWN for row in sample.rows(scope))
            if missing:
                family.add_metric([node, scope, column.name], missing)
    return family


def _quality(state: AgentState) -> Iterator[Metric]:
    """How well the agent can look."""
    blind = GaugeMetricFamily("trimtab_agent_blind", "1 for each part that cannot be read", labels=["node", "reason"])
    for reason in state.blind:
        blind.add_metric([state.node, reason], 1)
    yield blind
    errors = CounterMetricFamily(
        "trimtab_gpu_call_errors", "reads that failed, by the library's status", labels=["node", "gpu", "status"]
    )
    for (gpu, status), count in sorted(state.quality.call_errors.items()):
        errors.add_metric([state.node, str(gpu), str(status)], count)
    yield errors
    for name, value, help_ in (
        ("kernel_lines", state.quality.kernel_lines, "lines of the kernel log that were read"),
        ("kernel_overruns", state.quality.kernel_overruns, "times the kernel log ran over before it was read"),
    ):
        counter = CounterMetricFamily(f"trimtab_agent_{name}", help_, labels=["node"])
        counter.add_metric([state.node], value)
        yield counter


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a caller."""

    daemon_threads = True

    def handle_error(self, _request: Any, _address: Any) -> None:
        """A caller that hung up, or spoke no TLS, is no news."""


class _Handler(WSGIRequestHandler):
    """Says nothing, and waits for nobody longer than this."""

    timeout = 10

    def log_message(self, *_: object) -> None:
        """No line a scrape."""


def serve(
    port: int, state: Callable[[], AgentState], host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> tuple[WSGIServer, int]:
    """Serves /metrics; returns the server and the port that it really has."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(state))

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = make_server(host, port, make_wsgi_app(registry), Server, _Handler)
    if tls is not None:  # the handshake belongs to the caller's thread: a silent caller must not hold up the others
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server, int(server.server_port)

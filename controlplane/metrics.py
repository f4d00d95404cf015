"""/metrics of the server: families built from state when they are asked for, by one collector. No expert, no rank.

Aggregates only: per-expert numbers are for the pages. Names carry their unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class ServerState:
    """What a scrape sees."""

    leader: bool
    counters: Mapping[str, float] = field(default_factory=dict)
    refused_records: Mapping[str, int] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)
    incidents: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    """of lifecycles that are not over"""
    loops: Mapping[str, tuple[int, int, float | None, float | None]] = field(default_factory=dict)
    """good rounds, failures, seconds since the last good round, seconds that it took; None before the first"""


COUNTERS: Mapping[str, str] = {
    "batches": "batches taken from agents",
    "replayed_batches": "batches that came again and were acknowledged without being stored",
    "refused_batches": "batches that could not be read or stored",
    "samples": "telemetry values stored",
    "transactions": "ingest transactions",
    "failed_transactions": "ingest transactions that failed",
    "expert_steps": "training steps with expert counts",
}


class ServerCollector(Collector):
    """Builds metrics from `state()` at scrape time."""

    def __init__(self, state: Callable[[], ServerState]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing: an empty answer keeps registration from asking for the state."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        leader = GaugeMetricFamily("trimtab_leader", "1 while this server holds the lease and acts")
        leader.add_metric([], int(state.leader))
        yield leader
        for name, help_ in COUNTERS.items():
            counter = CounterMetricFamily(f"trimtab_ingest_{name}", help_)
            counter.add_metric([], state.counters.get(name, 0))
            yield counter
        refused = CounterMetricFamily("trimtab_ingest_refused_records", "records left out", labels=["reason"])
        for reason, count in state.refused_records.items():
            refused.add_metric([reason], count)
        yield refused
        yield from _by_state(state)
        yield from _loops(state)


def _by_state(state: ServerState) -> Iterator[Metric]:
    counted = (("runs", state.runs), ("incidents", state.incidents), ("nodes", state.nodes))
    for noun, counts in (*counted, ("lifecycle_stages", state.stages)):
        gauge = GaugeMetricFamily(f"trimtab_{noun}", f"{noun.replace('_', ' ')} by state", labels=["state"])
        for name, count in counts.items():
            gauge.add_metric([name], count)
        yield gauge


def _loops(state: ServerState) -> Iterator[Metric]:
    rounds = CounterMetricFamily("trimtab_loop_rounds", "good rounds of a loop", labels=["loop"])
    failures = CounterMetricFamily("trimtab_loop_failures", "rounds that failed", labels=["loop"])
    age = GaugeMetricFamily("trimtab_loop_age_seconds", "time since the last good round", labels=["loop"])
    took = GaugeMetricFamily("trimtab_loop_duration_seconds", "how long the last good round took", labels=["loop"])
    for name, (runs, failed, age_s, seconds) in state.loops.items():
        rounds.add_metric([name], runs)
        failures.add_metric([name], failed)
        if age_s is not None:
            age.add_metric([name], age_s)
        if seconds is not None:
            took.add_metric([name], seconds)
    yield from (rounds, failures, age, took)


def exposition(state: Callable[[], ServerState]) -> bytes:
    """The text of a scrape."""
    registry = CollectorRegistry()
    registry.register(ServerCollector(state))
    return generate_latest(registry)

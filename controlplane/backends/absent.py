"""A backend that runs were given to and that this server was not started with: it cannot be looked at, which is no end.

What such a run does is unknown, so nothing is concluded: the run waits, its blindness is told, and its pages stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from controlplane.backends.base import (
    AttemptPlan,
    Backend,
    BackendUnavailable,
    Forecast,
    Handle,
    NodeCapacity,
    NodeChange,
    NodeStatus,
    Observation,
    Quarantine,
    StopMode,
)

_FLAGS = {"kube": "--backend kube", "rayjob": "--backend kube --kube-ray", "ray": "--backend ray --ray-address"}


def backend_of(backends: Mapping[str, Backend], name: str) -> Backend:
    """The backend of a run, which may be one that this server does not have."""
    return backends.get(name) or AbsentBackend(name)


class AbsentBackend:
    """Answers nothing."""

    pins_nodes = False
    keeps_logs = True
    """there is nobody to read them from"""

    def __init__(self, name: str) -> None:
        self.name = name

    def _absent(self) -> NoReturn:
        flags = f": start it with {_FLAGS[self.name]}" if self.name in _FLAGS else ""
        raise BackendUnavailable(f"this server runs without the backend {self.name}{flags}")

    def start(self) -> None:
        """Nothing to keep."""

    def stop_watching(self) -> None:
        """Nothing is kept."""

    def submit(self, _plan: AttemptPlan) -> Handle:
        self._absent()

    def observe(self, _names: Sequence[str], _now: float) -> dict[str, Observation]:
        self._absent()

    def stop(self, _name: str, *, mode: StopMode) -> None:  # noqa: ARG002  # the port names it
        self._absent()

    def fenced(self, _name: str) -> bool:
        self._absent()

    def capacity(self, _nodes: Sequence[str]) -> list[NodeCapacity]:
        self._absent()

    def mark_nodes(self, _wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        self._absent()

    def node_status(self, _nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:  # noqa: ARG002  # as above
        self._absent()

    def forecast(self, _plan: AttemptPlan, /) -> Forecast | None:
        self._absent()

    def read_logs(self, _name: str, _index: int, _limit: int = 1 << 20) -> bytes:
        self._absent()

"""What the API's handlers are given: the server's parts, built once by the composition root (cli.serve)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.backends.base import Backend
from controlplane.clock import Clock
from controlplane.notify.address import UrlPolicy
from controlplane.notify.webhook import Sender
from controlplane.rules.book import RuleBook
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.services.plans import Places
from controlplane.store.engine import Store

RAY = "rayjob"


class RoundsSeen(Protocol):
    """What health and metrics look at of a loop: when it began, its rounds, and when the last good one ended."""

    runs: int
    failures: int
    started_s: float | None
    finished_s: float | None
    seconds: float | None


class Looping(Protocol):
    """A loop, seen from outside."""

    interval_s: float

    @property
    def state(self) -> RoundsSeen: ...


class Leading(Protocol):
    """Whether this server acts, and under which epoch."""

    @property
    def epoch(self) -> int | None: ...


@dataclass(frozen=True)
class Context:
    """One server."""

    store: Store
    live: Live
    ingest: Ingest
    book: RuleBook
    backends: Mapping[str, Backend]
    default_backend: str
    places: Places
    leadership: Leading
    policy: UrlPolicy
    senders: Mapping[str, Sender]
    clock: Clock
    loops: Mapping[str, Looping] = field(default_factory=dict)
    wake: Callable[[], None] = lambda: None
    """has the controller look at once, after a person asked for something"""
    dashboard: Callable[[], str] = lambda: ""
    """the address of the dashboard that this server started; empty while there is none"""

    @property
    def backend(self) -> Backend:
        """Where new runs go."""
        return self.backends[self.default_backend]

    @property
    def ray(self) -> Backend | None:
        """Where new runs of Ray programs go; None where there is no such place."""
        return self.backends.get(RAY)

"""What a source of telemetry is: facts once, a sample when asked. A vendor's errors end here, as UNKNOWN or absence."""

from __future__ import annotations

from typing import Protocol

from agents.readings import NodeFacts, NodeSample


class SourceError(Exception):
    """A source that cannot be opened; the message says what is missing and how to get it."""


class Source(Protocol):
    """One way to read a node. It is asked from one thread and holds no lock."""

    name: str
    simulated: bool

    def facts(self) -> NodeFacts:
        """Identity and inventory; cheap after the first call."""
        ...

    def sample(self, at_s: float, monotonic_s: float) -> NodeSample:
        """One sample of every device, stamped with the given times."""
        ...

    def follow(self, step_rate: float | None) -> None:
        """Optimizer steps a second of the rank on this node, for a source that simulates; others ignore it."""
        ...

    def apply_drill(self, kind: str, gpu: int) -> str:
        """Changes the registers of a simulated device; returns "" or why not. A real source always refuses."""
        ...

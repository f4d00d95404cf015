"""What a source of telemetry is: facts once, a sample when asked. A vendor's errors end here, as UNKNOWN or absence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agents.readings import GpuUser, KernelLine, NodeFacts, NodeSample


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

    def lines(self) -> tuple[KernelLine, ...]:
        """What the kernel and the devices' own error logs have printed since the last look or sample."""
        ...

    def users(self) -> tuple[GpuUser, ...]:
        """Who holds the GPUs open."""
        ...

    def wakes(self) -> Sequence[int]:
        """Descriptors that can be read when there are new lines: the loop waits on them."""
        ...

    def driver_load(self) -> str:
        """Tells one load of the GPU driver in a boot from the next: counters begin anew with it."""
        ...

    def marks(self) -> dict[str, int]:
        """How far logs have been read, by name: kept for the next agent on this boot."""
        ...

    def close(self) -> None:
        """Lets go of what it holds open."""
        ...

    def follow(self, step_rate: float | None) -> None:
        """Optimizer steps a second of the rank on this node, for a source that simulates; others ignore it."""
        ...

    def apply_drill(self, kind: str, gpu: int) -> str:
        """Changes the registers of a simulated device; returns "" or why not. A real source always refuses."""
        ...

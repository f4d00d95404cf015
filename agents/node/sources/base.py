"""What a source of telemetry is: facts once, a sample when asked. A vendor's errors end here, as UNKNOWN or absence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agents.readings import GpuUser, KernelLine, NodeFacts, NodeSample


class SourceError(Exception):
    """A source that cannot be opened; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a source can look: failed calls by (GPU, the library's status), kernel lines read, log overruns."""

    call_errors: Mapping[tuple[int, int], int] = field(default_factory=dict)
    kernel_lines: int = 0
    kernel_overruns: int = 0


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

    def quality(self) -> Quality:
        """How well it can look, since it was opened."""
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

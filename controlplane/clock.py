"""The only place of the control plane that reads a clock; everything else takes `now` as an argument.

Times are Unix seconds. `monotonic` is for lengths and deadlines: it does not jump when the wall clock is set.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a loop or a service is given in order to know the time."""

    def now(self) -> float:
        """Wall time, Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes backwards."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to: for tests, simulations and replays."""

    def __init__(self, at_s: float = 1_800_000_000.0) -> None:
        self._now = at_s
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> float:
        """Lets time pass on both scales; returns the new wall time."""
        if seconds < 0:
            raise ValueError("time does not run backwards; use jump() to set the wall clock")
        self._now += seconds
        self._monotonic += seconds
        return self._now

    def jump(self, seconds: float) -> float:
        """Sets the wall clock off by `seconds`, as an operator or NTP would; the monotonic one does not notice."""
        self._now += seconds
        return self._now

"""Virtual time: what is to happen when, in order; the time between passes at once. It knows nothing of what happens."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Agenda:
    """Calls what was put down for a time, earliest first, equal times in the order in which they were put down."""

    def __init__(self, end_s: float) -> None:
        self.now, self.end_s = 0.0, end_s
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Puts something down; what is due after the end never happens."""
        if when_s <= self.end_s:
            heapq.heappush(self._due, (max(when_s, self.now), next(self._order), act))

    def run(self) -> None:
        """Until the end."""
        while self._due:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now = self.end_s

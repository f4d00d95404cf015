"""What the processes of one attempt do: the truth of the virtual cluster, of which the controller hears only a part.

Progress is arithmetic: steps of equal length, and after each interval of steps a checkpoint that blocks. So a month of
training costs nothing between two faults. Times are virtual seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

EPSILON = 1e-6
NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Pace:
    """How a gang trains: a checkpoint after each `interval` steps, at steps that the interval divides."""

    step_s: float
    interval: int
    blocking_s: float
    write_s: float


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint as it is on disk: its step, when its state was computed, from when it can be resumed."""

    step: int
    state_at_s: float
    usable_s: float


@dataclass(slots=True)
class Gang:
    """One attempt's processes. Whatever has not happened is at infinity."""

    no: int
    nodes: tuple[str, ...]
    resume_step: int
    pace: Pace
    submitted_s: float
    running_s: float
    ready_s: float
    """loaded, about to begin its first step"""
    stopped_s: float = NEVER
    """makes no step any more"""
    gone_s: float = NEVER
    """its last process is gone"""
    died: str = ""
    """the fingerprint of its own error; "" while it has not ended by itself"""
    died_on: str = ""
    """the node whose rank failed first"""
    can_save: bool = True
    saved: bool = False
    """it saved once more before it left"""
    corrupt_s: float = NEVER
    """what it computes since then is wrong"""

    def trains(self, now: float) -> bool:
        """Whether it makes steps."""
        return self.ready_s <= now < self.stopped_s

    def _first(self) -> int:
        """Steps until its first checkpoint."""
        return self.pace.interval - self.resume_step % self.pace.interval

    def _cycle_s(self) -> float:
        return self.pace.blocking_s + self.pace.interval * self.pace.step_s

    def done(self, now: float) -> int:
        """Steps completed by then, those before it resumed included."""
        pace = self.pace
        trained = min(now, self.stopped_s) - self.ready_s + EPSILON
        until_first = self._first() * pace.step_s
        if trained < until_first:
            return self.resume_step + max(0, int(trained / pace.step_s))
        cycles, rest = divmod(trained - until_first, self._cycle_s())
        more = min(pace.interval, max(0, int((rest - pace.blocking_s) / pace.step_s)))
        return self.resume_step + self._first() + int(cycles) * pace.interval + more

    def blocked_s(self, now: float) -> float:
        """Seconds in which it waited for checkpoints by then."""
        trained = min(now, self.stopped_s) - self.ready_s - self._first() * self.pace.step_s
        if trained <= 0:
            return 0.0
        cycles, rest = divmod(trained, self._cycle_s())
        return cycles * self.pace.blocking_s + min(rest, self.pace.blocking_s)

    def written(self, after_s: float, until_s: float) -> Iterator[Written]:
        """Its regular checkpoints that became usable in (after, until], oldest first."""
        pace, cycle = self.pace, self._cycle_s()
        begin = self.ready_s + self._first() * pace.step_s
        usable = begin + pace.blocking_s + pace.write_s
        index = max(0, math.floor((after_s - usable) / cycle + EPSILON) + 1) if after_s > usable - cycle else 0
        while usable + index * cycle <= until_s + EPSILON:
            state_at = begin + index * cycle
            if state_at + pace.blocking_s > self.stopped_s + EPSILON:  # it stopped before this one was whole
                return
            yield Written(self.resume_step + self._first() + index * pace.interval, state_at, usable + index * cycle)
            index += 1

    def step_ends_s(self, now: float) -> float:
        """When the step under way ends, or the checkpoint that blocks and the step after it."""
        pace, done = self.pace, self.done(now)
        made = done + 1 - self.resume_step
        checkpoints = 0 if made <= self._first() else 1 + (made - self._first() - 1) // pace.interval
        return self.ready_s + made * pace.step_s + checkpoints * pace.blocking_s

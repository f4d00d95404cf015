"""Where a simulated run's time goes, by the cause of each stop and by phase: each second once, so that they sum up.

The server's ledger (controlplane.runs.goodput) knows phases but not why one came about; here the world knows. A test
holds one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.simulate.gang import Gang

CHECKPOINTS, START = "checkpoints", "first start"
TRAIN = "train"
AGAIN = "steps again"


@dataclass(slots=True)
class Made:
    """What one attempt trained: of the steps that it `made`, those up to `kept_to` count, later ones were run again."""

    resume_step: int
    kept_to: int
    made: int = 0

    @property
    def kept(self) -> int:
        """Steps that count."""
        return self.kept_to - self.resume_step


@dataclass(slots=True)
class Losses:
    """A clock that books what passes to the cause and phase of the moment; training is booked when it stops."""

    step_s: float
    cause: str = START
    phase: str = "place"
    at_s: float = 0.0
    lost: dict[tuple[str, str], float] = field(default_factory=dict)
    attempts: list[Made] = field(default_factory=list)

    def lose(self, cause: str, phase: str, seconds: float) -> None:
        """Seconds lost to a cause in a phase."""
        if seconds > 0:
            self.lost[cause, phase] = self.lost.get((cause, phase), 0.0) + seconds

    def turn(self, now: float, phase: str, cause: str = "") -> None:
        """What passed until now was the phase before; from now on this one, for the cause before if none is said."""
        if self.phase != TRAIN:
            self.lose(self.cause, self.phase, now - self.at_s)
        self.at_s, self.phase, self.cause = now, phase, cause or self.cause

    def trained(self, gang: Gang, now: float, cause: str) -> None:
        """Training ends with a step that is not completed, or at the end of what is looked at."""
        steps = gang.done(now) - gang.resume_step
        blocked = gang.blocked_s(now)
        self.attempts[-1].made += steps
        self.attempts[-1].kept_to = gang.resume_step + steps
        self.lose(CHECKPOINTS, "blocking", blocked)
        self.lose(cause, AGAIN, now - self.at_s - blocked - steps * self.step_s)
        self.at_s = now

    def back_to(self, step: int) -> None:
        """The next attempt goes on from `step`: what earlier ones did beyond it was in vain, by the cause of now."""
        for one in reversed(self.attempts):
            keeps = min(one.kept_to, max(step, one.resume_step))
            self.lose(self.cause, AGAIN, (one.kept_to - keeps) * self.step_s)
            one.kept_to = keeps
            if one.resume_step <= step:
                break
        self.attempts.append(Made(step, step))

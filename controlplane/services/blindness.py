"""Remembers since when which attempt cannot be looked at. That is worth an alert, and never evidence of anything."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.runs.view import Look

BLIND_S = 30.0


@dataclass(slots=True)
class _Blind:
    since_s: float
    told: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A line for the run's timeline."""

    kind: str
    level: str
    sentence: str


class Blindness:
    """What one controller could not see; it is forgotten with it."""

    def __init__(self) -> None:
        self._blind: dict[str, _Blind] = {}

    def saw(self, name: str, no: int, backend: str, look: Look | None, now: float) -> Said | None:
        """Takes a look in; returns what is to be said: once that it lasts, once that it is over."""
        if look is None or look.state == "unknown":
            blind = self._blind.setdefault(name, _Blind(now))
            if blind.told or now - blind.since_s < BLIND_S:
                return None
            blind.told = True
            lasted = f"has not said for {now - blind.since_s:.0f} s how attempt {no} is."
            return Said("backend_blind", "warn", f"The {backend} backend {lasted}")
        over = self._blind.pop(name, None)
        if over is None or not over.told:
            return None
        lasted = f"answers again after {now - over.since_s:.0f} s; nothing was done meanwhile."
        return Said("backend_seen", "ok", f"The {backend} backend {lasted}")

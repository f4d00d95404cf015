"""Identifiers: UUIDv7 text, so that ids sort by creation and never repeat, a restored backup included.

RFC 9562, section 5.7: 48 bits of Unix milliseconds, then a counter (method 1 of section 6.2) and randomness. The time
is an argument: this module reads no clock.
"""

from __future__ import annotations

import secrets
import threading
import uuid

_COUNTER_BITS = 12
_RANDOM_BITS = 62
_STEP_BACK_MS = 10_000
_lock = threading.Lock()
_last: tuple[int, int] = (0, 0)


def _tick(milliseconds: int) -> tuple[int, int]:
    """The next (millisecond, counter) pair: above the one before, unless the clock was set back for good."""
    global _last
    with _lock:
        if milliseconds > _last[0] or milliseconds < _last[0] - _STEP_BACK_MS:
            # half of the counter's range is left free for the ids of the same millisecond
            _last = (milliseconds, secrets.randbits(_COUNTER_BITS - 1))
        elif _last[1] + 1 < 1 << _COUNTER_BITS:
            _last = (_last[0], _last[1] + 1)
        else:
            _last = (_last[0] + 1, 0)
        return _last


def uuid7(now: float) -> str:
    """A new id for the moment `now` (Unix seconds, below the year 10889; ValueError otherwise).

    Ids made by one process grow, even if `now` stands still or goes back a little (10 s).
    """
    wanted = int(now * 1000)
    if not 0 <= wanted < 1 << 48:
        raise ValueError(f"{now} is no moment that an id can carry")
    milliseconds, counter = _tick(wanted)
    value = (milliseconds & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | counter << 64
    value |= 0b10 << 62 | secrets.randbits(_RANDOM_BITS)
    return str(uuid.UUID(int=value))


def created_s(identifier: str) -> float:
    """The moment an id was made for, Unix seconds, to a millisecond. ValueError if it is not a UUIDv7."""
    parsed = uuid.UUID(identifier)
    if parsed.version != 7:
        raise ValueError(f"{identifier} is not a UUIDv7")
    return (parsed.int >> 80) / 1000

"""A token bucket for calls to the API server: so many a second, with a burst, and quiet while the server asks for it.

The official client has no rate limiter, and a controller that retries in a storm is the storm. Thread-safe; time and
sleep are handed in, so that a test waits for nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RATE_PER_S, BURST = 50.0, 100


class TokenBucket:
    """`rate_per_s` calls a second on average, `burst` at once. `hold` stops everybody for a while (Retry-After)."""

    def __init__(
        self,
        rate_per_s: float = RATE_PER_S,
        burst: int = BURST,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._burst, self._monotonic, self._sleep = rate_per_s, float(burst), monotonic, sleep
        self._tokens, self._filled_s, self._held_until_s = float(burst), monotonic(), 0.0
        self._lock = threading.Lock()
        self.waited_s = 0.0
        """seconds spent waiting, in all: for /metrics"""

    def take(self) -> None:
        """Returns when a call may be made. Callers are served in the order in which they ask."""
        with self._lock:
            now = self._monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_s) * self._rate)
            self._filled_s = now
            self._tokens -= 1.0  # a debt: who asks later waits longer
            wait_s = max(0.0, -self._tokens / self._rate, self._held_until_s - now)
            self.waited_s += wait_s
        if wait_s:
            self._sleep(wait_s)

    def hold(self, seconds: float) -> None:
        """No call begins within `seconds` from now."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, self._monotonic() + seconds)

"""A token bucket for calls to the API server: so many a second, with a burst, and quiet while the server asks for it.

The official client has no rate limiter, and a controller that retries in a storm is the storm. Thread-safe; time and
sleep are handed in, so that a test waits for nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RATE_PER_S, BURST = 50.0, 100
PROBE_S = 1.0
SOON_S = 1e-6


class TokenBucket:
    """`rate_per_s` calls a second on average, `burst` at once. `hold` stops everybody for a while (Retry-After).

    After a hold one call a second goes, whoever waits, until one that began since is answered: a server in trouble is
    not met by all of us at once.
    """

    def __init__(
        self,
        rate_per_s: float = RATE_PER_S,
        burst: int = BURST,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._burst, self._monotonic, self._sleep = rate_per_s, float(burst), monotonic, sleep
        self._tokens, self._filled_s, self._held_until_s = float(burst), monotonic(), 0.0
        self._holds, self._probing = 0, False
        self._lock = threading.Lock()
        self.waited_s = 0.0
        """seconds spent waiting, in all: for /metrics"""

    def take(self) -> int:
        """Returns when a call may be made, with what `answered` wants. In the order of asking, but after a hold."""
        with self._lock:
            now = self._monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_s) * self._rate)
            self._filled_s = now
            self._tokens -= 1.0  # a debt: who asks later waits longer
            due_s = now + max(0.0, -self._tokens / self._rate)
        while True:
            with self._lock:
                now = self._monotonic()
                wait_s = max(due_s, self._held_until_s) - now
                if wait_s <= SOON_S:
                    if self._probing:
                        self._held_until_s = now + PROBE_S
                    return self._holds
                self.waited_s += wait_s
            self._sleep(wait_s)  # and look again: another may have been told to hold, or went first

    def hold(self, seconds: float) -> None:
        """No call begins within `seconds` from now, and then one at a time."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, self._monotonic() + seconds)
            self._holds += 1
            self._probing = True

    def answered(self, begun: int) -> None:
        """The call that `take` gave `begun` was served. One that began before the last hold says nothing of it."""
        with self._lock:
            if self._probing and begun == self._holds:
                self._probing, self._held_until_s = False, 0.0

"""The server's loops: each holds time, its `run_once` holds meaning. Only the leader's loops act.

A loop runs when woken or when its interval is over, logs and counts what goes wrong, backs off, and never ends the
process. The leader holds the lease "control"; a server that cannot renew it stops acting and campaigns again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from controlplane.clock import Clock
from controlplane.store import leases
from controlplane.store.engine import Store
from controlplane.store.leases import Holder, LeaseLost

LEASE, TTL_S, RENEW_S = "control", 9.0, 2.0
LONGEST_WAIT_S = 30.0
_log = structlog.get_logger()


@dataclass
class LoopState:
    """What /metrics and /readyz show of a loop. Moments by the monotonic clock; None for what has not been yet."""

    runs: int = 0
    failures: int = 0
    started_s: float | None = None
    """when the loop began"""
    finished_s: float | None = None
    """when the last good round ended"""
    seconds: float | None = None
    """how long it took"""


class Loop:
    """Calls `run_once` each `interval_s`, or sooner when woken."""

    def __init__(self, name: str, interval_s: float, run_once: Callable[[], object], clock: Clock) -> None:
        self.name, self.interval_s, self._run_once, self._clock = name, interval_s, run_once, clock
        self.state = LoopState()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._wait_s = interval_s
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self.state.started_s = self._clock.monotonic()
        self._thread.start()

    def wake(self) -> None:
        """Has the next round begin at once."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the loop after its current round."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.once()
            self._wake.wait(self._wait_s)
            self._wake.clear()

    def once(self) -> None:
        """One round, whatever comes of it."""
        begun = self._clock.monotonic()
        try:
            self._run_once()
        except LeaseLost as error:
            _log.warning("another server leads", loop=self.name, reason=str(error))
        except Exception:
            self.state.failures += 1
            self._wait_s = min(LONGEST_WAIT_S, max(self._wait_s, 0.5) * 2)
            _log.exception("a loop failed and goes on", loop=self.name, wait_s=self._wait_s)
            return
        self._wait_s = self.interval_s
        self.state.runs += 1
        self.state.finished_s = self._clock.monotonic()
        self.state.seconds = self.state.finished_s - begun


class Leadership:
    """The lease of this process. `epoch` is None while another server leads, or when it is not sure."""

    def __init__(self, store: Store, holder: Holder, clock: Clock) -> None:
        self._store, self._holder, self._clock = store, holder, clock
        self._epoch: int | None = None
        self._renewed = 0.0

    @property
    def epoch(self) -> int | None:
        """The epoch to act under; None when the lease may have run out. Age is told by the monotonic clock."""
        if self._epoch is None or self._clock.monotonic() - self._renewed > TTL_S / 2:
            return None
        return self._epoch

    def holds(self, epoch: int) -> bool:
        """Whether something may still be asked of a cluster under this epoch; sure for another half of the ttl."""
        return self.epoch == epoch

    def campaign_once(self) -> None:
        """Renews the lease, or tries to get it."""
        asked = self._clock.monotonic()
        with self._store.write() as session:
            now = leases.shared_now(session, self._clock.now())
            if self._epoch is not None:
                try:
                    leases.renew(session, LEASE, self._epoch, now=now)
                    self._renewed = asked
                    return
                except LeaseLost:
                    self._epoch = None
                    _log.warning("the lease was lost; this server acts no more until it has it again")
            epoch = leases.acquire(session, LEASE, self._holder, now=now, ttl_s=TTL_S)
        if epoch is not None:
            self._epoch, self._renewed = epoch, asked
            _log.info("this server leads", epoch=epoch)

    def release(self) -> None:
        """Gives the lease back at a clean stop."""
        if self._epoch is not None:
            with self._store.write() as session:
                leases.release(session, LEASE, self._epoch, now=leases.shared_now(session, self._clock.now()))
            self._epoch = None

    def leading(self, act: Callable[[int, float], object]) -> Callable[[], object]:
        """`act(epoch, now)` as a loop's `run_once`: nothing happens while another server leads."""

        def run_once() -> object:
            epoch = self.epoch
            return act(epoch, self._clock.now()) if epoch is not None else None

        return run_once

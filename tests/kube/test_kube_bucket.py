"""The token bucket under many threads: a server that answers 500 meets one call a second, not all of us each second."""

from __future__ import annotations

import itertools
import threading

from controlplane.backends.kube.bucket import TokenBucket

CALLERS, CALLS = 6, 3
PATIENCE_S = 20.0


class Hourglass:
    """Time that goes on when every caller sleeps or is done: to the moment when the first of them wakes."""

    def __init__(self, callers: int) -> None:
        self.now, self._callers, self._done = 100.0, callers, 0
        self._asleep: dict[int, float] = {}
        self._turn = threading.Condition()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        me = threading.get_ident()
        with self._turn:
            self._asleep[me] = self.now + seconds
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: me not in self._asleep, PATIENCE_S)

    def done(self) -> None:
        with self._turn:
            self._done += 1
            self._turn.notify_all()

    def run(self) -> None:
        """Until all are done."""
        while True:
            with self._turn:
                assert self._turn.wait_for(lambda: len(self._asleep) + self._done == self._callers, PATIENCE_S)
                if not self._asleep:
                    return
                self.now = min(self._asleep.values())
                self._asleep = {who: until for who, until in self._asleep.items() if until > self.now}
                self._turn.notify_all()


def storm(bad_until: float) -> list[float]:
    """When the calls of many threads began, at a server that answers 500 until then; all begin within a hold."""
    glass, began = Hourglass(CALLERS), list[float]()
    bucket = TokenBucket(monotonic=glass.monotonic, sleep=glass.sleep)
    bucket.hold(1.0)

    def caller() -> None:
        for _ in range(CALLS):
            begun = bucket.take()
            began.append(glass.now)
            if glass.now < bad_until:
                bucket.hold(1.0)
            else:
                bucket.answered(begun)
        glass.done()

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(CALLERS)]
    for one in threads:
        one.start()
    glass.run()
    return began


def test_those_who_wait_out_a_hold_do_not_all_come_at_its_end() -> None:
    began = storm(bad_until=float("inf"))
    assert len(began) == CALLERS * CALLS
    assert min(b - a for a, b in itertools.pairwise(began)) >= 1.0


def test_the_first_answer_lets_the_rest_through() -> None:
    began = storm(bad_until=104.0)
    assert began[:4] == [101.0, 102.0, 103.0, 104.0]
    assert len(began) == CALLERS * CALLS and began[-1] <= 105.0, "nobody is held longer than to the end of its sleep"


def test_an_answer_to_a_call_from_before_a_hold_does_not_end_it() -> None:
    glass, slept = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal glass
        slept.append(seconds)
        glass += seconds

    bucket = TokenBucket(monotonic=lambda: glass, sleep=sleep)
    early = bucket.take()
    bucket.hold(30.0)
    bucket.answered(early)
    bucket.answered(bucket.take())
    bucket.take()
    assert slept == [30.0], "the server's Retry-After is kept; the answer to the next call ends it"

"""A writer at a clock that stands still until a test moves it, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agents.wire import Batch, Reply
from controlplane.clock import ManualClock
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.store.engine import Store
from tests.services.batches import START

Send = Callable[..., Reply]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def live(store: Store, clock: ManualClock) -> Live:
    return Live(store, clock)


@pytest.fixture
def ingest(store: Store, live: Live, clock: ManualClock) -> Iterator[Ingest]:
    made = Ingest(store, live, clock, group_s=0.0)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def send(ingest: Ingest, clock: ManualClock) -> Send:
    def send_one(found: Batch, received_s: float | None = None, behind: int = 0) -> Reply:
        return ingest.submit(found, clock.now() if received_s is None else received_s, behind=behind).result(30)

    return send_one

"""Ingest where things go wrong: senders that hang up, slips of ours, backlogs, and clocks that are set."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agents.wire import Reply
from controlplane.clock import ManualClock
from controlplane.services import ingest as ingest_module
from controlplane.services.commit import Committed
from controlplane.services.ingest import STUCK_S, Ingest
from controlplane.services.live import Live
from controlplane.store import events, faults, nodes
from controlplane.store.engine import Store, StoreConflict, StoreUnavailable
from controlplane.store.nodes import NEWEST_AGE_S
from tests.services.batches import START, batch, fault, gpu_samples, refusing

Send = Callable[..., Reply]


@pytest.mark.parametrize(
    "error", [StoreConflict("a key is taken"), TypeError("a slip of ours"), StoreUnavailable("disk image is malformed")]
)
def test_what_is_not_the_batches_own_fault_refuses_none_for_good(
    sqlite_store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ingest = Ingest(sqlite_store, Live(sqlite_store, clock), clock, group_s=0.0)
    ingest.start()
    with monkeypatch.context() as sick:
        sick.setattr(ingest_module, "commit", refusing("node-2", error))
        with pytest.raises(StoreUnavailable, match=re.escape(str(error))):
            ingest.submit(batch(0, node="node-2", faults=(fault("node-2"),)), START).result(30)
        assert ingest.submit(batch(0), START).result(30).acknowledged == 0
    assert ingest.submit(batch(0, node="node-2", faults=(fault("node-2"),)), START).result(30).acknowledged == 0
    assert ingest.counters.refused_batches == 0
    ingest.stop()


def test_a_sender_that_hung_up_and_a_memory_that_fails_do_not_end_the_writer(
    sqlite_store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(sqlite_store, clock)
    ingest = Ingest(sqlite_store, live, clock, group_s=0.0)
    gone, kept = ingest.submit(batch(0, node="node-2"), START), ingest.submit(batch(0), START)
    assert gone.cancel()
    with monkeypatch.context() as sick:
        sick.setattr(live, "take_samples", refusing("", RuntimeError("a slip of ours")))
        sick.setattr(ingest, "flush_once", lambda now: 1 / 0)
        ingest.start()
        assert kept.result(30).acknowledged == 0
        assert ingest.submit(batch(1), START).result(30).acknowledged == 1, "what is durable is acknowledged"
    assert ingest.submit(batch(0, node="node-2"), START).result(30).acknowledged == 0
    assert ingest.trouble() == ""
    ingest.stop()
    assert (gpu_samples(sqlite_store), gpu_samples(sqlite_store, "node-2")) == (2, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_has_ended_or_hangs_is_said_and_nobody_waits_for_it(
    sqlite_store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Ingest(sqlite_store, Live(sqlite_store, clock), clock, group_s=0.0)
    assert ingest.trouble() == "no thread writes batches"
    entered, leave = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> Committed:
        entered.set()
        leave.wait(30)
        raise SystemExit  # ends a thread, as nothing that is an Exception does

    monkeypatch.setattr(ingest_module, "commit", hang)
    ingest.start()
    ingest.submit(batch(0), START)
    assert entered.wait(30)
    assert ingest.trouble() == ""
    clock.advance(STUCK_S + 1)
    assert "one group for 61 s" in ingest.trouble()
    leave.set()
    assert ingest._thread is not None
    ingest._thread.join(30)
    assert ingest.trouble() == "no thread writes batches"
    with pytest.raises(StoreUnavailable, match="no thread"):
        ingest.submit(batch(1), START)
    ingest.stop()


def test_a_backlog_does_not_wait_for_company(sqlite_store: Store, clock: ManualClock) -> None:
    ingest = Ingest(sqlite_store, Live(sqlite_store, clock), clock, group_s=3600.0)
    ingest.start()
    for number in range(20):
        assert ingest.submit(batch(number), START + number, behind=20 - number).result(30).acknowledged == number
    ingest.stop()
    assert ingest.counters.transactions == 20


def test_a_fault_that_overtakes_is_told_and_moves_nothing_else(store: Store, send: Send, live: Live) -> None:
    alone: dict[str, Any] = {"gpu": None, "nic": None, "at_s": START + 100}
    found = fault(onset_s=START + 100)
    assert send(batch(100, faults=(found,), **alone), received_s=START + 100, behind=90).acknowledged == 100
    with store.read() as session:
        assert [row.id for row in faults.firing(session)] == [found.id]
        node = nodes.get(session, "node-1")
        assert node is not None and node.last_sequence == -1
    for sequence in (1, 2, 3):
        send(batch(sequence), received_s=START + 101, behind=90)
    again = replace(found, observed_s=START + 110, value=4.0)
    send(batch(110, boot_id="boot-2", faults=(again,), **alone), received_s=START + 110, behind=90)
    send(batch(100, faults=(found,), **alone), received_s=START + 111, behind=90)
    assert gpu_samples(store) == 3, "what was overtaken is no replay"
    with store.read() as session:
        (row,) = faults.firing(session)
        node = nodes.get(session, "node-1")
        assert row.value == 4.0
        assert node is not None
        assert (node.boot_id, node.last_sequence) == ("boot-1", 3)
        assert (node.sent_s, node.last_seen_s) == (START + 3, START + 111)
        assert [event.kind for event in events.listed(session, node="node-1")] == ["node.new"]


def test_the_clock_offset_is_the_smallest_seen_not_the_delay_of_one_batch(store: Store, send: Send) -> None:
    send(batch(0), received_s=START + 600, behind=1)
    send(batch(1), received_s=START + 1.5)
    send(batch(2), received_s=START + 3602, behind=1)
    assert offset_s(store) == pytest.approx(0.5 + 3.6, abs=0.01)


def offset_s(store: Store) -> float:
    with store.read() as session:
        node = nodes.get(session, "node-1")
    assert node is not None
    return node.clock_offset_s


@pytest.mark.parametrize("set_s", [-90.0, 90.0])
@pytest.mark.parametrize("behind", [0, 1])
def test_a_clock_that_was_set_is_followed_at_once(store: Store, send: Send, set_s: float, behind: int) -> None:
    send(batch(0), received_s=START + 0.5)
    send(batch(1, at_s=START + 1 + set_s, sent_monotonic_s=1.0), received_s=START + 1.5, behind=behind)
    assert offset_s(store) == pytest.approx(0.5 - set_s, abs=0.01)
    send(batch(2, at_s=START + 2 + set_s, sent_monotonic_s=2.0), received_s=START + 60, behind=1)
    assert offset_s(store) == pytest.approx(0.5 - set_s, abs=0.1)


def test_a_clock_that_a_new_boot_begins_with_is_believed_when_nothing_waits(store: Store, send: Send) -> None:
    send(batch(0), received_s=START + 0.5)
    send(batch(0, boot_id="boot-2", at_s=START - 3600, sent_monotonic_s=5.0), received_s=START + 60, behind=1)
    assert offset_s(store) == pytest.approx(0.5, abs=0.1)
    send(batch(1, boot_id="boot-2", at_s=START - 3599, sent_monotonic_s=6.0), received_s=START + 61)
    assert offset_s(store) == pytest.approx(3660 - NEWEST_AGE_S)

"""Ingest: batches into the store, many in one transaction, and a reply only after it is committed.

One thread writes. Whoever submits has its batch checked and coded first (admission), then waits on a Future. A group of
batches that cannot be written together is tried one by one, so that a bad batch harms nobody else. A batch that comes
again is acknowledged and not written; of a batch that is taken, records of unknown runs and stale epochs are left out
and counted, and the rest is kept. A batch is refused for good only for what stands in it: whatever else goes wrong is
ours, and it comes again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from agents.wire import Batch, Drill, Reply
from controlplane.clock import Clock
from controlplane.services.admission import Admitted, BatchRefused, admit
from controlplane.services.commit import Committed, commit
from controlplane.services.live import Live
from controlplane.store import expert_parts
from controlplane.store.engine import Store, StoreRejected, StoreUnavailable
from controlplane.store.expert_records import ExpertStep

GROUP_S = 0.25
"""How long telemetry waits for more batches of its group; a fault, a training step or a backlog does not wait."""
GROUP_BATCHES = 256
WAITING_BATCHES = 8192
PARTS_WAIT_S = 2.0
"""How long a step waits for the records of ranks that have not told of it."""
_IDLE_S = 0.25
STUCK_S = 60.0
"""A writer that has not gone round for so long does not come back by itself."""
_log = structlog.get_logger()


class IngestBusy(RuntimeError):
    """More batches wait than can be written soon: the sender keeps the batch and comes again."""


@dataclass(frozen=True, slots=True)
class IngestedSummary:
    """What one transaction brought, for those who act on news; names, not contents."""

    received_s: float
    nodes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """ids of the faults that changed"""
    runs: tuple[str, ...] = ()
    """runs with new steps, expert records or heartbeats"""


@dataclass(slots=True)
class Counters:
    """Totals since the start of this process, for /metrics."""

    batches: int = 0
    replays: int = 0
    refused_batches: int = 0
    samples: int = 0
    transactions: int = 0
    failed_transactions: int = 0
    expert_steps: int = 0
    refused_records: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Waiting:
    batch: Admitted
    reply: Future[Reply]

    @property
    def hurries(self) -> bool:
        """Whether somebody waits for it: for a fault, a step, or for the next of a backlog."""
        return bool(self.batch.faults or self.batch.steps or self.batch.greeting.behind)


class Ingest:
    """The one writer of what agents send. `start()` it, submit batches, `stop()` it."""

    def __init__(self, store: Store, live: Live, clock: Clock, *, group_s: float = GROUP_S) -> None:
        self._store, self._live, self._clock, self._group_s = store, live, clock, group_s
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[IngestedSummary], None]] = []
        self._thread: threading.Thread | None = None
        self._told: dict[tuple[str, str], float] = {}
        self._round_s = clock.monotonic()
        self.counters = Counters()

    def start(self) -> None:
        """Starts the writer."""
        self._round_s = self._clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Writes what waits, then ends the writer."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def on_commit(self, listener: Callable[[IngestedSummary], None]) -> None:
        """Calls `listener` after each transaction, in the writer's thread: it must only note the news and return."""
        self._listeners.append(listener)

    def trouble(self) -> str:
        """Why no batch is written, as a clause; empty while the writer goes round."""
        if self._thread is None or not self._thread.is_alive():
            return "no thread writes batches"
        silent_s = self._clock.monotonic() - self._round_s
        return f"the writing thread has been at one group for {silent_s:.0f} s" if silent_s > STUCK_S else ""

    def submit(self, batch: Batch, received_s: float, *, behind: int = 0) -> Future[Reply]:
        """Takes a batch; the Future holds the reply once the batch is durable.

        Raises, or sets as the Future's exception, BatchRefused (never send it again), IngestBusy or StoreUnavailable
        (send it again later). `received_s` is the server's time; `behind`: how many batches its sender has after it.
        """
        if self._thread is not None and not self._thread.is_alive():
            raise StoreUnavailable(self.trouble())
        if self._queue.qsize() >= WAITING_BATCHES:
            raise IngestBusy(f"{WAITING_BATCHES} batches wait to be written")
        try:
            waiting = _Waiting(admit(batch, received_s, behind), Future())
        except BatchRefused:
            self.counters.refused_batches += 1
            raise
        self._queue.put(waiting)
        return waiting.reply

    # --- the writer's thread ---

    def _run(self) -> None:
        flushed, last = self._clock.monotonic(), False
        while not last:
            group: list[_Waiting] = []
            try:
                last = self._collect(group)
                self._write(group)
                if last or self._clock.monotonic() - flushed >= _IDLE_S:
                    flushed = self._clock.monotonic()
                    self.flush_once(self._clock.now())
            except Exception as error:  # nobody starts this thread again: it outlives whatever a round meets
                _log.exception("a round of ingest failed")
                self._put_off(group, error)
            self._round_s = self._clock.monotonic()

    def _collect(self, group: list[_Waiting]) -> bool:
        """Gathers the next group; whether the writer is to end after it. Who hung up meanwhile is left out."""
        until = 0.0
        while len(group) < GROUP_BATCHES:
            try:
                left = max(0.0, until - self._clock.monotonic()) if group else _IDLE_S
                found = self._queue.get(timeout=left) if left else self._queue.get_nowait()
            except queue.Empty:
                break
            if found is None:
                return True
            if not found.reply.set_running_or_notify_cancel():
                continue
            if not group:
                until = self._clock.monotonic() + self._group_s
            group.append(found)
            if found.hurries:
                until = 0.0
        return False

    def _write(self, group: Sequence[_Waiting]) -> None:
        if not group:
            return
        try:
            done = commit(self._store, [one.batch for one in group], expected=self._live.expected, told=self._told)
        except StoreUnavailable as error:
            self.counters.failed_transactions += 1
            self._put_off(group, error)
        except Exception as error:  # whatever one batch does to the transaction, the writer and the others live on
            self.counters.failed_transactions += 1
            if len(group) > 1:
                for one in group:
                    self._write([one])
            elif isinstance(error, StoreRejected):
                self._refuse(group[0], error)
            else:
                _log.exception("a batch could not be written", node=group[0].batch.greeting.name)
                self._put_off(group, error)
        else:
            self._acknowledge(group, done)

    def _acknowledge(self, group: Sequence[_Waiting], done: Committed) -> None:
        """The batches are durable: their senders hear of it whatever becomes of the memory and the listeners."""
        try:
            self._tell(done)
        except Exception:
            _log.exception("what was committed could not be told")
        for one, reply in zip(group, done.replies, strict=True):
            drills = tuple(Drill(drill.id, drill.kind, drill.gpu) for drill in reply.drills)
            one.reply.set_result(Reply(reply.acknowledged, drills, self._clock.now()))

    @staticmethod
    def _put_off(group: Sequence[_Waiting], error: Exception) -> None:
        """Those who still wait for an answer send their batches again later."""
        later = error if isinstance(error, StoreUnavailable) else StoreUnavailable(f"not written: {error!r}")
        for one in group:
            if not one.reply.done():
                one.reply.set_exception(later)

    def _refuse(self, one: _Waiting, error: Exception) -> None:
        self.counters.refused_batches += 1
        _log.error("a batch was refused by the store", node=one.batch.greeting.name, error=repr(error))
        one.reply.set_exception(BatchRefused(f"the batch cannot be stored: {error}"))

    def _tell(self, done: Committed) -> None:
        """Memory first, then listeners: whoever hears of a commit finds it in the live state."""
        counters = self.counters
        counters.transactions += 1
        counters.batches += len(done.replies)
        counters.replays += done.replays
        counters.samples += done.samples
        for reason, count in done.refused.items():
            counters.refused_records[reason] = counters.refused_records.get(reason, 0) + count
        for node in done.nodes:
            if node.chunks:
                self._live.take_samples(node.name, node.simulated, node.chunks, node.sampled_s)
        for beat in done.heartbeats:
            if self._live.expected(beat.run_id, beat.attempt_no) is None:
                self._live.expect(beat.run_id, beat.attempt_no, beat.world)
        simulated = any(node.simulated for node in done.nodes)
        self._take_steps(done.expert_steps, simulated=simulated, received_s=done.received_s)
        if done.faults:
            self._live.forget_statuses()
        self._notify(IngestedSummary(done.received_s, tuple(n.name for n in done.nodes), done.faults, done.runs))

    def _take_steps(self, steps: Sequence[ExpertStep], *, simulated: bool, received_s: float) -> None:
        self.counters.expert_steps += len(steps)
        self._live.take_steps(steps, simulated=simulated, received_s=received_s)

    def _notify(self, summary: IngestedSummary) -> None:
        for listener in self._listeners:
            try:
                listener(summary)
            except Exception:
                _log.exception("a listener of ingest failed")

    def flush_once(self, now: float) -> int:
        """Finishes steps that waited too long for the records of some ranks; returns how many."""
        try:
            with self._store.read() as session:
                if not expert_parts.any_older(session, received_before_s=now - PARTS_WAIT_S):
                    return 0
            with self._store.write() as session:
                steps = expert_parts.flush(session, received_before_s=now - PARTS_WAIT_S)
        except StoreUnavailable as error:
            _log.warning("waiting steps could not be finished", error=str(error))
            return 0
        simulated = any(node.simulated for node in self._live.nodes().values())
        self._take_steps(steps, simulated=simulated, received_s=now)
        if steps:
            self._notify(IngestedSummary(now, runs=tuple(sorted({step.run_id for step in steps}))))
        return len(steps)

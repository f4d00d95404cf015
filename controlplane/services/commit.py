"""One transaction of ingest: a group of admitted batches, written at once. It keeps no state between groups.

It decides what is new (sequence numbers), what may be written (fences of attempts), and what the agents are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from controlplane.services.admission import Admitted
from controlplane.store import (
    drills,
    events,
    expert_parts,
    faults,
    fences,
    heartbeats,
    nodes,
    steps,
    telemetry,
)
from controlplane.store.engine import Session, Store
from controlplane.store.expert_records import ExpertStep
from controlplane.store.fences import Fence
from controlplane.store.nodes import Greeting, Mark
from controlplane.store.tables import Drill
from controlplane.store.telemetry import Chunk
from jobs import contract

UNKNOWN_RUN = "unknown run"
REPEAT_EVENT_S = 60.0
"""The same complaint about the same node becomes a line of the timeline once in so many seconds."""


@dataclass(slots=True)
class BatchReply:
    """What one batch is answered: the highest sequence number taken, and the drills handed out."""

    acknowledged: int
    drills: list[Drill] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CommittedNode:
    """A node's newest chunks in this transaction; `sampled_s` is when their last sample was taken, by our clock."""

    name: str
    simulated: bool
    sampled_s: float
    chunks: tuple[Chunk, ...]


@dataclass(slots=True)
class Committed:
    """What the transaction brought."""

    received_s: float
    replies: list[BatchReply] = field(default_factory=list)
    replays: int = 0
    samples: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    nodes: list[CommittedNode] = field(default_factory=list)
    heartbeats: list[contract.Heartbeat] = field(default_factory=list)
    expert_steps: list[ExpertStep] = field(default_factory=list)
    faults: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


def commit(
    store: Store,
    group: Sequence[Admitted],
    *,
    expected: Callable[[str, int], int | None],
    told: dict[tuple[str, str], float],
) -> Committed:
    """Writes the group in one transaction, or raises what Store.write raises and writes nothing.

    `expected(run_id, attempt_no)` is an attempt's number of ranks, if known; `told` remembers complaints by (node,
    reason), to repeat none too soon.
    """
    with store.write() as session:
        return _Transaction(session, group, told).run(expected)


class _Transaction:
    def __init__(self, session: Session, group: Sequence[Admitted], told: dict[tuple[str, str], float]) -> None:
        self.session, self.group, self.told = session, group, told
        self.done = Committed(max(batch.greeting.received_s for batch in group))
        self.fresh: list[Admitted] = []
        self.marks: dict[str, Mark] = {}

    def run(self, expected: Callable[[str, int], int | None]) -> Committed:
        self._sort_out_replays()
        now = self.done.received_s
        telemetry.add(self.session, [chunk for batch in self.fresh for chunk in batch.chunks])
        self._newest(now)
        found = [fault for batch in self.fresh for fault in batch.faults]
        if found:
            self.done.faults = tuple(row.id for row in faults.record(self.session, found, now=now))
        for batch in self.fresh:
            telemetry.add_kernel_lines(self.session, batch.greeting.name, batch.kernel, received_s=now)
            for complaint in batch.complaints:
                self._complain(batch.greeting.name, complaint.split(":", 1)[0], complaint)
        self._training(expected, now)
        self.done.samples = sum(batch.samples for batch in self.fresh)
        return self.done

    def _sort_out_replays(self) -> None:
        greetings = [batch.greeting for batch in self.group]
        marks = self.marks = nodes.lock(self.session, [greeting.name for greeting in greetings])
        known = frozenset(marks)
        boots = [(g.name, g.boot_id) for g in greetings if g.name in known and marks[g.name].boot_id != g.boot_id]
        left = nodes.left_marks(self.session, boots)
        greeted: dict[str, tuple[Greeting, Mark]] = {}
        replies: dict[str, BatchReply] = {}
        for batch in self.group:
            greeting = batch.greeting
            name, mark = greeting.name, marks.get(greeting.name)
            # a batch that is not in order leaves boot and number as they are
            same_boot = mark is not None and (mark.boot_id == greeting.boot_id or not greeting.in_order)
            highest = mark.sequence if mark and same_boot else left.get((name, greeting.boot_id), -1)
            reply = BatchReply(max(highest, greeting.sequence))
            self.done.replies.append(reply)
            if greeting.in_order and greeting.sequence <= highest:
                self.done.replays += 1
                continue
            if not same_boot:
                self._announce(mark, greeting)
            if mark is not None and not same_boot:
                left[name, mark.boot_id] = mark.sequence
                nodes.leave_boots(self.session, {name: mark}, now=greeting.received_s)
            marks[name] = nodes.marked(mark, greeting)
            before = greeted[name][0] if name in greeted else greeting
            facts, users = greeting.facts or before.facts, before.users if greeting.users is None else greeting.users
            greeted[name] = (replace(greeting, facts=facts, users=users), marks[name])
            self.fresh.append(batch)
            if greeting.simulated:
                replies[name] = reply
        nodes.greet(self.session, greeted, known=known)
        if replies:
            for name, taken in drills.take(self.session, sorted(replies), now=self.done.received_s).items():
                replies[name].drills += taken

    def _announce(self, mark: Mark | None, greeting: Greeting) -> None:
        kinds = dict.fromkeys((*(["simulated"] if greeting.simulated else []), greeting.source))
        label = f"{greeting.name} ({', '.join(kinds)})"
        sentence = f"{label} sent its first batch" if mark is None else f"{greeting.name} came back with a new boot"
        kind = "node.new" if mark is None else "node.boot"
        events.add(self.session, at_s=greeting.received_s, kind=kind, sentence=sentence, node=greeting.name)

    def _newest(self, now: float) -> None:
        newest = {(chunk.node, chunk.kind): chunk for batch in self.fresh for chunk in batch.chunks}
        telemetry.put_latest(self.session, list(newest.values()), received_s=now)
        simulated = {batch.greeting.name: batch.greeting.simulated for batch in self.fresh}
        for name, is_simulated in simulated.items():
            chunks = tuple(chunk for (node, _), chunk in newest.items() if node == name)
            last_s = max((chunk.last_s for chunk in chunks), default=now)
            sampled_s = min(now, last_s + self.marks[name].clock_offset_s)
            self.done.nodes.append(CommittedNode(name, is_simulated, sampled_s, chunks))

    def _training(self, expected: Callable[[str, int], int | None], now: float) -> None:
        attempts = {(beat.run_id, beat.attempt_no) for batch in self.fresh for beat in batch.heartbeats}
        attempts |= {(step.run_id, step.attempt_no) for batch in self.fresh for step in batch.steps}
        attempts |= {(step.run_id, step.attempt_no) for batch in self.fresh for _, step in batch.experts}
        if not attempts:
            return
        known = fences.of_attempts(self.session, attempts)
        parts, records, stamps = [], [], []
        for batch in self.fresh:
            node = batch.greeting.name
            for beat in batch.heartbeats:
                if self._passes(known, (beat.run_id, beat.attempt_no), beat.epoch, node):
                    self.done.heartbeats.append(beat)
                    stamps.append(heartbeats.Stamp(batch.greeting.boot_id, batch.greeting.sent_monotonic_s))
            for record in batch.steps:
                if self._passes(known, (record.run_id, record.attempt_no), record.epoch, node):
                    records.append(record)
            for epoch, step in batch.experts:
                if self._passes(known, (step.run_id, step.attempt_no), epoch, node):
                    parts.append(expert_parts.Part(node, step))
        heartbeats.put(self.session, self.done.heartbeats, now=now, stamps=stamps)
        steps.add(self.session, records)
        self.done.expert_steps = expert_parts.take(self.session, parts, expected=expected, now=now)
        self.done.runs = tuple(
            sorted(
                {beat.run_id for beat in self.done.heartbeats}
                | {record.run_id for record in records}
                | {step.run_id for step in self.done.expert_steps}
            )
        )

    def _passes(self, known: dict[tuple[str, int], Fence], attempt: tuple[str, int], epoch: int, node: str) -> bool:
        fence = known.get(attempt)
        reason = UNKNOWN_RUN if fence is None else fence.refuses(epoch, node)
        if reason is None:
            return True
        self.done.refused[reason] = self.done.refused.get(reason, 0) + 1
        run_id, attempt_no = attempt
        sentence = f"{node}: records of attempt {attempt_no} of run {run_id} were refused ({reason})"
        self._complain(node, reason, sentence, None if fence is None else run_id)
        return False

    def _complain(self, node: str, reason: str, sentence: str, run_id: str | None = None) -> None:
        now = self.done.received_s
        if now - self.told.get((node, reason), -REPEAT_EVENT_S) < REPEAT_EVENT_S:
            return
        self.told[node, reason] = now
        events.add(self.session, at_s=now, kind="ingest.refused", sentence=sentence, node=node, run_id=run_id)

"""The node agent's work: sample, judge, spool; sweep the trainers' rings in between. The loop is `main`'s, not here.

`sample_once` belongs to each second, `sweep_once` to each tap on the wake-up socket or 200 ms. Both only read, judge
and put batches into the outbox; sending is another thread's.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from agents.node.attribution import attribution, named
from agents.node.exporter import AgentState
from agents.node.outbox import FACTS, FAULTS, RECORDS, TELEMETRY, Outbox
from agents.node.rings import RuntimeDirectory, Swept
from agents.node.sender import SenderState
from agents.node.sources.base import Source
from agents.readings import METRICS, Fault, GpuUser, NodeFacts, NodeSample
from agents.rules.evaluate import Attribution, Evaluator, Past
from agents.rules.load import Rule
from agents.wire import MAX_BATCH_BYTES, Batch, Columns, Drill, WireError, encode

AGENT_VERSION = "0.1.0"
FACTS_EVERY_S = 300.0
KERNEL_LINES = 200
RECORDS_BYTES = MAX_BATCH_BYTES // 4
"""What the arrays of one batch may hold before packing: room for the rest, and no long batch before a short one."""


@dataclass(frozen=True)
class Paths:
    """Where the agent keeps what must outlive it."""

    runtime: Path
    spool: Path

    @property
    def memory(self) -> Path:
        return self.spool / "memory.json"


@dataclass(frozen=True)
class Memory:
    """What an agent leaves to the next one on this node: baselines of a boot and driver load, faults that fire, cursors
    of the rings, when faults began, from which those that come again are known, and how far logs have been read."""

    boot: str = ""
    baselines: dict[str, int] | None = None
    cursors: dict[str, int] | None = None
    firing: tuple[Fault, ...] = ()
    past: Past | None = None
    marks: dict[str, int] | None = None

    def marks_of(self, boot: str) -> dict[str, int]:
        """How far logs were read, if that was on this boot: their numbers begin anew with each."""
        return dict(self.marks or {}) if self.boot.partition("/")[0] == boot else {}

    @classmethod
    def read(cls, path: Path) -> Memory:
        """What was left; nothing if it cannot be read, since nothing in it may keep an agent from starting."""
        try:
            found = json.loads(path.read_text())
            firing = tuple(Fault(**fault) for fault in found["firing"])
            past = {str(key): [(float(at), str(run)) for at, run in rows] for key, rows in found["past"].items()}
            marks = dict(found["marks"])
            return cls(str(found["boot"]), dict(found["baselines"]), dict(found["cursors"]), firing, past, marks)
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


def columns(samples: list[NodeSample], scope: str) -> Columns | None:
    """Samples of one kind of device as columns: values[m][s * entities + e]; None if the node has none of it."""
    entities, metrics = len(samples[0].rows(scope)), METRICS[scope]
    if not entities:
        return None
    values = tuple(array("q", [row[at] for one in samples for row in one.rows(scope)]) for at in range(len(metrics)))
    return Columns(
        tuple(metric.name for metric in metrics),
        entities,
        array("d", [sample.at_s for sample in samples]),
        array("d", [sample.monotonic_s for sample in samples]),
        values,
    )


def portions(swept: Swept) -> Iterator[Swept]:
    """What a sweep found, in parts that fit a batch: a ring read late may hold 64 steps of 100 KiB a rank."""
    part, size = Swept(steps=swept.steps), 0
    for record in swept.experts:
        record_bytes = 8 * len(record.counts)
        if part.experts and size + record_bytes > RECORDS_BYTES:
            yield part
            part, size = Swept(), 0
        part.experts.append(record)
        size += record_bytes
    if part.experts or part.steps:
        yield part


def _cards(facts: NodeFacts) -> tuple[str, ...]:
    """What baselines belong to: the driver, and which card is where."""
    return facts.driver, *(f"{gpu.index} {gpu.serial} {gpu.pci_address}" for gpu in facts.gpus)


class Agent:
    """One node's agent over a source; time comes in from the loop."""

    def __init__(
        self, node: str, boot: str, source: Source, rules: tuple[Rule, ...], outbox: Outbox, paths: Paths
    ) -> None:
        self.node, self.source, self.outbox, self.paths = node, source, outbox, paths
        self.boot_id = f"{boot}-{outbox.generation}"
        self._boot = f"{boot}/{source.driver_load()}"
        memory = Memory.read(paths.memory)
        baselines = memory.baselines if memory.boot == self._boot else None
        self.runtime = RuntimeDirectory(paths.runtime, memory.cursors)
        self._new_evaluator = partial(Evaluator, rules, node, boot)
        self.evaluator = self._new_evaluator(source.facts(), baselines, memory.firing, memory.past)
        self.sample: NodeSample | None = None
        self.sample_seconds = 0.0
        self.trouble = ""
        self._facts: NodeFacts | None = None
        self._facts_at = 0.0
        self._users: tuple[GpuUser, ...] | None = None
        self._dropped = 0
        self._saved = ""

    def _judge_anew(self, known: NodeFacts) -> None:
        """Other cards, or another driver: what fires goes on, and each card has the baselines of its own serial."""
        before = self.evaluator
        self.evaluator = self._new_evaluator(known, before.baselines, before.firing(), before.past)
        self._boot = f"{self._boot.partition('/')[0]}/{self.source.driver_load()}"

    def save(self) -> None:
        """Keeps what the next start needs, when it changed; raises OSError on a sick disk."""
        text = json.dumps(
            {
                "boot": self._boot,
                "baselines": self.evaluator.baselines,
                "cursors": self.runtime.cursors,
                "firing": [asdict(fault) for fault in self.evaluator.firing()],
                "past": self.evaluator.past,
                "marks": self.source.marks(),
            },
            sort_keys=True,
        )
        if text != self._saved:
            temporary = self.paths.memory.with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(self.paths.memory)
            self._saved = text

    def sample_once(self, at_s: float, monotonic_s: float) -> list[Fault]:
        """One sample through the rules into the outbox; returns the faults that changed.

        Faults are a batch of their own, which may overtake the samples that wait.
        """
        begun = time.perf_counter()
        self.runtime.look_around()
        if self.outbox.dropped != self._dropped:
            self._dropped = self.outbox.dropped
            self.runtime.tell_again()
        self.source.follow(self.runtime.step_rate(at_s))
        sample = self.sample = self.source.sample(at_s, monotonic_s)
        faults = self.evaluator.check(sample, self._who(at_s))
        if faults:
            self._put(replace(self._head(at_s, monotonic_s), faults=tuple(faults)), FAULTS)
        facts = users = None
        if (known := self.source.facts()) != self._facts or monotonic_s - self._facts_at >= FACTS_EVERY_S:
            facts, self._facts_at = known, monotonic_s
            if self._facts is not None and _cards(known) != _cards(self._facts):
                self._judge_anew(known)
            self._facts = known
        if (holding := named(self.source.users(), self.runtime.ranks())) != self._users:
            users = self._users = holding
        batch = replace(
            self._head(at_s, monotonic_s),
            gpu=columns([sample], "gpu"),
            nic=columns([sample], "nic"),
            host=columns([sample], "host"),
            facts=facts,
            users=users,
            kernel=sample.kernel[-KERNEL_LINES:],
            heartbeats=tuple(self.runtime.heartbeats()),
        )
        self._put(batch, TELEMETRY if facts is None and users is None else FACTS)
        self.sample_seconds = time.perf_counter() - begun
        return faults

    def lines_once(self, at_s: float, monotonic_s: float) -> list[Fault]:
        """Kernel lines that came between two samples: judged and sent at once; returns the faults that changed."""
        lines = self.source.lines()
        if not lines:
            return []
        faults = self.evaluator.note(lines, at_s, monotonic_s, self._who(at_s))
        if faults:
            self._put(replace(self._head(at_s, monotonic_s), faults=tuple(faults)), FAULTS)
        self._put(replace(self._head(at_s, monotonic_s), kernel=lines[-KERNEL_LINES:]), TELEMETRY)
        return faults

    def _who(self, at_s: float) -> Attribution:
        """Who is on the node, and on each of its devices."""
        ranks = self.runtime.ranks()
        users = named(self.source.users(), ranks)
        return attribution(ranks, users, self.evaluator.facts, self.runtime.heartbeat_ages(at_s))

    def sweep_once(self, at_s: float, monotonic_s: float) -> int:
        """Training records written since the last call go into batches of their own; returns how many steps."""
        swept = self.runtime.sweep(at_s)
        for part in portions(swept):
            batch = replace(
                self._head(at_s, monotonic_s),
                experts=tuple(part.experts),
                steps=tuple(part.steps),
                heartbeats=tuple(self.runtime.heartbeats()),
            )
            self._put(batch, RECORDS)
        return len(swept.steps)

    def _put(self, batch: Batch, kind: str) -> None:
        """Into the outbox; what no batch can hold is counted, never a reason to stop."""
        try:
            self.outbox.put(batch.sequence, kind, encode(batch))
        except WireError as error:
            self.outbox.dropped += 1
            self.trouble = f"a batch could not be made: {error}"

    def _head(self, at_s: float, monotonic_s: float) -> Batch:
        """An empty batch with the next number."""
        return Batch(
            node=self.node,
            boot_id=self.boot_id,
            sequence=self.outbox.next_sequence(),
            source=self.source.name,
            simulated=self.source.simulated,
            agent_version=AGENT_VERSION,
            sent_s=at_s,
            sent_monotonic_s=monotonic_s,
        )

    def drill(self, drill: Drill) -> str:
        """Hands a drill to the source; returns why not, or nothing. A real source refuses."""
        if not self.source.simulated:
            return "drills are for simulated nodes only"
        return self.source.apply_drill(drill.kind, drill.gpu)

    def state(self, sender: SenderState) -> AgentState:
        """What /metrics shows."""
        batches, size = self.outbox.waiting
        return AgentState(
            node=self.node,
            simulated=self.source.simulated,
            sample=self.sample,
            faults=tuple(self.evaluator.firing()),
            batches_sent=sender.sent,
            batches_failed=sender.failed,
            batches_unreadable=sender.unreadable,
            batches_dropped=self.outbox.dropped,
            waiting_batches=batches,
            waiting_bytes=size,
            last_acknowledged_s=sender.last_acknowledged_s,
            ring_records_missed=self.runtime.missed,
            sample_seconds=self.sample_seconds,
            blind=self.source.facts().blind,
            quality=self.source.quality(),
        )

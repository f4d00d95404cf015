"""What is happening now, in memory: the newest sample of each node, the last expert records of each run, their frames.

Everything here is in the store as well and is read from there at start; losing it loses nothing. Ingest tells it of
what was committed; pages and rules read it without touching the database, but for the nodes' states, asked once a
second.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from controlplane.clock import Clock
from controlplane.rules.book import RuleBook
from controlplane.rules.experts import Floats
from controlplane.services import expert_windows, experts_frame, fleet_frame, frames
from controlplane.services.experts_window import MovingWindow
from controlplane.services.fleet_state import BLIND_AFTER_S, NodeStatus, statuses
from controlplane.store import codec, experts, faults, nodes, telemetry, watch
from controlplane.store.codec import Samples
from controlplane.store.engine import Store
from controlplane.store.expert_records import ExpertStep
from controlplane.store.telemetry import Chunk

HISTORY = 64
"""Steps of a run that are kept here: the window of the alarms."""
RUNS = 256
_STATUS_AGE_S = 1.0
_FLEET_AGE_S = 0.5
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class LiveNode:
    """The newest sample of a node's GPUs and NICs; `sampled_s` is when it was taken, by the server's clock."""

    name: str
    simulated: bool
    sampled_s: float
    chunks: Mapping[str, Chunk]

    def newest(self, kind: str) -> Samples | None:
        """The newest sample of its devices of a kind, gpu or nic; None before the first."""
        chunk = self.chunks.get(kind)
        return None if chunk is None else codec.decode(chunk.codec, chunk.blob).last()


@dataclass(frozen=True, slots=True)
class LiveRun:
    """The last steps of a run, in order, at most HISTORY; `received_s` is when the newest came."""

    run_id: str
    window: tuple[ExpertStep, ...]
    received_s: float
    simulated: bool


@dataclass(frozen=True, slots=True)
class _Built:
    key: object
    payload: frames.Payload
    meta: dict[str, object]
    window: MovingWindow


class Live:
    """The memory of one server. Safe for many threads."""

    def __init__(self, store: Store, clock: Clock, book: RuleBook | None = None) -> None:
        self._store, self._clock, self._book = store, clock, book
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._nodes: dict[str, LiveNode] = {}
        self._runs: OrderedDict[str, LiveRun] = OrderedDict()
        self._ranks: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._built: dict[str, _Built] = {}
        self._kept: OrderedDict[tuple[str, str], tuple[object, object]] = OrderedDict()
        self._statuses: tuple[float, dict[str, NodeStatus]] = (-math.inf, {})
        self._fleet: tuple[float, str, bytes] = (-math.inf, "", b"")

    def rebuild(self) -> None:
        """Reads everything back from the store; for a server's start, before it serves."""
        with self._store.read() as session:
            known = {node.name: node for node in nodes.listed(session)}
            newest_chunks = telemetry.latest_chunks(session)
            windows = {
                run: experts.recent(session, run, limit=HISTORY) for run in experts.last_runs(session, limit=RUNS)
            }
        simulated = any(node.simulated for node in known.values())
        for received_s, chunk in newest_chunks:
            node = known.get(chunk.node)
            if node is not None:
                sampled_s = min(received_s, chunk.last_s + node.clock_offset_s)
                self.take_samples(chunk.node, node.simulated, [chunk], sampled_s)
        for steps in windows.values():
            self.take_steps(steps, simulated=simulated, received_s=steps[-1].at_s)

    # --- written by ingest and by the controller ---

    def take_samples(self, name: str, simulated: bool, chunks: Sequence[Chunk], sampled_s: float) -> None:
        """A node's newly committed samples, the last one taken at `sampled_s` by the server's clock."""
        with self._lock:
            before = self._nodes[name].chunks if name in self._nodes else {}
            newest = {**before, **{chunk.kind: chunk for chunk in chunks}}
            self._nodes[name] = LiveNode(name, simulated, sampled_s, newest)

    def take_steps(self, steps: Iterable[ExpertStep], *, simulated: bool, received_s: float) -> None:
        """Newly committed steps, in order. A later attempt drops the steps of the former that it does again."""
        with self._lock:
            for step in steps:
                run = self._runs.pop(step.run_id, None) or LiveRun(step.run_id, (), received_s, simulated)
                window = {one.step: one for one in run.window}
                if run.window and step.attempt_no > run.window[-1].attempt_no:
                    window = {number: one for number, one in window.items() if number < step.step}
                if not run.window or step.attempt_no >= run.window[-1].attempt_no:
                    window[step.step] = step
                kept = tuple(window[number] for number in sorted(window)[-HISTORY:])
                self._runs[step.run_id] = LiveRun(step.run_id, kept, received_s, simulated)
            while len(self._runs) > RUNS:
                self._built.pop(self._runs.popitem(last=False)[0], None)

    def expect(self, run_id: str, attempt_no: int, ranks: int) -> None:
        """Says how many ranks an attempt has: its steps are whole once so many have told of them."""
        with self._lock:
            self._ranks[run_id, attempt_no] = ranks
            while len(self._ranks) > RUNS:
                self._ranks.popitem(last=False)

    def expected(self, run_id: str, attempt_no: int) -> int | None:
        """How many ranks an attempt has; None if nobody said."""
        with self._lock:
            return self._ranks.get((run_id, attempt_no))

    # --- read by pages and rules ---

    def node(self, name: str) -> LiveNode | None:
        """One node's newest sample."""
        with self._lock:
            return self._nodes.get(name)

    def nodes(self) -> dict[str, LiveNode]:
        """Every node's newest sample."""
        with self._lock:
            return dict(self._nodes)

    def run(self, run_id: str) -> LiveRun | None:
        """A run's last steps."""
        with self._lock:
            return self._runs.get(run_id)

    def runs(self) -> dict[str, LiveRun]:
        """Every run's last steps."""
        with self._lock:
            return dict(self._runs)

    def statuses(self) -> dict[str, NodeStatus]:
        """Every node's service state and firing faults, at most a second old."""
        read_at, found = self._statuses
        now = self._clock.monotonic()
        if now - read_at > _STATUS_AGE_S:
            with self._store.read() as session:
                found = statuses(
                    [(node.name, node.state, node.cordoned) for node in nodes.listed(session)],
                    [(fault.node, fault.entity, fault.severity) for fault in faults.firing(session)],
                    {node: one.run_name for one in watch.live_attempts(session) for node in one.nodes},
                )
            self._statuses = (now, found)
        return found

    def forget_statuses(self) -> None:
        """Has the nodes' states asked anew: something has changed them."""
        self._statuses = (-math.inf, {})
        self._fleet = (-math.inf, "", b"")

    def experts_frame(self, run_id: str) -> tuple[str, bytes] | None:
        """The last step of a run as (ETag, frame); None if it has no record. The tag changes with the content."""
        with self._building:
            run = self.run(run_id)
            if run is None or not run.window:
                return None
            key = (run.window[-1].key, run.window[-1].ranks, len(run.window), run.simulated)
            built = self._built.get(run_id)
            if built is None or built.key != key:
                window = MovingWindow() if built is None else built.window
                meta, arrays = experts_frame.of_window(run.window, window, self._book, self._earlier)
                head = {**meta, "simulated": run.simulated}
                built = self._built[run_id] = _Built(key, frames.payload(arrays), head, window)
        age_s = max(0.0, self._clock.now() - run.received_s)
        meta = {**built.meta, "stale": age_s > BLIND_AFTER_S}
        frame = frames.pack("experts", {**meta, "age_s": round(age_s, 3)}, built.payload)
        return frames.tag(built.payload, meta), frame

    def _earlier(self, last: ExpertStep) -> Floats | None:
        """What the alarms compare a window with that is far from even: the CV of some steps before."""
        with self._store.read() as session:
            return expert_windows.cv_before(session, last)

    def kept(self, run_id: str, name: str, key: object, make: Callable[[], _Made]) -> _Made:
        """What `make` makes of a run, made once while `key` stays the same: for what is dear and many ask for."""
        with self._lock:
            known = self._kept.get((run_id, name))
        if known is not None and known[0] == key:
            return known[1]  # type: ignore[return-value]  # made by the `make` of this name
        made = make()
        with self._lock:
            self._kept[run_id, name] = (key, made)
            while len(self._kept) > RUNS:
                self._kept.popitem(last=False)
        return made

    def fleet_frame(self) -> tuple[str, bytes]:
        """Every GPU's state, power, temperature and errors as (ETag, frame), at most half a second old."""
        made_at, tag, frame = self._fleet
        now = self._clock.monotonic()
        if now - made_at > _FLEET_AGE_S:
            tag, frame = self._fleet_frame()
            self._fleet = (now, tag, frame)
        return tag, frame

    def _fleet_frame(self) -> tuple[str, bytes]:
        now, nodes_seen = self._clock.now(), self.nodes()
        seen = {
            name: (now - node.sampled_s, node.newest("gpu"), node.newest("nic")) for name, node in nodes_seen.items()
        }
        meta, arrays = fleet_frame.of_nodes(self.statuses(), seen)
        meta["simulated"] = any(node.simulated for node in nodes_seen.values())
        content = frames.payload(arrays)
        tag = frames.tag(content, meta)
        meta["at_s"] = max((node.sampled_s for node in nodes_seen.values()), default=0.0)
        return tag, frames.pack("fleet", meta, content)

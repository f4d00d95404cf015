"""A cluster in memory that does what a script says: for tests of the controller and for looking at its moves. It ships.

Nothing runs and no time passes by itself: the script says when members start and how they end. Faults of a platform can
be switched on: it stops answering, loses the answer to an accepted submission, starts a part of a gang only, or cannot
get rid of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.backends.base import (
    AttemptPlan,
    BackendUnavailable,
    Forecast,
    Handle,
    Member,
    NodeCapacity,
    NodeChange,
    NodeStatus,
    Observation,
    Quarantine,
    State,
    StopMode,
    SubmitConflict,
)


@dataclass
class Running:
    """An attempt on the scripted cluster."""

    plan: AttemptPlan
    uid: str
    state: State = "pending"
    stopped: StopMode | None = None
    terminations: dict[int, dict[str, object]] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    """how members end, by index; 0 for the others"""
    stuck: bool = False
    """keeps its processes although it was asked to stop"""
    absent: frozenset[str] = frozenset()
    """nodes whose members do not come up: the gang stays pending"""


class MemoryBackend:
    """`calls` records each call that changed something, in order."""

    name = "memory"
    pins_nodes = True
    keeps_logs = True

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = list(nodes)
        self.attempts: dict[str, Running] = {}
        self.calls: list[tuple[str, str]] = []
        self.marks: dict[str, str | None] = {}
        self.dead: set[str] = set()
        """nodes whose kubelet is silent"""
        self.reachable = True
        self.lose_next_answer = False
        self.logs: dict[tuple[str, int], bytes] = {}
        """what members have written, by attempt and index"""
        self.on_call: Callable[[str], None] = lambda _call: None

    def _answering(self, call: str) -> None:
        self.on_call(call)
        if not self.reachable:
            raise BackendUnavailable("the scripted cluster does not answer")

    def start(self) -> None:
        """Needs no copy of anything."""

    def stop_watching(self) -> None:
        """Has none."""

    def submit(self, plan: AttemptPlan) -> Handle:
        self._answering("submit")
        found = self.attempts.get(plan.name)
        if found is not None:
            same = (found.plan.run_uid, found.plan.attempt_no, found.plan.spec_hash)
            if same != (plan.run_uid, plan.attempt_no, plan.spec_hash):
                raise SubmitConflict(f"{plan.name} exists and is not this attempt")
            return Handle(plan.name, found.uid, True)
        self.attempts[plan.name] = Running(plan, f"uid-{len(self.attempts) + 1}")
        self.calls.append(("submit", plan.name))
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise BackendUnavailable("the answer to an accepted submission was lost")
        return Handle(plan.name, self.attempts[plan.name].uid, False)

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        self._answering("observe")
        return {name: self._look(name, now) for name in names}

    def _look(self, name: str, now: float) -> Observation:
        found = self.attempts.get(name)
        if found is None:
            return Observation(name, "absent", now)
        alive = found.state in ("pending", "running")
        members = tuple(
            Member(index, node, alive, None if alive else found.codes.get(index, 0), found.terminations.get(index))
            for index, node in enumerate(found.plan.nodes)
            if node not in found.absent
        )
        return Observation(name, found.state, now, found.uid, members)

    def stop(self, name: str, *, mode: StopMode) -> None:
        self._answering("stop")
        found = self.attempts.get(name)
        if found is None:
            return
        if found.stopped != mode:
            self.calls.append((mode, name))
        found.stopped = mode
        if found.state in ("pending", "running") and not found.stuck:
            found.state = "failed"

    def fenced(self, name: str) -> bool:
        self._answering("fenced")
        found = self.attempts.get(name)
        return found is None or (found.state in ("succeeded", "failed") and not found.stuck)

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        self._answering("capacity")
        busy = {n for one in self.attempts.values() if one.state in ("pending", "running") for n in one.plan.nodes}
        return [NodeCapacity(node, node not in busy) for node in nodes if node in self.nodes]

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        self._answering("mark_nodes")
        changes = []
        for node, quarantine in wanted.items():
            session = quarantine.session_id if quarantine else None
            if self.marks.get(node) != session:
                self.marks[node] = session
                changes.append(NodeChange(node, f"{node} is {'marked' if session else 'free'} on the scripted cluster"))
        return changes

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        self._answering("node_status")
        return {
            node: NodeStatus(
                node,
                node not in self.dead,
                not self.marks.get(node),
                self.marks.get(node) or "",
                lease_age_s=(3600.0 if node in self.dead else 1.0) if leases else None,
            )
            for node in nodes
            if node in self.nodes
        }

    def forecast(self, _plan: AttemptPlan, /) -> Forecast | None:
        """Any plan is taken as it is."""
        return None

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        self._answering("read_logs")
        nothing = f"{name} member {index}: a scripted attempt writes no log\n".encode()
        return self.logs.get((name, index), nothing)[-limit:]

    # --- the script ---

    def run(self, name: str) -> None:
        """All members start, unless some of the gang's do not come up."""
        if not self.attempts[name].absent:
            self.attempts[name].state = "running"

    def end(self, name: str, state: State, terminations: dict[int, dict[str, object]] | None = None) -> None:
        """All members end, with what their launchers wrote."""
        found = self.attempts[name]
        found.state, found.terminations, found.stuck = state, terminations or {}, False

"""What the controller needs of a cluster: submit, observe, stop, fence, capacity, logs. One contract suite for all.

A backend translates its platform's errors once, here at the edge: BackendUnavailable means "cannot look" and is never
evidence of a failure; SubmitConflict means that a different thing bears the attempt's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

State = Literal["absent", "pending", "running", "succeeded", "failed", "unknown"]
StopMode = Literal["kill", "terminate"]
LEASE_STALE_S = 17.0
"""Age of a kubelet's lease that is no longer an ordinary one: kubelets renew theirs each 10 s."""
LEASE_FRESH_S = 15.0


class BackendUnavailable(RuntimeError):
    """The platform does not answer. Nothing may be concluded from it."""


class SubmitConflict(RuntimeError):
    """The name is taken by something that is not this attempt."""


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """All that is needed to start an attempt; committed before the backend hears of it."""

    name: str
    run_uid: str
    attempt_no: int
    spec_hash: str
    nodes: tuple[str, ...]
    ranks_per_node: int
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    node_count: int = 0
    """how many nodes, where the platform places (`nodes` is empty then)"""
    gpus_per_node: int = 0
    grace_s: float = 30.0
    """how long a member may take to save when it is asked to end"""
    excluded: tuple[str, ...] = ()
    """nodes that no member may be placed on"""
    placing: dict[str, str] = field(default_factory=dict)
    """what the job asks of the platform: image, queue, priorityClass"""


@dataclass(frozen=True, slots=True)
class Handle:
    """What a submitted attempt is on the platform; `adopted` when it was there already."""

    name: str
    uid: str
    adopted: bool


@dataclass(frozen=True, slots=True)
class Member:
    """One node's part of an attempt."""

    index: int
    node: str
    alive: bool
    exit_code: int | None = None
    termination: dict[str, object] | None = None
    pod: str = ""
    """its object on the platform, where it has one"""
    running: bool = True
    reason: str = ""
    """why it does not run, in the platform's words"""
    stuck: bool = False
    """told to end and not ended, on a node that nobody hears from"""
    deleted_s: float | None = None
    """when its time to end is over, by the platform's clock; None if it was not told to end"""
    disrupted: bool = False
    """the platform itself ended it: evicted, preempted by other work, its node taken away"""

    def overdue_s(self, now: float) -> float:
        """Seconds since it should have ended; negative while it still may run."""
        return now - self.deleted_s if self.deleted_s is not None and self.alive else float("-inf")


@dataclass(frozen=True, slots=True)
class Observation:
    """A fresh look at an attempt. `unknown` ages and decides nothing."""

    name: str
    state: State
    observed_s: float
    uid: str = ""
    members: tuple[Member, ...] = ()
    reason: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(member.node for member in self.members)


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """A node that the backend can start processes on."""

    node: str
    free: bool


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A node that is to be out of service, under a session of ours."""

    session_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeChange:
    """What was done to a node on the platform, in words."""

    node: str
    sentence: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What the platform says of a node: for the node's page, and as evidence that does not come through its agent."""

    node: str
    ready: bool
    schedulable: bool
    marked: str = ""
    """the session of our own quarantine, where the platform bears it"""
    others: str = ""
    """who else keeps work off it, in words"""
    conditions: tuple[dict[str, str], ...] = ()
    lease_age_s: float | None = None
    """since its kubelet last said that it lives; unknown unless it was asked for"""


@dataclass(frozen=True, slots=True)
class Limit:
    """What all jobs of the platform's share may hold of one thing together, in the thing's own unit (bytes, cores…)."""

    quota: str
    resource: str
    used: float
    hard: float
    asked: float | None
    """what the attempt would add; None where its pods do not say, so that the platform may take none of them"""

    @property
    def short(self) -> float:
        """How much is lacking now."""
        return max(0.0, self.used + self.asked - self.hard) if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class NodeForecast:
    """What the platform says of a node before anything is placed there."""

    node: str
    gpus: int
    """that the platform can hand out, in use or not"""
    refusal: str = ""
    """why it would take no member of the attempt; empty if it would, once it is free"""
    health: str = ""
    """what it says of itself that is not as it should be, in words"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a platform says of an attempt before it is submitted; nothing was made."""

    manifests: tuple[dict[str, object], ...]
    """the objects that a submission would make"""
    refusals: tuple[str, ...] = ()
    """what the platform would not take of them, in its own words"""
    limits: tuple[Limit, ...] = ()
    nodes: tuple[NodeForecast, ...] | None = None
    """every node that has GPUs; None where nobody can say"""
    unasked: tuple[str, ...] = ()
    """what could not be found out, in sentences"""


class Backend(Protocol):
    """A platform. Every call may take time and may raise BackendUnavailable; none touches the database."""

    name: str
    pins_nodes: bool
    """whether a plan names its nodes; else the platform chooses, and says which in `observe`"""
    keeps_logs: bool
    """whether a member's output can be read for as long as the attempt's record is kept"""

    def start(self) -> None:
        """Begins to keep whatever copies of the platform's state the backend needs."""
        ...

    def stop_watching(self) -> None:
        """Ends keeping them; attempts run on."""
        ...

    def submit(self, plan: AttemptPlan) -> Handle:
        """Starts the attempt, or adopts the one of the same name, uid, number and spec hash; else SubmitConflict."""
        ...

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        """A fresh look at each of these attempts."""
        ...

    def stop(self, name: str, *, mode: StopMode) -> None:
        """Asks the attempt to end: `kill` at once and without saving, `terminate` with a chance to save. Idempotent."""
        ...

    def fenced(self, name: str) -> bool:
        """Whether no process of the attempt can write any more."""
        ...

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        """Which of these nodes can be used, and which are free."""
        ...

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        """Brings the platform's marks of these nodes to what is wanted; nothing where it has none."""
        ...

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        """What the platform says of these nodes; those that it does not know are left out."""
        ...

    def forecast(self, plan: AttemptPlan, /) -> Forecast | None:
        """What the platform would say of this plan; nothing is made. None where it takes any plan as it is."""
        ...

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        """The end of a member's output; empty when there is none."""
        ...

"""What the controller knows of one run when it decides, and the moves that it may choose. Values only.

Times are Unix seconds by the server's clock. A view is made fresh for each decision; nothing in it changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from controlplane.runs.checkpoints import Saved
from controlplane.runs.plan import Candidate
from jobs.contract import Ranges

Level = Literal["info", "ok", "warn", "fault"]


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt as the store has it."""

    no: int
    name: str
    state: str
    state_since_s: float
    nodes: tuple[str, ...]
    excluded: tuple[str, ...]
    epoch: int
    resume_step: int | None
    decision_id: str | None
    created_s: float
    submitted_s: float | None
    first_step: int | None
    last_step: int | None
    ended_s: float | None
    end_class: str
    end: dict[str, Any] = field(default_factory=dict)
    skips: Ranges = ()
    """data indices that it leaves out"""
    resume_id: str | None = None
    """the checkpoint that it goes on from"""


@dataclass(frozen=True, slots=True)
class MemberView:
    """One node's part of the live attempt, as the backend sees it."""

    node: str
    alive: bool
    exit_code: int | None
    termination: dict[str, Any] | None
    running: bool = True
    reason: str = ""
    """why it does not run, in the platform's words"""
    stuck: bool = False
    """told to end and not ended, on a node that nobody hears from"""
    index: int = 0
    """its number within the gang"""
    disrupted: bool = False
    """ended by the platform itself: evicted, preempted by other work, its node taken away"""


@dataclass(frozen=True, slots=True)
class Look:
    """A fresh look through the backend; None instead of it means that the backend could not be asked."""

    state: str
    members: tuple[MemberView, ...]
    fenced: bool

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of all members, by name; empty while one of them has none yet."""
        found = [member.node for member in self.members]
        return tuple(sorted(found)) if all(found) else ()


@dataclass(frozen=True, slots=True)
class Beat:
    """A rank's last heartbeat."""

    rank: int
    node: str
    phase: str
    first_step: int | None
    last_step: int | None
    silent_s: float
    """since it was received, in time in which others were heard: what nobody could have told is no silence"""
    step_s: float | None = None
    """its median step"""


@dataclass(frozen=True, slots=True)
class Trouble:
    """An incident that asks for more than an alert and that touches this run."""

    incident_id: str
    number: int
    rule: str
    action: str
    node: str
    gpu: int | None
    entity: str
    run_id: str
    attempt_no: int
    onset_s: float
    last_clean_s: float
    corrupting: bool
    sentence: str
    fault_ids: tuple[str, ...]
    over: bool = False
    """whether it has cleared or a person has resolved it since: its node is not to blame any more"""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A fault after which a node's memory cannot be trusted since the last clean sample, whatever became of it."""

    trouble: Trouble
    """without a number as long as no incident has it"""
    end_s: float | None
    """when it was over; None while it stands"""
    decided: bool
    """whether a decision of this run answers it"""
    told_s: float


@dataclass(frozen=True, slots=True)
class OpenDecision:
    """The decision under which the run is being restarted."""

    id: str
    action: str
    attempt_no: int
    excluded: tuple[str, ...]
    corrupting_since_s: float | None
    checkpoint_id: str | None
    by_person: bool
    executed_s: float | None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """A restart that a person asked for."""

    actor: str
    checkpoint_id: str | None
    exclude_nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A run, whole."""

    run_id: str
    name: str
    desired: str
    status: str
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    steps: int
    mode: str
    restarts: int
    grace_s: float
    contract_level: int
    attempts: tuple[AttemptView, ...]
    decision: OpenDecision | None
    saved: tuple[Saved, ...]
    troubles: tuple[Trouble, ...]
    beats: tuple[Beat, ...]
    look: Look | None
    candidates: tuple[Candidate, ...] | None
    """None: the backend could not say what it has"""
    excluded: tuple[str, ...]
    """nodes left out by earlier decisions that still hold"""
    wish: Wish | None
    now: float
    corruptions: tuple[Corruption, ...] = ()
    """on nodes of this run's attempts, earlier ones too"""
    told: bool = True
    """whether this controller knows that the leaving attempt was told to end"""
    verifying: bool = False
    """whether a checkpoint's files are still being read"""
    pins_nodes: bool = True
    """whether a plan names its nodes; else the platform places, and says where"""
    unheard: frozenset[str] = frozenset()
    """nodes whose agents are silent while others are heard"""
    given_up: Ranges = ()
    """data indices that the runs which this one continues have left out"""
    role: str = ""
    """what the run is for in its lifecycle; empty for a job by itself"""
    because: str = ""
    """why the run is to end, where that was no person's word on it: what its lifecycle's plan or a taint asks for"""

    @property
    def counts_steps(self) -> bool:
        """Whether it completes optimizer steps one after the other and saves them; a run that evaluates does not."""
        return self.contract_level >= 2 and self.role in ("", "train")

    @property
    def last(self) -> AttemptView | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None


# --- moves ---


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision before it is written: what, why, on which evidence."""

    action: str
    reason: str
    rule: str
    mode: str = "act"
    excluded: tuple[str, ...] = ()
    checkpoint_id: str | None = None
    evidence: tuple[dict[str, Any], ...] = ()
    failure_class: str = ""
    fingerprint: str = ""
    entity: str = ""
    progress: str = ""
    incidents: tuple[str, ...] = ()
    corrupting_since_s: float | None = None
    budgets_before: dict[str, Any] = field(default_factory=dict)
    budgets_after: dict[str, Any] = field(default_factory=dict)
    person: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; `reason` is shown while a run is queued."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class SetRun:
    """The run's status changes."""

    status: str
    reason: str
    level: Level = "info"


@dataclass(frozen=True, slots=True)
class PlanAttempt:
    """A new attempt is written down, before anything is asked of the backend."""

    nodes: tuple[str, ...]
    excluded: tuple[str, ...]
    resume: Saved | None
    skip_steps: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Submit:
    """The planned attempt is given to the backend."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The live attempt is further than the store says."""

    state: str
    first_step: int | None = None
    last_step: int | None = None
    sentence: str = ""
    nodes: tuple[str, ...] = ()
    """where the platform has placed it; empty: as before"""


@dataclass(frozen=True, slots=True)
class Decide:
    """A decision is written and its execution begins: the live attempt leaves by `mode`."""

    choice: Choice
    stop: Literal["kill", "terminate", "none"]


@dataclass(frozen=True, slots=True)
class Press:
    """The attempt is told (again, or harder) to end."""

    mode: Literal["kill", "terminate"]
    state: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """The attempt is over and fenced."""

    state: str
    end_class: str
    sentence: str
    fingerprint: str = ""
    message: str = ""
    node: str = ""
    level: Level = "info"


@dataclass(frozen=True, slots=True)
class Tainted:
    """A checkpoint that must not be used, and why."""

    checkpoint_id: str
    step: int
    attempt_no: int
    reason: str


@dataclass(frozen=True, slots=True)
class Taint:
    """Checkpoints are marked, not deleted: nothing goes on from them."""

    spoilt: tuple[Tainted, ...]


@dataclass(frozen=True, slots=True)
class Conclude:
    """A decision turned out: verified by a fresh look, or not; `stop` ends the attempt and asks for a person."""

    ok: bool
    sentence: str
    first_step: int | None = None
    stop: bool = False


Move = Wait | SetRun | PlanAttempt | Submit | Advance | Decide | Press | EndAttempt | Taint | Conclude

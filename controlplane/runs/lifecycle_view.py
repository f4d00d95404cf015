"""What the controller knows of one lifecycle when it decides, and the moves that it may choose. Values only.

Times are Unix seconds by the server's clock, costs GPU-hours. A view is made fresh for each decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controlplane.runs.lifecycle_gates import Found, Verdict
from controlplane.runs.states import RUN_ENDED
from controlplane.runs.view import Level
from jobs.lifecycle import Stage

Role = Literal["prepare", "train", "evaluate", "release"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint by its hash, and where it lies."""

    hash: str
    path: str
    step: int | None = None
    run_id: str | None = None
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """A run of a stage. `busy`: an attempt of it is planned or alive; `end_class`: how its last one ended."""

    id: str
    role: str
    item: str
    round: int
    status: str
    desired: str
    reason: str = ""
    busy: bool = False
    end_class: str = ""
    mode: str = "act"
    init_hash: str = ""
    wished: bool = False
    """whether a person has asked for a restart of it that is not under way yet"""
    unread: bool = False
    """whether its disk could not be read a moment ago"""
    settled: bool = True
    """whether all that it saved has been looked at"""
    final: Kept | None = None
    """the newest verified checkpoint on its way"""
    found: Found | None = None
    """what it found out; None: it was not looked at yet"""

    @property
    def ended(self) -> bool:
        return self.status in RUN_ENDED and not self.busy

    @property
    def closable(self) -> bool:
        """Whether it waits for a person who has not said that it shall go on: another run may take its place."""
        waits = self.status == "needs_human" or (self.status, self.desired) == ("paused", "pause")
        return waits and not self.busy and not self.wished


@dataclass(frozen=True, slots=True)
class Word:
    """A person's word on a checkpoint that was not used yet."""

    id: str
    checkpoint_hash: str
    verdict: str
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """A person wants a held stage to be tried again: what failed or was stopped, its own job `fresh` from the stage's
    source, or its evaluation."""

    actor: str
    fresh: bool = False
    evaluation: bool = False


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage as the store has it; `runs` oldest first."""

    plan: Stage
    state: str
    hold: str = ""
    reason: str = ""
    round: int = 1
    retries: int = 0
    used_gpu_h: float = 0.0
    """since a person last let it go on"""
    init: Kept | None = None
    candidate: Kept | None = None
    runs: tuple[Tried, ...] = ()
    words: tuple[Word, ...] = ()
    wish: Again | None = None

    @property
    def name(self) -> str:
        return self.plan.name

    def newest(self, role: str, item: str = "", *, round: int | None = None, init: str | None = None) -> Tried | None:
        """The last run of a role, of a round, on a checkpoint."""
        for one in reversed(self.runs):
            fits = (one.role, one.item) == (role, item) and round in (None, one.round)
            if fits and init in (None, one.init_hash):
                return one
        return None


@dataclass(frozen=True, slots=True)
class PlanView:
    """A lifecycle, whole; `stages` in the plan's order."""

    id: str
    name: str
    desired: str
    status: str
    stages: tuple[StageView, ...]
    now: float

    def stage(self, name: str) -> StageView:
        return next(one for one in self.stages if one.name == name)


# --- moves ---


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do now."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What a run found out is read from its disk and kept, or its checkpoints are looked at once more."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A stage begins: the checkpoint that it starts from is written down for good."""

    stage: str
    state: str
    init: Kept | None
    sentence: str


@dataclass(frozen=True, slots=True)
class StartRun:
    """A new run of a stage. `closes`: the failed run that it follows, `continues`: from whose checkpoint it goes on."""

    stage: str
    state: str
    role: str
    item: str
    round: int
    init: Kept | None
    sentence: str
    continues: str | None = None
    closes: str | None = None
    charged: bool = False
    """it counts as one of the stage's retries"""
    asked: bool = False
    """a person wanted it: the wish is done with and the GPU-hours count anew"""
    seed_shift: int = 0


@dataclass(frozen=True, slots=True)
class MoveStage:
    """A stage comes further, or is held for a person; `stop`: its runs that are told to end."""

    stage: str
    state: str
    sentence: str
    hold: str = ""
    level: Level = "info"
    candidate: Kept | None = None
    verdict: Verdict | None = None
    stop: tuple[str, ...] = ()
    init: Kept | None = None
    """of a stage that is held before it began"""
    word: str | None = None
    """a person's refusal, which this carries out"""
    asked: bool = False
    """a person has it go on: the GPU-hours count anew"""


@dataclass(frozen=True, slots=True)
class Pass:
    """A stage passes with a checkpoint, which gets the stage's alias; `word`: the approval that this uses."""

    stage: str
    candidate: Kept | None
    sentence: str
    verdict: Verdict | None = None
    word: str | None = None


@dataclass(frozen=True, slots=True)
class StopRuns:
    """Runs are told to save and end for good."""

    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetLifecycle:
    """The lifecycle's own status changes."""

    status: str
    sentence: str
    level: Level = "info"


PlanMove = Rest | Keep | Begin | StartRun | MoveStage | Pass | StopRuns | SetLifecycle

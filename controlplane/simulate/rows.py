"""What the store would hold of the one simulated run, and what each of the controller's moves changes in it. Values.

Not a second policy: controlplane.runs.decide chooses every move; how many nodes may leave service, which checkpoints
are tainted and which states exist is asked of the same functions as in the server. It stands for services.outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.runs import states
from controlplane.runs.checkpoints import Saved
from controlplane.runs.goodput import Span
from controlplane.runs.ledger import QUARANTINE_WINDOW_S, may_quarantine
from controlplane.runs.plan import Candidate
from controlplane.runs.view import (
    Advance,
    AttemptView,
    Beat,
    Conclude,
    Corruption,
    Decide,
    EndAttempt,
    Look,
    Move,
    OpenDecision,
    PlanAttempt,
    Press,
    SetRun,
    Taint,
    Trouble,
    View,
    Wish,
)
from jobs.contract import parse_ranges

KEEP_S = 12 * 3600.0
"""Checkpoints older than this are removed, but for the newest of them."""
EXCLUDE_TTL_S = 24 * 3600.0
CORRUPTION_S = 6 * 3600.0
"""A data-corrupting fault that is over is looked at for so long, as in services.observe."""
RUN = "simulated"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a person asked for, as far as the policy looks at it."""

    nodes: int
    gpus_per_node: int
    grace_s: float
    mode: str = "act"
    restarts: int = 8
    steps: int = 10**9


@dataclass(slots=True)
class Rows:
    """One run with its attempts, decision, checkpoints, incidents and nodes."""

    spec: Spec
    candidates: list[Candidate]
    status: str = "queued"
    reason: str = ""
    attempts: list[AttemptView] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    decision: OpenDecision | None = None
    excluded: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    corruptions: list[Corruption] = field(default_factory=list)
    wish: Wish | None = None
    told: bool = False
    quarantined: dict[str, float] = field(default_factory=dict)
    decisions: int = 0
    held: int = 0
    """nodes that the breaker left in service"""
    _places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._places = {one.name: index for index, one in enumerate(self.candidates)}

    @property
    def last(self) -> AttemptView | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def alive(self) -> bool:
        """Whether the newest attempt is one that the controller looks at."""
        last = self.last
        return last is not None and last.state in states.LIVE

    def set_node(self, name: str, **changes: Any) -> None:
        """A node as placement sees it changes."""
        at = self._places[name]
        self.candidates[at] = replace(self.candidates[at], **changes)

    def open(self, trouble: Trouble, now: float) -> None:
        """An incident that touches the run."""
        self.troubles.append(trouble)
        if trouble.corrupting:
            self.corruptions.append(Corruption(trouble, None, False, now))

    def heal(self, name: str, now: float) -> None:
        """A node comes back from repair, and its incidents are over."""
        self.set_node(name, cordoned=False, state="healthy", fault="", silent_s=0.0)
        self.quarantined.pop(name, None)
        self.troubles = [one for one in self.troubles if one.node != name]
        over = [one for one in self.corruptions if one.trouble.node == name and one.end_s is None]
        kept = [one for one in self.corruptions if one not in over]
        self.corruptions = [one for one in kept if one.end_s is None or now - one.end_s < CORRUPTION_S]
        self.corruptions += [replace(one, trouble=replace(one.trouble, over=True), end_s=now) for one in over]

    def left_out(self, now: float) -> tuple[str, ...]:
        """Nodes that decisions left out and that are still within their time."""
        self.excluded = [one for one in self.excluded if one[0] > now - EXCLUDE_TTL_S]
        return tuple(sorted({node for _, nodes in self.excluded for node in nodes}))

    def keep(self, found: Iterable[Saved], now: float) -> None:
        """Checkpoints are whole and verified; old ones go."""
        self.saved += found
        old = [one for one in self.saved if (one.state_at_s or 0.0) < now - KEEP_S and one.state == "validated"]
        if len(old) > 1:
            newest = max(old, key=lambda one: one.state_at_s or 0.0)
            self.saved = [one for one in self.saved if one is newest or (one.state_at_s or 0.0) >= now - KEEP_S]

    def view(self, now: float, look: Look | None, beats: tuple[Beat, ...]) -> View:
        """What `decide` judges; as in the server, nodes are asked for only while no attempt lives."""
        return View(
            run_id=RUN,
            name=RUN,
            desired="run",
            status=self.status,
            nodes=self.spec.nodes,
            gpus_per_node=self.spec.gpus_per_node,
            ranks_per_node=1,
            steps=self.spec.steps,
            mode=self.spec.mode,
            restarts=self.spec.restarts,
            grace_s=self.spec.grace_s,
            contract_level=2,
            attempts=tuple(self.attempts),
            decision=self.decision,
            saved=tuple(self.saved),
            troubles=tuple(self.troubles),
            beats=beats,
            look=look,
            candidates=None if self.alive else tuple(self.candidates),
            excluded=self.left_out(now),
            wish=self.wish,
            now=now,
            corruptions=tuple(self.corruptions),
            told=self.told,
        )

    # --- moves ---

    def write(self, move: Move, now: float) -> None:
        """What a move changes here; what it changes in the cluster is the caller's."""
        match move:
            case SetRun():
                self._set_status(move.status, move.reason)
            case PlanAttempt():
                self._plan(move, now)
            case Advance():
                self._advance(move, now)
            case Decide():
                self._decide(move, now)
            case Press():
                self.move_attempt(move.state, now)
                self.told = True
            case EndAttempt():
                self._end(move, now)
            case Taint():
                bad = {one.checkpoint_id for one in move.spoilt}
                self.saved = [replace(one, state="tainted") if one.id in bad else one for one in self.saved]
            case Conclude():
                self._conclude(move, now)
            case _:
                raise AssertionError(f"{move} changes no row")

    def move_attempt(self, state: str, now: float, **changes: Any) -> None:
        """The newest attempt's state changes, over the server's own table; its phases follow."""
        last = self.attempts[-1]
        if last.state != state:
            states.check_attempt(last.state, state)
            phases = self.spans[-1]
            if phases:
                phases[-1] = replace(phases[-1], to_s=now)
            if state not in states.ENDED:
                phases.append(Span(state, now, now))
            changes["state_since_s"] = now
        self.attempts[-1] = replace(last, state=state, **changes)

    def _set_status(self, status: str, reason: str) -> None:
        if status != self.status:
            states.check_run(self.status, status)
        self.status, self.reason = status, reason

    def _plan(self, move: PlanAttempt, now: float) -> None:
        number = len(self.attempts) + 1
        planned = AttemptView(
            no=number,
            name=f"{RUN}-{number}",
            state="planned",
            state_since_s=now,
            nodes=move.nodes,
            excluded=move.excluded,
            epoch=number,
            resume_step=move.resume.step if move.resume else None,
            decision_id=self.decision.id if self.decision else None,
            created_s=now,
            submitted_s=None,
            first_step=None,
            last_step=None,
            ended_s=None,
            end_class="",
            skips=parse_ranges(move.skip_steps),
            resume_id=move.resume.id if move.resume else None,
        )
        self.attempts.append(planned)
        self.spans.append([Span("planned", now, now)])
        if self.status in ("needs_human", "paused"):
            self._set_status("queued", "")

    def submitted(self, now: float) -> None:
        """The backend has the newest attempt."""
        self.move_attempt("submitting", now)
        self.move_attempt("pending", now, submitted_s=now)
        if self.status != "active":
            self._set_status("active", "")

    def _advance(self, move: Advance, now: float) -> None:
        last = self.attempts[-1]
        first = last.first_step if last.first_step is not None else move.first_step
        done = last.last_step if move.last_step is None else move.last_step
        self.move_attempt(move.state, now, first_step=first, last_step=done)

    def _decide(self, move: Decide, now: float) -> None:
        choice, last = move.choice, self.last
        self.decisions += 1
        answered = set(choice.incidents)
        self.troubles = [one for one in self.troubles if one.incident_id not in answered]
        self.corruptions = [
            replace(one, decided=True) if one.trouble.incident_id in answered else one for one in self.corruptions
        ]
        if choice.person:
            self.wish = None
        self.decision = None
        if choice.mode != "act":
            return
        if choice.action == "pause_for_human":
            self._set_status("needs_human", choice.reason)
            return
        self.decision = OpenDecision(
            id=f"d{self.decisions}",
            action=choice.action,
            attempt_no=last.no if last else 0,
            excluded=choice.excluded,
            corrupting_since_s=choice.corrupting_since_s,
            checkpoint_id=choice.checkpoint_id,
            by_person=bool(choice.person),
            executed_s=now,
            fingerprint=choice.fingerprint,
        )
        if choice.excluded:
            self.excluded.append((now, choice.excluded))
        if choice.failure_class == "hardware":
            self.quarantine(choice.excluded, now)
        if move.stop != "none" and last is not None:
            self.move_attempt("stopping" if move.stop == "kill" else "draining", now)
            self.told = True

    def quarantine(self, nodes: tuple[str, ...], now: float, *, by_person: bool = False) -> None:
        """Takes nodes out of service, as many as the breaker lets go by themselves."""
        for name in nodes:
            recent = sum(now - since < QUARANTINE_WINDOW_S for since in self.quarantined.values())
            if name in self.quarantined:
                continue
            if by_person or may_quarantine(recent, len(self.candidates)):
                self.quarantined[name] = now
                self.set_node(name, cordoned=True, state="quarantined")
            else:
                self.held += 1

    def _end(self, move: EndAttempt, now: float) -> None:
        end = {"class": move.end_class, "fingerprint": move.fingerprint, "message": move.message, "node": move.node}
        self.move_attempt(move.state, now, end_class=move.end_class, end=end, ended_s=now)
        self.told = False

    def _conclude(self, move: Conclude, now: float) -> None:
        self.decision = None
        if move.first_step is not None and self.attempts[-1].first_step is None:
            self.attempts[-1] = replace(self.attempts[-1], first_step=move.first_step)
        if move.stop:
            self.move_attempt("stopping", now)
            self._set_status("needs_human", move.sentence)
            self.told = True

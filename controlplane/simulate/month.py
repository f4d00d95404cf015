"""A month of one run in a virtual cluster: faults by chance, moves by the real `decide`, the rest arithmetic.

The controller's side: views are made, `decide` is asked until it has to wait, as in the server's own rounds, and what
it chooses is written and carried out. Between two events no time is spent. The cluster's side is cluster.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from controlplane.runs import choices
from controlplane.runs.causes import Costs
from controlplane.runs.checkpoints import lineage, resumable
from controlplane.runs.decide import KILL_AFTER_S, decide
from controlplane.runs.ends import START_DEADLINE_S
from controlplane.runs.goodput import Ledger, Spent, ledger
from controlplane.runs.leaving import stuck_after_s
from controlplane.runs.plan import Candidate
from controlplane.runs.states import LEAVING
from controlplane.runs.view import (
    Advance,
    Conclude,
    Decide,
    EndAttempt,
    Move,
    PlanAttempt,
    Press,
    SetRun,
    Submit,
    Trouble,
    Wait,
    Wish,
)
from controlplane.simulate.agenda import Agenda
from controlplane.simulate.chance import Stop
from controlplane.simulate.cluster import Cluster
from controlplane.simulate.gang import Pace
from controlplane.simulate.losses import TRAIN
from controlplane.simulate.rows import EXCLUDE_TTL_S, Rows, Spec

# as in services.reconcile and cli.serve
MOVES_A_ROUND, ROUND_S = 12, 0.5
PEOPLE = "person"


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated: `interval` in steps, `spares` in nodes, `mode` of the fault policy (act: by itself)."""

    gpus: int
    interval: int
    spares: int
    costs: Costs
    mode: str = "act"
    days: float = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated run. Seconds of the whole gang; `ledger` is the server's own, over the attempts' phases."""

    ettr_percent: float
    wall_s: float
    lost: dict[tuple[str, str], float]
    ledger: Ledger
    stops: dict[str, int]
    attempts: int
    calls: int
    """of a person"""
    waits: int
    """for a node"""
    wrong: int
    """attempts that went on from a state that was known to be computed wrongly"""
    ignored: int
    """silent corruptions that were found and changed nothing"""
    idle_node_s: float
    """healthy spare nodes, standing by"""


class Month:
    """One run from its admission to the end of the time that is looked at."""

    def __init__(self, setup: Setup, luck: Iterator[Stop]) -> None:
        costs, nodes = setup.costs, setup.costs.nodes(setup.gpus)
        names = [f"node-{index:04d}" for index in range(nodes + setup.spares)]
        fleet = [Candidate(name, costs.gpus_per_node, True, False, "healthy", 0.0) for name in names]
        spec = Spec(nodes, costs.gpus_per_node, costs.grace_s, setup.mode)
        self.setup, self.rows = setup, Rows(spec, fleet)
        self.agenda = Agenda(setup.days * 86_400.0)
        pace = Pace(costs.step_s, setup.interval, costs.blocking_s, costs.write_s)
        self.cluster = Cluster(self.agenda, self.rows, costs, pace, costs.mtbf_s(setup.gpus), luck, self.round)
        self.losses = self.cluster.losses
        self.moves: list[str] = []
        self.calls = self.waits = 0
        self._called = False
        self._proposed: list[Trouble] = []
        self._wakes: set[float] = set()

    def run(self) -> Outcome:
        """The whole month."""
        self.round()
        self.agenda.run()
        return self._outcome()

    # --- the controller's rounds ---

    def round(self) -> None:
        """Asks until there is nothing to do now, as services.reconcile does, and comes back when there may be."""
        before: Move | None = None
        for _ in range(MOVES_A_ROUND):
            move = decide(self.rows.view(self.agenda.now, self.cluster.look(), self.cluster.beats()))
            if isinstance(move, Wait):
                self.rows.reason = move.reason if self.rows.status == "queued" else self.rows.reason
                break
            self._carry_out(move)
            if isinstance(move, Press | Advance) or move == before:
                break
            before = move
        if before is not None or not isinstance(move, Wait):
            self.agenda.at(self.agenda.now + ROUND_S, self.round)
        else:
            self._wake()

    def _wake(self) -> None:
        """The times at which the same rows would give another move."""
        last, now = self.rows.last, self.agenda.now
        due: list[float] = []
        if self.rows.alive and last is not None:
            if last.state in LEAVING:
                due += [last.state_since_s + KILL_AFTER_S, last.state_since_s + KILL_AFTER_S + self.setup.costs.grace_s]
                due += [self.cluster.stands_since_s + stuck_after_s(self.setup.costs.step_s)]
            elif last.state == "pending":
                due.append((last.submitted_s or last.created_s) + START_DEADLINE_S)
        elif last is not None and last.ended_s is not None:
            due.append(last.ended_s + choices.wait_s(self.rows.view(now, None, ())))
            if self.rows.status == "queued":
                due += [at_s + EXCLUDE_TTL_S for at_s, _ in self.rows.excluded]
        for at_s in due:
            if at_s + 0.01 > now and at_s not in self._wakes:
                self._wakes.add(at_s)
                self.agenda.at(at_s + 0.02, self.round)

    def _carry_out(self, move: Move) -> None:
        self.moves.append(type(move).__name__)
        rows, cluster, now = self.rows, self.cluster, self.agenda.now
        cluster.save()
        if isinstance(move, EndAttempt) and rows.last is not None:
            first, done = cluster.last_words()
            known = rows.last.first_step if rows.last.first_step is not None else first
            rows.attempts[-1] = replace(rows.last, first_step=known, last_step=done)
        if isinstance(move, Submit):
            rows.submitted(now)
            cluster.submit()
            return
        if isinstance(move, Decide) and move.choice.mode != "act":
            answered = set(move.choice.incidents)
            self._proposed += [one for one in rows.troubles if one.incident_id in answered]
        rows.write(move, now)
        self._tell_cluster(move)

    def _tell_cluster(self, move: Move) -> None:
        cluster, losses, now = self.cluster, self.losses, self.agenda.now
        match move:
            case Decide() if move.choice.mode != "act" or move.choice.action == "pause_for_human":
                self._call()
                if losses.phase != TRAIN:
                    losses.turn(now, PEOPLE)
            case Decide() if move.stop != "none":
                cluster.stop(move.stop)
            case Press():
                cluster.stop(move.mode)
            case Conclude() if move.stop:
                cluster.stop("kill")
                self._call()
            case EndAttempt():
                cluster.gang = None
                losses.turn(now, "place")
            case PlanAttempt():
                losses.turn(now, "place")
                losses.back_to(move.resume.step if move.resume else 0)
                cluster.resume = move.resume
            case SetRun(status="needs_human"):
                losses.turn(now, PEOPLE)
                self._call()
            case SetRun(status="queued"):
                losses.turn(now, "no spare node")
                self.waits += 1

    # --- the person ---

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self.agenda.at(self.agenda.now + self.setup.costs.person_s, self._person)

    def _person(self) -> None:
        """Whoever was called restarts the run without the blamed nodes, before the corruption if there was one."""
        rows, proposed = self.rows, self._proposed
        self._called, self._proposed = False, []
        nodes = tuple(sorted({one.node for one in proposed if one.node}))
        if rows.status != "needs_human" and not proposed:
            return
        self.calls += 1
        since = min((one.last_clean_s for one in proposed if one.corrupting), default=None)
        chosen = None
        if since is not None:
            on_path = lineage(rows.saved, [(one.no, one.resume_step or 0) for one in rows.attempts])
            chosen = resumable(one for one in on_path if one.state_at_s is not None and one.state_at_s < since)
        rows.quarantine(nodes, self.agenda.now, by_person=True)
        rows.wish = Wish("on call", chosen.id if chosen else None, nodes)
        self.round()

    # --- the end ---

    def _outcome(self) -> Outcome:
        rows, losses, end = self.rows, self.losses, self.agenda.end_s
        self.cluster.close()
        if rows.alive:
            rows.spans[-1][-1] = replace(rows.spans[-1][-1], to_s=end)
        step_s = self.setup.costs.step_s
        spent = [
            Spent(tuple(spans), one.kept * step_s, (one.made - one.kept) * step_s)
            for spans, one in zip(rows.spans, losses.attempts, strict=True)
        ]
        found = ledger(spent, now=end)
        return Outcome(
            ettr_percent=100 * found.productive_s / end,
            wall_s=end,
            lost=dict(losses.lost),
            ledger=found,
            stops=dict(self.cluster.stops),
            attempts=len(rows.attempts),
            calls=self.calls,
            waits=self.waits,
            wrong=self.cluster.wrong,
            ignored=self.cluster.ignored,
            idle_node_s=self.cluster.idle_node_s,
        )

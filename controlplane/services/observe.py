"""Everything the controller knows of one run, gathered fresh: its rows, and a look through the backend.

Rows are read in one short session; the backend is asked outside of it. What cannot be asked is None in the view, which
is never evidence of anything. What all runs have in common (`Fleet`) is read once a round. Checkpoints on disk are
discovery's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from controlplane.backends.base import Backend, BackendUnavailable
from controlplane.rules.book import RuleBook
from controlplane.runs.checkpoints import Saved, lineage
from controlplane.runs.plan import BLIND_S, Candidate
from controlplane.runs.taint import way
from controlplane.runs.view import AttemptView, Beat, Corruption, Look, MemberView, OpenDecision, Trouble, View, Wish
from controlplane.store import heartbeats, incidents, lifecycles, nodes, runs
from controlplane.store.engine import Session, Store
from controlplane.store.nodes import Machine
from controlplane.store.tables import Attempt, Checkpoint, Decision, Heartbeat, Run
from jobs.contract import Ranges, merged, parse_ranges
from jobs.spec import JobSpec

_log = structlog.get_logger()


RECENT_S = 6 * 3600.0
"""How long a data-corrupting fault that is over is still looked at: what it spoilt is marked by then."""


class Fleet:
    """What all runs have in common, as it was at one moment: who is in trouble, who has which nodes.

    `since_s`: when this server began to look. The machines are read when the first run needs some.
    """

    def __init__(self, store: Store, book: RuleBook, now: float, *, since_s: float) -> None:
        self._store, self._book = store, book
        self._machines: list[Machine] | None = None
        with store.read() as session:
            self.heard_s = nodes.last_heard_s(session, default=since_s)
            self.waiting = incidents.waiting(session)
            self.corrupting = incidents.corrupting(session, book, since_s=now - RECENT_S)
            self.afflicted = incidents.afflicted(session, book.refusing)
            self.taken = runs.taken_nodes(session)

    @property
    def machines(self) -> list[Machine]:
        """Every node as placement sees it."""
        if self._machines is None:
            with self._store.read() as session:
                self._machines = nodes.machines(session)
        return self._machines

    def troubles(self, run_id: str) -> list[incidents.Actionable]:
        """What waits for a decision of this run, if it touches it."""
        return self.waiting.actionable(self._book, run_id)

    def urgent(self, run_id: str) -> bool:
        """Whether something that waits for a decision is on the nodes that the run has, or on the run itself."""
        mine = self.taken.get(run_id, frozenset())
        return any(one.node in mine or (not one.node and one.run_id == run_id) for one in self.troubles(run_id))

    def corruptions(self, run_id: str) -> tuple[Corruption, ...]:
        """The data-corrupting faults as this run sees them."""
        return tuple(_corruption(one, run_id) for one in self.corrupting)

    def others(self, run_id: str) -> frozenset[str]:
        """The nodes that other runs have."""
        return frozenset(name for other, names in self.taken.items() if other != run_id for name in names)


@dataclass(frozen=True, slots=True)
class Before:
    """What the runs that another one continues have come to: what they saved, as an attempt 0, and gave up."""

    runs: tuple[str, ...] = ()
    saved: tuple[Saved, ...] = ()
    given_up: Ranges = ()
    """data indices"""


@dataclass(frozen=True, slots=True)
class Rows:
    """A run as the store has it, read in one session."""

    run: Run
    spec: JobSpec
    attempts: list[Attempt]
    decision: Decision | None
    saved: list[Checkpoint]
    beats: list[Beat]
    excluded: tuple[str, ...]
    wish: Wish | None
    role: str = ""
    before: Before = Before()
    because: str = ""


def read_rows(
    store: Store, run_id: str, now: float, *, since_s: float, heard_s: float, parse: Callable[[Run], JobSpec]
) -> Rows | None:
    """The rows of one run; None if it does not exist. `since_s`: when this server began to look."""
    with store.read() as session:
        run = runs.get(session, run_id)
        if run is None:
            return None
        spec = parse(run)
        attempts = runs.attempts(session, run_id)
        beats = heartbeats.of_attempt(session, run_id, attempts[-1].no) if attempts else []
        asked = runs.latest_wish(session, run_id)
        work = lifecycles.work_of(session, run_id)
        before = continued(session, work.continues_id) if work is not None else Before()
        ttl_s = spec.spec.faults.exclude_ttl_hours * 3600
        return Rows(
            run=run,
            spec=spec,
            attempts=attempts,
            decision=runs.open_decision(session, run_id),
            saved=runs.checkpoints(session, run_id),
            beats=[_beat(beat, _silent_s(beat, heard_s, since_s)) for beat in beats],
            excluded=runs.excluded_nodes(session, [run.id, *before.runs], now=now, ttl_s=ttl_s),
            wish=_wish(asked.data) if asked is not None else None,
            role=work.role if work is not None else "",
            before=before,
            because=runs.why_cancelled(session, run_id) if run.desired == "cancel" else "",
        )


def continued(session: Session, run_id: str | None) -> Before:
    """What lies on the way of a run that another one continues; nothing of none."""
    if run_id is None:
        return Before()
    work = lifecycles.work_of(session, run_id)
    older = continued(session, work.continues_id) if work is not None else Before()
    attempts = [attempt_of(one) for one in runs.attempts(session, run_id)]
    skips = {one.no: one.skips for one in attempts}
    rows = [saved_of(one) for one in runs.checkpoints(session, run_id)]
    own = [replace(one, skips=skips.get(one.attempt_no, ())) for one in rows]
    saved = tuple(replace(one, attempt_no=0) for one in lineage([*older.saved, *own], way(attempts)))
    given_up = merged([*older.given_up, *(found for one in attempts for found in one.skips)])
    return Before((run_id, *older.runs), saved, given_up)


def _silent_s(row: Heartbeat, heard_s: float, since_s: float) -> float:
    """How long a rank has said nothing; of a job that writes no heartbeats nothing follows from its silence."""
    return 0.0 if heartbeats.told(row) is not None else max(0.0, heard_s - max(row.received_s, since_s))


def _beat(row: Heartbeat, silent_s: float) -> Beat:
    step_s = row.body.get("step_seconds_median")
    return Beat(row.rank, row.node, row.phase, row.first_step, row.last_step, silent_s, step_s)


def _wish(data: dict[str, Any]) -> Wish:
    return Wish(str(data.get("actor", "")), data.get("checkpoint_id"), tuple(data.get("exclude_nodes") or ()))


def look_at(backend: Backend, name: str, now: float, *, fence: bool) -> Look | None:
    """A fresh look at an attempt; None when the backend cannot say."""
    try:
        seen = backend.observe([name], now)[name]
        fenced = fence and seen.state != "unknown" and backend.fenced(name)
    except BackendUnavailable as error:
        _log.warning("the backend cannot be asked", backend=backend.name, attempt=name, error=str(error))
        return None
    members = tuple(
        MemberView(m.node, m.alive, m.exit_code, m.termination, m.running, m.reason, m.stuck, m.index, m.disrupted)
        for m in seen.members
    )
    return Look(seen.state, members, fenced)


def candidates(
    backend: Backend, rows: Sequence[Machine], now: float, afflicted: Mapping[str, str], taken: Collection[str] = ()
) -> tuple[Candidate, ...] | None:
    """Every known node as placement sees it, those `taken` not free; None when the backend cannot say what it has.

    `afflicted`: by node, the rule of a fault that fires there.
    """
    try:
        capacity = {one.node: one for one in backend.capacity([node.name for node in rows])}
    except BackendUnavailable as error:
        _log.warning("the backend cannot be asked for its nodes", backend=backend.name, error=str(error))
        return None
    return tuple(
        Candidate(
            name=node.name,
            gpus=node.gpus,
            free=node.name not in taken and (node.name not in capacity or capacity[node.name].free),
            cordoned=node.cordoned,
            state=node.state,
            silent_s=max(0.0, now - node.last_seen_s),
            reachable=node.name in capacity,
            fault=afflicted.get(node.name, ""),
        )
        for node in rows
    )


def view_of(
    rows: Rows,
    fleet: Fleet,
    look: Look | None,
    free: tuple[Candidate, ...] | None,
    now: float,
    *,
    told: bool = True,
    verifying: bool = False,
    pins_nodes: bool = True,
) -> View:
    """The view that `decide` judges."""
    run, spec = rows.run, rows.spec.spec
    mine = {name for attempt in rows.attempts for name in attempt.nodes}
    return View(
        run_id=run.id,
        name=run.name,
        desired=run.desired,
        status=run.status,
        nodes=spec.resources.nodes,
        gpus_per_node=spec.resources.gpus_per_node,
        ranks_per_node=spec.resources.ranks_per_node,
        steps=spec.train.steps,
        mode=spec.faults.mode,
        restarts=spec.faults.restarts,
        grace_s=spec.faults.grace_seconds,
        contract_level=spec.contract_level,
        attempts=tuple(map(attempt_of, rows.attempts)),
        decision=_decision(rows.decision),
        saved=(*rows.before.saved, *map(saved_of, rows.saved)),
        troubles=tuple(map(_trouble, fleet.troubles(run.id))),
        beats=tuple(rows.beats),
        look=look,
        candidates=free,
        excluded=rows.excluded,
        wish=rows.wish,
        now=now,
        corruptions=tuple(one for one in fleet.corruptions(run.id) if one.trouble.node in mine),
        told=told,
        verifying=verifying,
        pins_nodes=pins_nodes,
        given_up=rows.before.given_up,
        role=rows.role,
        because=rows.because,
        unheard=_unheard(fleet) if rows.attempts and rows.attempts[-1].state == "draining" else frozenset(),
    )


def _unheard(fleet: Fleet) -> frozenset[str]:
    """The nodes that are silent while others are heard."""
    return frozenset(one.name for one in fleet.machines if fleet.heard_s - one.last_seen_s > BLIND_S)


def attempt_of(row: Attempt) -> AttemptView:
    """An attempt as the policy sees it."""
    return AttemptView(
        no=row.no,
        name=row.name,
        state=row.state,
        state_since_s=row.state_since_s,
        nodes=tuple(row.nodes),
        excluded=tuple(row.excluded_nodes),
        epoch=row.epoch,
        resume_step=row.resume_step,
        decision_id=row.decision_id,
        created_s=row.created_s,
        submitted_s=row.submitted_s,
        first_step=row.first_step,
        last_step=row.last_step,
        ended_s=row.ended_s,
        end_class=row.end_class,
        end=dict(row.end or {}),
        skips=parse_ranges(str(row.spec.get("skip_steps") or "")),
        resume_id=row.resume_checkpoint_id,
    )


def saved_of(row: Checkpoint) -> Saved:
    """A checkpoint as the policy sees it."""
    return Saved(row.id, row.attempt_no, row.epoch, row.step, row.path, row.state, row.state_at_s)


def _decision(row: Decision | None) -> OpenDecision | None:
    if row is None:
        return None
    since = next((one.get("begin_s") for one in row.evidence if one.get("kind") == "window"), None)
    return OpenDecision(
        id=row.id,
        action=row.action,
        attempt_no=row.attempt_no or 0,
        excluded=tuple(row.excluded_nodes),
        corrupting_since_s=float(since) if since is not None else None,
        checkpoint_id=row.checkpoint_id,
        by_person=row.rule == "person",
        executed_s=row.executed_s,
        fingerprint=row.fingerprint,
    )


def _trouble(one: incidents.Actionable) -> Trouble:
    return Trouble(
        incident_id=one.incident_id,
        number=one.number,
        rule=one.rule,
        action=one.action,
        node=one.node,
        gpu=one.gpu,
        entity=one.entity,
        run_id=one.run_id,
        attempt_no=one.attempt_no,
        onset_s=one.onset_s,
        last_clean_s=one.last_clean_s,
        corrupting=one.data_corrupting,
        sentence=one.sentence,
        fault_ids=one.fault_ids,
    )


def _corruption(one: incidents.Corrupting, run_id: str) -> Corruption:
    fault = one.fault
    trouble = Trouble(
        incident_id=fault.incident_id or "",
        number=one.number,
        rule=fault.rule,
        action=fault.action,
        node=fault.node,
        gpu=incidents.gpu_of(fault.entity),
        entity=fault.entity,
        run_id=fault.run_id,
        attempt_no=fault.attempt_no,
        onset_s=one.onset_s,
        last_clean_s=one.last_clean_s,
        corrupting=True,
        sentence=fault.sentence,
        fault_ids=(fault.id,),
        over=one.end_s is not None,
    )
    return Corruption(trouble, one.end_s, bool(one.decided_by & {run_id, ""}), fault.received_s)

"""Runs, attempts, decisions and checkpoints: the one place that writes their states, each over its transition table.

Reading gives the rows; writing takes a session that the caller has tied to its lease (controlplane.store.leases.guard).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.ids import uuid7
from controlplane.runs import states
from controlplane.store.base import ATTEMPT_LIVE, DECISION_OPEN
from controlplane.store.engine import UnknownCursor
from controlplane.store.tables import Attempt, Checkpoint, Decision, Event, Lifecycle, Run

WISH, WISH_DONE = "restart_wished", "restart_wish_taken"


def unfinished(session: Session) -> list[Run]:
    """Runs that may still move, and ended ones whose last attempt is alive, oldest first."""
    alive = select(Attempt.run_id).where(Attempt.state.in_((states.PLANNED, *ATTEMPT_LIVE)))
    query = select(Run).where(Run.status.not_in(states.RUN_ENDED) | Run.id.in_(alive)).order_by(Run.created_s, Run.id)
    return list(session.scalars(query))


def listed(
    session: Session, statuses: Collection[str] | None = None, *, limit: int = 100, before: str | None = None
) -> list[Run]:
    """The newest runs, of some statuses or all; `before` is the id of the last one already seen. UnknownCursor."""
    query = select(Run).order_by(Run.created_s.desc(), Run.id.desc()).limit(limit)
    if statuses is not None:
        query = query.where(Run.status.in_(statuses))
    if before:
        seen = session.get(Run, before)
        if seen is None:
            raise UnknownCursor(f"no run has the id {before}")
        query = query.where((Run.created_s < seen.created_s) | ((Run.created_s == seen.created_s) & (Run.id < seen.id)))
    return list(session.scalars(query))


def get(session: Session, run_id: str) -> Run | None:
    """One run by its id, or the newest of that name."""
    found = session.get(Run, run_id)
    if found is None:
        query = select(Run).where(Run.name == run_id).order_by(Run.created_s.desc()).limit(1)
        found = session.scalars(query).one_or_none()
    return found


def locked(session: Session, run_id: str) -> Run | None:
    """One run, for writing, as it is once nobody else writes it: not as this session may have read it before."""
    query = select(Run).where(Run.id == run_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def attempts(session: Session, run_id: str) -> list[Attempt]:
    """The attempts of a run, by number."""
    return list(session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.no)))


def newest_attempts(session: Session, run_ids: Collection[str]) -> dict[str, Attempt]:
    """The last attempt of each of these runs."""
    query = select(Attempt).where(Attempt.run_id.in_(run_ids)).order_by(Attempt.no)
    return {attempt.run_id: attempt for attempt in session.scalars(query)}


def decisions(session: Session, run_id: str) -> list[Decision]:
    """The decisions of a run, oldest first."""
    query = select(Decision).where(Decision.run_id == run_id).order_by(Decision.created_s, Decision.id)
    return list(session.scalars(query))


def open_decision(session: Session, run_id: str) -> Decision | None:
    """The decision under which a run is being restarted."""
    query = (
        select(Decision)
        .where(Decision.run_id == run_id, Decision.state.in_(DECISION_OPEN), Decision.mode == "act")
        .order_by(Decision.created_s.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()


def checkpoints(session: Session, run_id: str) -> list[Checkpoint]:
    """What was seen of a run's checkpoints, by step and attempt."""
    query = select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step, Checkpoint.attempt_no)
    return list(session.scalars(query))


def checkpoint(session: Session, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint."""
    return session.get(Checkpoint, checkpoint_id)


def events_of_kind(session: Session, run_id: str, kinds: Sequence[str]) -> list[Event]:
    """A run's events of some kinds, oldest first."""
    query = select(Event).where(Event.run_id == run_id, Event.kind.in_(kinds)).order_by(Event.at_s, Event.id)
    return list(session.scalars(query))


def excluded_nodes(session: Session, run_ids: Collection[str], *, now: float, ttl_s: float) -> tuple[str, ...]:
    """Nodes that decisions of these runs left out and that are still within their time."""
    query = select(Decision.excluded_nodes).where(
        Decision.run_id.in_(run_ids),
        Decision.created_s > now - ttl_s,
        Decision.mode == "act",
        Decision.executed_s.is_not(None),
    )
    return tuple(sorted({node for nodes in session.scalars(query) for node in nodes}))


def following(session: Session, live: Collection[str], *, ended_after_s: float) -> list[Attempt]:
    """The attempts that have been given to a backend and run, or that ended after a moment, by run and number."""
    wanted = Attempt.state.in_(live) | (Attempt.ended_s > ended_after_s)
    query = select(Attempt).where(wanted, Attempt.submitted_s.is_not(None))
    return list(session.scalars(query.order_by(Attempt.run_id, Attempt.no)))


def taken_nodes(session: Session) -> dict[str, frozenset[str]]:
    """Nodes that attempts are meant to be on, by run, whether or not the backend has heard of them yet."""
    query = select(Attempt.run_id, Attempt.nodes).where(Attempt.state.in_((states.PLANNED, *ATTEMPT_LIVE)))
    return {row.run_id: frozenset(row.nodes) for row in session.execute(query)}


def ended_on(session: Session, names: Collection[str], *, since_s: float) -> list[str]:
    """Ended runs, one of whose attempts was on one of these nodes and ended after a moment."""
    query = select(Attempt.run_id, Attempt.nodes).join(Run, Run.id == Attempt.run_id)
    rows = session.execute(query.where(Run.status.in_(states.RUN_ENDED), Attempt.ended_s >= since_s))
    return sorted({row.run_id for row in rows if not set(names).isdisjoint(row.nodes)})


def ended_since(session: Session, since_s: float) -> list[str]:
    """Runs that have ended after a moment, oldest first."""
    query = select(Run.id).where(Run.status.in_(states.RUN_ENDED), Run.ended_s >= since_s)
    return list(session.scalars(query.order_by(Run.ended_s, Run.id)))


def median_step_seconds(session: Session, name: str) -> list[tuple[float, int]]:
    """(seconds trained, steps done) of earlier attempts of runs of a name: what a step cost before."""
    query = (
        select(Attempt.first_step_s, Attempt.ended_s, Attempt.first_step, Attempt.last_step)
        .join(Run, Run.id == Attempt.run_id)
        .where(Run.name == name, Attempt.ended_s.is_not(None), Attempt.first_step_s.is_not(None))
        .order_by(Attempt.created_s.desc())
        .limit(20)
    )
    rows = session.execute(query)
    return [
        (ended - begun, last - first)
        for begun, ended, first, last in rows
        if ended and begun and last and first and last > first
    ]


def lifecycle_of(session: Session, run: Run) -> Lifecycle | None:
    """The plan that a run is a stage of."""
    return session.get(Lifecycle, run.lifecycle_id) if run.lifecycle_id is not None else None


# --- writing ---


def add_run(session: Session, **values: Any) -> Run:
    """A new run, queued."""
    run = Run(status="queued", desired="run", **values)
    session.add(run)
    return run


def add_lifecycle(session: Session, *, name: str, spec: dict[str, Any], now: float, by: str) -> Lifecycle:
    """A plan of one stage, kept as it was."""
    lifecycle = Lifecycle(id=uuid7(now), name=name, spec=spec, created_s=now, created_by=by)
    session.add(lifecycle)
    return lifecycle


def move_run(run: Run, status: str, *, reason: str, now: float) -> None:
    """Sets a run's status over its table."""
    if run.status == status:
        run.reason = reason
        return
    states.check_run(run.status, status)
    run.status, run.reason = status, reason
    if status == "active" and run.started_s is None:
        run.started_s = now
    if status == "queued":
        run.queue_since_s = now
    if status in states.RUN_ENDED:
        run.ended_s = now


def move_attempt(attempt: Attempt, state: str, *, now: float) -> None:
    """Sets an attempt's state over its table; standing still is no step."""
    if attempt.state == state:
        return
    states.check_attempt(attempt.state, state)
    attempt.state, attempt.state_since_s = state, now
    if state in states.ENDED:
        attempt.ended_s = now


def move_decision(decision: Decision, state: str, *, now: float, verification: dict[str, Any] | None = None) -> None:
    """Sets a decision's state over its table."""
    states.check_decision(decision.state, state)
    decision.state = state
    if state == "executing":
        decision.executed_s = now
    if state in ("verified", "failed"):
        decision.verified_s = now
    if verification is not None:
        decision.verification = verification


def attempt(session: Session, run_id: str, no: int) -> Attempt | None:
    """One attempt of a run; None if there is none of that number."""
    return session.scalars(select(Attempt).where(Attempt.run_id == run_id, Attempt.no == no)).one_or_none()


def attempt_of(session: Session, run_id: str, no: int) -> Attempt:
    """One attempt, for writing; LookupError if it does not exist."""
    query = select(Attempt).where(Attempt.run_id == run_id, Attempt.no == no).with_for_update()
    found = session.scalars(query).one_or_none()
    if found is None:
        raise LookupError(f"run {run_id} has no attempt {no}")
    return found


def decision_of(session: Session, decision_id: str) -> Decision:
    """One decision, for writing; LookupError if it does not exist."""
    found = session.scalars(select(Decision).where(Decision.id == decision_id).with_for_update()).one_or_none()
    if found is None:
        raise LookupError(f"there is no decision {decision_id}")
    return found


def add_attempt(session: Session, **values: Any) -> Attempt:
    """A planned attempt."""
    attempt = Attempt(state="planned", **values)
    session.add(attempt)
    return attempt


def add_decision(session: Session, **values: Any) -> Decision:
    """A proposed decision."""
    decision = Decision(state="proposed", **values)
    session.add(decision)
    session.flush()
    return decision


def put_checkpoint(session: Session, values: dict[str, Any], *, now: float) -> Checkpoint:
    """Makes or updates the row of a step directory, by its path. A tainted one stays tainted."""
    row = session.scalars(select(Checkpoint).where(Checkpoint.path == values["path"])).one_or_none()
    if row is None:
        row = Checkpoint(id=uuid7(now), seen_s=now, **values)
        session.add(row)
    elif row.state != "tainted":
        for name, value in values.items():
            setattr(row, name, value)
    return row


def latest_wish(session: Session, run_id: str) -> Event | None:
    """A restart that a person asked for and that was not taken up yet."""
    query = select(Event).where(Event.run_id == run_id, Event.kind.in_((WISH, WISH_DONE)))
    newest = session.scalars(query.order_by(Event.at_s.desc(), Event.id.desc()).limit(1)).one_or_none()
    return newest if newest is not None and newest.kind == WISH else None


def paused_alone(session: Session, run_id: str) -> bool:
    """Whether the last pause that was wanted of a run was of this run alone, not of its whole lifecycle."""
    query = select(Event.data).where(Event.run_id == run_id, Event.kind == "run_wish_pause")
    data = session.scalars(query.order_by(Event.at_s.desc(), Event.id.desc()).limit(1)).one_or_none()
    return bool((data or {}).get("alone"))


def why_cancelled(session: Session, run_id: str) -> str:
    """Why a run is to end for good; empty where a person wanted it and nothing else is known."""
    query = select(Event.data).where(Event.run_id == run_id, Event.kind == "run_wish_cancel")
    data = session.scalars(query.order_by(Event.at_s.desc(), Event.id.desc()).limit(1)).one_or_none()
    return str((data or {}).get("why") or "")


def counted(session: Session) -> dict[str, int]:
    """Runs by status."""
    rows = session.execute(select(Run.status, func.count()).group_by(Run.status)).all()
    return {row[0]: row[1] for row in rows}

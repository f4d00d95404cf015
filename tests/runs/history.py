"""Reads what a play left in its store and says what of it must never have happened, whoever was at the helm and how.

It knows the tables and nothing of the code that wrote them: attempts, decisions, checkpoints and the timeline. Used
after the Hypothesis machine's lives and after every death of a controller in the chaos suite.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from sqlalchemy import select

from controlplane.runs.ledger import (
    ATTEMPTS_PER_HOUR,
    FREE,
    HOUR_S,
    INFRASTRUCTURE,
    INFRASTRUCTURE_PER_HOUR,
    SAME_ROOT_WITHOUT_PROGRESS,
)
from controlplane.runs.states import ATTEMPT, ENDED
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Checkpoint, Decision, Event, Run

_PREFIX = "attempt_"


def wrongs(store: Store) -> list[str]:
    """Everything that is wrong with the history of a store's runs, as sentences; empty if nothing is."""
    with store.read() as session:
        runs = list(session.scalars(select(Run)))
        attempts = list(session.scalars(select(Attempt).order_by(Attempt.run_id, Attempt.no)))
        decisions = list(session.scalars(select(Decision).order_by(Decision.created_s)))
        checkpoints = list(session.scalars(select(Checkpoint)))
        events = list(session.scalars(select(Event).order_by(Event.at_s, Event.id)))
    found: list[str] = []
    for run in runs:
        mine = [one for one in attempts if one.run_id == run.id]
        decided = [one for one in decisions if one.run_id == run.id]
        found += _numbers(mine)
        found += _one_at_a_time(mine)
        found += _path([one for one in events if one.run_id == run.id])
        found += _budgets(run, mine, {one.id: one for one in decided})
        found += _evidence(decided, mine)
        found += _beginnings(mine, [one for one in checkpoints if one.run_id == run.id])
    return found


def _numbers(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Attempts are numbered without a gap, and epochs grow with them."""
    for at, one in enumerate(attempts, 1):
        if one.no != at:
            yield f"{one.run_id}: attempt {one.no} stands in place {at}"
    for before, after in itertools.pairwise(attempts):
        if after.epoch <= before.epoch:
            yield f"{after.name}: epoch {after.epoch} does not follow {before.epoch}"


def _one_at_a_time(attempts: Sequence[Attempt]) -> Iterator[str]:
    """No attempt is created, let alone submitted, while the one before it lives."""
    for before, after in itertools.pairwise(attempts):
        if before.ended_s is None:
            yield f"{after.name} exists while {before.name} has not ended"
        elif after.created_s < before.ended_s:
            yield f"{after.name} was planned {before.ended_s - after.created_s:.1f} s before {before.name} ended"
    for one in attempts:
        if (one.state in ENDED) != (one.ended_s is not None):
            yield f"{one.name} is {one.state} and has {'a' if one.ended_s is not None else 'no'} time of its end"


def _path(events: Sequence[Event]) -> Iterator[str]:
    """The timeline shows each attempt in an order that the table of transitions allows, and silent after its end."""
    last: dict[int, str] = {}
    for event in events:
        state = event.kind.removeprefix(_PREFIX)
        if not event.kind.startswith(_PREFIX) or state not in ATTEMPT or event.attempt_no is None:
            continue
        before = last.get(event.attempt_no)
        last[event.attempt_no] = state
        if before in ENDED:
            yield f"{event.run_id}, attempt {event.attempt_no}: {state} after its end ({before})"
        elif before is not None and state != before and state not in _reachable(before):
            yield f"{event.run_id}, attempt {event.attempt_no}: {state} cannot come after {before}"


def _reachable(state: str) -> frozenset[str]:
    """States that may follow, at once or after others that no line tells of."""
    found: set[str] = set()
    new = set(ATTEMPT[state])
    while new:
        found |= new
        new = {after for one in new for after in ATTEMPT.get(one, ())} - found
    return frozenset(found)


def _budgets(run: Run, attempts: Sequence[Attempt], decisions: dict[str, Decision]) -> Iterator[str]:
    """What began without a person's word is within every ledger; counted anew and plainly.

    All of a play happens within the six hours after which the ledgers would forget.
    """
    restarts = int(run.spec["spec"]["faults"]["restarts"])
    for before, after in itertools.pairwise(attempts):
        decision = decisions.get(after.decision_id or "")
        if before.state == "stopped" or (decision is not None and decision.rule == "person"):
            continue
        ended = [one for one in attempts[: before.no] if one.end_class not in ("person", "unverified", "replanned")]
        within = [one for one in ended if after.created_s - (one.ended_s or 0.0) <= HOUR_S]
        machines = [one for one in within if one.end_class in INFRASTRUCTURE]
        own = [one for one in ended if one.end_class not in FREE | INFRASTRUCTURE]
        if len(within) > ATTEMPTS_PER_HOUR:
            yield f"{after.name} began after {len(within)} ends within an hour"
        if before in machines and len(machines) > INFRASTRUCTURE_PER_HOUR:
            yield f"{after.name} began after {len(machines)} restarts for the machines' sake within an hour"
        if before in own and len(own) > restarts:
            yield f"{after.name} began after {len(own)} failures of its own with a budget of {restarts}"
        charged = [one for one in reversed(ended) if one.end_class not in FREE]
        same = len(list(itertools.takewhile(lambda one, newest=before: _repeats(one, newest), charged)))
        if before in charged and same >= SAME_ROOT_WITHOUT_PROGRESS:
            yield f"{after.name} began after the same failure {same} times without progress"


def _repeats(one: Attempt, newest: Attempt) -> bool:
    """Whether it failed as the newest did, and no further from the end; steps that nobody told repeat nothing."""
    roots = {str((each.end or {}).get("fingerprint") or each.end_class) for each in (one, newest)}
    return len(roots) == 1 and None not in (one.last_step, newest.last_step) and one.last_step >= newest.last_step


def _evidence(decisions: Sequence[Decision], attempts: Sequence[Attempt]) -> Iterator[str]:
    """Every decision says why and on which evidence; what was only advised was not done; no excluded node is used."""
    for one in decisions:
        if not (one.evidence and one.reason and one.rule and one.policy_version):
            yield f"decision {one.id} has no reason or no evidence"
        if one.mode != "act" and one.executed_s is not None:
            yield f"decision {one.id} was executed in mode {one.mode}"
    for attempt in attempts:
        used = set(attempt.nodes) & set(attempt.excluded_nodes)
        if used and attempt.state != "failed":
            yield f"{attempt.name} is on {', '.join(sorted(used))}, which it excludes"


def _beginnings(attempts: Sequence[Attempt], checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """An attempt goes on from a checkpoint of an attempt before it, and begins with the step after it."""
    by_id = {one.id: one for one in checkpoints}
    for one in attempts:
        source = by_id.get(one.resume_checkpoint_id or "")
        if source is not None and source.attempt_no >= one.no:
            yield f"{one.name} goes on from a checkpoint of attempt {source.attempt_no}"
        if source is not None and source.step != one.resume_step:
            yield f"{one.name} goes on from step {one.resume_step}, its checkpoint is of {source.step}"
    for kept in checkpoints:
        writer = next((one for one in attempts if one.no == kept.attempt_no), None)
        late = writer is not None and writer.state == "abandoned" and kept.state == "validated"
        if late and writer is not None and kept.state_at_s > (writer.ended_s or 0.0):
            yield f"checkpoint {kept.step} of {writer.name} was written after that was given up, and is valid"

"""The history checker finds what it is there to find: a true history is spoilt in one way at a time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from controlplane.runs.ledger import INFRASTRUCTURE_PER_HOUR
from controlplane.store.engine import Session, Store
from controlplane.store.tables import Attempt, Checkpoint, Decision, Event
from tests.runs.history import wrongs
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    """A run that was hit, restarted without the node, proved it and is done: two attempts, one decision."""
    found = Pilot(sqlite_store, tmp_path)
    run_id = found.started(last=12)
    found.save(run_id, 10, at=-30)
    found.round(1.1)
    found.hit(found.last(run_id).nodes[1])
    for _ in range(3):
        found.round(1)
    found.train(run_id, 11, 20)
    found.finish(run_id)
    for _ in range(3):
        found.round(1)
    assert found.run(run_id).status == "succeeded" and len(found.attempts(run_id)) == 2
    return found


def change(table: Any, where: dict[str, Any], **values: Any) -> Any:
    """Rows made to say something else."""

    def spoil(session: Session) -> None:
        query = update(table).values(**values)
        for name, value in where.items():
            query = query.where(getattr(table, name) == value)
        assert session.execute(query).rowcount  # type: ignore[attr-defined]  # an UPDATE's result has one

    return spoil


def again(state: str, after: str) -> Any:
    """A line of the timeline that says a state once more, later than all of them."""

    def spoil(session: Session) -> None:
        line = session.scalars(select(Event).where(Event.kind == f"attempt_{after}")).first()
        assert line is not None
        values = {"id": "f" * 32, "at_s": line.at_s + 1e6, "kind": f"attempt_{state}", "sentence": "", "data": {}}
        session.execute(insert(Event).values(run_id=line.run_id, attempt_no=line.attempt_no, **values))

    return spoil


def copies(end_class: str, count: int) -> Any:
    """The first attempt, `count` times more, each begun without a word by anybody."""

    def spoil(session: Session) -> None:
        first, second = session.scalars(select(Attempt).order_by(Attempt.no))
        kept = {column.name: getattr(second, column.name) for column in Attempt.__table__.columns}
        session.execute(update(Attempt).where(Attempt.no == 1).values(end_class=end_class, state="failed"))
        for at in range(count):
            no, times = 3 + at, {"created_s": second.ended_s, "ended_s": second.ended_s}
            more = {"id": f"copy-{no}", "no": no, "name": f"copy-{no}", "epoch": second.epoch + 1 + at, **times}
            session.execute(insert(Attempt).values(**{**kept, **more, "end_class": end_class, "state": "failed"}))
        session.execute(update(Attempt).where(Attempt.no == 2).values(end_class=end_class, state="failed"))
        session.execute(delete(Event).where(Event.kind.like("attempt_%")))
        assert first.run_id == second.run_id

    return spoil


def late_checkpoint(session: Session) -> None:
    """The first attempt was given up, and what it saved afterwards is held to be good."""
    session.execute(update(Attempt).where(Attempt.no == 1).values(state="abandoned"))
    session.execute(update(Checkpoint).where(Checkpoint.step == 10).values(state="validated", state_at_s=4e9))


SPOILT: dict[str, tuple[Any, str]] = {
    "a gap in the numbers": (change(Attempt, {"no": 2}, no=3), "attempt 3 stands in place 2"),
    "an epoch that does not grow": (change(Attempt, {"no": 2}, epoch=1), "epoch 1 does not follow 1"),
    "an attempt beside a live one": (change(Attempt, {"no": 1}, ended_s=None, state="training"), "has not ended"),
    "an attempt planned too early": (change(Attempt, {"no": 2}, created_s=1.0), "before .* ended"),
    "an end without a time": (change(Attempt, {"no": 2}, ended_s=None), "has no time of its end"),
    "a time without an end": (change(Attempt, {"no": 2}, state="training"), "has a time of its end"),
    "a state after the end": (again("training", "superseded"), "training after its end"),
    "an end that no table allows": (
        change(Event, {"kind": "attempt_superseded"}, kind="attempt_planned"),
        "cannot come",
    ),
    "a late checkpoint of who was given up": (late_checkpoint, "was written after that was given up, and is valid"),
    "the cluster's failures without end": (copies("killed", INFRASTRUCTURE_PER_HOUR), "for the machines' sake"),
    "the run's own failures without end": (copies("error", 9), "failures of its own with a budget of 8"),
    "one failure again and again": (copies("error", 3), "the same failure 3 times without progress"),
    "more ends than any hour may have": (copies("saved", 25), "ends within an hour"),
    "a decision without evidence": (change(Decision, {}, evidence=[]), "no reason or no evidence"),
    "a decision without a reason": (change(Decision, {}, reason=""), "no reason or no evidence"),
    "advice that was carried out": (change(Decision, {}, mode="advise"), "executed in mode advise"),
    "an excluded node in use": (change(Attempt, {"no": 2}, nodes=["node-1", "node-2"]), "which it excludes"),
    "a checkpoint of a later attempt": (
        change(Checkpoint, {"step": 10}, attempt_no=2),
        "from a checkpoint of attempt 2",
    ),
    "another step than its checkpoint's": (change(Attempt, {"no": 2}, resume_step=8), "its checkpoint is of 10"),
}


def test_a_true_history_has_nothing_wrong(pilot: Pilot) -> None:
    assert wrongs(pilot.store) == []


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_history_is_found(pilot: Pilot, how: str) -> None:
    spoil, words = SPOILT[how]
    with pilot.store.write() as session:
        spoil(session)
    found = wrongs(pilot.store)
    assert any(re.search(words, one) for one in found), found

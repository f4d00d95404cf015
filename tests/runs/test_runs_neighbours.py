"""Several runs side by side: one run's trouble is its own, and who is in trouble is not kept waiting."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event

from controlplane.services import incidents as incident_service
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def check(pilot: Pilot) -> None:
    pilot.greet()
    incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())


def test_a_hang_that_blames_no_node_restarts_the_run_that_hangs(pilot: Pilot) -> None:
    first, second = pilot.started(nodes=1), pilot.started(name="second", nodes=1)
    pilot.clock.advance(90)
    pilot.beat(first, 1, 60)
    check(pilot)
    for _ in range(3):
        pilot.round(1)
    assert pilot.decisions(first) == [] and pilot.last(first).no == 1
    (decision,) = pilot.decisions(second)
    assert (decision.fingerprint, decision.action, decision.excluded_nodes) == ("hang", "restart", [])
    assert pilot.last(second).no == 2


def test_two_runs_that_hang_at_once_are_both_restarted(pilot: Pilot) -> None:
    both = (pilot.started(nodes=1), pilot.started(name="second", nodes=1))
    pilot.clock.advance(90)
    check(pilot)
    for _ in range(3):
        pilot.round(1)
    assert [pilot.last(run_id).no for run_id in both] == [2, 2]


def test_who_is_in_trouble_comes_first(pilot: Pilot) -> None:
    older, newer = pilot.started(nodes=1), pilot.started(name="second", nodes=1)
    pilot.end(older, "failed")
    pilot.hit(pilot.last(newer).nodes[0])
    moves = pilot.round(1)
    assert moves[0].startswith(newer)
    assert {pilot.last(run_id).no for run_id in (older, newer)} == {2}


def test_what_all_runs_have_in_common_is_read_once_a_round(pilot: Pilot) -> None:
    """However many runs are steady: nodes, faults and decisions of all of them; and never the nodes' whole facts."""
    said: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_more: object) -> None:
        said.append(" ".join(statement.split()))

    def reads(table: str) -> int:
        return sum(f"FROM {table}" in one for one in said)

    counts = []
    for number in range(4):
        pilot.started(name=f"run-{number}", nodes=1, last=5)
        pilot.round(1.1)
        pilot.round(0.1)  # between two looks at the disks
        event.listen(pilot.store._engine, "before_cursor_execute", note)
        pilot.controller.reconcile_once(pilot.epoch, pilot.clock.now())
        event.remove(pilot.store._engine, "before_cursor_execute", note)
        counts.append((reads("nodes"), reads("faults"), reads("incidents")))
        assert not any("nodes.facts" in one for one in said), "nobody is placed: only who was heard is asked"
        said.clear()
    assert counts == [(1, 2, 1)] * 4


def test_a_round_places_two_runs_on_different_nodes(pilot: Pilot) -> None:
    """The second sees what the first has just taken, although the backend has started nothing yet."""
    first, second = pilot.submit(nodes=2), pilot.submit(name="second", nodes=2)
    pilot.round(1)
    assert sorted(pilot.last(first).nodes + pilot.last(second).nodes) == pilot.names
    assert [one.state for one in (pilot.last(first), pilot.last(second))] == ["pending", "pending"]

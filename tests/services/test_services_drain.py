"""A person empties a node: nothing new comes, what is there saves and goes on elsewhere; it can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.services import nodes as people
from controlplane.services import runs as run_service
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def drain(pilot: Pilot, name: str) -> list[people.Asked]:
    with pilot.store.write() as session:
        return people.drain(session, name, actor="ada", reason="new fan", now=pilot.clock.now())


def test_what_runs_on_a_drained_node_saves_and_goes_on_without_it(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    pilot.save(run_id, 20)
    name = pilot.last(run_id).nodes[1]
    assert drain(pilot, name) == [people.Asked(run_id, "trial")]
    pilot.backend.attempts[pilot.last(run_id).name].stuck = True  # it takes its time to save
    pilot.round(1)
    assert pilot.last(run_id).state == "draining"
    assert (pilot.node(name).state, pilot.node(name).cordoned) == ("drained", True)
    pilot.end(run_id, "failed", code=75, **{"class": "saved"})
    pilot.round(1)
    pilot.round(1)
    second = pilot.last(run_id)
    assert (second.no, second.resume_step) == (2, 20) and name not in second.nodes
    (decision,) = pilot.decisions(run_id)
    assert decision.action == "restart_exclude" and decision.excluded_nodes == [name] and "ada" in decision.reason
    with pilot.store.write() as session:
        people.give_back(session, name, actor="ada", reason="", now=pilot.clock.now())
    assert (pilot.node(name).state, pilot.node(name).cordoned) == ("healthy", False)


def test_an_idle_node_is_drained_at_once_and_nobody_is_disturbed(pilot: Pilot) -> None:
    run_id = pilot.started()
    idle = next(name for name in pilot.names if name not in pilot.last(run_id).nodes)
    assert drain(pilot, idle) == []
    pilot.round(1)
    assert pilot.last(run_id).state == "training" and pilot.node(idle).state == "drained"


def test_a_run_that_is_leaving_is_not_called_back(pilot: Pilot) -> None:
    run_id = pilot.started()
    run_service.stop(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    (asked,) = drain(pilot, pilot.last(run_id).nodes[0])
    assert "asked to cancel" in asked.why and pilot.run(run_id).desired == "cancel"


def test_a_run_that_is_being_restarted_is_named_with_the_reason(pilot: Pilot) -> None:
    run_id = pilot.started()
    first, second = pilot.last(run_id).nodes
    drain(pilot, first)
    (asked,) = drain(pilot, second)
    assert "is being restarted already" in asked.why and pilot.node(second).state == "drained"


def test_a_node_that_is_none_is_said_so(pilot: Pilot) -> None:
    with pytest.raises(people.NodeNotFound, match="there is no node nowhere"):
        drain(pilot, "nowhere")

"""The second walk, in the order of ARCHITECTURE.md: a spec becomes a run, is hit, and goes on at exactly the manifest's
step. Store, controller, incidents and checkpoints are the real ones; only the cluster is scripted.
"""

from __future__ import annotations

from pathlib import Path

from controlplane.services import views_why
from controlplane.store import runs
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt
from tests.runs.piloting import Pilot


def test_a_spec_becomes_a_run_that_survives_a_fault(sqlite_store: Store, tmp_path: Path) -> None:
    pilot = Pilot(sqlite_store, tmp_path)

    # load: the spec is valid and the run is queued; nothing runs yet
    run_id = pilot.submit(steps=100)
    assert pilot.run(run_id).status == "queued"
    assert pilot.submissions() == []

    # plan, act: the whole intent is a row before the backend hears of it
    pilot.round()
    first = pilot.last(run_id)
    assert (first.no, first.epoch, first.resume_step) == (1, 1, None)
    assert pilot.submissions() == [first.name]
    assert first.spec_hash and len(first.nodes) == 2

    # observe: heartbeats and manifests are all that is believed
    pilot.train(run_id, 1, 47)
    assert pilot.last(run_id).state == "training"
    pilot.save(run_id, 40, at=-20.0)
    pilot.round(2.0)
    assert [(one.step, one.state) for one in pilot.checkpoints(run_id)] == [(40, "validated")]

    # decide: a memory error on one node; a checkpoint of the suspicion window is whole, and still not to be trusted
    faulty = first.nodes[1]
    pilot.round(2.0)
    pilot.save(run_id, 48)
    pilot.hit(faulty)
    pilot.round(1.0)
    (decision,) = pilot.decisions(run_id)
    assert (decision.action, decision.excluded_nodes, decision.mode) == ("restart_exclude", [faulty], "act")
    assert faulty in decision.reason and decision.evidence

    resumes_from_what_is_clean(pilot, run_id, first, faulty)

    # verify: a fresh look, and the first completed step is the manifest's step + 1
    pilot.train(run_id, 41, 43)
    (decision,) = pilot.decisions(run_id)
    assert decision.state == "verified"
    pilot.finish(run_id)
    pilot.round(1.0)
    assert pilot.run(run_id).status == "succeeded"

    is_told_as_one_story(sqlite_store, pilot, run_id, faulty)


def resumes_from_what_is_clean(pilot: Pilot, run_id: str, first: Attempt, faulty: str) -> None:
    # act: the ranks are killed without saving, the node leaves service, the next attempt resumes from what is clean
    assert ("kill", first.name) in pilot.backend.calls
    pilot.round(1.0)
    assert {one.step: one.state for one in pilot.checkpoints(run_id)} == {40: "validated", 48: "tainted"}
    assert pilot.node(faulty).cordoned
    second = pilot.last(run_id)
    assert (second.no, second.epoch, second.resume_step) == (2, 2, 40)
    assert faulty not in second.nodes
    assert pilot.attempts(run_id)[0].state == "superseded"
    assert len(pilot.live(run_id)) == 1


def is_told_as_one_story(store: Store, pilot: Pilot, run_id: str, faulty: str) -> None:
    # tell: one story, with what it cost
    with store.read() as session:
        run = runs.get(session, run_id)
        assert run is not None
        told = views_why.why(session, run, pilot.clock.now())
    (card,) = told["restarts"]
    assert (card["after"]["resume_step"], card["after"]["first_step"], card["steps_again"]) == (40, 41, 7)
    assert faulty in card["sentence"] and "checkpoint 40" in card["sentence"]
    assert any("tainted" in line["sentence"] for line in told["timeline"])

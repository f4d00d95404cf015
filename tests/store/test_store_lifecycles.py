"""Lifecycles on both databases: walked to their end, tainted, listed; an approval is used once, a run numbered once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from controlplane.services import lifecycles_cost, lifecycles_lineage, lifecycles_rows
from controlplane.store import leases, lifecycles, runs
from controlplane.store.engine import Store, StoreConflict
from controlplane.store.tables import StageRun
from controlplane.store.tables_training import StepChunk
from tests.runs.conducting import Conducting, gate


@pytest.fixture
def walk(store: Store, tmp_path: Path) -> Conducting:
    return Conducting(store, tmp_path)


def test_a_lifecycle_walks_and_its_lineage_is_told(walk: Conducting) -> None:
    made = walk.begin({"name": "a", "gate": gate("loss < 2.6"), "promote": "base"}, {"name": "b"})
    assert walk.walk(made) == "succeeded"
    base, tuned = (walk.stages(made)[name].candidate_hash for name in ("a", "b"))
    walk.taint(base)
    walk.tick()
    with walk.store.read() as session:
        found = lifecycles.get(session, "walk")
        assert found is not None and found.id == made
        told = lifecycles_lineage.graph(session, found)
        assert lifecycles.made_from_tainted(session) == []
    nodes = {one["hash"]: one for one in told["nodes"]}
    assert {hash_: (one["stage"], one["tainted"], one["aliases"]) for hash_, one in nodes.items()} == {
        base: ("a", True, ["base"]),
        tuned: ("b", True, []),
    }
    assert told["edges"] == [{"from": base, "to": tuned, "kind": "init"}]
    assert [(one["stage"], one["tainted"], one["metrics"].get("loss")) for one in told["stages"]] == [
        ("a", True, 2.0),
        ("b", True, None),
    ]


def test_lifecycles_come_newest_first_and_by_pages(walk: Conducting) -> None:
    made = []
    for number in range(3):
        made.append(walk.begin({"name": "a"}, name=f"walk-{number}"))
        walk.clock.advance(1.0)
    with walk.store.read() as session:
        first = lifecycles.listed(session, limit=2)
        second = lifecycles.listed(session, limit=2, before=first[-1].id)
        assert [one.id for one in [*first, *second]] == made[::-1]
        assert lifecycles.listed(session, ("succeeded",)) == []
        assert lifecycles.unfinished(session) == made
        assert lifecycles.newest(session, "walk-1", before_s=walk.clock.now()) is not None
        assert lifecycles.newest(session, "walk-0", before_s=0.0) is None


def listed(walk: Conducting, limit: int = 100) -> tuple[list[Any], int]:
    """The list, and how many questions it took."""
    asked: list[str] = []
    with walk.store.read() as session:
        bind = session.get_bind()
        event.listen(bind, "before_cursor_execute", count := lambda *given: asked.append(given[2]))
        rows = lifecycles_rows.rows(session, statuses=None, limit=limit, before=None, now=walk.clock.now())
        event.remove(bind, "before_cursor_execute", count)
    return rows, len(asked)


def test_a_list_with_progress_and_cost_asks_as_often_for_many_lifecycles_as_for_one(walk: Conducting) -> None:
    made = [walk.begin({"name": "a"}, {"name": "b"}, name=f"walk-{number}") for number in range(3)]
    walk.tick()
    for lifecycle_id in made:
        walk.train(walk.newest(lifecycle_id, "a").run.id, 1, 4)
    walk.clock.advance(450.0)
    (one, few), (rows, many) = listed(walk, 1), listed(walk)
    assert few == many and len(one) == 1
    assert {one["id"]: [stage["name"] for stage in one["stages"]] for one in rows} == {id_: ["a", "b"] for id_ in made}
    assert {one["created_by"] for one in rows} == {"ada"}
    for row in rows:
        assert (row["progress"]["step"], row["progress"]["steps"], row["progress"]["share"]) == (4, 10, 0.4)
        assert row["cost"] == walk.shown(row["id"])["cost"]
        assert 0.9 < row["cost"]["used_gpu_h"] < 1.1, "8 GPUs for 450 s"


def test_the_cost_of_what_has_ended_is_kept_and_the_list_stays_the_same(walk: Conducting) -> None:
    made = walk.begin({"name": "a", "gate": gate(approval=True)})
    walk.walk(made)
    (before,), _ = listed(walk)
    assert lifecycles_cost.keep_once(walk.store, walk.epoch, walk.clock.now()) == 0, (
        "its last batches may be on the way"
    )
    walk.clock.advance(61.0)
    assert lifecycles_cost.keep_once(walk.store, walk.epoch, walk.clock.now()) == 1
    assert lifecycles_cost.keep_once(walk.store, walk.epoch, walk.clock.now()) == 0
    (after,), _ = listed(walk)
    assert after["cost"] == pytest.approx(before["cost"]) and after["cost"]["used_gpu_h"] > 0
    assert walk.shown(made)["cost"] == pytest.approx(before["cost"])
    assert (after["progress"]["role"], after["progress"]["share"]) == ("train", 1.0)
    with walk.store.write() as session:
        for one in lifecycles.runs_of(session, made):
            one.work.used_gpu_h = None
    with pytest.raises(leases.LeaseLost):
        lifecycles_cost.keep_once(walk.store, walk.epoch + 1, walk.clock.now())


def test_a_run_whose_records_are_damaged_keeps_nobody_elses_cost_from_being_kept(walk: Conducting) -> None:
    made = [walk.begin({"name": "a", "gate": gate(approval=True)}, name=name) for name in ("one", "two")]
    for id_ in made:
        walk.walk(id_)
    walk.clock.advance(61.0)
    with walk.store.write() as session:
        damaged, sound = (lifecycles.runs_of(session, id_)[0].run.id for id_ in made)
        chunk = {"attempt_no": 1, "first_step": 1, "last_step": 1, "records": 1, "codec": "raw"}
        session.add(StepChunk(**chunk, run_id=damaged, blob=b"no records"))
    assert lifecycles_cost.keep_once(walk.store, walk.epoch, walk.clock.now()) == 1
    with walk.store.read() as session:
        kept = [lifecycles.work_of(session, run_id) for run_id in (damaged, sound)]
        assert [work is not None and work.used_gpu_h is not None for work in kept] == [False, True]


def test_a_locked_row_is_what_was_written_last_not_what_was_read_before(
    postgresql_store: Store, tmp_path: Path
) -> None:
    walk = Conducting(postgresql_store, tmp_path)
    made = walk.begin({"name": "a"})
    run_id = walk.submit()
    with walk.store.write() as session:
        before, run = lifecycles.get(session, made), runs.get(session, run_id)
        assert before is not None and run is not None
        walk.ask(made, "pause")
        with walk.store.write() as other:
            found = lifecycles.locked(other, made)
            theirs = runs.locked(other, run_id)
            assert found is not None and theirs is not None
            found.stages[0].reason, theirs.desired = "changed", "pause"
        mine = lifecycles.locked(session, made)
        assert mine is not None
        assert (mine.state.desired, mine.stages[0].reason) == ("pause", "changed")
        assert runs.locked(session, run_id) is run and run.desired == "pause"


def test_an_approval_is_used_once(walk: Conducting) -> None:
    made = walk.begin({"name": "a", "gate": gate(approval=True)})
    with walk.store.write() as session:
        words = {"stage": "a", "verdict": "approved", "actor": "bob", "checkpoint_hash": "ab" * 32}
        word = lifecycles.add_approval(session, now=1.0, lifecycle_id=made, **words)
        lifecycles.use_approval(session, word.id, now=2.0)
        with pytest.raises(LookupError, match="no open approval"):
            lifecycles.use_approval(session, word.id, now=3.0)


def test_a_run_of_a_role_is_numbered_once(walk: Conducting) -> None:
    made = walk.begin({"name": "a"})
    walk.tick()
    other = walk.submit()
    again = {"lifecycle_id": made, "stage": "a", "role": "train", "item": "", "no": 1, "round": 1}
    with pytest.raises(StoreConflict), walk.store.write() as session:
        session.add(StageRun(run_id=other, **again))


def test_two_runs_that_continue_each_other_are_one_way(walk: Conducting) -> None:
    made = walk.begin({"name": "a"}, {"name": "b"})
    walk.tick()
    first = walk.newest(made, "a").run.id
    walk.train(first, 1, 5)
    walk.save(first, 5)
    walk.tick()
    with walk.store.write() as session:
        found = lifecycles.locked(session, made)
        assert found is not None
        stage = found.stage("a")
        assert stage is not None
        lifecycles.move_stage(stage, "held", reason="for the test", now=walk.clock.now(), hold="failed")
        run = lifecycles.runs_of(session, made)[0].run
        run.desired = "cancel"
    for _ in range(4):
        walk.tick()
    walk.retry(made, "a")
    assert walk.walk(made) == "succeeded"
    second = walk.newest(made, "a").run.id
    saved = {one.step: one.hash for one in [*walk.checkpoints(first), *walk.checkpoints(second)]}
    with walk.store.read() as session:
        executed = lifecycles.get(session, made)
        assert executed is not None
        told = lifecycles_lineage.graph(session, executed)
    assert {"from": saved[5], "to": saved[10], "kind": "resumed"} in told["edges"]
    walk.taint(saved[5])
    walk.tick()
    assert {one.state for one in walk.checkpoints(second)} == {"tainted"}
    assert {one.state for one in walk.checkpoints(walk.newest(made, "b").run.id)} == {"tainted"}

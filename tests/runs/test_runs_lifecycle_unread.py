"""A stage whose run's disk cannot be read waits, says so while it lasts, and goes on; nothing is decided by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.services import lifecycles_rows
from controlplane.services.lifecycles_unread import TOLD_S
from tests.runs.conducting import Conducting, gate


@pytest.fixture
def trained(walk: Conducting) -> tuple[str, str]:
    """A lifecycle whose first stage has trained to its end, and the run."""
    made = walk.begin({"name": "a"}, {"name": "b"})
    walk.tick()
    run_id = walk.newest(made, "a").run.id
    walk.beat(run_id, 1, 10)
    walk.save(run_id, 10)
    walk.backend.end(walk.last(run_id).name, "succeeded")
    return made, run_id


def away(path: Path) -> Path:
    """The disk is gone, as an unmounted one; where it is kept meanwhile."""
    return path.rename(path.with_name("kept"))


def test_it_is_seen_at_once_told_once_and_gone_when_it_can_be_read(walk: Conducting, trained: tuple[str, str]) -> None:
    made, run_id = trained
    folder = walk.places.run(run_id)
    kept = away(folder)
    for _ in range(2):
        walk.tick()
    first = walk.shown(made)["stages"][0]
    assert (first["state"], first["reason"], first["unread"]["run"]) == ("training", "", run_id)
    assert first["unread"]["why"] == f"{folder}/attempt-0001: No such file or directory"
    assert walk.told(made, "stage_unread") == []
    for seconds in (TOLD_S, TOLD_S, 60.0):
        walk.tick(seconds)
    (told,) = walk.told(made, "stage_unread")
    assert told.sentence.startswith(f"Stage a waits: cannot read {folder}/attempt-0001: No such file")
    shown = walk.shown(made)
    seconds = walk.clock.now() - shown["stages"][0]["unread"]["since_s"]
    assert f", for 1 m {seconds - 60:02.0f} s now. " in shown["stages"][0]["unread"]["sentence"]
    with walk.store.read() as session:
        (row,) = lifecycles_rows.rows(session, statuses=None, limit=9, before=None, now=walk.clock.now())
    assert row["waits_for_disk"] and row["reason"].startswith("Stage a waits: cannot read ")
    kept.rename(folder)
    walk.tick()
    after = walk.shown(made)
    assert (after["stages"][0]["state"], after["stages"][0]["unread"]) == ("passed", None)
    assert not after["waits_for_disk"]
    (read,) = walk.told(made, "stage_read")
    assert read.sentence.startswith(f"The disk of run {run_id} can be read again after 1 m ")


def test_a_hiccup_leaves_no_line_and_a_cancelled_one_is_not_called_readable(
    walk: Conducting, trained: tuple[str, str]
) -> None:
    made, run_id = trained
    kept = away(walk.places.run(run_id))
    for _ in range(2):
        walk.tick()
    kept.rename(walk.places.run(run_id))
    walk.tick()
    assert walk.stages(made)["a"].state == "passed"
    assert walk.told(made, "stage_unread", "stage_read") == []
    walk.work_all(made)
    second = walk.newest(made, "b").run.id
    away(walk.places.run(second))
    for _ in range(4):
        walk.tick(TOLD_S)
    assert len(walk.told(made, "stage_unread")) == 1
    walk.ask(made, "cancel")
    walk.tick()
    assert (walk.state(made).status, walk.stages(made)["b"].unread) == ("cancelled", None)
    assert walk.told(made, "stage_read") == []


def test_a_new_leader_knows_since_when(walk: Conducting, trained: tuple[str, str]) -> None:
    made, run_id = trained
    away(walk.places.run(run_id))
    for _ in range(2):
        walk.tick()
    since_s = (walk.stages(made)["a"].unread or {})["since_s"]
    walk.controller = walk.new_controller()
    for _ in range(3):
        walk.tick(TOLD_S)
    assert (walk.stages(made)["a"].unread or {})["since_s"] == since_s
    assert len(walk.told(made, "stage_unread")) == 1


def test_a_result_that_cannot_be_read_is_no_result_of_any_kind(walk: Conducting) -> None:
    made = walk.begin({"name": "a", "gate": gate("loss < 2.6")})
    for _ in range(6):
        walk.tick()
        walk.work_all(made)
        if any(one.work.role == "evaluate" and one.run.status == "active" for one in walk.works(made)):
            break
    run_id = walk.newest(made, "a", "evaluate").run.id
    result = walk.places.attempt(run_id, 1) / "result.json"
    kept = away(result)
    result.symlink_to(result.name)  # opening it is an error of the disk, as a stale handle is
    for _ in range(3):
        walk.tick()
    stage = walk.stages(made)["a"]
    assert (stage.state, walk.run(run_id).status) == ("evaluating", "succeeded")
    assert (stage.unread or {})["why"].startswith(f"{result}: ")
    result.unlink()
    kept.rename(result)
    walk.tick()
    assert walk.stages(made)["a"].state == "passed"

"""What pages show of runs, made from the rows that the controller really writes; and the preflight's sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.services import preflight, views_runs, views_why
from controlplane.services import runs as service
from controlplane.store import steps
from controlplane.store.engine import Store
from jobs.spec import load_template
from tests.runs.piloting import Pilot
from tests.services.batches import step_record


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def record(pilot: Pilot, run_id: str, no: int, first: int, last: int, **changes: Any) -> None:
    """Two ranks' step records, half a second a step, the last one a second ago."""
    now = pilot.clock.now()
    values = {"run_id": run_id, "attempt_no": no, "step_seconds": 0.5, **changes}
    with pilot.store.write() as session:
        steps.add(
            session,
            [
                step_record(step, rank, at_s=now - 1 - (last - step) * 0.5, **values)
                for step in range(first, last + 1)
                for rank in (0, 1)
            ],
        )


def restarted(pilot: Pilot) -> str:
    """A run that lost a node at step 20, went on from 10, and is at 30."""
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 20)
    pilot.save(run_id, 10, at=-30)
    pilot.round(1)
    pilot.hit()
    pilot.round(0.5)
    pilot.round(2)
    pilot.clock.advance(10)
    pilot.train(run_id, 11, 30)
    record(pilot, run_id, 2, 11, 30)
    return run_id


def row(pilot: Pilot, run_id: str) -> dict[str, Any]:
    with pilot.store.read() as session:
        found = views_runs.rows(session, statuses=None, limit=10, before=None, now=pilot.clock.now())
    json.dumps(found, allow_nan=False)
    return next(one for one in found if one["id"] == run_id)


def view(pilot: Pilot, run_id: str) -> dict[str, Any]:
    with pilot.store.read() as session:
        found = views_runs.view(session, pilot.run(run_id), pilot.clock.now())
    json.dumps(found, allow_nan=False)
    return found


def why(pilot: Pilot, run_id: str) -> dict[str, Any]:
    with pilot.store.read() as session:
        found = views_why.why(session, pilot.run(run_id), pilot.clock.now())
    json.dumps(found, allow_nan=False)
    return found


def test_a_row_of_a_run_that_waits_knows_nothing_and_says_so(pilot: Pilot) -> None:
    run_id = pilot.submit(nodes=9)
    pilot.round()
    found = row(pilot, run_id)
    assert (found["status"], found["attempt"], found["attempt_state"], found["nodes"]) == ("queued", 0, None, [])
    assert "5 more nodes of 9" in found["reason"]
    unknown = ("step", "progress", "eta", "tokens_per_s", "loss", "age_s")
    assert [found[name] for name in unknown] == [None] * len(unknown)
    assert found["gpus"] == 72 and found["simulated"] is True


def test_a_row_of_a_run_that_trains(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 20, tokens=1000, loss=2.5)
    found = row(pilot, run_id)
    assert (found["status"], found["attempt"], found["attempt_state"]) == ("active", 1, "training")
    assert (found["step"], found["steps"], found["progress"]) == (20, 100, 0.2)
    assert found["loss"] == 2.5 and found["tokens_per_s"] == pytest.approx(2000)
    assert found["eta"]["low_s"] < 80 * 0.5 < found["eta"]["high_s"]
    assert found["age_s"] == pytest.approx(1.0)


def test_a_loss_that_is_no_number_is_none(pilot: Pilot) -> None:
    run_id = pilot.started(last=3)
    record(pilot, run_id, 1, 1, 3, loss=float("nan"))
    assert row(pilot, run_id)["loss"] is None
    with pilot.store.read() as session:
        (series,) = views_runs.step_series(session, run_id)["attempts"]
    assert series["loss"] == [None] * 3 and series["tokens_per_s"][0] is None


def test_a_whole_run(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    found = view(pilot, run_id)
    first, second = found["attempts"]
    assert (first["state"], first["end_class"], first["last_step"]) == ("superseded", "hardware", 20)
    assert (second["resume_step"], second["first_step"], second["last_step"]) == (10, 11, 30)
    assert second["nodes"] == ["node-0", "node-2"] and second["excluded_nodes"] == ["node-1"]
    for attempt in found["attempts"]:
        phases = attempt["phases"]
        assert all(one["from_s"] <= one["to_s"] for one in phases[:-1])
        assert [one["to_s"] for one in phases[:-1]] == [one["from_s"] for one in phases[1:]], "no gap, no overlap"
    assert first["phases"][-1]["to_s"] == first["ended_s"] and second["phases"][-1]["to_s"] is None
    (decision,) = found["decisions"]
    assert (decision["state"], decision["incident"], decision["resume_step"]) == ("verified", 1, 10)
    assert decision["budgets"]["after"]["infrastructure_last_hour"] == 1
    assert [one["number"] for one in found["incidents"]] == [1]
    assert found["last_checkpoint"]["step"] == 10 and found["last_checkpoint"]["age_s"] > 30
    assert {one["path"] for one in found["diff"]} >= {"metadata.name", "spec.train.steps"}
    assert "steps: 100" in found["yaml"] and found["step_seconds"]["median"] == 0.5
    assert (found["lifecycle"]["name"], found["stages"]) == ("trial", ["pretrain"])


def test_a_manifest_is_read_from_its_disk_and_not_from_the_store(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    kept = pilot.checkpoints(run_id)[0]
    told = service.manifest(pilot.store, run_id, kept.id)
    assert (told["step"], told["attempt_no"], told["run_id"], told["parent"]) == (10, 1, run_id, None)
    assert [file["name"] for file in told["files"]] == ["model.bin"]
    (Path(kept.path) / "MANIFEST.json").write_text("{}")
    with pytest.raises(service.RunRefused, match="manifest cannot be read"):
        service.manifest(pilot.store, run_id, kept.id)
    with pytest.raises(service.RunRefused, match="has no checkpoint nope"):
        service.manifest(pilot.store, run_id, "nope")
    with pytest.raises(service.RunNotFound):
        service.manifest(pilot.store, "nowhere", kept.id)


def test_the_gpu_hours_of_a_restart_add_up(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    found = view(pilot, run_id)["goodput"]
    # 10 steps before the checkpoint and 20 after it count, of half a second each
    assert found["productive_gpu_h"] == pytest.approx(30 * 0.5 * 16 / 3600)
    assert found["unattributed_percent"] == pytest.approx(0, abs=1e-6)
    assert all(one["gpu_h"] == pytest.approx(one["seconds"] * 16 / 3600) for one in found["lost"])


def test_the_story_of_a_restart(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    found = why(pilot, run_id)
    (card,) = found["restarts"]
    assert (card["incident"], card["steps_again"]) == (1, 10)
    assert card["before"] == {"no": 1, "last_step": 20}
    assert card["after"] == {"no": 2, "first_step": 11, "resume_step": 10}
    assert "on spare node-2 from checkpoint 10" in card["sentence"] and "10 steps were run twice" in card["sentence"]
    assert all(bold in card["sentence"] for bold in card["bold"])
    assert sum(one["seconds"] for one in card["phases"] if one["color_role"] != "again") == pytest.approx(
        card["back_after_s"]
    )
    assert {one["kind"] for one in card["evidence"]} == {"fault", "incident", "decision", "verification"}
    assert card["fault"]["rule"] == "hbm-uncorrectable" and card["decision"]["action"] == "restart_exclude"
    lines = found["timeline"]
    assert [one["at_s"] for one in lines] == sorted(one["at_s"] for one in lines)
    assert all(one["sentence"] and one["lane"] in ("hardware", "rule", "run") for one in lines)


def test_a_story_told_while_it_happens_says_what_is_not_there_yet(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    pilot.backend.attempts[f"{run_id}-1"].stuck = True
    pilot.hit()
    pilot.round(0.5)
    assert why(pilot, run_id)["restarts"] == []
    pilot.end(run_id, "failed")
    pilot.round(2)
    pilot.round(30)
    (card,) = why(pilot, run_id)["restarts"]
    assert card["back_after_s"] is None and "not back yet" in card["sentence"]
    assert card["after"]["first_step"] is None and "from step 0" in card["sentence"]
    assert sum(one["seconds"] for one in card["phases"]) == pytest.approx(pilot.clock.now() - card["at_s"])


def test_a_run_that_waits_says_for_what(pilot: Pilot) -> None:
    waiting = pilot.submit(nodes=5)
    pilot.round(0)
    assert why(pilot, waiting)["waits"] == "It is queued: 1 more node of 5 needed: no other node is known."
    assert why(pilot, pilot.started(last=20, name="other"))["waits"] == ""


def test_faults_and_restarts_of_a_node_with_a_wrong_clock_are_told_by_the_servers(pilot: Pilot) -> None:
    pilot.behind_s = 600.0
    run_id = restarted(pilot)
    (card,) = why(pilot, run_id)["restarts"]
    assert 10 < card["back_after_s"] < 30


def test_steps_are_thinned_but_keep_their_ends(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 500)
    with pilot.store.read() as session:
        found = views_runs.step_series(session, run_id, points=50)
    (series,) = found["attempts"]
    assert len(series["step"]) == 50 and (series["step"][0], series["step"][-1]) == (1, 500)
    assert len({len(values) for name, values in series.items() if name != "no"}) == 1
    assert found["tokens_per_step"] == 2048


# --- preflight ---


def spec(nodes: int = 2, **train: Any) -> dict[str, Any]:
    made = load_template("toy").to_dict()
    made["spec"]["resources"]["nodes"] = nodes
    made["spec"]["train"].update(train)
    return made


def checked(pilot: Pilot, source: dict[str, Any] | str) -> dict[str, Any]:
    return preflight.check(pilot.store, pilot.backend, pilot.places, source, pilot.clock.now())


def lines(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["name"]: (one["level"], one["sentence"]) for one in found["checks"]}


def test_a_spec_with_problems_is_not_judged_further(pilot: Pilot) -> None:
    found = checked(pilot, spec(nodes=0))
    assert [one["path"] for one in found["problems"]] == ["resources.nodes"]
    assert found["sentence"] == "1 thing to mend before this can be submitted." and found["checks"] == []


def test_a_spec_that_fits_says_so(pilot: Pilot) -> None:
    found = checked(pilot, spec())
    assert found["sentence"].startswith("2 nodes would start at once; how long it runs is unknown")
    assert lines(found)["nodes"] == ("ok", "4 of 4 nodes can be used, 2 are needed")
    assert lines(found)["spares"] == ("ok", "2 nodes left if one fails")
    assert found["queue"] == {"ahead": 0, "free_nodes": 4} and found["gpu_hours"] is None
    assert all(one["ok"] for one in found["candidates"])


def test_what_is_taken_or_lacking_is_named(pilot: Pilot) -> None:
    pilot.started()
    found = checked(pilot, spec(nodes=3))
    level, sentence = lines(found)["nodes"]
    assert (
        level == "warn"
        and "2 of 3 nodes are free now" in sentence
        and "2 in use by another run (node-0, node-1)" in sentence
    )
    assert found["sentence"].startswith("3 nodes would wait for 1 more to be free")
    more = checked(pilot, spec(nodes=5))
    assert lines(more)["nodes"] == ("warn", "5 nodes are asked for, 4 exist")
    assert more["sentence"].startswith("5 nodes would wait for 2 more to be free and for 1 more node to join;")
    assert lines(checked(pilot, spec(nodes=4)))["spares"][0] == "warn"


def test_a_backend_that_cannot_be_asked_is_said(pilot: Pilot) -> None:
    pilot.backend.reachable = False
    found = checked(pilot, spec())
    assert lines(found)["nodes"] == ("warn", "the backend cannot be asked for its nodes right now")
    assert "would start at once" not in found["sentence"] and "spares" not in lines(found)


def test_the_cost_comes_from_earlier_runs_of_the_name(pilot: Pilot) -> None:
    run_id = pilot.started(last=1, name="zaya-toy")
    pilot.clock.advance(50)
    pilot.beat(run_id, 1, 101)
    pilot.end(run_id, "succeeded")
    pilot.round(0)
    found = checked(pilot, spec(steps=200))
    assert found["gpu_hours"] == pytest.approx(200 * 0.5 * 16 / 3600)
    assert "run about 1 m 40 s" in found["sentence"]


def test_a_checkpoint_rhythm_longer_than_the_run_is_warned_of(pilot: Pilot) -> None:
    assert lines(checked(pilot, spec(steps=5, checkpointEvery=10)))["checkpoints"][0] == "warn"

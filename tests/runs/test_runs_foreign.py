"""Runs whose trainer writes no manifest: their checkpoints are found by layout, believed when they stand still, resumed
in the trainer's own words, tainted as any, and a start from scratch is seen for what it is.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.services import foreign, reports
from controlplane.services import runs as service
from controlplane.services.foreign import Foreign, Lister
from controlplane.services.plans import plan_of
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt
from jobs.layouts import listing
from jobs.layouts.huggingface import HuggingFace
from jobs.layouts.registry import find
from jobs.spec import load_preset, load_template, parse_job
from jobs.steps import StepScalars
from tests.runs.piloting import Pilot

TRAINER = {"layout": "huggingface", "environment": {"LOG": "{run_dir}/log-{attempt}", "PLAIN": "{other}"}}
COMMAND = ["train", "--out={checkpoint_dir}", "--steps", "{steps}", "{resume}"]


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def submit(pilot: Pilot, *, level: int = 1, trainer: Mapping[str, Any] = TRAINER) -> str:
    spec = load_template("toy").to_dict()
    spec["metadata"]["name"] = "foreign"
    spec["spec"] |= {"contractLevel": level, "trainer": trainer, "command": COMMAND if trainer else ["train"]}
    spec["spec"]["train"]["steps"] = 100
    with pilot.store.write() as session:
        run = service.submit(session, parse_job(spec), backend="memory", actor="ada", now=pilot.clock.now())
    pilot.round()
    pilot.backend.run(pilot.last(run.id).name)
    pilot.round(1)
    return run.id


def save(pilot: Pilot, run_id: str, step: int, no: int | None = None) -> Path:
    """A checkpoint as transformers leaves it."""
    number = no or pilot.last(run_id).no
    directory = pilot.places.attempt(run_id, number) / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        (directory / name).write_text(f"{run_id} {step}")
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return directory


def told(pilot: Pilot, run_id: str, *steps: int) -> None:
    report = reports.Report("a meter", [StepScalars(step, loss=2.0) for step in steps])
    with pilot.store.write() as session:
        reports.take(session, run_id, pilot.last(run_id).no, report, now=pilot.clock.now())


def states(pilot: Pilot, run_id: str) -> dict[int, str]:
    return {one.step: one.state for one in pilot.checkpoints(run_id)}


def plan(pilot: Pilot, run_id: str) -> Any:
    return plan_of(pilot.places, pilot.run(run_id), pilot.last(run_id))


def test_a_checkpoint_is_believed_once_it_stands_still_and_resumed_in_the_trainer_s_words(pilot: Pilot) -> None:
    run_id = submit(pilot)
    first = plan(pilot, run_id)
    home = pilot.places.attempt(run_id, 1)
    assert first.command == ("train", f"--out={home}", "--steps", "100")
    assert first.environment["LOG"] == f"{pilot.places.run(run_id)}/log-1" and first.environment["PLAIN"] == "{other}"
    assert first.environment["KUBEFLOW_TRAINER_SERVER_URL"].endswith(f"/api/v1/runs/{run_id}/kubeflow/status")
    assert "KUBEFLOW_TRAINER_SERVER_CA_CERT" not in first.environment
    checked = plan_of(replace(pilot.places, ca_file="/ca.pem"), pilot.run(run_id), pilot.last(run_id))
    assert checked.environment["KUBEFLOW_TRAINER_SERVER_CA_CERT"] == "/ca.pem"
    half = save(pilot, run_id, 20)
    (half / "trainer_state.json").unlink()
    whole = save(pilot, run_id, 10)
    pilot.round(1)
    (whole / "scheduler.pt").write_text("another file, later")
    for _ in range(2):
        pilot.round(1)
    assert states(pilot, run_id) == {}, "it has changed since"
    for _ in range(3):
        pilot.round(1)
    (kept,) = pilot.checkpoints(run_id)
    assert (kept.step, kept.state, kept.reason) == (10, "validated", foreign.NOTE)
    assert kept.hash == listing.read(listing.place(pilot.places.run(run_id), whole)).hash()
    shown = service.manifest(pilot.store, run_id, kept.id)
    assert (shown["layout"], shown["step"], len(shown["files"])) == ("huggingface", 10, 5)
    assert kept.state_at_s is not None and kept.written_at_s is not None and kept.state_at_s <= kept.written_at_s
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "code": 1, "fingerprint": "boom"})
    pilot.round(1)
    pilot.round(60)
    second = plan(pilot, run_id)
    assert pilot.last(run_id).no == 2 and pilot.last(run_id).resume_step == 10
    assert second.command[-2:] == ("--resume_from_checkpoint", str(whole))
    assert second.environment["TRIMTAB_RESUME_FROM"] == str(whole)


def test_a_restart_waits_until_the_newest_checkpoint_stands_still(pilot: Pilot) -> None:
    run_id = submit(pilot)
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "code": 1, "fingerprint": "boom"})
    save(pilot, run_id, 30)
    pilot.round(1)
    pilot.round(1)
    assert pilot.last(run_id).no == 1, "it may be whole in a moment"
    for _ in range(4):
        pilot.round(20)
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, 30)


def test_what_its_trainer_deleted_is_told_and_not_used(pilot: Pilot) -> None:
    run_id = submit(pilot)
    old, new = save(pilot, run_id, 10), save(pilot, run_id, 20)
    for _ in range(5):
        pilot.round(1)
    assert states(pilot, run_id) == {10: "validated", 20: "validated"}
    shutil.rmtree(old)
    (new / "optimizer.pt").unlink()
    pilot.round(1)
    assert states(pilot, run_id) == {10: "complete", 20: "validated"}
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "code": 1, "fingerprint": "boom"})
    pilot.round(1)
    pilot.round(60)
    assert states(pilot, run_id) == {10: "complete", 20: "complete"}, "before a restart all are looked into again"
    assert (pilot.last(run_id).no, pilot.last(run_id).resume_step) == (2, None)


def test_a_corrupting_fault_taints_what_was_saved_since(pilot: Pilot) -> None:
    run_id = submit(pilot)
    save(pilot, run_id, 10)
    for _ in range(5):
        pilot.round(1)
    node = pilot.last(run_id).nodes[0]
    pilot.hit(node, onset_s=1.0, last_clean_s=0.0)
    pilot.round(1)
    assert states(pilot, run_id) == {10: "tainted"}


def test_a_silent_start_from_scratch_is_stopped(pilot: Pilot) -> None:
    run_id = submit(pilot)
    save(pilot, run_id, 50)
    told(pilot, run_id, 10, 50)
    for _ in range(5):
        pilot.round(1)
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "code": 1, "fingerprint": "boom"})
    pilot.round(1)
    pilot.round(60)
    assert pilot.last(run_id).resume_step == 50
    pilot.backend.run(pilot.last(run_id).name)
    told(pilot, run_id, 10)
    pilot.round(1)
    assert pilot.run(run_id).status == "needs_human"
    assert "began with step 10; it had to begin with 51" in pilot.run(run_id).reason


def test_a_resumed_attempt_may_be_heard_late_and_that_proves_the_restart(pilot: Pilot) -> None:
    run_id = submit(pilot)
    save(pilot, run_id, 50)
    for _ in range(5):
        pilot.round(1)
    pilot.end(run_id, "failed", **{"class": "error", "message": "boom", "code": 1, "fingerprint": "boom"})
    pilot.round(1)
    pilot.round(60)
    pilot.backend.run(pilot.last(run_id).name)
    told(pilot, run_id, 60)
    pilot.round(1)
    assert (pilot.run(run_id).status, pilot.last(run_id).state) == ("active", "training")
    assert [one.state for one in pilot.decisions(run_id)] == ["verified"]


def test_an_unmodified_command_is_never_stopped_for_saying_nothing(pilot: Pilot) -> None:
    run_id = submit(pilot, level=0, trainer={})
    for _ in range(30):
        pilot.round(600)
    assert (pilot.last(run_id).state, pilot.run(run_id).status) == ("starting", "active")
    told(pilot, run_id, 5)
    for _ in range(3):
        pilot.round(7200)
    assert pilot.last(run_id).state == "training", "what was told once is no heartbeat that must go on"
    assert not [call for call in pilot.backend.calls if call[0] in ("kill", "terminate")]
    pilot.end(run_id, "succeeded")
    pilot.round(1)
    assert pilot.run(run_id).status == "succeeded"


def test_large_checkpoints_are_listed_beside_the_rounds(tmp_path: Path) -> None:
    home = tmp_path / "attempt-0001" / "checkpoint-5"
    home.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        (home / name).write_text("x")
    (home / "trainer_state.json").write_text('{"global_step": 5}')
    looking = Foreign(Lister(inline_bytes=1))

    def look(now: float) -> foreign.ForeignLook:
        return looking.look(find("huggingface"), tmp_path, {1: 1}, {}, {}, now, again=False)

    assert look(0.0).waits and look(4.0).waits
    for thread in threading.enumerate():
        if thread.name == "list":
            thread.join(20)
    (row,) = look(5.0).rows
    assert (row["step"], row["state"], row["attempt_no"]) == (5, "validated", 1)


@pytest.mark.parametrize("name", ["huggingface", "megatron", "roll", "slime", "torchtitan", "verl"])
def test_every_preset_says_where_to_save_and_how_to_resume(name: str, pilot: Pilot) -> None:
    spec = load_preset(name)
    assert spec.spec.contract_level == 1 and spec.spec.trainer.layout == name
    with pilot.store.write() as session:
        run = service.submit(session, spec, backend="memory", actor="ada", now=pilot.clock.now())
        attempt = foreign.Attempt(no=2, name="a", epoch=2, spec=run.spec, spec_hash="h", nodes=["n"], excluded_nodes=[])
        fresh = plan_of(pilot.places, run, attempt)
        directory = pilot.places.attempt(run.id, 1) / "iter_0000010"
        attempt.spec = {**run.spec, "resume_from": str(directory)}
        resumed = plan_of(pilot.places, run, attempt)
    home = str(pilot.places.attempt(run.id, 2))
    said = [*fresh.command, *(f"{key}={value}" for key, value in fresh.environment.items())]
    assert any(home in word for word in said) and not any("{" in word and "}" in word for word in said[1:20])
    words = find(name).resume(directory)
    assert len(resumed.command) - len(fresh.command) == len(words) and "{resume}" not in fresh.command
    assert all(word in resumed.command for word in words)
    assert resumed.environment["TRIMTAB_RESUME_FROM"] == str(directory)


def test_a_layout_is_told_how_many_ranks_the_job_has() -> None:
    spec = {"trainer": {"layout": "huggingface"}, "resources": {"nodes": 2, "ranksPerNode": 4}}
    found = foreign.layout_of([Attempt(spec={"spec": spec})])
    assert isinstance(found, HuggingFace) and found.ranks == 8
    assert foreign.layout_of([Attempt(spec={"spec": {}})]) is None

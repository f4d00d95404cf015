"""The advice of a spec and of a run: what was measured replaces what is assumed, and each input says which it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.services import advising, preflight, views_runs
from controlplane.store import steps
from controlplane.store.engine import Store
from jobs.spec import JobSpec, load_template, parse_job
from tests.runs.piloting import Pilot
from tests.services.batches import step_record


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def spec(nodes: int = 128, gpus: int = 8, **train: Any) -> JobSpec:
    made = load_template("toy").to_dict()
    made["spec"]["resources"].update(nodes=nodes, gpusPerNode=gpus)
    made["spec"]["train"].update({"steps": 1_000_000, "checkpointEvery": 100, **train})
    return parse_job(made)


def sources(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["source"] for one in found["inputs"]}


def told(of: JobSpec, **known: Any) -> dict[str, Any]:
    found = advising.advice(of, **{"step_s": 2.0, **known})
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def test_a_large_job_is_told_its_interval_its_spares_and_what_it_loses_as_it_is_set() -> None:
    found = told(spec())
    assert found["interval_steps"] == 421 and found["spares"] == 2
    assert found["sentence"] == (
        "1,024 GPUs are stopped by a fault about once in 2 d 1 h, so a checkpoint each 421 steps (14 m 02 s) "
        "loses least."
    )
    assert found["set"]["interval_s"] == 200.0 and found["set"]["ettr_percent"] < found["ettr_percent"]
    assert found["stops_expected"] == pytest.approx(2_000_000 / found["mtbf_s"])
    restart_s = next(one["value"] for one in found["inputs"] if one["name"] == "back after")
    assert found["lost_a_stop_gpu_h"] == pytest.approx((100 + restart_s) * 1_024 / 3600)
    assert sources(found)["a checkpoint blocks"] == "assumed" and sources(found)["GPUs"] == "spec"


def test_what_was_measured_counts_and_is_said() -> None:
    found = told(spec(), blocking_s=8.0, restart_s=60.0)
    assert found["interval_steps"] == pytest.approx(421 * 2, abs=5)
    assert {name for name, source in sources(found).items() if source == "measured"} == {
        "a step takes",
        "a checkpoint blocks",
        "back after",
    }


def test_an_unknown_step_leaves_unknown_what_depends_on_it() -> None:
    found = told(spec(), step_s=None)
    assert found["interval_steps"] is None and found["interval_s"] > 0
    assert found["stops_expected"] is found["lost_a_stop_gpu_h"] is found["set"]["ettr_percent"] is None
    assert sources(found)["a step takes"] == "unknown"


def test_a_short_run_is_told_that_it_is_short_and_a_job_without_gpus_nothing() -> None:
    found = told(spec(nodes=2, steps=60))
    assert "this run is shorter than the 1 h 52 m after which a checkpoint pays" in found["sentence"]
    assert advising.advice(spec(gpus=0), step_s=2.0) is None


def test_blocking_is_how_much_later_a_step_ends_after_a_checkpoint() -> None:
    steps_, at_s, clock = [], [], 0.0
    for step in range(1, 31):
        clock += 0.5 + (1.25 if (step - 1) % 10 == 0 and step > 1 else 0.0)
        steps_.append(step)
        at_s.append(clock)
    assert advising.measured_blocking_s(steps_, at_s, {10, 20, 30}) == pytest.approx(1.25)
    assert advising.measured_blocking_s(steps_, at_s, {10}) is None, "one is no median"
    assert advising.measured_blocking_s([], [], set()) is None
    assert advising.measured_blocking_s(steps_, [0.5 * step for step in steps_], {10, 20}) == advising.SHORTEST_S


def test_a_run_is_advised_by_its_own_pace(pilot: Pilot) -> None:
    run_id = pilot.started(last=40)
    now = pilot.clock.now()
    with pilot.store.write() as session:
        rows = [(step, now - 100 + step * 0.5 + (step - 1) // 10 * 1.0) for step in range(1, 41)]
        steps.add(
            session, [step_record(step, 0, at_s=at, run_id=run_id, attempt_no=1, step_seconds=0.5) for step, at in rows]
        )
    for step in (10, 20, 30):
        pilot.save(run_id, step)
    pilot.round(1)
    with pilot.store.read() as session:
        found = views_runs.view(session, pilot.run(run_id), pilot.clock.now())["advice"]
    known = {one["name"]: one["value"] for one in found["inputs"] if one["source"] == "measured"}
    assert known["a step takes"] == pytest.approx(0.5)
    assert known["a checkpoint blocks"] == pytest.approx(1.0)
    assert "back after" not in known, "it never restarted"


def test_a_submission_is_advised_before_and_after_a_first_run(pilot: Pilot) -> None:
    source = spec(nodes=2).to_dict()
    found = preflight.check(pilot.store, pilot.backend, pilot.places, source, pilot.clock.now())
    assert found["advice"]["interval_steps"] is None
    broken = preflight.check(pilot.store, pilot.backend, pilot.places, {**source, "kind": "Cake"}, pilot.clock.now())
    assert broken["advice"] is None

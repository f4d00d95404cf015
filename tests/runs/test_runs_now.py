"""What Now says, held against the pages that it leads to; and what a run is told that only a person may restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.services import incidents as incident_service
from controlplane.services import nodes as node_service
from controlplane.services import runs as service
from controlplane.services import views_incidents, views_lost, views_now, views_outages, views_runs, views_why
from controlplane.services.live import Live
from controlplane.store.engine import Store
from tests.runs.piloting import BOOK, Pilot
from tests.runs.test_runs_views import record, restarted


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


def now(pilot: Pilot) -> dict[str, Any]:
    with pilot.store.read() as session:
        found = views_now.now_view(session, Live(pilot.store, pilot.clock), BOOK, pilot.clock.now())
    json.dumps(found, allow_nan=False)
    return found


def view(pilot: Pilot, run_id: str) -> dict[str, Any]:
    with pilot.store.read() as session:
        return views_runs.view(session, pilot.run(run_id), pilot.clock.now())


def why(pilot: Pilot, run_id: str) -> dict[str, Any]:
    with pilot.store.read() as session:
        return views_why.why(session, pilot.run(run_id), pilot.clock.now())


def tile(found: dict[str, Any], label: str) -> dict[str, Any]:
    return next(one for one in found["tiles"] if one["label"] == label)


def of_runs(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was lost, but for nodes that were out of service."""
    return [row for row in found["lost"] if row["cause"] != views_outages.CAUSE]


def act(pilot: Pilot, done: Callable[..., object], node: str) -> None:
    """A person does something to a node."""
    with pilot.store.write() as session:
        done(session, node, actor="ada", reason="a look", now=pilot.clock.now())


def test_gpu_hours_lost_are_those_of_the_runs_own_page(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    ledger = view(pilot, run_id)["goodput"]
    rows = of_runs(now(pilot))
    assert sum(row["gpu_h"] for row in rows) == pytest.approx(sum(one["gpu_h"] for one in ledger["lost"]))
    assert {row["cause"] for row in rows} <= {"queue, drain, checkpoint", "start, load, steps run twice", "hang"}
    assert all(row["from_s"] < row["to_s"] <= pilot.clock.now() for row in rows)
    again = sum(one["gpu_h"] for one in ledger["lost"] if one["phase"] == "steps again")
    first = view(pilot, run_id)["attempts"][0]
    late = [row for row in rows if row["cause"] == "start, load, steps run twice" and row["to_s"] <= first["ended_s"]]
    assert again > 0 and late[-1]["gpu_h"] == pytest.approx(again), "what was run twice lies before the fault"
    assert tile(now(pilot), "goodput, 24 h")["value"] == f"{ledger['percent']:.1f}"


def test_what_a_restart_cost_is_told_with_its_incident(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    first, second = view(pilot, run_id)["attempts"]
    rows = now(pilot)["lost"]
    by_restart = [row for row in rows if row["incident"] == 1]
    assert {row["cause"] for row in by_restart} >= {"queue, drain, checkpoint", "start, load, steps run twice"}
    assert all(row["to_s"] <= second["first_step_s"] for row in by_restart)
    begun = [row for row in rows if row["to_s"] <= first["first_step_s"]]
    assert begun and not any(row["incident"] for row in begun), "its first start was nobody's fault"


def test_a_node_that_is_out_costs_its_gpus_until_it_is_back(pilot: Pilot) -> None:
    def out() -> list[tuple[float, float, float]]:
        rows = [row for row in now(pilot)["lost"] if row["cause"] == views_outages.CAUSE]
        return [(row["from_s"] - begin, row["to_s"] - begin, row["gpu_h"]) for row in rows]

    begin = pilot.clock.now()
    assert out() == []
    act(pilot, node_service.cordon, "node-1")
    pilot.clock.advance(1800)
    act(pilot, node_service.drain, "node-1")  # out twice is out once
    assert out() == [(0, 1800, 4.0)]
    act(pilot, node_service.give_back, "node-1")
    pilot.clock.advance(3600)
    assert out() == [(0, 1800, 4.0)]
    act(pilot, node_service.drain, "node-1")
    pilot.clock.advance(1800)
    assert out() == [(0, 1800, 4.0), (5400, 7200, 4.0)]
    pilot.clock.advance(86_400)
    assert out() == [(7200, 93_600, 192.0)], "the last day only, though it left before"
    act(pilot, node_service.give_back, "node-1")
    pilot.clock.advance(43_200)
    assert out() == [(50_400, 93_600, 96.0)], "one that came back had left before the day began"
    assert now(pilot)["lost_of"] == {"gpu_h": pytest.approx(24 * 8 * len(pilot.names)), "gpus": 8 * len(pilot.names)}


def test_after_its_end_a_run_counts_for_a_day_and_no_longer(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 20)
    pilot.clock.advance(20)
    pilot.beat(run_id, 1, 100)
    pilot.end(run_id, "succeeded")
    pilot.round(0)
    assert tile(now(pilot), "goodput, 24 h")["value"] not in ("–", "0.0")
    assert tile(now(pilot), "worst imbalance")["context"] == "no run trains now"
    assert now(pilot)["lost"]
    pilot.clock.advance(86_400 + 60)
    later = now(pilot)
    assert tile(later, "goodput, 24 h")["context"] == "no run was placed in the last day" and later["lost"] == []


def test_a_day_that_is_kept_is_the_one_that_would_be_read(pilot: Pilot) -> None:
    run_id = restarted(pilot)
    pilot.clock.advance(60)
    pilot.beat(run_id, 11, 100)
    pilot.end(run_id, "succeeded")
    pilot.round(0)
    views_lost._kept.clear()
    first = now(pilot)
    assert not views_lost._kept, "its last batches may still be on their way"
    pilot.clock.advance(views_lost.SETTLED_S + 1)
    for _ in range(2):
        again = now(pilot)
        assert (of_runs(again), again["tiles"][1]) == (of_runs(first), first["tiles"][1])
    assert list(views_lost._kept) == [pilot.run(run_id).uid]
    pilot.clock.advance(86_400)
    assert of_runs(now(pilot)) == []


def test_a_fault_that_comes_back_is_not_told_as_the_one_before_it(pilot: Pilot) -> None:
    before_s = pilot.clock.now() - 1
    pilot.hit(onset_s=before_s)
    pilot.hit(onset_s=before_s, state="clear", observed_s=pilot.clock.now())
    for _ in range(5):
        pilot.clock.advance(60)
        incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())
    run_id = restarted(pilot)
    number = view(pilot, run_id)["decisions"][0]["incident"]
    assert number == 1, "the same incident has opened again"
    (card,) = why(pilot, run_id)["restarts"]
    assert card["back_after_s"] < 60
    incident = views_incidents.view(pilot.store, BOOK, number, pilot.clock.now())
    assert incident is not None
    again = next(one for one in incident["tiles"] if one["label"] == "time to train again")
    assert again["unit"] == "s" and float(again["value"]) < 60


def test_only_the_last_day_of_a_long_run_is_counted(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 20)
    pilot.clock.advance(3 * 86_400)
    pilot.greet()
    found = now(pilot)
    assert tile(found, "goodput, 24 h")["value"] == "0.0", "its steps are three days old"
    assert sum(row["gpu_h"] for row in found["lost"]) == pytest.approx(24 * 16)
    assert min(row["from_s"] for row in found["lost"]) == pytest.approx(pilot.clock.now() - 86_400)


def test_what_is_open_and_what_needs_a_person_are_counted_alike(pilot: Pilot) -> None:
    pilot.hit("node-1")
    pilot.hit("node-2", rule="thermal", severity="warning", action="alert")
    pilot.hit("node-3", rule="thermal", severity="warning", action="alert")
    incident_service.ack(pilot.store, 2, actor="ada", now=pilot.clock.now())
    pilot.clock.advance(5)
    found = now(pilot)
    assert found["sentence"]["lead"] == "Three things need a person."
    assert [(one["level"], one["owner"]) for one in found["needs"]] == [
        ("fault", None), ("warn", None), ("warn", "ada"),
    ]  # fmt: skip
    incident_service.resolve(pilot.store, 1, actor="ada", reason="reset", now=pilot.clock.now())
    found = now(pilot)
    assert found["incidents_open"] == 2 and {one["state"] for one in found["incidents"]} == {"open", "acked"}
    assert found["sentence"]["lead"] == "Two things need a person."


def test_a_restarting_run_is_where_it_starts_from(pilot: Pilot) -> None:
    run_id = pilot.started(last=20)
    record(pilot, run_id, 1, 1, 20)
    pilot.save(run_id, 10, at=-30)
    pilot.round(1)
    assert (view(pilot, run_id)["step"], view(pilot, run_id)["starts_from"]) == (20, None)
    pilot.hit()
    pilot.round(0.5)
    pilot.round(2)
    found = view(pilot, run_id)
    assert (found["attempt"], found["step"], found["starts_from"], found["progress"]) == (2, 10, 10, 0.1)
    assert (found["loss"], found["eta"]) == (None, None)
    pilot.train(run_id, 11, 12)
    record(pilot, run_id, 2, 11, 12)
    assert (view(pilot, run_id)["step"], view(pilot, run_id)["starts_from"]) == (12, None)


@pytest.mark.parametrize(("mode", "asked"), [("advise", 2), ("observe", 1)])
def test_what_only_a_person_may_do_is_proposed_and_never_told_as_done(pilot: Pilot, mode: str, asked: int) -> None:
    run_id = pilot.started(last=20, mode=mode)
    pilot.hit()
    pilot.round(0.5)
    found = why(pilot, run_id)
    assert found["restarts"] == [] and found["proposal"]["decision"]["excluded_nodes"] == ["node-1"]
    assert found["proposal"]["sentence"].startswith("Proposed: ") and found["proposal"]["fault"]["node"] == "node-1"
    lines = [one["sentence"] for one in found["timeline"] if one["kind"] == "decided"]
    assert lines == [found["proposal"]["sentence"]]
    incident = views_incidents.view(pilot.store, BOOK, 1, pilot.clock.now())
    assert incident is not None
    assert [one["sentence"] for one in incident["timeline"] if one["kind"] == "decided"] == lines
    needs = now(pilot)["needs"]
    assert len(needs) == asked
    if mode == "advise":
        assert [one["lead"] for one in needs if one["link"]["kind"] == "run"] == ["Decide on trial."]
        assert incident["sentence"]["rest"] == lines[0]
        assert incident["sentence"]["left"] == "restart trial without node-1, or leave it as it is."


def test_a_proposal_is_over_when_a_person_has_restarted_the_run(pilot: Pilot) -> None:
    run_id = pilot.started(last=20, mode="advise")
    pilot.hit()
    pilot.round(0.5)
    service.restart(pilot.store, run_id, actor="ada", now=pilot.clock.now(), exclude_nodes=("node-1",))
    pilot.round(0.5)
    pilot.round(2)
    assert pilot.last(run_id).no == 2
    found = why(pilot, run_id)
    assert found["proposal"] is None and len(found["restarts"]) == 1
    assert [one["fault"]["node"] for one in found["proposed"]] == ["node-1"], "its fault stays on the chart"
    told = [one["sentence"] for one in found["timeline"] if one["kind"] == "decided"]
    assert told[0].startswith("Proposed: ") and told[1].startswith("ada asked")

"""An incident as its reader gets it: the story agrees with the rows, at each point of the incident's life."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents.readings import KernelLine
from controlplane.services import incidents as service
from controlplane.services import views_incidents
from controlplane.services.incident_story import Cost, cost_of
from controlplane.store import codec, events, nodes, telemetry
from controlplane.store.engine import Store
from controlplane.store.tables import Attempt, Checkpoint
from controlplane.store.telemetry import Chunk
from tests.incidents.serving import BOOK, Server, add_attempt, beat, change_attempt, cleared, decide, fault, start_run

PINNED_ROW = {
    *("number", "label", "rule", "severity", "state", "title", "node", "gpu", "entity", "run", "opened_s", "age_s"),
    *("owner", "acked_s", "resolved_s", "reopened", "action"),
}
PINNED_VIEW = PINNED_ROW | {
    *("sentence", "tiles", "timeline", "faults", "decisions", "deliveries", "kernel", "series", "cli", "actions"),
}


@pytest.fixture
def server(store: Store) -> Server:
    made = Server(store)
    start_run(made)
    for rank in (0, 1):
        beat(made, rank, f"node-{rank}")
    made.later(30)
    return made


def view(server: Server, number: int = 1) -> dict[str, Any]:
    found = views_incidents.view(server.store, BOOK, number, server.clock.now())
    assert found is not None
    return found


def tile(found: dict[str, Any], label: str) -> dict[str, Any]:
    return next(one for one in found["tiles"] if one["label"] == label)


def action(found: dict[str, Any], verb: str) -> dict[str, Any]:
    return next(one for one in found["actions"] if one["verb"] == verb)


def restarted(server: Server) -> None:
    """The fault of `server`'s node-1, the decision, and attempt 2 training from checkpoint 88."""
    server.send(fault(server))
    server.check()
    now = server.clock.now()
    with server.store.write() as session:
        session.add(
            Checkpoint(
                id="checkpoint-88",
                run_id="run-1",
                attempt_no=1,
                epoch=1,
                step=88,
                path="/x/step-88",
                state="validated",
                state_at_s=now - 6,
                seen_s=now,
            )
        )
        nodes.cordon(session, "node-1", reason="uncorrectable HBM errors", now=now)
    decide(server, 1, checkpoint_id="checkpoint-88")
    change_attempt(server, 1, state="superseded", last_step=97, ended_s=now + 2)
    server.clock.advance(5)
    add_attempt(
        server,
        2,
        ("node-0", "node-2"),
        decision_id="decision-1",
        resume_step=88,
        resume_checkpoint_id="checkpoint-88",
        state="init",
    )
    with server.store.write() as session:
        events.add(
            session,
            at_s=now + 5,
            kind="attempt_submitted",
            sentence="Attempt 2 placed",
            run_id="run-1",
            data={"lane": "run"},
        )
        events.add(session, at_s=now + 5, kind="restart_wish_taken", sentence="", run_id="run-1", data={"hidden": True})


def test_a_fresh_incident(server: Server) -> None:
    server.send(fault(server))
    server.check()
    found = view(server)
    assert found.keys() >= PINNED_VIEW
    assert found["label"] == "INC-0001"
    assert found["sentence"]["lead"].startswith("Gpu3 of node-1 reported 1893 uncorrectable HBM errors, at ")
    assert found["sentence"]["rest"] == "It touches zaya-toy; nothing is decided yet."
    assert found["sentence"]["left"] == "decide whether node-1 should stay in service."
    assert tile(found, "time to detect") == {
        "label": "time to detect",
        "value": "1.0",
        "unit": "s",
        "context": "target 3 s",
        "level": "ok",
    }
    assert tile(found, "time to train again")["value"] == "–"
    assert tile(found, "seen before")["value"] == "never"
    assert action(found, "cordon")["enabled"] and not action(found, "uncordon")["enabled"]
    assert found["deliveries"][0]["state"] == "ready"
    assert found["cli"] == [
        "trimtab incident get 1",
        "trimtab job why run-1",
        "trimtab incident ack 1",
        "trimtab node get node-1",
    ]
    assert [line["lane"] for line in found["timeline"]] == ["hardware", "rule", "rule"]
    assert found["timeline"][-1]["at_s"] is None and found["timeline"][-1]["kind"] == "waits"


def test_a_restart_under_way(server: Server) -> None:
    restarted(server)
    found = view(server)
    assert found["sentence"]["rest"] == (
        "The system restarted zaya-toy on node-2 from checkpoint 88; it does not train again yet."
    )
    assert found["sentence"]["left"] == "reset or replace the GPU 3, then return node-1 to service."
    assert tile(found, "time to train again")["value"] == "not yet"
    assert tile(found, "work lost")["value"] == "–", "unknown is not zero"
    (decision,) = found["decisions"]
    assert (decision["action"], decision["resume_step"], decision["incident"]) == ("restart_exclude", 88, 1)


def test_a_run_that_is_back(server: Server) -> None:
    restarted(server)
    at_s = server.clock.now() + 8
    change_attempt(server, 2, state="training", first_step=89, first_step_s=at_s)
    server.later(10)
    found = view(server)
    assert found["sentence"]["rest"] == (
        "The system restarted zaya-toy on node-2 from checkpoint 88; training was back in 14 s."
    )
    assert tile(found, "time to train again")["value"] == "14"
    lost = tile(found, "work lost")
    # 16 GPUs from the checkpoint's state, 6 s before the decision, to the first step 13 s after it
    assert (lost["value"], lost["context"]) == (f"{16 * 19 / 3600:.2g}", "9 steps again")
    lanes = [(line["lane"], line["kind"]) for line in found["timeline"]]
    assert ("run", "attempt_submitted") in lanes
    times = [line["at_s"] for line in found["timeline"] if line["at_s"] is not None]
    assert times == sorted(times)
    kinds = {line["kind"] for line in found["timeline"]}
    assert not kinds & {"incident_decided", "restart_wish_taken"}, "a mere link is no event for a reader"
    assert action(found, "uncordon")["why"] == "INC-0001 still fires: to return node-1 all the same needs a reason."


def test_an_incident_that_is_over_leaves_nothing(server: Server) -> None:
    one = fault(server)
    server.send(one)
    server.check()
    with server.store.write() as session:
        nodes.cordon(session, "node-1", reason="test", now=server.clock.now())
    server.send(cleared(one, server.clock.now()))
    beat(server, 0, "node-0")
    beat(server, 1, "node-1")
    server.later(121)
    found = view(server)
    assert (found["state"], found["sentence"]["left"]) == ("resolved", "")
    assert found["resolution"] == "all signals clear for 120 s"
    assert found["timeline"][-1]["kind"] == "incident_resolved"
    assert action(found, "uncordon")["enabled"]


def test_a_fault_on_a_free_node_touches_no_run(server: Server) -> None:
    server.send(fault(server, node="node-3"))
    server.check()
    assert view(server)["sentence"]["rest"] == "No run is affected."


def test_an_alert_says_what_a_person_may_do(server: Server) -> None:
    server.send(fault(server, rule="thermal", severity="warning", action="alert"))
    server.check()
    found = view(server)
    assert found["sentence"]["rest"] == "Nothing was changed: this rule tells a person."
    assert found["sentence"]["left"] == "check cooling and airflow, then resolve INC-0001."


def test_a_second_time_on_the_same_gpu_is_said(server: Server) -> None:
    server.send(fault(server))
    server.check()
    service.resolve(server.store, 1, actor="ada", reason="reset helped", now=server.clock.now())
    server.send(fault(server, rule="gpu-lost"))
    server.check()
    seen = tile(view(server, 2), "seen before")
    assert (seen["value"], seen["unit"]) == ("once", "on GPU 3")
    assert seen["context"].startswith("INC-0001, ") and seen["context"].endswith(", reset helped")


def test_the_kernel_log_and_the_measure_around_the_fault(server: Server) -> None:
    skew = 600.0
    server.greet(skew)
    now = server.clock.now()
    lines = [
        KernelLine(now - skew - 2, 3, "amdgpu: uncorrectable", "0000:c5:00.0"),
        KernelLine(now - skew - 900, 6, "long ago", None),
    ]
    with server.store.write() as session:
        telemetry.add_kernel_lines(session, "node-1", lines, received_s=now)
    server.send(fault(server, onset_s=now - skew - 1, observed_s=now - skew - 1, last_clean_s=now - skew - 2))
    server.check()
    found = view(server)
    assert [(line["text"], round(now - line["at_s"])) for line in found["kernel"]] == [("amdgpu: uncorrectable", 2)]
    assert tile(found, "time to detect")["value"] == "1.0"
    assert found["series"] is None, "no sample is stored, so nothing is drawn"


def test_the_measure_that_the_rule_watches_is_drawn_by_the_servers_clock(server: Server) -> None:
    now, count = server.clock.now(), 40
    at_s = now - 30 + np.arange(count, dtype="<f8")
    errors = np.where(np.arange(count * 8).reshape(count, 8) % 8 == 3, (at_s > now - 1.5)[:, None] * 1893, 0)
    blob = codec.encode_raw(
        ("ecc_hbm_uncorrectable_total",), 8, at_s.tobytes(), at_s.tobytes(), [errors.astype("<i8").tobytes()]
    )
    with server.store.write() as session:
        telemetry.add(session, [Chunk("node-1", "gpu", at_s[0], at_s[-1], count, codec.RAW, blob)])
    server.send(fault(server))
    server.check()
    series = view(server)["series"]
    assert series["unit"] == "" and series["title"] == "GPU 3, uncorrectable errors of the memory controllers"
    assert len(series["t"]) == len(series["v"]) == count
    assert (series["v"][0], series["v"][-1]) == (0.0, 1893.0)


def test_rows_by_state_and_run(server: Server) -> None:
    server.send(fault(server), fault(server, node="node-3"))
    server.check()
    service.ack(server.store, 1, actor="ada", now=server.clock.now())
    now = server.clock.now() + 60
    every = views_incidents.rows(server.store, now)
    assert [one["number"] for one in every] == [2, 1]
    assert every[0].keys() >= PINNED_ROW and every[0]["age_s"] == 60
    assert [one["number"] for one in views_incidents.rows(server.store, now, states=["acked"])] == [1]
    assert [one["number"] for one in views_incidents.rows(server.store, now, run_id="run-1")] == [1]
    assert views_incidents.view(server.store, BOOK, 99, now) is None


def test_a_silence_and_a_merge_are_shown(server: Server) -> None:
    server.send(fault(server))
    server.check()
    service.silence(server.store, 1, actor="ada", minutes=5, reason="planned", now=server.clock.now())
    assert view(server)["silenced_until_s"] == server.clock.now() + 300
    server.send(fault(server, rule="host-panic", entity="node"))
    server.check()
    assert view(server, 1)["parent"] == 2 and view(server, 2)["merged"] == [1]
    assert view(server, 1)["sentence"]["left"] == ""


@pytest.mark.parametrize(
    ("before", "after", "state_at_s", "expected"),
    [
        ({"last_step": 97}, {"first_step": 89, "first_step_s": 114.0}, 94.0, Cost(14.0, 16 * 20 / 3600, 9)),
        ({"last_step": 88}, {"first_step": 89, "first_step_s": 114.0}, 94.0, Cost(14.0, 16 * 20 / 3600, 0)),
        ({"last_step": None}, {"first_step": 1, "first_step_s": 114.0}, None, Cost(14.0, 16 * 24 / 3600, None)),
        ({"last_step": 97}, {"first_step": None, "first_step_s": None}, 94.0, Cost(None, None, None)),
    ],
)
def test_the_cost_of_a_restart(
    before: dict[str, Any], after: dict[str, Any], state_at_s: float | None, expected: Cost
) -> None:
    old = Attempt(created_s=80.0, running_s=85.0, first_step_s=90.0, **before)
    assert cost_of(100.0, old, Attempt(created_s=101.0, **after), state_at_s, 16) == expected

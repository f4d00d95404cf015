"""Lifecycles over HTTP: submission and its repeats, refusals with words, who may do what, every view in its shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.reconcile import LEASE
from controlplane.store import audit, leases, lifecycles
from jobs.lifecycle import parse_lifecycle
from tests.runs.conducting import gate, plan

PLAN = plan({"name": "a", "gate": gate("loss < 2.6")}, {"name": "b", "gate": gate(approval=True)})


def submit(api: Any, key: str = "", body: Any = None) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    token = api.token(role="operator", subject="ada")
    return api.call("POST", "lifecycles", token, json=body or {"yaml": json.dumps(PLAN)}, headers=headers)


def conduct(api: Any) -> None:
    now = api.context.clock.now()
    with api.context.store.write() as session:
        epoch = leases.acquire(session, LEASE, leases.this_process("a"), now=now, ttl_s=9)
    conductor = Conductor(api.context.store, api.context.places, api.controller, lambda _spec: "memory")
    conductor.reconcile_once(epoch, now)


def test_a_lifecycle_is_taken_and_shown(api: Any) -> None:
    made = submit(api)
    assert made.status_code == 201
    found = made.json()
    assert (found["status"], found["stage"], found["passed"], found["created_by"]) == ("active", "a", 0, "ada")
    assert json.loads(found["yaml"]) == PLAN
    assert found["edges"] == [{"from": "a", "to": "b", "kind": "from"}]
    viewer = api.token(role="viewer")
    for named in (found["id"], "walk"):
        assert api.call("GET", f"lifecycles/{named}", viewer).json()["id"] == found["id"]
    (row,) = api.call("GET", "lifecycles", viewer).json()["lifecycles"]
    assert row["stages"] == [{"name": name, "state": "waiting", "hold": None} for name in "ab"]
    told = api.http.get(f"{api.url}/metrics").text
    assert 'trimtab_lifecycle_stages{state="waiting"} 2.0' in told
    for path in ("lineage", "diff"):
        assert api.call("GET", f"lifecycles/walk/{path}", viewer).status_code == 200, path
        assert api.call("GET", f"lifecycles/nowhere/{path}", viewer).status_code == 404


def test_its_runs_are_shown_with_it_and_a_job_by_itself_is_none(api: Any) -> None:
    submit(api)
    conduct(api)
    viewer = api.token(role="viewer")
    stage = api.call("GET", "lifecycles/walk", viewer).json()["stages"][0]
    assert (stage["state"], stage["progress"]["role"], stage["can"]) == ("training", "train", [])
    (run,) = stage["runs"]
    shown = api.call("GET", f"runs/{run['id']}", viewer).json()
    assert (shown["lifecycle"]["name"], shown["stages"], shown["stage"]) == ("walk", ["a", "b"], "a")
    assert (shown["role"], shown["init_hash"]) == ("train", None)
    job = {"kind": "Job", "metadata": {"name": "alone"}, "spec": PLAN["spec"]["stages"][0]["job"]}
    job["spec"] = {**job["spec"], "stage": "a", "resources": {"nodes": 1}}
    api.call("POST", "runs", api.token(role="operator"), json={"spec": job})
    assert len(api.call("GET", "lifecycles", viewer).json()["lifecycles"]) == 1


def test_the_same_key_is_the_same_lifecycle(api: Any) -> None:
    assert submit(api, "k").json()["id"] == submit(api, "k").json()["id"]
    other = submit(api, "k", {"spec": plan({"name": "c"})})
    assert (other.status_code, other.json()["code"]) == (409, "key_reused")


def test_a_bad_plan_lists_every_problem(api: Any) -> None:
    bad = plan({"name": "a", "gate": {}}, {"name": "a", "after": ["x"]})
    for path, status in (("lifecycles", 422), ("lifecycles/validate", 200)):
        answer = api.call("POST", path, api.token(role="operator"), json={"spec": bad})
        assert answer.status_code == status
        told = {one["path"] for one in answer.json()["problems"]}
        assert {"stages.0.gate", "stages.1.name", "stages.1.after"} <= told
    assert api.call("GET", "lifecycles", api.token(role="viewer")).json()["lifecycles"] == []
    for body in ({}, {"spec": {}, "yaml": "a: 1"}, {"yaml": "a: ["}, {"more": 1}):
        assert api.call("POST", "lifecycles", api.token(role="operator"), json=body).status_code == 422


def test_validate_says_what_would_run_and_what_is_new(api: Any) -> None:
    submit(api)
    changed = plan({"name": "a", "gate": gate("loss < 2.4")}, {"name": "b", "gate": gate(approval=True)}, {"name": "c"})
    found = api.call("POST", "lifecycles/validate", api.token(role="viewer"), json={"spec": changed}).json()
    assert found["problems"] == [] and found["sentence"].startswith("3 stages on up to 1 node, 2 with a gate")
    assert [(one["name"], one["gpus"], one["runs"]) for one in found["stages"]][:2] == [
        ("a", 8, ["walk-a", "walk-a-evaluate"]),
        ("b", 8, ["walk-b"]),
    ]
    paths = {one["path"]: (one["before"], one["after"]) for one in found["diff"]}
    assert paths["stages.a.gate.require"] == (["loss < 2.6"], ["loss < 2.4"])
    assert paths["stages.c.role"] == (None, "train")
    assert not any(path.startswith("stages.b") for path in paths)
    other = submit(api, body={"spec": changed}).json()
    told = api.call("GET", f"lifecycles/{other['id']}/diff", api.token(role="viewer")).json()
    assert {one["path"] for one in told["diff"]} == set(paths)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("lifecycles", {"spec": PLAN}),
        ("lifecycles/walk/pause", {}),
        ("lifecycles/walk/resume", {}),
        ("lifecycles/walk/cancel", {}),
        ("lifecycles/walk/clone", {"begin": "a"}),
        ("lifecycles/walk/stages/a/approve", {"hash": "ab" * 32}),
        ("lifecycles/walk/stages/a/refuse", {"hash": "ab" * 32}),
        ("lifecycles/walk/stages/a/retry", {}),
        ("lifecycles/walk/promote", {"alias": "base", "hash": "ab" * 32}),
    ],
)
def test_a_viewer_only_looks(api: Any, path: str, body: dict[str, Any]) -> None:
    submit(api)
    assert api.call("POST", path, api.token(role="viewer"), json=body).status_code == 403
    answer = api.call("POST", path, api.token(role="operator", subject="bob"), json=body)
    assert answer.status_code in (200, 201, 409)
    if answer.status_code < 400:
        with api.context.store.read() as session:
            assert audit.listed(session)[0].object == path


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("stages/a/approve", {"hash": "ab" * 32}, 409, "stage a is waiting and waits for nobody"),
        ("stages/z/approve", {"hash": "ab" * 32}, 404, "walk has no stage z; it has a, b"),
        ("stages/a/approve", {"hash": "latest"}, 422, "hash or its first 8 digits or more, not 'latest'"),
        ("stages/a/approve", {"hash": "ab" * 32, "reason": "\0"}, 422, "holds a NUL or half of a character"),
        ("stages/a/refuse", {"hash": "ab" * 32, "reason": "\ud800"}, 422, "unable to parse raw data as a unicode"),
        ("stages/a/retry", {"fresh": "yes, please"}, 422, ""),
        ("promote", {"alias": "base", "hash": "ab" * 32}, 409, "walk has no checkpoint abababababab"),
        ("promote", {"alias": "Not One", "hash": "ab" * 32}, 422, "lower-case letters, digits or hyphens"),
        ("clone", {"begin": "b"}, 409, "a clone cannot begin with b: stage a is waiting"),
        ("clone", {"begin": "z"}, 404, "walk has no stage z"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    api: Any, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    submit(api)
    answer = raw(api, f"lifecycles/walk/{path}", body)
    told = answer.json()
    assert answer.status_code == status
    assert said in told["title"] or any(said in one["message"] for one in told["problems"])


def raw(api: Any, path: str, body: Any) -> Any:
    """POST of JSON that may hold what no text of UTF-8 can."""
    head = {"Content-Type": "application/json"}
    return api.call("POST", path, api.token(role="operator"), content=json.dumps(body), headers=head)


@pytest.mark.parametrize("kind", ["lifecycles", "runs"])
def test_what_no_database_keeps_is_refused_and_harms_nothing(api: Any, kind: str) -> None:
    for value in ("\ud800", "\0", float("nan"), float("inf")):
        bad, path = plan({"name": "a"}, data={"y": value}), "defaults.data.y"
        if kind == "runs":
            bad, path = parse_lifecycle(plan({"name": "a"})).job("a", "train").to_dict(), "data.y"
            bad["spec"]["data"] = {"y": value}
        answer = raw(api, kind, {"spec": bad})
        assert (answer.status_code, [one["path"] for one in answer.json()["problems"]]) == (422, [path])
        assert raw(api, f"{kind}/validate", {"spec": bad}).status_code == 200
    assert api.call("GET", kind, api.token(role="viewer")).json()[kind] == []


def test_the_list_comes_in_pages_and_by_what_waits_for_a_person(api: Any) -> None:
    ids = [submit(api, body={"spec": plan({"name": "a"}, name=f"n{number}")}).json()["id"] for number in range(5)]
    with api.context.store.write() as session:
        for id_, status in ((ids[0], "active"), (ids[1], "cancelled")):
            found = lifecycles.get(session, id_)
            lifecycles.move_stage(found.stages[0], "held", reason="x", now=1.0, hold="failed")
            lifecycles.move_lifecycle(found.state, status, reason="x", now=1.0)

    def listed(**query: Any) -> Any:
        return api.call("GET", "lifecycles", api.token(role="viewer"), params=query)

    first = listed(limit=3).json()
    second = listed(limit=3, cursor=first["next"]).json()
    assert [row["id"] for row in first["lifecycles"] + second["lifecycles"]] == ids[::-1]
    (waiting,) = listed(waits_for_person="true").json()["lifecycles"]
    assert (waiting["id"], waiting["waits_for_person"]) == (ids[0], True)
    others = listed(waits_for_person="false").json()["lifecycles"]
    assert [row["id"] for row in others] == ids[:0:-1] and not any(row["waits_for_person"] for row in others)
    assert listed(waits_for_person="true", status="paused").json()["lifecycles"] == []
    assert listed(waits_for_person="perhaps").status_code == 422


@pytest.mark.parametrize("kind", ["lifecycles", "runs"])
def test_a_cursor_that_is_no_row_is_no_first_page(api: Any, kind: str) -> None:
    submit(api)
    viewer = api.token(role="viewer")
    answer = api.call("GET", kind, viewer, params={"cursor": "nonsense"})
    assert answer.status_code == 422
    assert answer.json()["problems"] == [{"path": "cursor", "message": f"no {kind[:-1]} has the id nonsense"}]
    assert api.call("GET", kind, viewer, params={"cursor": ""}).status_code == 200


def test_lifecycles_that_ship_are_apart_from_jobs(api: Any) -> None:
    viewer = api.token(role="viewer")
    jobs = {one["name"] for one in api.call("GET", "templates", viewer).json()["templates"]}
    ship = {one["name"] for one in api.call("GET", "lifecycle-templates", viewer).json()["templates"]}
    assert "toy" in jobs and not jobs & ship
    for name in ship:
        assert api.call("GET", f"lifecycle-templates/{name}", viewer).json()["yaml"]
    assert api.call("GET", "lifecycle-templates/nothing", viewer).status_code == 404

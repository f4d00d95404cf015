"""Runs over HTTP: submission and its repeats, refusals with words, and every view of a run in its shape."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from faulty import add_incident

from controlplane.api import problems
from controlplane.services.reconcile import LEASE
from controlplane.store import leases
from jobs.spec import load_template
from tests.exposition import lint


def spec(**changes: Any) -> dict[str, Any]:
    job = load_template("toy").to_dict()
    job["metadata"]["name"] = changes.pop("name", "toy")
    job["spec"]["resources"].update(changes)
    return job


def submit(api: Any, key: str = "", **changes: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return api.call("POST", "runs", api.token(role="operator"), json={"spec": spec(**changes)}, headers=headers)


def test_a_job_is_taken_and_shown(api: Any) -> None:
    made = submit(api)
    assert made.status_code == 201
    run = made.json()
    viewer = api.token(role="viewer")
    shown = api.call("GET", f"runs/{run['id']}", viewer).json()
    assert (shown["status"], shown["step"], shown["steps"], shown["progress"]) == ("queued", None, 200, None)
    assert shown["yaml"].startswith("apiVersion: trimtab/v1")
    assert api.call("GET", "runs/toy", viewer).json()["id"] == run["id"]
    for path in ("why", "timeline", "steps", "checkpoints", "members", "logs", "stored"):
        assert api.call("GET", f"runs/{run['id']}/{path}", viewer).status_code == 200, path
    assert api.call("GET", f"runs/{run['id']}/why", viewer).json()["restarts"] == []


def test_the_same_key_is_the_same_run_and_another_body_a_conflict(api: Any) -> None:
    token = api.token(role="operator", subject="ada")
    headers = {"Idempotency-Key": "k1"}
    body = {"spec": spec()}
    first = api.call("POST", "runs", token, json=body, headers=headers)
    again = api.call("POST", "runs", token, json=body, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = api.call("POST", "runs", token, json={"spec": spec(name="other")}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "key_reused")
    assert len(api.call("GET", "runs", token).json()["runs"]) == 1


def test_a_bad_spec_lists_every_problem_with_its_path(api: Any) -> None:
    bad = spec(nodes=0, nodez=3)
    bad["spec"]["train"]["steps"] = "many"
    answer = api.call("POST", "runs", api.token(role="operator"), json={"spec": bad})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    told = {row["path"]: row["message"] for row in answer.json()["problems"]}
    assert told["resources.nodes"] == "must be ≥ 1"
    assert "nodes" in told["resources.nodez"]
    assert "train.steps" in told
    assert api.call("GET", "runs", api.token(role="viewer")).json()["runs"] == []


@pytest.mark.parametrize("body", [{}, {"spec": {}, "yaml": "a: 1"}, {"yaml": "a: [1"}, {"yaml": "- 1"}, {"more": 1}])
def test_a_submission_that_is_none_is_refused(api: Any, body: dict[str, Any]) -> None:
    answer = api.call("POST", "runs", api.token(role="operator"), json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_validate_says_what_would_happen(api: Any) -> None:
    viewer = api.token(role="viewer")
    found = api.call("POST", "runs/validate", viewer, json={"spec": spec()}).json()
    assert found["problems"] == [] and found["gpu_hours"] is None
    assert any(check["level"] == "warn" and "2 nodes" in check["sentence"] for check in found["checks"])
    for node in ("node-a", "node-b", "node-c"):
        api.report(node)
    found = api.call("POST", "runs/validate", viewer, json={"spec": spec()}).json()
    assert [node["ok"] for node in found["candidates"]] == [True] * 3
    assert "at once" in found["sentence"] and "unknown" in found["sentence"]
    bad = api.call("POST", "runs/validate", viewer, json={"spec": spec(nodes=0)}).json()
    assert bad["problems"] == [{"path": "resources.nodes", "message": "must be ≥ 1"}]
    wrong = spec()
    wrong["spec"]["router"]["skipBias"] = "abc"
    bad = api.call("POST", "runs/validate", viewer, json={"spec": wrong}).json()
    assert bad["problems"] == [{"path": "router.skipBias", "message": "must be a number, not 'abc'"}]


def test_the_list_comes_in_pages(api: Any) -> None:
    made = [submit(api, name=f"job-{number}").json()["id"] for number in range(5)]
    viewer = api.token(role="viewer")
    first = api.call("GET", "runs", viewer, params={"limit": 3}).json()
    second = api.call("GET", "runs", viewer, params={"limit": 3, "cursor": first["next"]}).json()
    assert [row["id"] for row in first["runs"] + second["runs"]] == made[::-1]
    assert second["next"] is None
    assert api.call("GET", "runs", viewer, params={"status": "failed"}).json()["runs"] == []


@pytest.mark.parametrize(("path", "query"), [("runs", "status"), ("incidents", "state")])
def test_a_filter_of_a_word_that_is_no_state_is_refused_with_those_that_are(api: Any, path: str, query: str) -> None:
    answer = api.call(
        "GET", path, api.token(role="viewer"), params={query: "failed,bogus" if path == "runs" else "bogus"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")
    (problem,) = answer.json()["problems"]
    assert problem["path"] == query and problem["message"].endswith("not bogus")


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({}, 200, ""),
        ({"rank": 3}, 200, ""),
        ({"rank": 4}, 404, "has no rank 4 It has ranks 0 to 3."),
        ({"rank": -1}, 404, "has no rank -1 It has ranks 0 to 3."),
        ({"attempt": 9}, 404, "has no attempt 9 It has none yet."),
    ],
)
def test_a_log_that_cannot_be_is_said_to_be_none(api: Any, asked: dict[str, int], status: int, said: str) -> None:
    run = submit(api, ranksPerNode=2).json()["id"]
    answer = api.call("GET", f"runs/{run}/logs", api.token(role="viewer"), params=asked)
    assert answer.status_code == status
    told = answer.json()
    assert f"{told.get('title', '')} {told.get('hint', '')}".strip() == f"{run} {said}".strip() if said else True
    assert said or told["text"] == ""


def test_a_log_on_a_backend_that_the_server_lacks_is_said_to_be_out_of_reach(api: Any) -> None:
    for node in ("node-a", "node-b"):
        api.report(node)
    run = submit(api).json()["id"]
    with api.context.store.write() as session:
        epoch = leases.acquire(session, LEASE, leases.this_process("a"), now=api.context.clock.now(), ttl_s=9)
    api.controller.reconcile_once(epoch, api.context.clock.now())
    viewer = api.token(role="viewer")
    assert api.call("GET", f"runs/{run}/logs", viewer).json()["attempt"] == 1
    api.context.backends.clear()
    answer = api.call("GET", f"runs/{run}/logs", viewer)
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert "without the backend memory" in answer.json()["detail"]


@pytest.mark.parametrize("named", ["1", "INC-0001", "inc-1"])
def test_an_incident_is_named_by_its_number_or_its_label(api: Any, named: str) -> None:
    add_incident(api.context.store)
    operator = api.token(role="operator", subject="ada")
    assert api.call("GET", f"incidents/{named}", operator).json()["label"] == "INC-0001"
    assert api.call("POST", f"incidents/{named}/ack", operator).json() == {"incident": 1, "owner": "ada"}
    again = api.call("POST", f"incidents/{named}/ack", api.token(role="operator", subject="bob"))
    assert (again.status_code, again.json()["title"]) == (409, "INC-0001 is ada's already")


@pytest.mark.parametrize("verb", ["stop", "pause", "resume", "restart"])
def test_what_a_person_asks_for_is_written_down(api: Any, verb: str) -> None:
    run = submit(api).json()["id"]
    operator, viewer = api.token(role="operator", subject="ada"), api.token(role="viewer")
    assert api.call("POST", f"runs/{run}/{verb}", operator, json={}).status_code == 200
    desired = {"stop": "cancel", "pause": "pause", "resume": "run", "restart": "run"}[verb]
    assert api.call("GET", f"runs/{run}", viewer).json()["desired"] == desired
    assert api.call("POST", f"runs/nowhere/{verb}", operator, json={}).status_code == 404


def test_a_restart_from_a_checkpoint_that_is_none_is_refused_in_words(api: Any) -> None:
    run = submit(api).json()["id"]
    answer = api.call("POST", f"runs/{run}/restart", api.token(role="operator"), json={"checkpoint_id": "nope"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_now")
    assert "nope" in answer.json()["title"]


def test_a_manifest_that_is_not_there_is_refused_in_words(api: Any) -> None:
    run, viewer = submit(api).json()["id"], api.token(role="viewer")
    answer = api.call("GET", f"runs/{run}/checkpoints/nope/manifest", viewer)
    assert (answer.status_code, answer.json()["title"]) == (409, f"{run} has no checkpoint nope")
    assert api.call("GET", "runs/nowhere/checkpoints/nope/manifest", viewer).status_code == 404


def test_errors_are_problem_documents_with_a_request_id(api: Any) -> None:
    viewer = api.token(role="viewer")
    for method, path, status in (
        ("GET", "runs/none", 404),
        ("GET", "incidents/99", 404),
        ("GET", "incidents/x", 422),
        ("PATCH", "runs", 405),
        ("GET", "no/such/route", 404),
        ("GET", "runs/none/experts/frame", 404),
        ("GET", "templates/none", 404),
    ):
        answer = api.call(method, path, viewer)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"title", "status", "code"} <= answer.json().keys()
        assert len(answer.headers["x-request-id"]) == 36


def test_an_error_of_the_server_says_so_and_nothing_more(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlplane.services import views_runs

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(views_runs, "rows", broken)
    # the plain log of a server: structlog's own for terminals draws every frame's variables, for half a minute
    plain = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    monkeypatch.setattr(problems, "_log", structlog.wrap_logger(structlog.PrintLogger(), processors=plain))
    answer = api.call("GET", "runs", api.token(role="viewer"))
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


def test_rules_templates_now_and_channels_answer_a_viewer(api: Any) -> None:
    viewer, admin = api.token(role="viewer"), api.token(role="admin")
    assert "hbm-uncorrectable" in {rule["id"] for rule in api.call("GET", "rules", viewer).json()["rules"]}
    assert [one["name"] for one in api.call("GET", "templates", viewer).json()["templates"]] == ["toy"]
    now = api.call("GET", "now", viewer).json()
    assert now["sentence"]["lead"] == "Nothing needs a person."
    made = api.call("PUT", "channels/ops", admin, json={"url": "http://127.0.0.1:9/x?key=hidden"}).json()
    assert made["secret"].startswith("whsec_")
    shown = api.call("GET", "channels", viewer)
    assert "hidden" not in shown.text and made["secret"] not in shown.text
    bad = api.call("PUT", "channels/ops", admin, json={"url": "http://169.254.169.254/"})
    assert (bad.status_code, bad.json()["problems"][0]["path"]) == (422, "url")


def test_metrics_are_prometheus_and_open(api: Any) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    submit(api)
    api.report("node-a")
    text = api.http.get(f"{api.url}/metrics").text
    assert lint(text.encode()) == []
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["trimtab_ingest_batches"].samples[0].value == 1
    assert families["trimtab_runs"].samples[0].labels == {"state": "queued"}

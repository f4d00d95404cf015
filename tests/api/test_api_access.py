"""Who may do what: every route of the built application, every kind of token, and what is left in the audit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from controlplane.api.app import OPEN
from controlplane.services import tokens
from controlplane.store.engine import StoreConflict, StoreRejected, StoreUnavailable

VIEWER_MAY_POST = {"/api/v1/runs/validate"}
ANYBODY = {("DELETE", "/api/v1/session")}
OWN_ONLY = {"/api/v1/ingest", "/api/v1/runs/{run_id}/checkpoints", "/api/v1/runs/{run_id}/kubeflow/status"}


def routes(app: Any) -> list[tuple[str, str]]:
    """(method, path) of every route, those of included routers too."""
    found: list[tuple[str, str]] = []

    def walk(items: Any, prefix: str = "") -> None:
        for route in items:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "app", None), "routes", None)
            path = prefix + str(getattr(route, "path", ""))
            methods = getattr(route, "methods", None)
            if methods:
                found.extend((method, path) for method in methods if method != "HEAD")
            elif inner:
                walk(inner, path)
            else:
                original = getattr(route, "original_router", None)
                context = getattr(route, "include_context", None)
                assert original is not None, route
                walk(original.routes, prefix + str(getattr(context, "prefix", "")))

    walk(app.routes)
    return sorted(set(found))


def filled(path: str) -> str:
    """A path with something in each of its holes."""
    return re.sub(r"\{number\}", "1", re.sub(r"\{(?!number)[^}]+\}", "thing", path))


def test_every_route_but_the_open_ones_asks_for_a_token(api: Any) -> None:
    found = routes(api.app)
    assert len(found) > 30
    assert {path for _, path in found} >= OPEN
    for method, path in found:
        answer = api.http.request(method, api.url + filled(path))
        if path in OPEN:
            assert answer.status_code != 401 or path == "/api/v1/session/open", path
        else:
            assert answer.status_code == 401, (method, path, answer.status_code)
            assert answer.json()["code"] == "no_token"


def test_the_document_names_every_call_and_who_may_make_it(api: Any) -> None:
    found = api.call("GET", "openapi.json", api.token(role="viewer")).json()
    calls = {
        (method.upper(), path): operation
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    }
    apart = {"/healthz", "/readyz", "/metrics"}
    assert set(calls) == {(method, path) for method, path in routes(api.app) if path not in apart}
    below = {"operator": api.token(role="viewer"), "admin": api.token(role="operator")}
    for (method, path), operation in calls.items():
        who = operation["x-trimtab-who"]
        assert operation["description"], path
        assert (who == "no token") == (path in OPEN) == (operation["security"] == []), path
        if who in below:
            headers = {"Authorization": f"Bearer {below[who]}"}
            answer = api.http.request(method, api.url + filled(path), headers=headers, json={})
            assert answer.status_code in (403, 422), (method, path)
        else:
            assert who in ("viewer", "any token", "no token") or path in OWN_ONLY, path
    assert "default" in calls["POST", "/api/v1/runs"]["responses"]


@pytest.mark.parametrize("hole", ["a%00b", "9" * 24, "%ED%A0%80"])
def test_no_name_makes_the_server_fail_on_either_database(two_servers: Any, hole: str) -> None:
    api, _ = two_servers
    headers = {"Authorization": f"Bearer {api.token(role='admin')}"}
    for method, path in routes(api.app):
        if "{" not in path or path in OWN_ONLY:
            continue
        for body in ({}, {"reason": "\0"}):
            address = api.url + re.sub(r"\{[^}]+\}", hole, path)
            answer = api.http.request(method, address, headers=headers, json=body)
            assert answer.status_code < 500, (method, path, body, answer.text)
            if "%00" in hole:
                assert (answer.status_code, answer.json()["problems"][0]["path"]) == (422, "path"), path
    for query in ("cursor", "status", "against"):
        answer = api.http.get(f"{api.url}/api/v1/lifecycles", headers=headers, params={query: "a\0"})
        assert (answer.status_code, answer.json()["problems"][0]["path"]) == (422, "query")
    bad = api.http.post(f"{api.url}/api/v1/nodes/n/cordon", headers=headers, json={"reason": "\0"})
    assert (bad.status_code, bad.json()["problems"][0]["path"]) == (422, "reason")


@pytest.mark.parametrize(("error", "status"), [(StoreRejected("too long"), 422), (StoreConflict("taken"), 409)])
def test_what_only_the_database_refuses_is_the_requests_fault(
    api: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def refused() -> None:
        raise error

    viewer = api.token(role="viewer")
    assert api.call("GET", "session", viewer).status_code == 200
    monkeypatch.setattr(api.context.store, "read", refused)
    answer = api.call("GET", "runs", viewer)
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error))


def test_a_viewer_reads_everything_and_changes_nothing(api: Any) -> None:
    viewer = api.token(role="viewer")
    for method, path in routes(api.app):
        if path in OPEN or (method, path) in ANYBODY:
            continue
        status = api.http.request(
            method, api.url + filled(path), headers={"Authorization": f"Bearer {viewer}"}, json={}
        ).status_code
        if method == "GET" and not path.startswith(("/api/v1/tokens", "/api/v1/audit")):
            assert status in (200, 304, 404, 422), (path, status)
        elif path in VIEWER_MAY_POST:
            assert status in (200, 422), (path, status)
        elif path in OWN_ONLY:
            assert status in (400, 403, 422), (path, status)
        else:
            assert status in (403, 422), (method, path, status)


@pytest.mark.parametrize(
    ("kind", "claims"),
    [("agent", {"node": "node-a"}), ("trainer", {"run_id": "r", "attempt_no": 1, "epoch": 1})],
)
def test_a_machine_reaches_its_own_route_only(api: Any, kind: str, claims: dict[str, Any]) -> None:
    token = api.token(kind, **claims)
    for method, path in routes(api.app):
        if path in OPEN | OWN_ONLY or path == "/api/v1/session":
            continue
        answer = api.http.request(method, api.url + filled(path), headers={"Authorization": f"Bearer {token}"}, json={})
        assert answer.status_code in (403, 422), (method, path, answer.status_code)


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_only_an_administrator_makes_tokens_and_channels(api: Any, role: str) -> None:
    token = api.token(role=role)
    body = {"kind": "personal", "role": "admin"}
    assert api.call("POST", "tokens", token, json=body).status_code == 403
    assert api.call("GET", "audit", token).status_code == 403
    url = {"kind": "webhook", "url": "http://127.0.0.1:9/"}
    assert api.call("PUT", "channels/ops", token, json=url).status_code == 403
    admin = api.token(role="admin")
    assert api.call("POST", "tokens", admin, json=body).status_code == 201
    audit = api.call("GET", "audit", admin).json()["audit"]
    assert [(row["verb"], row["outcome"]) for row in audit] == [
        ("POST", "made"),
        ("PUT", "refused"),
        ("POST", "refused"),
    ]


def test_tokens_that_ended_or_never_were_are_refused(api: Any) -> None:
    admin = api.token(role="admin")
    expired = api.token(role="viewer", life_s=-1.0)
    asked = {"kind": "personal", "role": "viewer", "subject": "made"}
    made = api.call("POST", "tokens", admin, json=asked).json()["token"]
    assert api.call("GET", "nodes", made).status_code == 200
    listed = api.call("GET", "tokens", admin).json()["tokens"]
    revoked = next(row["id"] for row in listed if row["created_by"] == "a admin")
    assert api.call("DELETE", f"tokens/{revoked}", admin).status_code == 200
    slip = made[:-1] + ("0" if made[-1] != "0" else "1")
    for token in (expired, made, slip, "tt_personal_x", "nonsense", tokens.make("personal")):
        answer = api.call("GET", "nodes", token)
        assert (answer.status_code, answer.json()["code"]) == (401, "bad_token")
    assert all(made not in str(row) for row in listed)
    states = {row["subject"]: row["state"] for row in api.call("GET", "tokens", admin).json()["tokens"]}
    assert states == {"a admin": "living", "a viewer": "expired", "made": "revoked"}


def test_a_one_time_link_opens_one_session_and_is_no_token(api: Any) -> None:
    link = api.token("link", role="operator", subject="ada")
    assert api.call("GET", "nodes", link).status_code == 401
    opened = api.call("POST", "session/open", json={"code": link})
    assert opened.status_code == 200
    session = opened.json()["token"]
    told = api.call("GET", "session", session).json()
    assert told == {"actor": "ada", "role": "operator", "kind": "login", "dashboard": None}
    again = api.call("POST", "session/open", json={"code": link})
    assert (again.status_code, again.json()["code"]) == (401, "bad_link")
    assert api.call("DELETE", "session", session).json() == {"ended": True}
    assert api.call("GET", "nodes", session).status_code == 401


def test_an_agent_writes_its_own_node_and_the_other_try_is_audited(api: Any) -> None:
    agent = api.token("agent", node="node-a")
    assert api.call("POST", "ingest", agent, content=api.batch("node-a")).status_code == 200
    refused = api.call("POST", "ingest", agent, content=api.batch("node-b"))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    admin = api.token(role="admin")
    assert api.call("GET", "audit", admin).json()["audit"][0]["outcome"] == "refused"
    assert [row["name"] for row in api.call("GET", "nodes", admin).json()["nodes"]] == ["node-a"]


def test_a_trainer_of_another_run_attempt_or_epoch_is_refused_and_audited(api: Any) -> None:
    own = {"run_id": "r", "attempt_no": 2, "epoch": 3}
    trainer = api.token("trainer", **own)
    body = {"attempt_no": 2, "epoch": 3, "step": 1, "path": "/nowhere"}
    for run, changed in (("other", {}), ("r", {"epoch": 2}), ("r", {"attempt_no": 1})):
        answer = api.call("POST", f"runs/{run}/checkpoints", trainer, json={**body, **changed})
        assert answer.status_code == 403
    assert api.call("POST", "runs/r/checkpoints", trainer, json=body).status_code == 404
    audit = api.call("GET", "audit", api.token(role="admin")).json()["audit"]
    assert [row["outcome"] for row in audit] == ["refused"] * 3


def test_the_database_holds_no_token(api: Any) -> None:
    token = api.token(role="viewer")
    assert api.call("GET", "nodes", token).status_code == 200
    folder = api.context.store.url.database.rsplit("/", 1)[0]
    secret = token.split("_", 2)[2].rpartition("_")[0].encode()
    import pathlib

    for file in pathlib.Path(folder).glob("*"):
        if file.is_file():
            assert secret not in file.read_bytes(), file


def test_health_does_not_ask_the_database(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise StoreUnavailable("the database is gone")

    monkeypatch.setattr(api.context.store, "read", gone)
    monkeypatch.setattr(api.context.store, "check", gone)
    assert api.http.get(f"{api.url}/healthz").status_code == 200
    ready = api.http.get(f"{api.url}/readyz")
    assert ready.status_code == 503
    assert "the database is gone" in ready.json()["lacking"][0]

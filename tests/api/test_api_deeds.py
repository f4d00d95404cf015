"""A request that is sent twice acts once: every POST, both databases, two servers, a server killed in the middle."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from faulty import add_incident
from test_api_access import routes
from test_api_runs import spec

from controlplane.api.deeds import Deed, deed
from controlplane.api.problems import Problem
from controlplane.clock import ManualClock
from controlplane.notify.webhook import Outcome
from controlplane.store import audit, drills, events, incidents, runs, tokens
from controlplane.store.engine import Session, Store

WITHOUT_KEY = {
    "/api/v1/ingest": "a batch has its node's number",
    "/api/v1/session/open": "a link opens one session",
    "/api/v1/runs/validate": "it changes nothing",
    "/api/v1/runs/{run_id}/checkpoints": "nothing is believed: the controller looks",
}
KEY = {"Idempotency-Key": "k1"}


def depends_on(dependant: Dependant, call: Callable[..., Any]) -> bool:
    return any(one.call is call or depends_on(one, call) for one in dependant.dependencies)


def test_every_post_that_changes_something_takes_a_key(api: Any) -> None:
    posts = {route.path: route for method, route in api_routes(api.app) if method == "POST"}
    assert len(posts) > 12
    without = {f"/api/v1{path}" for path, route in posts.items() if not depends_on(route.dependant, deed)}
    assert without == set(WITHOUT_KEY)


def api_routes(app: Any) -> Iterator[tuple[str, Any]]:
    """(method, route) of the routers, with paths below /api/v1."""
    from controlplane.api import routes_fleet, routes_people, routes_runs

    known = {path for _, path in routes(app)}
    for module in (routes_fleet, routes_people, routes_runs):
        for route in module.router.routes:
            assert f"/api/v1{route.path}" in known
            for method in route.methods:
                yield method, route


def lines(session: Session) -> int:
    """Lines of the node's timeline that a person's act wrote."""
    acts = ("node_cordoned", "node_returned", "incident_silenced")
    return len([event for event in events.listed(session) if event.kind in acts])


@pytest.mark.parametrize(
    ("path", "body", "effects"),
    [
        ("nodes/node-a/drills", {"kind": "thermal", "gpu": 1}, lambda s: len(drills.listed(s, "node-a"))),
        ("nodes/node-a/cordon", {"reason": "cable"}, lines),
        ("nodes/node-a/uncordon", {"reason": "mended"}, lines),
        ("incidents/1/ack", {}, lambda s: incidents.by_number(s, 1).seq),
        ("incidents/1/resolve", {"reason": "mended"}, lambda s: incidents.by_number(s, 1).seq),
        ("incidents/1/silence", {"reason": "planned", "minutes": 5}, lines),
        ("runs", {"spec": spec()}, lambda s: len(runs.listed(s))),
    ],
)
def test_the_same_key_acts_once_and_is_answered_alike(
    api: Any, path: str, body: dict[str, Any], effects: Callable[[Session], int]
) -> None:
    operator = api.token(role="operator", subject="ada")
    if path.startswith("nodes"):
        api.report("node-a")
    if path.startswith("incidents"):
        add_incident(api.context.store)
    first = api.call("POST", path, operator, json=body, headers=KEY)
    again = api.call("POST", path, operator, json=body, headers=KEY)
    assert first.status_code in (200, 201, 202), first.text
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    other = api.call("POST", path, operator, json={**body, "reason": "another"}, headers=KEY)
    assert other.status_code in (409, 422) or path.endswith("ack")
    with api.context.store.read() as session:
        assert effects(session) == 1
        assert len(audit.listed(session)) == 1


@pytest.mark.parametrize("verb", ["stop", "pause", "resume", "restart"])
def test_a_wish_under_one_key_is_one_wish(api: Any, verb: str) -> None:
    operator = api.token(role="operator", subject="ada")
    run = api.call("POST", "runs", operator, json={"spec": spec()}).json()["id"]
    answers = [api.call("POST", f"runs/{run}/{verb}", operator, json={}, headers=KEY) for _ in range(2)]
    assert [one.status_code for one in answers] == [200, 200]
    with api.context.store.read() as session:
        assert [row.outcome for row in audit.listed(session)] == ["asked", "submitted"]


def test_a_token_is_shown_once_and_made_once(api: Any) -> None:
    admin = api.token(role="admin", subject="root")
    body = {"kind": "agent", "node": "node-a"}
    made = api.call("POST", "tokens", admin, json=body, headers=KEY).json()
    again = api.call("POST", "tokens", admin, json=body, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (409, "shown_once")
    assert made["id"] in again.json()["detail"]
    with api.context.store.read() as session:
        assert len(tokens.listed(session, ("agent",))) == 1
        kept = audit.take(session, "k1", "root", now=0.0, asked="")
    assert made["token"] not in str(kept.body)


def test_a_message_is_sent_once_and_a_repeat_without_an_answer_is_refused(sqlite_store: Store, api: Any) -> None:
    sent: list[str] = []

    class Sender:
        def send(self, *_: Any) -> Outcome:
            sent.append("one")
            return Outcome(ok=True)

    api.context.senders["webhook"] = Sender()
    admin = api.token(role="admin", subject="root")
    api.call("PUT", "channels/ops", admin, json={"url": "http://127.0.0.1:9/"})
    answers = [api.call("POST", "channels/ops/test", admin, headers=KEY).json() for _ in range(2)]
    assert answers == [{"ok": True, "error": ""}] * 2 and sent == ["one"]
    missing = [api.call("POST", "channels/none/test", admin, headers={"Idempotency-Key": "k2"}) for _ in range(2)]
    assert [one.status_code for one in missing] == [404, 404]

    def killed() -> dict[str, Any]:
        raise KeyboardInterrupt

    begun = Deed(sqlite_store, ManualClock(), "root", "POST", "/api/v1/channels/ops/test", key="k3")
    with pytest.raises(KeyboardInterrupt):
        begun.once_outside(None, killed, lambda *_: None)
    doubtful = api.call("POST", "channels/ops/test", admin, headers={"Idempotency-Key": "k3"})
    assert (doubtful.status_code, doubtful.json()["code"]) == (409, "no_answer_yet")


def test_a_key_is_as_long_as_it_may_be(api: Any) -> None:
    operator = api.token(role="operator")
    api.report("node-a")
    for length, status in ((200, 200), (201, 400)):
        headers = {"Idempotency-Key": "k" * length}
        assert api.call("POST", "nodes/node-a/cordon", operator, json={}, headers=headers).status_code == status


def test_a_second_request_waits_for_the_first_on_the_other_server_and_acts_no_more(
    two_servers: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_servers
    one.report("node-a")
    operator = one.token(role="operator", subject="ada")
    acted, comes, order = threading.Event(), threading.Event(), []
    keep_answer, write = audit.keep_answer, other.context.store.write

    def slow(*arguments: Any, **more: Any) -> None:
        acted.set()
        assert comes.wait(30)
        keep_answer(*arguments, **more)
        order.append("kept")

    def entering() -> Any:
        comes.set()
        return write()

    monkeypatch.setattr(audit, "keep_answer", slow)
    monkeypatch.setattr(other.context.store, "write", entering)
    arguments, body = ("POST", "nodes/node-a/drills", operator), {"kind": "thermal", "gpu": 1}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.call, *arguments, json=body, headers=KEY)
        assert acted.wait(30)
        second = pool.submit(other.call, *arguments, json=body, headers=KEY)
        assert first.result(30).status_code == 202
        assert second.result(30).json() == first.result(30).json()
    assert order == ["kept"]
    with one.context.store.read() as session:
        assert len(drills.listed(session, "node-a")) == 1


def test_a_second_request_acts_when_the_first_was_undone(store: Store) -> None:
    made = Deed(store, ManualClock(), "ada", "POST", "/api/v1/nodes/n/drills", key="k1")

    def act(session: Session) -> dict[str, Any]:
        return {"id": drills.add(session, node="n", kind="thermal", gpu=0, now=1.0, created_by="ada").id}

    def dies(session: Session) -> dict[str, Any]:
        act(session)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.once({}, dies)
    first = made.once({}, act)
    assert made.once({}, dies) == first
    with pytest.raises(Problem, match="belongs to another"):
        made.once({"gpu": 1}, act)
    with store.read() as session:
        assert [one.id for one in drills.listed(session, "n")] == [first["id"]]


KILLED = """
import os, signal, sys
from controlplane.api.deeds import Deed
from controlplane.clock import SystemClock
from controlplane.store import drills
from controlplane.store.engine import Store

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def act(session):
    made = drills.add(session, node="n", kind="thermal", gpu=0, now=1.0, created_by="ada").id
    if sys.argv[2] == "before":
        die()
    return {"id": made}

Deed(Store(sys.argv[1]), SystemClock(), "ada", "POST", "/api/v1/nodes/n/drills", key="k1").once({}, act)
die()
"""


@pytest.mark.parametrize(("moment", "left"), [("before", 0), ("after", 1)])
def test_a_server_that_is_killed_leaves_the_act_with_its_key_or_neither(
    store: Store, moment: str, left: int, tmp_path: Path
) -> None:
    url = store.url.render_as_string(hide_password=False)
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, str(program), url, moment], env={"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -9
    with store.read() as session:
        assert len(drills.listed(session, "n")) == left

    def act(session: Session) -> dict[str, Any]:
        return {"id": drills.add(session, node="n", kind="thermal", gpu=0, now=1.0, created_by="ada").id}

    retry = Deed(store, ManualClock(), "ada", "POST", "/api/v1/nodes/n/drills", key="k1")
    answer = retry.once({}, act)
    with store.read() as session:
        assert [one.id for one in drills.listed(session, "n")] == [answer["id"]]

"""Batches over HTTP: every bad one gets a clear answer and stores nothing, a good one is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agents.wire import MAX_BATCH_BYTES, WAITING_HEADER
from controlplane.store import telemetry


def stored(api: Any) -> int:
    with api.context.store.read() as session:
        return telemetry.counted(session, "gpu")


def refused(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"]


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (lambda data: b"", 400, "bad_magic"),
        (lambda data: b"GET / HTTP/1.1", 400, "bad_magic"),
        (lambda data: data[:20], 400, "truncated"),
        (lambda data: data[:-3], 400, "truncated"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 400, "bad_checksum"),
        (lambda data: data[:4] + b"\x09" + data[5:], 426, "wrong_version"),
    ],
)
def test_a_spoiled_batch_is_refused_with_its_code(api: Any, spoil: Any, status: int, code: str) -> None:
    agent = api.token("agent", node="node-a")
    refused(api.call("POST", "ingest", agent, content=spoil(api.batch("node-a"))), status, code)
    assert stored(api) == 0


def test_a_body_that_is_too_long_is_refused_while_it_comes(api: Any) -> None:
    agent = api.token("agent", node="node-a")

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BATCH_BYTES // 65_536 + 2):
            yield bytes(65_536)

    refused(api.call("POST", "ingest", agent, content=endless()), 413, "oversized")
    refused(api.call("POST", "ingest", agent, content=bytes(MAX_BATCH_BYTES + 1)), 413, "oversized")
    assert stored(api) == 0


def test_a_batch_that_comes_again_is_acknowledged_and_stored_once(api: Any) -> None:
    agent = api.token("agent", node="node-a")
    body = api.batch("node-a")
    answers = [api.call("POST", "ingest", agent, content=body) for _ in range(3)]
    assert [answer.json()["acknowledged"] for answer in answers] == [1, 1, 1]
    assert stored(api) == 1
    assert api.context.ingest.counters.replays == 2


@pytest.mark.parametrize(("said", "behind"), [("3600", 3600), ("", 0), ("-1", 0), ("many", 0), ("9" * 40, 999_999_999)])
def test_a_sender_says_how_many_wait_behind_a_batch(
    api: Any, monkeypatch: pytest.MonkeyPatch, said: str, behind: int
) -> None:
    heard = []
    submit = api.context.ingest.submit

    def listen(batch: Any, received_s: float, *, behind: int = 0) -> Any:
        heard.append(behind)
        return submit(batch, received_s, behind=behind)

    monkeypatch.setattr(api.context.ingest, "submit", listen)
    agent = api.token("agent", node="node-a")
    answer = api.call("POST", "ingest", agent, content=api.batch("node-a"), headers={WAITING_HEADER: said})
    assert (answer.status_code, heard) == (200, [behind])


def test_a_server_whose_writer_has_ended_is_not_ready_and_refuses_no_batch_for_good(api: Any) -> None:
    assert api.http.get(f"{api.url}/readyz").json() == {"ready": True, "lacking": []}
    api.context.ingest.stop()
    ready = api.http.get(f"{api.url}/readyz")
    assert (ready.status_code, ready.json()["lacking"]) == (503, ["ingest: no thread writes batches"])
    api.context.ingest.start()
    assert api.report("node-a").status_code == 200


def test_a_drill_reaches_a_simulated_node_once(api: Any) -> None:
    api.report("node-a")
    operator = api.token(role="operator")
    ordered = api.call("POST", "nodes/node-a/drills", operator, json={"kind": "gpu-lost", "gpu": 3})
    assert ordered.status_code == 202
    first, second = api.report("node-a").json(), api.report("node-a").json()
    assert [(drill["kind"], drill["gpu"]) for drill in first["drills"]] == [("gpu-lost", 3)]
    assert second["drills"] == []


def test_a_drill_on_a_real_node_or_an_unknown_one_is_refused(api: Any) -> None:
    api.report("node-real", simulated=False)
    operator = api.token(role="operator")
    body = {"kind": "gpu-lost", "gpu": 3}
    refused(api.call("POST", "nodes/node-real/drills", operator, json=body), 409, "not_simulated")
    refused(api.call("POST", "nodes/nowhere/drills", operator, json=body), 404, "not_found")
    api.report("node-a")
    refused(api.call("POST", "nodes/node-a/drills", operator, json={"kind": "gpu-lost", "gpu": 8}), 422, "bad_request")
    refused(api.call("POST", "nodes/node-a/drills", operator, json={"kind": "fire", "gpu": 0}), 422, "bad_request")
    assert api.report("node-real", simulated=False).json()["drills"] == []


def test_a_node_shows_what_it_sent(api: Any) -> None:
    api.report("node-a")
    viewer = api.token(role="viewer")
    (row,) = api.call("GET", "nodes", viewer).json()["nodes"]
    assert (row["name"], row["simulated"], len(row["gpus"])) == ("node-a", True, 8)
    assert row["gpus"][0]["power_w"] > 100
    series = api.call("GET", "nodes/node-a/series", viewer, params={"metric": "power_w", "entity": 2}).json()
    assert series["unit"] == "W" and len(series["v"]) == 1
    assert api.call("GET", "nodes/node-a/series", viewer, params={"metric": "mood"}).status_code == 404
    frame = api.call("GET", "fleet/frame", viewer)
    assert frame.content[:4] == b"TTF1"
    same = api.call("GET", "fleet/frame", viewer, headers={"If-None-Match": frame.headers["etag"]})
    assert same.status_code == 304


def test_cordon_and_return_are_events_and_audited(api: Any) -> None:
    api.report("node-a")
    operator, viewer = api.token(role="operator"), api.token(role="viewer")
    assert api.call("POST", "nodes/node-a/cordon", operator, json={"reason": "new cable"}).json()["cordoned"]
    view = api.call("GET", "nodes/node-a", viewer).json()
    assert view["cordoned"] and view["state_reason"] == "new cable"
    assert any("new cable" in line["sentence"] for line in view["timeline"])
    api.call("POST", "nodes/node-a/uncordon", operator)
    assert not api.call("GET", "nodes/node-a", viewer).json()["cordoned"]
    refused(api.call("POST", "nodes/nowhere/cordon", operator), 404, "not_found")

"""Nodes over HTTP: out of service and back, and what has to be said before a faulty one returns."""

from __future__ import annotations

from typing import Any

import pytest
from faulty import add_fault

from controlplane.store import audit, events


@pytest.mark.parametrize("action", ["drain", "restart", "rma"])
def test_a_node_that_still_fires_returns_only_by_force_and_with_a_reason(api: Any, action: str) -> None:
    operator, path = api.token(role="operator", subject="ada"), "nodes/node-a/uncordon"
    api.report("node-a")
    api.call("POST", "nodes/node-a/cordon", operator, json={"reason": "memory"})
    told = add_fault(api.context.store, action=action)
    for body in ({}, {"reason": "it looks fine"}, {"force": True}, {"force": True, "reason": "  "}):
        refused = api.call("POST", path, operator, json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "node_still_fires")
        assert told.sentence in refused.json()["detail"] and "--force --reason" in refused.json()["hint"]
    assert api.call("GET", "nodes/node-a", operator).json()["cordoned"]
    forced = api.call("POST", path, operator, json={"force": True, "reason": "a drill."})
    assert forced.json() == {"node": "node-a", "cordoned": False, "firing": [told.sentence]}
    node = api.call("GET", "nodes/node-a", operator).json()
    assert (node["cordoned"], node["state_reason"]) == (False, "returned to service by ada: a drill")
    with api.context.store.read() as session:
        line = events.listed(session, node="node-a")[-1]
        assert line.sentence == f"ada returned node-a to service although {told.sentence}: a drill."
        assert audit.listed(session)[0].detail == {"reason": "a drill.", "force": True, "firing": [told.sentence]}


@pytest.mark.parametrize(("action", "state"), [("alert", "firing"), ("restart", "clear")])
def test_an_alert_or_what_has_cleared_keeps_no_node_out(api: Any, action: str, state: str) -> None:
    operator = api.token(role="operator", subject="ada")
    api.report("node-a")
    add_fault(api.context.store, action=action)
    add_fault(api.context.store, action=action, state=state)
    add_fault(api.context.store, "node-b")
    answer = api.call("POST", "nodes/node-a/uncordon", operator, json={})
    assert (answer.status_code, answer.json()["firing"]) == (200, [])
    assert api.call("GET", "nodes/node-a", operator).json()["state_reason"] == "returned to service by ada"


def test_a_drained_idle_node_is_out_of_service_until_it_is_returned(api: Any) -> None:
    operator = api.token(role="operator", subject="ada")
    api.report("node-a")
    answer = api.call("POST", "nodes/node-a/drain", operator, json={"reason": "new fan"})
    assert answer.json() == {"node": "node-a", "cordoned": True, "runs": []}
    node = api.call("GET", "nodes/node-a", operator).json()
    assert (node["state"], node["cordoned"], node["state_reason"]) == ("drained", True, "new fan")
    api.call("POST", "nodes/node-a/uncordon", operator, json={})
    assert api.call("GET", "nodes/node-a", operator).json()["state"] == "healthy"
    assert api.call("POST", "nodes/node-a/drain", api.token(role="viewer"), json={}).status_code == 403


@pytest.mark.parametrize("verb", ["cordon", "uncordon"])
def test_a_node_that_is_none_is_not_found(api: Any, verb: str) -> None:
    answer = api.call("POST", f"nodes/nowhere/{verb}", api.token(role="operator"), json={"force": True, "reason": "x"})
    assert answer.status_code == (422 if verb == "cordon" else 404)


def test_what_the_platform_says_of_a_node_is_asked_now(api: Any) -> None:
    viewer = api.token(role="viewer")
    api.report("node-a")
    told = api.call("GET", "nodes/node-a/platform", viewer).json()
    assert told["problems"] == [] and [(one["backend"], one["cordon"]) for one in told["platforms"]] == [("memory", "")]
    api.backend.reachable = False
    told = api.call("GET", "nodes/node-a/platform", viewer).json()
    assert told["platforms"] == [] and told["problems"][0].startswith("memory: ")
    assert api.call("GET", "nodes/nowhere/platform", viewer).status_code == 404

"""Cordons and taints on a real API server: only what is ours is given back, whoever else touches the node and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.backends.base import BackendUnavailable, Quarantine
from controlplane.backends.kube.api import Json, KubeApi
from controlplane.backends.kube.nodes import TAINT, NodeActuator, foreign, patch_for, status_of
from controlplane.services import views_platform
from controlplane.store.tables import Node
from tests.kube.conftest import World, rules, until

NODE = "node-001"
OURS = Quarantine("0193f7a0-0000-7000-8000-000000000001", "GPU 3 reported uncorrectable HBM errors")
AMD = {"key": "amd-gpu-unhealthy", "value": "true", "effect": "NoSchedule"}


@pytest.fixture
def actuator(controller_api: KubeApi) -> NodeActuator:
    return NodeActuator(controller_api)


@pytest.fixture(autouse=True)
def clean(world: World) -> Iterator[None]:
    yield
    cordon(world, None)
    world.admin.patch(f"/api/v1/nodes/{NODE}", {"spec": {"taints": None}}, kind="merge", manager="test")


def cordon(world: World, value: bool | None) -> None:
    """What `kubectl cordon` and `uncordon` send."""
    world.admin.patch(
        f"/api/v1/nodes/{NODE}", {"spec": {"unschedulable": value}}, kind="merge", manager="kubectl-cordon"
    )


def taint(world: World, *added: Json) -> None:
    there = world.node(NODE)["spec"].get("taints") or []
    world.admin.patch(
        f"/api/v1/nodes/{NODE}", {"spec": {"taints": [*there, *added]}}, kind="merge", manager="amd-gpu-operator"
    )


def spec(world: World) -> Json:
    return world.node(NODE)["spec"]


def keys(world: World) -> dict[str, str]:
    return {one["key"]: one.get("value", "") for one in spec(world).get("taints") or ()}


def once(world: World, actuator: NodeActuator, wanted: Quarantine | None) -> list[str]:
    """One round."""
    seen = {NODE: world.node(NODE)}
    return [change.sentence for change in actuator.sync({NODE: wanted}, seen)]


def sync(world: World, actuator: NodeActuator, wanted: Quarantine | None) -> list[str]:
    """Rounds until the node is as wanted: the cluster's own controllers change it too, between a read and a patch."""
    said: list[str] = []
    until(lambda: said.extend(once(world, actuator, wanted)) or not patch_for(world.node(NODE), wanted))  # type: ignore[func-returns-value]  # None goes on to the second half
    return said


def test_a_node_without_a_session_is_marked_once_too(world: World, actuator: NodeActuator) -> None:
    """The API server leaves an empty value out of what it stores: that is no difference to be mended each round."""
    unnamed = Quarantine("", OURS.reason)
    assert sync(world, actuator, unnamed) == [f"{NODE} is cordoned and tainted in the cluster: {OURS.reason}"]
    assert once(world, actuator, unnamed) == []


def test_a_node_is_taken_out_once_and_given_back_whole(world: World, actuator: NodeActuator) -> None:
    assert sync(world, actuator, OURS) == [f"{NODE} is cordoned and tainted in the cluster: {OURS.reason}"]
    assert spec(world)["unschedulable"] is True and keys(world)[TAINT] == OURS.session_id
    assert sync(world, actuator, OURS) == []
    assert sync(world, actuator, None) == [f"{NODE} takes pods again"]
    assert "unschedulable" not in spec(world) and TAINT not in keys(world)
    assert sync(world, actuator, None) == []


def test_a_nodes_page_says_whose_cordon_it_is(world: World, actuator: NodeActuator) -> None:
    def told() -> Json:
        return views_platform._status("kube", status_of(NODE, world.node(NODE), 1.0), Node(session_id=OURS.session_id))

    assert told()["cordon"] == "" and told()["ready"]
    cordon(world, True)
    assert told()["cordon"] == "by somebody else"
    cordon(world, None)
    sync(world, actuator, OURS)
    taint(world, AMD)
    now = told()
    assert (now["cordon"], now["schedulable"]) == ("by Trimtab, this session", False) and "amd-gpu" in now["others"]
    assert {"Ready", "MemoryPressure"} <= {one["type"] for one in now["conditions"]}
    sync(world, actuator, None)


def test_what_was_never_ours_is_left_alone(world: World, actuator: NodeActuator) -> None:
    cordon(world, True)
    assert sync(world, actuator, None) == [] and spec(world)["unschedulable"] is True


def test_a_cordon_that_stood_before_ours_stays(world: World, actuator: NodeActuator) -> None:
    cordon(world, True)
    sync(world, actuator, OURS)
    (sentence,) = sync(world, actuator, None)
    assert "stays cordoned" in sentence
    assert spec(world)["unschedulable"] is True and TAINT not in keys(world)


def test_a_cordon_that_a_person_placed_during_ours_stays(world: World, actuator: NodeActuator) -> None:
    sync(world, actuator, OURS)
    cordon(world, None)
    cordon(world, True)
    (sentence,) = sync(world, actuator, None)
    assert "stays cordoned" in sentence and spec(world)["unschedulable"] is True


def test_a_cordon_after_ours_is_not_ours(world: World, actuator: NodeActuator) -> None:
    sync(world, actuator, OURS)
    sync(world, actuator, None)
    cordon(world, True)
    assert sync(world, actuator, None) == [] and spec(world)["unschedulable"] is True


def test_a_person_who_uncordons_during_our_quarantine_is_answered(world: World, actuator: NodeActuator) -> None:
    sync(world, actuator, OURS)
    cordon(world, None)
    assert sync(world, actuator, OURS), "the quarantine still holds"
    assert spec(world)["unschedulable"] is True
    sync(world, actuator, None)
    assert "unschedulable" not in spec(world)


def test_the_gpu_operators_taint_is_neither_touched_nor_fought(world: World, actuator: NodeActuator) -> None:
    taint(world, AMD)
    sync(world, actuator, OURS)
    assert {AMD["key"], TAINT} <= keys(world).keys()
    assert foreign(world.node(NODE)) == AMD["key"]
    sync(world, actuator, None)
    assert AMD["key"] in keys(world) and TAINT not in keys(world)


def test_a_new_session_takes_the_place_of_an_old_one_and_not_the_other_way(
    world: World, actuator: NodeActuator
) -> None:
    sync(world, actuator, OURS)
    second = Quarantine("0193f7a0-0000-7000-8000-000000000002", "again")
    sync(world, actuator, second)
    assert keys(world)[TAINT] == second.session_id
    assert len([one for one in spec(world)["taints"] if one["key"] == TAINT]) == 1


def test_a_node_that_changed_meanwhile_is_tried_again(world: World, actuator: NodeActuator) -> None:
    api = actuator._api
    times = iter(range(10))

    def meddle(call: str) -> None:
        if call.startswith("PATCH") and next(times) == 0:
            taint(world, {"key": "other", "effect": "PreferNoSchedule"})

    api.before_call = meddle
    try:
        assert once(world, actuator, OURS) == [], "the version it was read at is gone"
        assert sync(world, actuator, OURS) and "other" in keys(world), "and nothing of the other's was lost"
    finally:
        api.before_call = lambda _call: None


def test_without_its_right_nothing_changes_and_nothing_breaks(world: World) -> None:
    blind = NodeActuator(world.account("no-actuator", {"cluster": rules("reader")}))
    assert once(world, blind, OURS) == [] and TAINT not in keys(world)


def test_an_old_lease_writes_nothing(world: World, controller_api: KubeApi) -> None:
    api = KubeApi(controller_api._client, may_write=lambda: False)
    with pytest.raises(BackendUnavailable, match="lease"):
        once(world, NodeActuator(api), OURS)
    assert TAINT not in keys(world)

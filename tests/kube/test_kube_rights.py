"""Every verb that ships is needed: without it one thing fails and says which verb it lacks; with all of them all works.

The cases are held against deploy/trimtab/files/*-rules.yaml: a verb there without a case here fails, and the reverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from controlplane.backends.base import AttemptPlan, BackendUnavailable, SubmitConflict
from controlplane.backends.kube.api import Forbidden, KubeApi
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.nodes import NodeActuator, Quarantine
from controlplane.backends.kube.reflector import RESYNC_S, Reflector
from controlplane.cli.cluster_access import RULES
from controlplane.clock import SystemClock
from tests.kube.conftest import NAMESPACE, OPTIONS, World, rules, until

FILES = ("controller", "reader", "actuator")
NODE = "node-010"
Verb = tuple[str, str, str, str]
"""file, API group, resource, verb"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Scene:
    """A backend that lacks a verb, and one that lacks none."""

    lacking: KubeBackend
    whole: KubeBackend
    plan: AttemptPlan


def shipped() -> list[Verb]:
    return [
        (file, group, resource, verb)
        for file in FILES
        for rule in rules(file)
        for group in rule["apiGroups"]  # type: ignore[attr-defined]  # the API's shape
        for resource in rule["resources"]  # type: ignore[attr-defined]  # as above
        for verb in rule["verbs"]  # type: ignore[attr-defined]  # as above
    ]


def without(lacking: Verb | None) -> dict[str, list[dict[str, object]]]:
    """The shipped rules, one resource each, less one verb."""
    found: dict[str, list[dict[str, object]]] = {"role": [], "cluster": []}
    for file, group, resource, verb in shipped():
        if (file, group, resource, verb) != lacking:
            rule: dict[str, object] = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
            found["role" if file == "controller" else "cluster"].append(rule)
    return found


# --- one thing for each verb: what was said when it failed, or nothing ---


def submit(scene: Scene) -> str:
    try:
        scene.lacking.submit(scene.plan)
    except (SubmitConflict, BackendUnavailable) as error:
        return str(error)
    return ""


def submit_again(scene: Scene) -> str:
    """The answer to an earlier submit was lost: what is there is looked at and adopted."""
    scene.whole.submit(scene.plan)
    return submit(scene)


def ask_fenced(scene: Scene) -> str:
    try:
        scene.lacking.fenced(scene.plan.name)
    except BackendUnavailable as error:
        return str(error)
    return ""


def stop(scene: Scene) -> str:
    try:
        scene.lacking.stop(scene.plan.name, mode="kill")
    except BackendUnavailable as error:
        return str(error)
    return ""


def read_logs(scene: Scene) -> str:
    scene.whole.submit(scene.plan)
    until(lambda: scene.whole.read_pods(scene.plan.name))
    scene.lacking.pods.list_once()
    try:
        scene.lacking.read_logs(scene.plan.name, 0)
    except BackendUnavailable as error:
        return str(error)
    return ""


def see_quotas(scene: Scene) -> str:
    """Nodes are not looked at here: their copy is somebody else's right."""
    said = scene.lacking.forecast(scene.plan).unasked
    return " ".join(one for one in said if "quotas" in one)


def copying(kind: str) -> Callable[[Scene], str]:
    """List once, and watch for a second."""

    def act(scene: Scene) -> str:
        copy: Reflector = getattr(scene.lacking, kind)
        try:
            copy.list_once()
            copy._listed_s -= RESYNC_S  # the next list is due, so the watch asks for its shortest time
            copy.watch_once()
        except Forbidden as error:
            return str(error)
        return ""

    return act


def read_lease(scene: Scene) -> str:
    scene.lacking.nodes.list_once()
    with capture_logs() as logs:
        status = scene.lacking.node_status([NODE], leases=True)[NODE]
    said = " ".join(f"{line['event']} {line['error']}" for line in logs)
    assert said or status.lease_age_s is not None
    return said


def sync(scene: Scene, backend: KubeBackend, wanted: Quarantine | None) -> str:
    """What the actuator's log says when it may not; tried again while a kubelet changes the node in between."""
    for _ in range(20):
        node = scene.whole._api.get(f"/api/v1/nodes/{NODE}")
        with capture_logs() as logs:
            changes = NodeActuator(backend._api).sync({NODE: wanted}, {NODE: node})
        if changes:
            return ""
        if any(line["log_level"] == "error" for line in logs):
            return " ".join(f"{line['event']} {line['error']}" for line in logs)
    raise AssertionError("the node was never changed, and nobody said why")


def quarantine(scene: Scene) -> str:
    said = sync(scene, scene.lacking, Quarantine("session-of-a-test", "a test"))
    if not said:
        sync(scene, scene.whole, None)
    return said


CASES: dict[Verb, Callable[[Scene], str]] = {
    ("controller", "batch", "jobs", "create"): submit,
    ("controller", "batch", "jobs", "patch"): submit,
    ("controller", "batch", "jobs", "get"): submit_again,
    ("controller", "batch", "jobs", "list"): copying("jobs"),
    ("controller", "batch", "jobs", "watch"): copying("jobs"),
    ("controller", "", "pods", "list"): ask_fenced,
    ("controller", "", "pods", "watch"): copying("pods"),
    ("controller", "", "pods", "deletecollection"): stop,
    ("controller", "", "pods/log", "get"): read_logs,
    ("controller", "", "services", "create"): submit,
    ("controller", "", "services", "get"): submit_again,
    ("controller", "", "resourcequotas", "list"): see_quotas,
    ("reader", "", "nodes", "list"): copying("nodes"),
    ("reader", "", "nodes", "watch"): copying("nodes"),
    ("reader", "coordination.k8s.io", "leases", "get"): read_lease,
    ("actuator", "", "nodes", "get"): quarantine,
    ("actuator", "", "nodes", "patch"): quarantine,
}
NO_KUBELET = "HTTP 500"
"""what a simulated kubelet says when it is asked for a log: that the question was let through"""


def test_there_is_a_case_for_every_verb_that_ships() -> None:
    assert sorted(CASES) == sorted(shipped())
    files = {path.name.removesuffix("-rules.yaml") for path in RULES.glob("*-rules.yaml")}
    assert files == {*FILES, "ray"}, "ray's have theirs in test_rayjob_backend.py"


def let(api: KubeApi, one: Verb) -> bool:
    """Whether the API server says that this account may."""
    file, group, resource, verb = one
    name, _, part = resource.partition("/")
    asked: dict[str, Any] = {"group": group, "resource": name, "subresource": part, "verb": verb}
    if file == "controller":
        asked["namespace"] = NAMESPACE
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    return bool(api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)["status"]["allowed"])


@pytest.fixture
def scene(world: World, controller_api: KubeApi) -> Iterator[Callable[[Verb | None], Scene]]:
    made: list[str] = []

    def open_scene(lacking: Verb | None) -> Scene:
        number = next(_numbers)
        name = f"rights-{number}"
        made.append(name)
        api = world.account(name, without(lacking))
        until(lambda: all(let(api, one) for one in shipped() if one != lacking))
        assert lacking is None or not let(api, lacking)
        plan = AttemptPlan(
            name, f"uid-{name}", 1, "hash", (), 1, ("true",), {}, node_count=1, gpus_per_node=8, grace_s=1.0
        )
        first = KubeBackend(api, OPTIONS, SystemClock())
        return Scene(first, KubeBackend(controller_api, OPTIONS, SystemClock()), plan)

    yield open_scene
    for name in made:
        world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}")


@pytest.mark.parametrize("lacking", sorted(CASES), ids="-".join)
def test_without_a_verb_one_thing_fails_and_names_it(scene: Callable[[Verb | None], Scene], lacking: Verb) -> None:
    said = CASES[lacking](scene(lacking))
    _, group, resource, verb = lacking
    assert f'cannot {verb} resource "{resource}" in API group "{group}"' in said


@pytest.mark.parametrize("verb", sorted(CASES), ids="-".join)
def test_with_every_verb_the_same_thing_works(scene: Callable[[Verb | None], Scene], verb: Verb) -> None:
    said = CASES[verb](scene(None))
    assert said == "" or (CASES[verb] is read_logs and NO_KUBELET in said)

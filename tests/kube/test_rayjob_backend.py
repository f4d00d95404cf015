"""Attempts as RayJobs on a real API server with KubeRay's definitions, with exactly the rights that ship.

KubeRay's operator does not run here: `Operator` writes what it would write (see kuberay_operator.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.backends.base import AttemptPlan, BackendUnavailable, Observation, SubmitConflict
from controlplane.backends.kube import rayjob_manifests
from controlplane.backends.kube.rayjob import RayJobBackend
from tests.kube import kuberay_operator
from tests.kube.conftest import NAMESPACE, OPTIONS, World, until
from tests.kube.kuberay_operator import PODS, RAYJOBS, Operator

FAILED = (
    "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\nTraceback …\n"
)
SAID = "launch: error: RuntimeError: boom on rank 3"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def backend(world: World) -> Iterator[RayJobBackend]:
    with kuberay_operator.opened(world, "trimtab-controller-ray") as found:
        yield found


@pytest.fixture
def plan(world: World, backend: RayJobBackend) -> Iterator[AttemptPlan]:
    number = next(_numbers)
    name = f"ray-case-{number}"
    yield AttemptPlan(
        name,
        f"uid-{number}",
        1,
        "hash",
        (),
        8,
        ("{python}", "-m", "verl.trainer.main_ppo", "a b", "$$", "$(HOME)"),
        {"TRIMTAB_RUN_ID": name, "ROCR_VISIBLE_DEVICES": "0"},
        node_count=2,
        gpus_per_node=8,
        grace_s=45.0,
    )
    Operator(world.admin, name).clear()


@pytest.fixture
def operator(world: World, plan: AttemptPlan) -> Operator:
    return Operator(world.admin, plan.name)


def look(backend: RayJobBackend, plan: AttemptPlan) -> Observation:
    return backend.observe([plan.name], 5.0)[plan.name]


def reaches(backend: RayJobBackend, plan: AttemptPlan, state: str) -> Observation:
    until(lambda: look(backend, plan).state == state)
    return look(backend, plan)


def running(backend: RayJobBackend, plan: AttemptPlan, operator: Operator) -> Observation:
    backend.submit(plan)
    operator.run()
    return reaches(backend, plan, "running")


# --- manifests ---


def test_the_manifests_are_held_against_kuberays_own_definitions() -> None:
    if not kuberay_operator.own_definitions():
        pytest.skip("TRIMTAB_KUBERAY_CRDS names no folder with KubeRay's definitions: a small one of our own is used")
    assert [path.name for path in kuberay_operator.own_definitions()] == [
        "ray.io_rayclusters.yaml",
        "ray.io_rayjobs.yaml",
    ]


def missing(sent: object, stored: object, path: str = "") -> list[str]:
    """Where a stored object lacks what was sent; defaults that were added do not count."""
    if isinstance(sent, dict):
        assert isinstance(stored, dict), path
        return [
            gap
            for key, value in sent.items()
            for gap in ([f"{path}.{key}"] if key not in stored else missing(value, stored[key], f"{path}.{key}"))
        ]
    if isinstance(sent, list):
        assert isinstance(stored, list) and len(sent) == len(stored), path
        return [
            gap
            for index, pair in enumerate(zip(sent, stored, strict=True))
            for gap in missing(*pair, f"{path}[{index}]")
        ]
    return [] if sent == stored else [f"{path}: {sent!r} became {stored!r}"]


def test_all_of_a_rayjob_is_known_to_the_api_server(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    sent = rayjob_manifests.rayjob(replace(plan, excluded=("node-003",), placing={"queue": "research"}), OPTIONS)
    backend.submit(replace(plan, excluded=("node-003",), placing={"queue": "research"}))
    assert missing(sent["spec"], operator.rayjob()["spec"]) == []


def test_its_cluster_is_a_valid_raycluster(world: World, backend: RayJobBackend, plan: AttemptPlan) -> None:
    if not kuberay_operator.own_definitions():
        pytest.skip("TRIMTAB_KUBERAY_CRDS names no folder with KubeRay's definitions: a small one of our own is used")
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": plan.name, "namespace": NAMESPACE},
        "spec": rayjob_manifests.cluster(plan, OPTIONS),
    }
    made = world.admin.create(RAYJOBS.replace("rayjobs", "rayclusters"), body, dry_run=True)
    assert missing(body["spec"], made["spec"]) == []


@pytest.mark.parametrize(("name", "word"), [("a" * 48, "47 characters"), ("1st-try-1", "begin with a letter")])
def test_a_name_that_only_kuberay_would_refuse_is_said_at_once(
    backend: RayJobBackend, plan: AttemptPlan, name: str, word: str
) -> None:
    with pytest.raises(SubmitConflict, match=word):
        backend.submit(replace(plan, name=name))
    assert word in backend.dry_run(replace(plan, name=name))[0]


# --- submit ---


def test_an_attempt_is_one_rayjob_on_whole_nodes(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    handle = backend.submit(plan)
    assert (handle.name, handle.adopted) == (plan.name, False) and look(backend, plan).state == "pending"
    operator.bring_up()
    found = reaches(backend, plan, "pending")
    until(lambda: len(look(backend, plan).members) == 2)
    assert found.uid == handle.uid
    operator.say("RUNNING")
    found = reaches(backend, plan, "running")
    assert [member.index for member in found.members] == [0, 1] and len({member.node for member in found.members}) == 2
    assert found.members[0].pod == f"{plan.name}-head" and not backend.fenced(plan.name)
    made = world.admin.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{plan.name}")
    assert made["immutable"] and made["metadata"]["ownerReferences"][0]["uid"] == handle.uid
    asked = [f"node-{index:03d}" for index in range(16)]
    until(lambda: sum(not one.free for one in backend.capacity(asked)) == 2)  # the submitter holds no GPU


def test_excluded_nodes_get_no_pod(backend: RayJobBackend, plan: AttemptPlan, operator: Operator) -> None:
    kept = replace(plan, excluded=tuple(f"node-{index:03d}" for index in range(14)))
    assert {member.node for member in running(backend, kept, operator).members} == {"node-014", "node-015"}


@pytest.mark.parametrize("call", ["POST rayjobs", "POST secrets", "PATCH rayjobs"])
def test_a_lost_answer_is_found_by_the_next_submit(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator, call: str
) -> None:
    method, kind = call.split()

    def lose(made: str) -> None:
        if made.startswith(method) and f"/{kind}" in made:
            backend._api.after_call = lambda _call: None
            raise BackendUnavailable("the answer was lost")

    backend._api.after_call = lose
    with pytest.raises(BackendUnavailable):
        backend.submit(plan)
    assert backend.submit(plan).adopted
    operator.run()
    reaches(backend, plan, "running")
    assert len(world.admin.get(RAYJOBS, labelSelector=f"trimtab.dev/run-uid={plan.run_uid}")["items"]) == 1


@pytest.mark.parametrize("changes", [{"run_uid": "other"}, {"attempt_no": 2}, {"spec_hash": "other"}])
def test_a_name_that_means_something_else_is_a_conflict(
    backend: RayJobBackend, plan: AttemptPlan, changes: dict[str, object]
) -> None:
    backend.submit(plan)
    with pytest.raises(SubmitConflict, match=plan.name):
        backend.submit(replace(plan, **changes))  # type: ignore[arg-type]  # a test's shorthand


def test_a_queue_lets_go_of_its_own_rayjobs(backend: RayJobBackend, plan: AttemptPlan, operator: Operator) -> None:
    backend.submit(replace(plan, placing={"queue": "research"}))
    found = operator.rayjob()
    assert found["spec"]["suspend"] is True and found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert look(backend, plan).state == "pending"


def test_a_plan_is_validated_without_being_made(backend: RayJobBackend, plan: AttemptPlan) -> None:
    assert backend.dry_run(plan) == []
    assert backend.dry_run(replace(plan, run_uid="not a label!"))[0].startswith("RayJob: ")
    assert look(backend, plan).state == "absent" and backend.fenced(plan.name)


def test_a_cluster_without_kuberay_says_so(world: World, backend: RayJobBackend, plan: AttemptPlan) -> None:
    backend._path, kept = backend._path.replace("rayjobs", "rayjobsnot"), backend._path
    backend._api, api = world.admin, backend._api
    try:
        with pytest.raises(SubmitConflict, match="install KubeRay"):
            backend.submit(plan)
        assert "install KubeRay" in backend.dry_run(plan)[0]
    finally:
        backend._path, backend._api = kept, api


# --- ends ---


def test_it_succeeds_when_ray_says_so(backend: RayJobBackend, plan: AttemptPlan, operator: Operator) -> None:
    running(backend, plan, operator)
    operator.say("SUCCEEDED", "Running")
    reaches(backend, plan, "succeeded")
    assert not backend.fenced(plan.name), "its pods are still there"
    backend.stop(plan.name, mode="kill")
    operator.say("SUCCEEDED", "Complete")
    until(lambda: backend.fenced(plan.name))
    assert look(backend, plan).state == "succeeded", "the record of a finished attempt stays"


def test_a_failure_keeps_the_launchers_last_words_and_its_members(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    nodes = running(backend, plan, operator).nodes
    operator.say("FAILED", "Failed", reason="AppFailed", message=FAILED + SAID)
    operator.shut_down()
    found = reaches(backend, plan, "failed")
    assert found.nodes == nodes and not any(member.alive for member in found.members)
    head = found.members[0]
    assert head.exit_code == 1 and head.termination is not None
    assert (head.termination["class"], head.termination["message"]) == ("error", "RuntimeError: boom on rank 3")
    assert found.members[1].termination is None


@pytest.mark.parametrize(("code", "word"), [(75, "saved"), (77, "bad_node"), (9, "error")])
def test_an_exit_code_alone_tells_the_class(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator, code: int, word: str
) -> None:
    backend.submit(plan)
    operator.say("FAILED", "Failed", message=f"Job entrypoint command failed with exit code {code}. No logs available.")
    (head,) = reaches(backend, plan, "failed").members
    assert (head.exit_code, (head.termination or {})["class"]) == (code, word)


@pytest.mark.parametrize(
    "status",
    [{"deployment": "Retrying"}, {"deployment": "Initializing", "failed": 1}, {"deployment": "ValidationFailed"}],
)
def test_what_kuberay_would_run_again_has_failed(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator, status: dict[str, object]
) -> None:
    backend.submit(plan)
    operator.say("", **status)  # type: ignore[arg-type]  # a test's shorthand
    assert reaches(backend, plan, "failed").reason


def test_a_rayjob_that_others_suspend_is_over_and_never_let_go_again(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    running(backend, plan, operator)
    world.admin.patch(f"{RAYJOBS}/{plan.name}", {"spec": {"suspend": True}}, kind="merge")
    operator.say("", "Suspending", jobId="")
    assert "second time" in reaches(backend, plan, "failed").reason
    assert backend.submit(plan).adopted
    assert operator.rayjob()["spec"]["suspend"] is True


def test_a_queue_that_takes_back_a_running_rayjob_ends_the_attempt(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    backend.submit(replace(plan, placing={"queue": "research"}))
    world.admin.patch(f"{RAYJOBS}/{plan.name}", {"spec": {"suspend": False}}, kind="merge")
    operator.run()
    reaches(backend, plan, "running")
    world.admin.patch(f"{RAYJOBS}/{plan.name}", {"spec": {"suspend": True}}, kind="merge")
    operator.say("", "Suspended", jobId="")
    operator.shut_down()
    assert "second time" in reaches(backend, plan, "failed").reason


def test_a_gang_fails_with_its_first_pod(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    running(backend, plan, operator)
    world.end_pod(f"{plan.name}-workers-0", 137)
    assert "workers-0 ended with code 137" in reaches(backend, plan, "failed").reason
    assert not backend.fenced(plan.name)


def test_a_pod_that_left_ends_the_gang_and_so_does_the_one_made_in_its_place(
    world: World, backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    running(backend, plan, operator)
    world.admin.delete(f"{PODS}/{plan.name}-workers-0", grace_s=0)
    assert "left" in reaches(backend, plan, "failed").reason
    (submitter,) = operator.pods("submitter")
    # the API server writes whole seconds
    until(lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) > submitter["metadata"]["creationTimestamp"])
    template = operator.rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    operator.make_pod("workers-new", template)
    until(lambda: len(operator.pods("worker")) == 1 and operator.pods("worker")[0]["status"].get("phase") == "Running")
    backend._before.clear()  # as after a restart of the control plane
    assert "in place of another" in reaches(backend, plan, "failed").reason


# --- stop ---


def test_a_killed_attempt_is_fenced_without_the_operators_help_and_keeps_its_record(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    running(backend, plan, operator)
    for _ in range(2):
        backend.stop(plan.name, mode="kill")
    until(lambda: backend.fenced(plan.name))
    assert operator.rayjob()["spec"]["activeDeadlineSeconds"] == 1, "the operator looks at it before it does anything"
    found = reaches(backend, plan, "failed")
    assert len(found.members) == 2 and not any(member.alive for member in found.members)


def test_an_attempt_without_a_ray_is_stopped_by_deleting_it(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    backend.submit(plan)
    operator.bring_up()
    backend.stop(plan.name, mode="terminate")
    reaches(backend, plan, "absent")
    until(lambda: backend.fenced(plan.name))  # the garbage collector takes pods, Job and Secret
    backend.stop(plan.name, mode="terminate")
    backend.stop(plan.name, mode="kill")


def test_a_ray_that_does_not_answer_is_asked_again_and_nothing_is_deleted(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator
) -> None:
    running(backend, plan, operator)
    operator.say("RUNNING", dashboardURL="127.0.0.1:9")
    backend._hosts = ("127.0.0.1",)
    with pytest.raises(BackendUnavailable, match="does not answer"):
        backend.stop(plan.name, mode="terminate")
    backend._hosts = ()
    assert look(backend, plan).state == "running"


@pytest.mark.parametrize("place", ["http://203.0.113.7:8265", "head.other.svc:8265", "head.example.org:8265"])
def test_the_token_goes_nowhere_but_to_the_namespace(
    backend: RayJobBackend, plan: AttemptPlan, operator: Operator, place: str
) -> None:
    backend.submit(plan)
    operator.say("RUNNING", dashboardURL=place)
    with pytest.raises(BackendUnavailable, match="no service of its namespace"):
        backend.stop(plan.name, mode="terminate")
    told = {"status": {"dashboardURL": f"x-head-svc.{NAMESPACE}.svc.example.org:8266"}}
    assert backend._dashboard(told) == f"http://x-head-svc.{NAMESPACE}.svc:8266"

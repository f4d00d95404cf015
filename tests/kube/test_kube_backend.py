"""Attempts on a real API server, with exactly the rights that ship: submit, adopt, see, stop, fence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.backends.base import AttemptPlan, BackendUnavailable, Observation, StopMode, SubmitConflict
from controlplane.backends.kube import takedown
from controlplane.backends.kube.api import Json, KubeApi
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.pods import member_of
from tests.kube.conftest import NAMESPACE, World, until

_numbers = itertools.count(1)
DONE = {"code": 0, "class": "done", "fingerprint": "", "message": "", "first_rank": None, "at_s": 1.0}
FAILED = {"code": 1, "class": "error", "fingerprint": "boom", "message": "boom", "first_rank": 3, "at_s": 1.0}


@pytest.fixture
def plan(world: World) -> Iterator[AttemptPlan]:
    number = next(_numbers)
    name = f"case-{number}"
    made = AttemptPlan(
        name,
        f"uid-{number}",
        1,
        "hash",
        (),
        1,
        ("{python}", "-c", "pass"),
        {"TRIMTAB_RUN_ID": name},
        node_count=2,
        gpus_per_node=8,
        grace_s=5.0,
    )
    yield made
    world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}")
    until(lambda: world.pods(name) == [])


def look(backend: KubeBackend, plan: AttemptPlan) -> Observation:
    return backend.observe([plan.name], 5.0)[plan.name]


def reaches(backend: KubeBackend, plan: AttemptPlan, state: str) -> Observation:
    until(lambda: look(backend, plan).state == state)
    return look(backend, plan)


def test_what_was_never_submitted_is_absent_and_fenced(backend: KubeBackend) -> None:
    found = backend.observe(["never"], 5.0)["never"]
    assert (found.state, found.observed_s, found.members) == ("absent", 5.0, ())
    assert backend.fenced("never")
    backend.stop("never", mode="kill")
    assert backend.read_logs("never", 0) == b""


def test_an_attempt_is_one_job_and_one_service_on_whole_nodes(
    world: World, backend: KubeBackend, plan: AttemptPlan
) -> None:
    handle = backend.submit(plan)
    assert (handle.name, handle.adopted) == (plan.name, False)
    found = reaches(backend, plan, "running")
    assert found.uid == handle.uid and [member.index for member in found.members] == [0, 1]
    assert len({member.node for member in found.members}) == 2, "eight GPUs a pod are a whole node"
    assert all(member.alive and member.running for member in found.members) and not backend.fenced(plan.name)
    job = world.admin.get(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{plan.name}")
    assert (job["spec"]["backoffLimit"], job["spec"]["completionMode"]) == (0, "Indexed")
    assert job["spec"]["podReplacementPolicy"] == "Failed" and job["spec"]["suspend"] is False
    service = world.admin.get(f"/api/v1/namespaces/{NAMESPACE}/services/{plan.name}")
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


def test_submitting_again_adopts(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    first = backend.submit(plan)
    again = backend.submit(plan)
    assert again.adopted and again.uid == first.uid
    reaches(backend, plan, "running")
    assert len(world.pods(plan.name)) == 2


@pytest.mark.parametrize("call", ["POST jobs", "POST services", "PATCH jobs"])
def test_a_lost_answer_is_found_by_the_next_submit(
    world: World, backend: KubeBackend, plan: AttemptPlan, call: str
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
    reaches(backend, plan, "running")
    jobs = world.admin.get(
        f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", labelSelector="trimtab.dev/run-uid=" + plan.run_uid
    )
    assert len(jobs["items"]) == 1 and len(world.pods(plan.name)) == 2


@pytest.mark.parametrize("changes", [{"run_uid": "other"}, {"attempt_no": 2}, {"spec_hash": "other"}])
def test_a_name_that_means_something_else_is_a_conflict(
    backend: KubeBackend, plan: AttemptPlan, changes: dict[str, object]
) -> None:
    backend.submit(plan)
    with pytest.raises(SubmitConflict, match=plan.name):
        backend.submit(replace(plan, **changes))  # type: ignore[arg-type]  # a test's shorthand
    assert reaches(backend, plan, "running"), "it is left alone"


def test_excluded_nodes_get_no_pod(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    names = [f"node-{index:03d}" for index in range(14)]
    backend.submit(replace(plan, excluded=tuple(names)))
    found = reaches(backend, plan, "running")
    assert {member.node for member in found.members} == {"node-014", "node-015"}


def test_it_succeeds_when_every_pod_did(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    for pod in world.pods(plan.name):
        world.end_pod(pod["metadata"]["name"], 0, DONE)
    found = reaches(backend, plan, "succeeded")
    assert {member.exit_code for member in found.members} == {0} and backend.fenced(plan.name)
    assert {(member.termination or {})["class"] for member in found.members} == {"done"}


def test_a_gang_fails_with_its_first_pod_and_keeps_its_last_words(
    world: World, backend: KubeBackend, plan: AttemptPlan
) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    first = next(pod for pod in world.pods(plan.name) if pod["metadata"]["name"].startswith(f"{plan.name}-0"))
    world.end_pod(first["metadata"]["name"], 1, FAILED)
    reaches(backend, plan, "failed")
    until(lambda: backend.fenced(plan.name))
    found = look(backend, plan)
    member = next(member for member in found.members if member.index == 0)
    assert (member.exit_code, (member.termination or {})["fingerprint"]) == (1, "boom")
    assert len(world.pods(plan.name)) <= 2, "nothing was started again"


def test_last_words_that_nobody_can_understand_are_none() -> None:
    for message in ("", "Killed", '{"code": 1}', "[" * 4096):
        ended = {"state": {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}}
        pod = {"metadata": {"name": "case-0"}, "status": {"phase": "Failed", "containerStatuses": [ended]}}
        assert (member_of(pod).exit_code, member_of(pod).termination) == (1, None)


def test_a_pod_that_ran_out_of_memory_says_so_although_its_launcher_could_not(
    world: World, backend: KubeBackend, plan: AttemptPlan
) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    name = world.pods(plan.name)[0]["metadata"]["name"]
    ended = {"exitCode": 137, "reason": "OOMKilled", "startedAt": None, "finishedAt": None}
    container = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": "Failed", "containerStatuses": [{**container, "state": {"terminated": ended}}]}
    world.admin.patch(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status", {"status": status}, kind="merge")
    reaches(backend, plan, "failed")
    (member,) = [one for one in look(backend, plan).members if one.pod == name]
    assert (member.exit_code, member.termination, member.reason) == (137, None, "OOMKilled")


def stopped(backend: KubeBackend, plan: AttemptPlan, mode: StopMode) -> None:
    """Stops an attempt and waits until nothing of it can write."""
    backend.stop(plan.name, mode=mode)
    until(lambda: backend.fenced(plan.name))


@pytest.mark.parametrize("mode", ["kill", "terminate"])
def test_a_stopped_attempt_is_fenced_and_starts_nothing(
    world: World, backend: KubeBackend, plan: AttemptPlan, mode: StopMode
) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    stopped(backend, plan, mode)
    assert look(backend, plan).state == "failed"
    assert not any(member.alive for member in look(backend, plan).members)


@pytest.mark.parametrize("mode", ["kill", "terminate"])
def test_pods_that_outlived_their_job_are_stopped(
    world: World, backend: KubeBackend, plan: AttemptPlan, mode: StopMode
) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{plan.name}", propagation="Orphan")
    reaches(backend, plan, "absent")
    assert not backend.fenced(plan.name)
    stopped(backend, plan, mode)


def graces(pods: list[Json]) -> list[int | None]:
    """The seconds that each pod was given to end; None for one that nobody deleted."""
    return [pod["metadata"].get("deletionGracePeriodSeconds") for pod in pods]


def changes(api: KubeApi) -> int:
    """How many calls that change something were sent."""
    return sum(count for (method, _), count in api.calls.items() if method != "GET")


@pytest.mark.parametrize("pods_a_call", [1, 128])
@pytest.mark.parametrize(("mode", "grace_s"), [("kill", 1), ("terminate", 5)])
def test_a_kill_leaves_each_pod_a_second_and_a_stop_its_time_to_save(
    world: World,
    controller_api: KubeApi,
    backend: KubeBackend,
    plan: AttemptPlan,
    mode: StopMode,
    grace_s: int,
    pods_a_call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(takedown, "PODS_A_CALL", pods_a_call)
    backend.submit(plan)
    reaches(backend, plan, "running")
    with world.silent("kwok", "kwok-mortal"):
        backend.stop(plan.name, mode=mode)
        until(lambda: graces(world.pods(plan.name)) == [grace_s] * 2)
        until(lambda: graces(backend.copied_pods(plan.name)) == [grace_s] * 2)
        until(lambda: backend.jobs.get(plan.name, NAMESPACE)["spec"].get("activeDeadlineSeconds") == 1)
        told = changes(controller_api)
        backend.stop(plan.name, mode=mode)
        assert changes(controller_api) == told, "what is told is not told again"
    until(lambda: backend.fenced(plan.name))


def test_a_deleted_pod_fails_the_gang(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    name = world.pods(plan.name)[0]["metadata"]["name"]
    world.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
    reaches(backend, plan, "failed")
    until(lambda: backend.fenced(plan.name))


def test_a_job_that_somebody_deleted_is_absent_and_fenced_once_its_pods_are_over(
    world: World, backend: KubeBackend, plan: AttemptPlan
) -> None:
    backend.submit(plan)
    reaches(backend, plan, "running")
    world.admin.delete(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{plan.name}")
    reaches(backend, plan, "absent")
    until(lambda: backend.fenced(plan.name))


def test_a_queue_lets_go_of_its_own_jobs(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    backend.submit(replace(plan, placing={"queue": "research"}))
    job = world.admin.get(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{plan.name}")
    assert job["spec"]["suspend"] is True and job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert look(backend, plan).state == "pending"


def test_a_plan_is_validated_without_being_made(world: World, backend: KubeBackend, plan: AttemptPlan) -> None:
    assert backend.dry_run(plan) == []
    refused = backend.dry_run(replace(plan, environment={"BAD NAME\0": "x"}))
    assert refused and refused[0].startswith("Job: ")
    assert look(backend, plan).state == "absent"


def test_capacity_says_what_is_there_and_free(backend: KubeBackend, plan: AttemptPlan) -> None:
    asked = [f"node-{index:03d}" for index in range(16)] + ["elsewhere"]
    assert {one.node for one in backend.capacity(asked) if one.free} == set(asked) - {"elsewhere"}
    backend.submit(plan)
    found = reaches(backend, plan, "running")
    busy = {member.node for member in found.members}
    until(lambda: {one.node for one in backend.capacity(asked) if not one.free} == busy)


def test_a_node_that_the_installation_does_not_name_is_no_place(backend: KubeBackend) -> None:
    asked = [f"node-{index:03d}" for index in range(16)]
    labels = {name: (backend.nodes.get(name) or {})["metadata"]["labels"] for name in asked}
    mortal = {name for name in asked if labels[name]["trimtab.dev/kubelet"] == "mortal"}
    backend.options = replace(backend.options, node_selector={"trimtab.dev/kubelet": "mortal"})
    assert mortal and {one.node for one in backend.capacity(asked)} == mortal

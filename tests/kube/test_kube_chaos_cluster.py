"""What a cluster does to a gang, on a real API server: it takes pods away, starts half of them, loses nodes, cordons.

The controller and its backend are those of `trimtab serve`; the clock of its policy is the test's. Each scenario ends
with the same question: is there one live attempt, on nodes that may be used, from the right checkpoint?
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import KubeApi
from controlplane.backends.kube.nodes import TAINT
from controlplane.services import incidents as incident_service
from controlplane.services import nodes as people
from controlplane.services import quarantine
from controlplane.store import incidents, leases
from controlplane.store.engine import Store
from tests.kube.chaos import JOBS, PATIENCE_S, PODS, KubePilot, tell, wait_for
from tests.kube.conftest import NAMESPACE, World
from tests.runs.history import wrongs
from tests.runs.piloting import BOOK

MORTAL = [f"node-{index:03d}" for index in range(12, 16)]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def pilot(world: World, controller_api: KubeApi, sqlite_store: Store, tmp_path: Path) -> Iterator[KubePilot]:
    found = KubePilot(world, controller_api, sqlite_store, tmp_path)
    yield found
    only(found, [])
    found.close()
    assert wrongs(sqlite_store) == []


def rounds_until(
    pilot: KubePilot, question: Callable[[], object], seconds: float = 1.0, patience_s: float = PATIENCE_S
) -> None:
    """Rounds of the controller, each `seconds` of its time, until it is so."""

    def asked() -> object:
        pilot.live_round(seconds)
        return question()

    wait_for(asked, patience_s)


def training(pilot: KubePilot, **policy: object) -> str:
    """A run whose first attempt trains on two nodes, steps 1 to 12, checkpoint 10."""
    run_id = pilot.submit(**policy)  # type: ignore[arg-type]  # as given
    rounds_until(pilot, lambda: pilot.attempts(run_id) and len(pilot.last(run_id).nodes) == 2)
    wait_for(lambda: pilot.running(pilot.last(run_id).name))
    pilot.beat(run_id, 1, 12)
    pilot.save(run_id, 10, at=-30)
    rounds_until(pilot, lambda: pilot.last(run_id).state == "training" and pilot.checkpoints(run_id))
    return run_id


def second_trains(pilot: KubePilot, run_id: str) -> None:
    """The second attempt is placed, runs whole, goes on after checkpoint 10 and proves it."""
    rounds_until(pilot, lambda: len(pilot.attempts(run_id)) == 2 and len(pilot.last(run_id).nodes) == 2)
    second = pilot.last(run_id)
    wait_for(lambda: pilot.running(second.name))
    assert second.resume_step == 10
    pilot.beat(run_id, 11, 20)
    rounds_until(pilot, lambda: pilot.last(run_id).state == "training")
    assert [one["metadata"]["name"] for one in pilot.jobs()] == [one.name for one in pilot.attempts(run_id)]
    assert len(pilot.live(run_id)) == 1


def cordon(pilot: KubePilot, name: str, value: bool | None) -> None:
    """What `kubectl cordon` sends, and with None `uncordon`."""
    patch = {"spec": {"unschedulable": value}}
    pilot.world.admin.patch(f"/api/v1/nodes/{name}", patch, kind="merge", manager="kubectl-cordon")


def only(pilot: KubePilot, allowed: list[str]) -> None:
    """Somebody cordons every node but these; [] uncordons all."""
    for name in pilot.names:
        cordon(pilot, name, True if allowed and name not in allowed else None)


def test_an_evicted_pod_is_nobodys_failure(pilot: KubePilot) -> None:
    run_id = training(pilot, restarts=0)
    pod = pilot.pods(pilot.last(run_id).name)[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    pilot.world.admin.create(f"{PODS}/{pod}/eviction", eviction)
    second_trains(pilot, run_id)
    first = pilot.attempts(run_id)[0]
    assert (first.state, first.end_class) == ("preempted", "preempted") and "Eviction" in first.end["message"]
    (decision,) = pilot.decisions(run_id)
    assert decision.budgets_after["restarts_used"] == 0, "a run without a restart of its own went on"
    tell(pilot, run_id, "a pod is evicted (Eviction API)", "preempted; charged to nobody; goes on from checkpoint 10")


def test_a_pod_that_somebody_deletes_ends_its_gang_whole(pilot: KubePilot) -> None:
    run_id = training(pilot)
    first = pilot.last(run_id)
    pilot.world.admin.delete(f"{PODS}/{pilot.pods(first.name)[1]['metadata']['name']}")
    second_trains(pilot, run_id)
    assert pilot.attempts(run_id)[0].state == "failed"
    assert all(one["status"]["phase"] in ("Failed", "Succeeded") for one in pilot.pods(first.name))
    tell(pilot, run_id, "somebody deletes one pod of a gang", "the whole gang ends and is started anew, once")


def starts_half(pilot: KubePilot, run_id: str, no: int) -> None:
    """Attempt `no` gets one node of two, and ends at its start deadline."""
    rounds_until(pilot, lambda: len(pilot.attempts(run_id)) == no and pilot.last(run_id).state == "pending")
    name = pilot.last(run_id).name
    wait_for(lambda: sorted(one["status"].get("phase") for one in pilot.pods(name)) == ["Pending", "Running"])
    pilot.live_round(601)
    rounds_until(pilot, lambda: pilot.attempts(run_id)[no - 1].ended_s is not None)
    ended = pilot.attempts(run_id)[no - 1]
    assert (ended.state, ended.end_class) == ("failed", "never_started")
    assert "Insufficient amd.com/gpu" in ended.end["message"] or "Unschedulable" in ended.end["message"]
    wait_for(lambda: all(one["status"]["phase"] in ("Failed", "Succeeded") for one in pilot.pods(name)))


def test_half_a_gang_is_deleted_at_its_deadline_and_the_missing_part_is_named(pilot: KubePilot) -> None:
    admin, space = pilot.world.admin, "other-work"
    admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}})
    for name in pilot.names[1:]:  # what Trimtab does not see: another tenant's pods hold all nodes but one
        container = {"name": "x", "image": "x", "resources": {"limits": {"amd.com/gpu": "8"}}}
        spec = {"nodeName": name, "containers": [container]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        admin.create(f"/api/v1/namespaces/{space}/pods", body)
    try:
        run_id = pilot.submit()
        for no in (1, 2):
            starts_half(pilot, run_id, no)
    finally:
        admin.delete(f"/api/v1/namespaces/{space}")
        for name in pilot.names[1:]:
            admin.delete(f"/api/v1/namespaces/{space}/pods/{name}")
    rounds_until(pilot, lambda: len(pilot.attempts(run_id)) == 3 and len(pilot.last(run_id).nodes) == 2, 5.0)
    first, second, third = pilot.attempts(run_id)
    assert second.created_s - first.ended_s < 2 <= third.created_s - second.ended_s, "the second time it waits"
    must = "ended at the start deadline, deleted, the missing part named; the third waits, and starts: there is room"
    tell(pilot, run_id, "half a gang starts: others hold the GPUs", must)


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_cordon_that_somebody_else_set_outlives_ours(pilot: KubePilot, when: str) -> None:
    run_id = training(pilot)
    node = pilot.last(run_id).nodes[1]
    if when == "before":
        cordon(pilot, node, True)
    pilot.hit(node)
    second_trains(pilot, run_id)

    def taints() -> list[str]:
        return [one["key"] for one in pilot.world.node(node)["spec"].get("taints") or ()]

    rounds_until(pilot, lambda: TAINT in taints())
    if when == "during":
        cordon(pilot, node, None)
        cordon(pilot, node, True)
    with pilot.store.read() as session:
        number = incidents.listed(session)[0].number
    incident_service.resolve(pilot.store, number, actor="ada", reason="mended", now=pilot.clock.now())
    with pilot.store.write() as session:
        people.give_back(session, node, actor="ada", reason="mended", now=pilot.clock.now(), force=True)
    rounds_until(pilot, lambda: TAINT not in taints())
    if when == "after":
        assert "unschedulable" not in pilot.world.node(node)["spec"], "ours is lifted"
        cordon(pilot, node, True)
        for _ in range(5):
            pilot.live_round()
    assert pilot.world.node(node)["spec"]["unschedulable"] is True, "not ours to lift"
    tell(
        pilot,
        run_id,
        f"a person cordons the faulty node {when} our quarantine",
        "our taint goes with our quarantine, theirs stays",
    )


def test_a_node_that_a_person_drains_is_left_after_a_save_and_comes_back(pilot: KubePilot) -> None:
    run_id = training(pilot)
    name = pilot.last(run_id).nodes[1]

    def marks() -> tuple[bool, bool]:
        spec = pilot.world.admin.get(f"/api/v1/nodes/{name}")["spec"]
        return bool(spec.get("unschedulable")), any(one["key"] == TAINT for one in spec.get("taints", []))

    with pilot.store.write() as session:
        asked = people.drain(session, name, actor="ada", reason="new fan", now=pilot.clock.now())
    assert asked == [people.Asked(run_id, "trial")]
    second_trains(pilot, run_id)
    assert name not in pilot.last(run_id).nodes and marks() == (True, True)
    (decision,) = pilot.decisions(run_id)
    assert decision.excluded_nodes == [name] and "ada" in decision.reason
    with pilot.store.write() as session:
        people.give_back(session, name, actor="ada", reason="", now=pilot.clock.now())
    rounds_until(pilot, lambda: marks() == (False, False))
    assert len(pilot.attempts(run_id)) == 2, "its return moves nobody"
    must = "cordoned at once; its gang saves and goes on without it; given back, it is open again"
    tell(pilot, run_id, "a person drains a node under a gang and gives it back", must)


def test_a_job_that_was_made_but_whose_answer_was_lost_is_adopted(pilot: KubePilot) -> None:
    lost: list[str] = []
    passed_on = pilot.api.after_call

    def lose(call: str) -> None:
        passed_on(call)
        if call == f"POST {JOBS}" and len(lost) < 1:
            lost.append(call)
            raise BackendUnavailable(f"{call}: the answer broke off")

    pilot.api.after_call = lose
    run_id = training(pilot)
    assert len(lost) == 1, "the server made the Job; the controller never heard of it"
    (attempt,), (job,) = pilot.attempts(run_id), pilot.jobs()
    assert attempt.backend_uid == job["metadata"]["uid"] and not job["spec"]["suspend"]
    assert pilot.decisions(run_id) == []
    tell(pilot, run_id, "the answer to an accepted POST of a Job is lost", "the same Job is adopted; no second one")


def test_a_controller_that_was_stopped_past_its_lease_finds_itself_replaced(pilot: KubePilot) -> None:
    stopped: list[str] = []
    old, old_epoch, passed_on = pilot.controller, pilot.epoch, pilot.api.before_call

    def stop(call: str) -> None:
        if call == f"POST {JOBS}" and not stopped:
            stopped.append(call)
            pilot.clock.advance(30)
            pilot.lead("b")
            pilot.live_round()  # the other one makes the Job; then the first goes on where it stood
        passed_on(call)

    pilot.api.before_call = stop
    run_id = pilot.submit()
    with pytest.raises(leases.LeaseLost):
        rounds_until(pilot, lambda: False)
    assert len(stopped) == 1 and pilot.epoch > old_epoch
    rounds_until(pilot, lambda: len(pilot.last(run_id).nodes) == 2)
    (first,), (job,) = pilot.attempts(run_id), pilot.jobs()
    assert first.backend_uid == job["metadata"]["uid"]
    wait_for(lambda: pilot.running(first.name))
    pilot.beat(run_id, 1, 12)
    pilot.save(run_id, 10, at=-30)
    rounds_until(pilot, lambda: pilot.last(run_id).state == "training" and pilot.checkpoints(run_id))
    pilot.hit(first.nodes[1])
    with pytest.raises(leases.LeaseLost):
        old.reconcile_once(old_epoch, pilot.clock.now())
    assert pilot.decisions(run_id) == [], "it saw the fault and may not decide"
    second_trains(pilot, run_id)
    must = "the other makes each Job, once; what the first had begun changes nothing"
    tell(pilot, run_id, "two controllers: one is stopped past its lease inside a POST, and goes on", must)


def test_an_api_server_that_is_away_and_flaps_moves_nobody(pilot: KubePilot) -> None:
    run_id = training(pilot, steps=1000)
    away, passed_on, step = threading.Event(), pilot.api.before_call, 12

    def refuse(call: str) -> None:
        if away.is_set():
            raise BackendUnavailable(f"{call}: the API server does not answer")
        passed_on(call)

    def ten_seconds() -> None:
        nonlocal step
        step += 5
        pilot.kube_clock.ahead_s += 10
        pilot.beat(run_id, 1, step)  # trainers report to us, not to the API server
        pilot.live_round(10.0)
        quarantine.take_out_once(pilot.store, BOOK, 0.05, pilot.epoch, pilot.clock.now())
        incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())

    def nothing_happened() -> None:
        (attempt,) = pilot.attempts(run_id)
        assert attempt.ended_s is None and pilot.decisions(run_id) == []
        assert not [name for name in pilot.names if pilot.node(name).cordoned]

    pilot.api.before_call = refuse
    pilot.world.cluster.signal("kube-apiserver", signal.SIGSTOP)  # the streams fall silent, and new calls are refused
    away.set()
    try:
        for _ in range(90):
            ten_seconds()
            nothing_happened()
        assert pilot.kube.pods.age_s > 900, "nobody could look"
    finally:
        pilot.world.cluster.signal("kube-apiserver", signal.SIGCONT)
        away.clear()
    for index in range(20):
        (away.clear if index % 2 else away.set)()
        ten_seconds()
        nothing_happened()
    for path in (f"{JOBS}/{pilot.last(run_id).name}", f"/api/v1/nodes/{pilot.names[0]}", pod_path(pilot, run_id)):
        note = {"metadata": {"annotations": {"example.com/seen": "again"}}}
        pilot.world.admin.patch(path, note, kind="merge")
    rounds_until(pilot, lambda: max(pilot.kube.jobs.age_s, pilot.kube.pods.age_s, pilot.kube.nodes.age_s) < 30)
    nothing_happened()
    assert pilot.last(run_id).state == "training"
    tell(pilot, run_id, "the API server is away for 15 minutes, then flaps", "nothing: no restart, no cordon")


def pod_path(pilot: KubePilot, run_id: str) -> str:
    return f"{PODS}/{pilot.pods(pilot.last(run_id).name)[0]['metadata']['name']}"


def test_a_dead_node_holds_up_nobody_and_what_it_still_writes_is_refused(pilot: KubePilot) -> None:
    only(pilot, MORTAL[:2])
    run_id = training(pilot)
    first = pilot.last(run_id)
    assert set(first.nodes) == set(MORTAL[:2])
    only(pilot, [])
    dead = first.nodes[1]
    with pilot.world.silent("kwok-mortal"):
        pilot.hit(dead, rule="gpu-lost", action="restart")
        rounds_until(pilot, lambda: pilot.last(run_id).no == 2 and len(pilot.last(run_id).nodes) == 2, patience_s=120)
        second = pilot.last(run_id)
        stuck = [one for one in pilot.pods(first.name) if "deletionTimestamp" in one["metadata"]]
        assert {one["spec"]["nodeName"] for one in stuck} >= {dead}, "its pod is still there, Terminating"
        assert dead not in second.nodes and second.epoch > first.epoch
        assert pilot.attempts(run_id)[0].state in ("abandoned", "superseded")
        pilot.save(run_id, 30, no=1)
        rounds_until(pilot, lambda: any(one.step == 30 for one in pilot.checkpoints(run_id)))
        late = [one for one in pilot.checkpoints(run_id) if one.step == 30]
        assert [one.state for one in late] == ["tainted"], "a checkpoint of an attempt that was given up"
        must = "nobody waits for that pod; a checkpoint that it still writes is found and tainted"
        tell(
            pilot,
            run_id,
            "a node with a fault dies under a gang: its kubelet is silent, its pod stays Terminating",
            must,
        )


def test_a_storm_of_alerts_takes_two_nodes_and_pages_and_restarts_a_run_once(pilot: KubePilot) -> None:
    run_id = training(pilot)
    used = pilot.last(run_id).nodes
    idle = [name for name in pilot.names if name not in used]
    for name in [used[0], *idle[:7]]:  # half of the fleet
        pilot.hit(name)

    def look() -> None:
        pilot.live_round(1.0)
        quarantine.take_out_once(pilot.store, BOOK, 0.05, pilot.epoch, pilot.clock.now())
        incident_service.check_once(pilot.store, pilot.watch, pilot.epoch, pilot.clock.now())

    for _ in range(10):
        look()
    second_trains(pilot, run_id)
    for _ in range(20):
        look()
    cordoned = [name for name in pilot.names if pilot.world.node(name)["spec"].get("unschedulable")]
    assert len(cordoned) == 2 and used[0] in cordoned
    assert len(pilot.attempts(run_id)) == 2 and not set(pilot.last(run_id).nodes) & {used[0], *idle[:7]}
    with pilot.store.read() as session:
        rules = {one.rule: one.severity for one in incidents.listed(session, ("open", "acked"))}
    assert rules["quarantine-held"] == "critical"
    assert len(pilot.world.admin.get(JOBS)["items"]) == 2
    must = "two nodes leave service, the rest is held and pages a person; the run restarts once, on clean nodes"
    tell(pilot, run_id, "half of the fleet reports memory errors at once", must)

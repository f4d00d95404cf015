"""What is said of a job before it is submitted, held against what the real cluster then does with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client as k8s

from controlplane.backends.base import AttemptPlan
from controlplane.backends.kube import forecast, manifests, rayjob_manifests
from controlplane.backends.kube.api import KubeApi, LeaseTooOld
from controlplane.backends.kube.backend import KubeBackend
from controlplane.clock import SystemClock
from controlplane.store.engine import Store
from jobs.spec import load_template
from tests.api.conftest import Api, serving
from tests.cli.trimtab_process import trimtab
from tests.kube.conftest import NAMESPACE, OPTIONS, World, until

NODES = [f"node-{index:03d}" for index in range(16)]
QUOTAS = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"


@pytest.fixture
def api(sqlite_store: Store, tmp_path: Path, backend: KubeBackend) -> Iterator[Api]:
    """The API of a server whose runs go to the cluster; an agent on each node reports."""
    with serving(sqlite_store, tmp_path, backends={"kube": backend}, default_backend="kube") as made:
        for node in NODES:
            made.report(node)
        yield made


@pytest.fixture
def quota(world: World) -> Iterator[None]:
    """Sixteen GPUs and four Jobs for all of the namespace."""
    hard = {"requests.amd.com/gpu": "16", "count/jobs.batch": "40", "pods": "100", "configmaps": "100"}
    head = {"name": "research", "namespace": NAMESPACE}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": head, "spec": {"hard": hard}}
    world.admin.create(QUOTAS, body)
    until(lambda: (world.admin.get(f"{QUOTAS}/research").get("status") or {}).get("used"))
    yield
    world.admin.delete(f"{QUOTAS}/research")


def plan(name: str, nodes: int, **changes: Any) -> AttemptPlan:
    made = AttemptPlan(name, f"uid-{name}", 1, "hash", (), 1, ("true",), {}, node_count=nodes, gpus_per_node=8)
    return replace(made, grace_s=1.0, **changes)


def spec(nodes: int = 2, **placing: Any) -> dict[str, Any]:
    job = load_template("toy").to_dict()
    job["metadata"]["name"] = "foreseen"
    job["spec"]["resources"]["nodes"] = nodes
    job["spec"]["kubernetes"] = placing
    return job


def validate(api: Api, nodes: int = 2, **placing: Any) -> dict[str, Any]:
    answer = api.call("POST", "runs/validate", api.token(role="viewer"), json={"spec": spec(nodes, **placing)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["problems"] == []
    return found


def said(found: dict[str, Any], name: str) -> tuple[str, str]:
    """(level, sentence) of the first check of that name."""
    return next((one["level"], one["sentence"]) for one in found["checks"] if one["name"] == name)


# --- through the API ---


def test_the_manifests_are_judged_by_the_api_server_and_nothing_is_made(world: World, api: Api) -> None:
    found = validate(api)
    assert said(found, "manifests") == ("ok", "the API server takes the Job and the Service")
    shown = list(yaml.safe_load_all(found["cluster"]["manifests"]))
    assert [one["kind"] for one in shown] == ["Job", "Service"] and shown[0]["spec"]["parallelism"] == 2
    assert found["cluster"]["capacity"] == {"nodes": 16, "gpus": 128, "free_nodes": 16, "free_gpus": 128}
    assert "&" not in found["cluster"]["manifests"] and "2 nodes would start at once" in found["sentence"]
    assert not [one for one in world.admin.get(JOBS)["items"] if one["metadata"]["name"].startswith("foreseen")]


def test_what_the_api_server_refuses_is_an_error_in_its_words(api: Api) -> None:
    level, sentence = said(validate(api, queue="not a label!"), "manifests")
    assert level == "error" and "would refuse: Job" in sentence and "a valid label" in sentence


def test_nodes_that_are_short_are_counted_by_reason(world: World, api: Api, backend: KubeBackend) -> None:
    taint = [{"key": "amd-gpu-unhealthy", "effect": "NoSchedule", "value": "true"}]
    world.admin.patch("/api/v1/nodes/node-000", {"spec": {"unschedulable": True}}, kind="merge")
    world.admin.patch("/api/v1/nodes/node-001", {"spec": {"taints": taint}}, kind="merge")
    held = plan("holds-one", 1)
    try:
        backend.submit(held)
        until(lambda: backend.observe([held.name], 5.0)[held.name].state == "running")
        busy = backend.observe([held.name], 5.0)[held.name].nodes[0]
        until(lambda: not validate(api)["candidates"][0]["ok"] and not validate(api)["candidates"][1]["ok"])
        found = validate(api, 16)
        level, sentence = said(found, "nodes")
        assert level == "warn" and sentence.startswith("13 of 16 nodes are free now, 3 short: ")
        for words in (
            "1 cordoned in the cluster (node-000)",
            "1 tainted amd-gpu-unhealthy (node-001)",
            f"1 in use by another run ({busy})",
        ):
            assert words in sentence
        assert found["cluster"]["capacity"]["free_gpus"] == 13 * 8
        more = validate(api, 17)
        assert said(more, "nodes") == ("warn", "17 nodes are asked for, 16 exist")
        assert more["sentence"].startswith("17 nodes would wait for 3 more to be free and for 1 more node to join")
    finally:
        world.admin.patch("/api/v1/nodes/node-000", {"spec": {"unschedulable": None}}, kind="merge")
        world.admin.patch("/api/v1/nodes/node-001", {"spec": {"taints": None}}, kind="merge")
        world.admin.delete(f"{JOBS}/{held.name}")
        until(lambda: not world.pods(held.name))


def test_a_node_that_no_agent_reports_from_is_named(sqlite_store: Store, tmp_path: Path, backend: KubeBackend) -> None:
    with serving(sqlite_store, tmp_path, backends={"kube": backend}, default_backend="kube") as few:
        few.report("node-000")
        few.report("elsewhere")
        rows = {one["node"]: one["reason"] for one in validate(few)["candidates"]}
    assert (rows["node-000"], rows["elsewhere"]) == ("", "not in the cluster")
    assert rows["node-015"] == "no agent of Trimtab reports from it" and len(rows) == 17


# --- quotas: what is foretold, and what then happens ---


@pytest.mark.usefixtures("quota")
def test_a_quota_that_others_use_up_is_waited_for(world: World, api: Api, backend: KubeBackend) -> None:
    held = plan("holds-eight", 1)
    backend.submit(held)
    try:
        until(lambda: world.admin.get(f"{QUOTAS}/research")["status"]["used"]["requests.amd.com/gpu"] == "8")
        found = validate(api, 2)
        level, sentence = said(found, "quota research")
        # the first line is of Jobs
        assert (level, sentence) == ("ok", "1 of 40 count/jobs.batch are used, 1 are asked for")
        lines = {one["resource"]: one for one in found["cluster"]["limits"]}
        assert set(lines) == {"count/jobs.batch", "pods", "requests.amd.com/gpu"}, "of configmaps it makes none"
        assert (lines["requests.amd.com/gpu"]["used"], lines["requests.amd.com/gpu"]["short"]) == (8, 8)
        assert {
            "level": "warn",
            "name": "quota research",
            "sentence": "8 of 16 requests.amd.com/gpu are used, 16 are asked for: it waits for 8 to be given back",
        } in found["checks"]
    finally:
        world.admin.delete(f"{JOBS}/{held.name}")
        until(lambda: not world.pods(held.name))


@pytest.mark.usefixtures("quota")
@pytest.mark.parametrize("nodes", [2, 3])
def test_what_is_foretold_of_a_quota_comes_true(world: World, backend: KubeBackend, nodes: int) -> None:
    asked = plan(f"foretold-{nodes}", nodes)
    (gpus,) = [one for one in backend.forecast(asked).limits if one.resource == "requests.amd.com/gpu"]
    assert (gpus.asked, gpus.hard, gpus.short) == (8.0 * nodes, 16.0, 8.0 * (nodes - 2))
    backend.submit(asked)
    try:
        until(lambda: len(world.pods(asked.name)) == 2)
        if gpus.short:
            events = f"/api/v1/namespaces/{NAMESPACE}/events"
            chosen = f"involvedObject.name={asked.name},reason=FailedCreate"
            until(lambda: world.admin.get(events, fieldSelector=chosen)["items"])
            assert "exceeded quota: research" in world.admin.get(events, fieldSelector=chosen)["items"][0]["message"]
        else:
            until(lambda: backend.observe([asked.name], 5.0)[asked.name].state == "running")
    finally:
        world.admin.delete(f"{JOBS}/{asked.name}")
        until(lambda: not world.pods(asked.name))


@pytest.mark.parametrize("resource", ["limits.memory", "requests.cpu"])
def test_a_quota_that_pods_have_to_name_is_told(world: World, backend: KubeBackend, resource: str) -> None:
    head = {"name": "named", "namespace": NAMESPACE}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": head, "spec": {"hard": {resource: "512Gi"}}}
    world.admin.create(QUOTAS, body)
    try:
        (limit,) = backend.forecast(plan("unnamed", 1)).limits
        assert (limit.resource, limit.asked, limit.hard) == (resource, None, 512 * 2**30)
        until(lambda: (world.admin.get(f"{QUOTAS}/named").get("status") or {}).get("used"))
        pod = {"metadata": {"name": "unnamed"}, "spec": manifests.pod(plan("unnamed", 1), OPTIONS)}
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        with pytest.raises(Exception, match=f"must specify {resource}"):
            world.admin.create(pods, {"apiVersion": "v1", "kind": "Pod", **pod}, dry_run=True)
    finally:
        world.admin.delete(f"{QUOTAS}/named")


# --- who may ask, and nobody who answers ---


def test_a_server_that_does_not_lead_may_ask_and_not_act(backend: KubeBackend) -> None:
    follower = KubeApi(backend._api._client, may_write=lambda: False)
    asks = KubeBackend(follower, OPTIONS, SystemClock())
    assert asks.dry_run(plan("follows", 1)) == []
    with pytest.raises(LeaseTooOld):
        asks.submit(plan("follows", 1))


def nobody() -> KubeBackend:
    """A backend whose API server is not there."""
    settings = k8s.Configuration()
    settings.host, settings.retries = "http://127.0.0.1:9", False
    return KubeBackend(KubeApi(k8s.ApiClient(settings)), OPTIONS, SystemClock())


def test_a_cluster_that_cannot_be_asked_is_no_fault_of_the_job(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store, tmp_path, backends={"kube": nobody()}, default_backend="kube") as blind:
        blind.report("node-000")
        found = validate(blind)
        assert {one["level"] for one in found["checks"]} == {"ok", "warn"}
        level, sentence = said(found, "cluster")
        assert level == "warn" and "no fault of the job" in sentence and "does not answer" in sentence
        assert "cannot be seen right now" in found["sentence"] and found["cluster"]["capacity"] is None
        ways = {"TRIMTAB_URL": blind.url, "TRIMTAB_TOKEN": blind.token(role="operator")}
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(spec()))
        for flag, code in (("--dry-run", 0), ("--dry-run=server", 6)):
            answer = trimtab("job", "submit", str(file), flag, **ways)
            assert answer.returncode == code, answer.stderr
            assert "does not answer" in answer.stdout


# --- the command line ---


@pytest.mark.parametrize(("placing", "code"), [({}, 0), ({"queue": "not a label!"}, 1)])
def test_a_dry_run_on_the_server_shows_all_and_its_code_says_it(
    api: Api, tmp_path: Path, placing: dict[str, str], code: int
) -> None:
    ways = {"TRIMTAB_URL": api.url, "TRIMTAB_TOKEN": api.token(role="operator")}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec(**placing)))
    table = trimtab("job", "submit", str(file), "--dry-run=server", **ways)
    assert table.returncode == code, table.stderr
    assert "capacity: 16 nodes with 128 GPUs in the cluster, 16 with 128 can be used now" in table.stdout
    assert "kind: Job" in table.stdout and "kind: Service" in table.stdout
    plain = trimtab("job", "submit", str(file), "--dry-run", **ways)
    assert plain.returncode == code, plain.stderr
    assert "kind: Job" not in plain.stdout and ("would refuse" in plain.stdout) is (code == 1)
    found = json.loads(trimtab("job", "submit", str(file), "--dry-run=server", "-o", "json", **ways).stdout)
    assert found["cluster"]["backend"] == "kube" and bool(found["cluster"]["refusals"]) is (code == 1)
    assert api.call("GET", "runs", ways["TRIMTAB_TOKEN"]).json()["runs"] == []


# --- a node and a quota by themselves ---


def node(**changes: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    status = {"allocatable": {"amd.com/gpu": "8"}, "conditions": [ready], **changes.pop("status", {})}
    return {"metadata": {"name": "node-x", "labels": {"pool": "mi300x"}}, "spec": changes, "status": status}


SILENT = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
PRESSED = {"type": "DiskPressure", "status": "True", "reason": "KubeletHasDiskPressure"}
READY = {"type": "Ready", "status": "True"}
TAINT = {"key": "amd.com/gpu", "value": "present", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("given", "options", "refusal"),
    [
        (node(), {}, ""),
        (node(status={"conditions": [SILENT]}), {}, "not ready (NodeStatusUnknown)"),
        (node(status={"conditions": []}), {}, "not ready (its kubelet has said nothing)"),
        (node(unschedulable=True), {}, "cordoned in the cluster"),
        (node(taints=[TAINT]), {}, "tainted amd.com/gpu"),
        (node(taints=[TAINT]), {"tolerations": ({"key": "amd.com/gpu", "operator": "Exists"},)}, ""),
        (node(taints=[TAINT]), {"tolerations": ({"key": "amd.com/gpu", "value": "other"},)}, "tainted amd.com/gpu"),
        (node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), {}, ""),
        (node(), {"node_selector": {"pool": "mi300x"}}, ""),
        (node(), {"node_selector": {"pool": "mi355x"}}, "without the label pool=mi355x"),
        (node(status={"allocatable": {"amd.com/gpu": "4"}}), {}, "offers 4 GPUs, 8 are asked for"),
        (node(status={"allocatable": {}}), {}, "offers 0 GPUs, 8 are asked for"),
    ],
)
def test_why_a_node_would_take_no_pod(given: dict[str, Any], options: dict[str, Any], refusal: str) -> None:
    found = forecast.node_forecast(given, plan("x", 1), replace(OPTIONS, **options))
    assert found.refusal == refusal
    assert forecast.node_forecast(node(), plan("x", 1, excluded=("node-x",)), OPTIONS).refusal


def test_what_a_node_says_of_its_health_is_passed_on() -> None:
    found = forecast.node_forecast(node(status={"conditions": [READY, PRESSED]}), plan("x", 1), OPTIONS)
    assert (found.refusal, found.health, found.gpus) == ("", "DiskPressure (KubeletHasDiskPressure)", 8)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("500m", 0.5), ("64Gi", 64 * 2**30), ("1e3", 1000), ("2k", 2000), ("100M", 1e8), (3, 3)],
)
def test_kubernetes_numbers(text: object, value: float) -> None:
    assert forecast.quantity(text) == value


def limit(hard: dict[str, str], spec: dict[str, Any] | None = None, ray: bool = False) -> dict[str, float | None]:
    """What a three-node attempt draws of a quota."""
    asked = plan("x", 3, placing={"priorityClass": "high"})
    bodies = [rayjob_manifests.rayjob(asked, OPTIONS)] if ray else [manifests.job(asked, OPTIONS)]
    quota = {"metadata": {"name": "q"}, "spec": {"hard": hard, **(spec or {})}}
    return {one.resource: one.asked for one in forecast.limits([quota], bodies)}


def scoped(name: str, operator: str = "Exists", *values: str) -> dict[str, Any]:
    return {"scopeSelector": {"matchExpressions": [{"scopeName": name, "operator": operator, "values": values}]}}


def test_scopes_name_the_pods_that_count() -> None:
    pods = {"pods": "9"}
    assert limit(pods) == {"pods": 3} and limit(pods, ray=True) == {"pods": 4}
    assert limit(pods, {"scopes": ["NotTerminating", "BestEffort"]}) == {"pods": 3}, "GPUs alone are best effort"
    assert limit(pods, {"scopes": ["Terminating"]}) == {} == limit(pods, {"scopes": ["NotBestEffort"]})
    assert limit(pods, scoped("PriorityClass", "In", "high")) == {"pods": 3}
    assert limit(pods, scoped("PriorityClass", "NotIn", "high")) == {}
    assert limit({"requests.amd.com/gpu": "8"}, scoped("PriorityClass")) == {"requests.amd.com/gpu": 24}
    assert limit({"requests.amd.com/gpu": "8", "count/rayjobs.ray.io": "1"}, ray=True) == {
        "requests.amd.com/gpu": 24,
        "count/rayjobs.ray.io": 1,
    }

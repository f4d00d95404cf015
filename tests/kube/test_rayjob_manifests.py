"""What is asked of KubeRay: once or never, whole nodes, Ray's own devices, a command that two shells leave alone."""

from __future__ import annotations

import shlex
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controlplane.backends.base import AttemptPlan
from controlplane.backends.kube.options import KubeOptions
from controlplane.backends.kube.rayjob_manifests import cluster, entrypoint, ray_token, rayjob

OPTIONS = KubeOptions(image="trimtab-trainer:test")
PLAN = AttemptPlan(
    "zaya-rl-5m5z7g-2",
    "uid",
    2,
    "hash",
    (),
    8,
    ("{python}", "-m", "verl.trainer.main_ppo"),
    {"ROCR_VISIBLE_DEVICES": "0"},
    node_count=2,
    gpus_per_node=8,
    grace_s=45.0,
)


def test_nothing_is_ever_submitted_a_second_time_and_no_pod_names_rocr() -> None:
    spec = rayjob(PLAN, OPTIONS)["spec"]
    assert (spec["jobId"], spec["backoffLimit"], spec["submissionMode"]) == (PLAN.name, 0, "K8sJobMode")
    assert spec["submitterConfig"] == {"backoffLimit": 0} and spec["shutdownAfterJobFinishes"] is True
    assert spec["suspend"] is True
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["amd.com/gpu"] == "8" and "command" not in container
        names = {one["name"]: one.get("value") for one in container["env"]}
        assert names["HIP_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7" and "ROCR_VISIBLE_DEVICES" not in names
        assert names["RAY_JOB_STOP_WAIT_TIME_S"] == "45" and names["RAY_AUTH_MODE"] == "token"
        assert not any(name.startswith("PET_") for name in names), "torchrun's meeting point is not Ray's"
        assert group["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 1


def test_one_node_is_a_head_alone() -> None:
    assert "workerGroupSpecs" not in cluster(replace(PLAN, node_count=1), OPTIONS)


def test_small_jobs_leave_a_node_for_their_submitter() -> None:
    spec = rayjob(replace(PLAN, gpus_per_node=4), OPTIONS)["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = head["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchExpressions"][0]["values"] == ["head", "worker"]
    assert "podAntiAffinity" not in spec["submitterPodTemplate"]["spec"].get("affinity", {})


def test_each_attempt_has_a_token_of_its_own() -> None:
    made = [ray_token(key, name) for key, name in ((b"key", "a-1"), (b"key", "a-2"), (b"another key", "a-1"))]
    assert len(set(made)) == 3 and ray_token(b"key", "a-1") == made[0]


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(WORDS.filter(lambda word: word != "{python}"), min_size=1))
def test_a_command_comes_through_kubernetes_and_the_shell_as_it_was(words: list[str]) -> None:
    handed_over = entrypoint(replace(PLAN, command=("{python}", *words))).replace("$$", "$")
    assert shlex.split(handed_over) == ["python", "-m", "jobs.launch", "--", "python", *words]

"""An attempt as KubeRay objects: one suspended RayJob of whole nodes, and the Secret with its Ray token. Pure.

An attempt is submitted to Ray once or never. That decides the submission mode: in HTTPMode the operator submits
whenever Ray does not know the job, so a head pod that was evicted and came back runs the attempt a second time,
whatever backoffLimit says (KubeRay's issue 4824). In K8sJobMode one submitter pod asks Ray for the job and submits it
under the attempt's name, which Ray refuses to take twice; when the head goes, the submitter fails and the RayJob with
it. submitterConfig allows no second submitter, backoffLimit no second cluster, an annotation no second head.
"""

from __future__ import annotations

import hmac
import re
import shlex
from typing import Any

from controlplane.backends.base import AttemptPlan
from controlplane.backends.kube import manifests
from controlplane.backends.kube.manifests import PART, QUEUE, SPEC, SUBMITTER
from controlplane.backends.kube.options import PREFIX, KubeOptions

Json = dict[str, Any]
API = "ray.io/v1"
RELEASED = f"{PREFIX}/released"
"""set when we let a RayJob go: one that is suspended in spite of it was suspended by somebody else"""
KEEP_NO_HEAD = "ray.io/disable-provisioned-head-restart"
TOKEN_KEY = "auth_token"  # noqa: S105  # a name, not a secret
NAME_AT_MOST = 47
"""KubeRay adds six characters for the cluster and ten for its services, and 63 is all that a name may have"""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_REFUSED = "ROCR_VISIBLE_DEVICES"
"""Ray 2.45 and newer end at start when they find it; HIP_VISIBLE_DEVICES is what Ray itself sets for its workers"""


def name_problem(name: str) -> str:
    """Why KubeRay would not take an attempt of this name, although the API server does; empty when it would."""
    if len(name) > NAME_AT_MOST:
        return f"KubeRay takes names of up to {NAME_AT_MOST} characters, {name} has {len(name)}: shorten the job's"
    if not _NAME.fullmatch(name):
        return f"KubeRay takes names that begin with a letter, and {name} does not: rename the job"
    return ""


def ray_token(key: bytes, name: str) -> str:
    """The Ray token of an attempt: its own, and never read back, since whoever has the key can make it again."""
    return hmac.new(key, f"ray {name}".encode(), "sha256").hexdigest()


def rayjob(plan: AttemptPlan, options: KubeOptions) -> Json:
    """The RayJob, created suspended; a Kueue queue, if the plan names one, is what lets it go."""
    marks = manifests.labels(plan)
    queue = manifests.queue_of(plan, options)
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": {
            "name": plan.name,
            "namespace": options.namespace,
            "labels": {**marks, QUEUE: queue} if queue else marks,
            # the operator hands annotations on to the RayCluster, which is where it looks for the last one
            "annotations": {SPEC: plan.spec_hash, KEEP_NO_HEAD: "true"},
        },
        "spec": {
            "suspend": True,
            "jobId": plan.name,
            "entrypoint": entrypoint(plan),
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": 0},
            "submitterPodTemplate": _submitter(plan, options),
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,
            "rayClusterSpec": cluster(plan, options),
        },
    }


def cluster(plan: AttemptPlan, options: KubeOptions) -> Json:
    """The RayCluster: the head on the first node, which works as the others do, and the workers on the rest."""
    params = {"num-gpus": str(plan.gpus_per_node)}
    found: Json = {
        "authOptions": {"mode": "token", "secretName": plan.name},
        "headGroupSpec": {
            "rayStartParams": {**params, "dashboard-host": "0.0.0.0"},
            "template": _node(plan, options, "head"),
        },
    }
    workers = plan.node_count - 1
    if workers:
        group = {
            "groupName": "workers",
            "replicas": workers,
            "minReplicas": workers,
            "maxReplicas": workers,
            "rayStartParams": params,
            "template": _node(plan, options, "worker"),
        }
        found["workerGroupSpecs"] = [group]
    return found


def secret(plan: AttemptPlan, options: KubeOptions, token: str, rayjob_uid: str) -> Json:
    """What the pods of the attempt and the operator read the token from; it goes with its RayJob."""
    owner = {"apiVersion": API, "kind": "RayJob", "name": plan.name, "uid": rayjob_uid, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": plan.name,
            "namespace": options.namespace,
            "labels": manifests.labels(plan),
            "ownerReferences": [owner],
        },
        "immutable": True,
        "stringData": {TOKEN_KEY: token},
    }


def entrypoint(plan: AttemptPlan) -> str:
    """The launcher and its command, for the submitter's shell; Ray quotes the words again for the shell that runs them.

    The operator puts it into a container's arguments, where Kubernetes takes $$ for a dollar sign and $(…) for a
    variable.
    """
    return shlex.join(manifests.launcher(plan)).replace("$", "$$")


def _node(plan: AttemptPlan, options: KubeOptions, part: str) -> Json:
    """A Ray node: the pod of a plain Job, with Ray as its command (the operator writes it) and no torchrun meeting."""
    pod = manifests.pod(plan, options)
    del pod["subdomain"]
    (container,) = pod["containers"]
    del container["command"]
    container["name"] = f"ray-{part}"
    given = [one for one in container["env"] if not one["name"].startswith("PET_") and one["name"] != _REFUSED]
    container["env"] = [*given, *_ray_environment(plan)]
    if "podAntiAffinity" in pod.get("affinity", {}):
        (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        # a required anti-affinity binds both sides: without this the submitter would find no node
        among = {"key": PART, "operator": "In", "values": ["head", "worker"]}
        term["labelSelector"]["matchExpressions"] = [among]
    return _template(plan, part, pod)


def _submitter(plan: AttemptPlan, options: KubeOptions) -> Json:
    """The pod that submits, waits and shows the job's output; the operator writes its command."""
    pod = manifests.pod(plan, options)
    for name in ("subdomain", "volumes"):
        del pod[name]
    pod.get("affinity", {}).pop("podAntiAffinity", None)
    # a shell is its first process and hears no SIGTERM: it would only be waited for
    pod["terminationGracePeriodSeconds"] = 1
    (container,) = pod["containers"]
    pod["containers"] = [
        {
            "name": SUBMITTER,
            "image": container["image"],
            "env": _token_environment(plan),
            "resources": {
                "requests": {"cpu": "500m", "memory": "512Mi"},
                "limits": {"cpu": "1", "memory": "1Gi"},
            },
            "securityContext": container["securityContext"],
        }
    ]
    return _template(plan, SUBMITTER, pod)


def _template(plan: AttemptPlan, part: str, pod: Json) -> Json:
    return {
        "metadata": {"labels": {**manifests.labels(plan), PART: part}, "annotations": {SPEC: plan.spec_hash}},
        "spec": pod,
    }


def _ray_environment(plan: AttemptPlan) -> list[Json]:
    fixed = {
        # without it Ray kills what it stops after three seconds
        "RAY_JOB_STOP_WAIT_TIME_S": str(max(1, int(plan.grace_s))),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if plan.gpus_per_node:
        fixed["HIP_VISIBLE_DEVICES"] = ",".join(map(str, range(plan.gpus_per_node)))
    return [*({"name": name, "value": value} for name, value in fixed.items()), *_token_environment(plan)]


def _token_environment(plan: AttemptPlan) -> list[Json]:
    """Newer operators set it themselves; said here, it does not depend on the operator's version."""
    source = {"secretKeyRef": {"name": plan.name, "key": TOKEN_KEY}}
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": source}]

"""An attempt as Kubernetes objects: one suspended Indexed Job of whole nodes, and a headless Service. Pure.

Everything that makes an attempt itself stands in labels and annotations (run, number, spec hash), so that whoever finds
the Job can tell whose it is. Nothing here restarts: backoffLimit 0, no pod is replaced, and any failing pod or eviction
fails the Job at once; the next attempt is another object.
"""

from __future__ import annotations

from typing import Any

from controlplane.backends.base import AttemptPlan, SubmitConflict
from controlplane.backends.kube.options import GPU_RESOURCE, PREFIX, KubeOptions

Json = dict[str, Any]
RUN, ATTEMPT, SPEC = f"{PREFIX}/run-uid", f"{PREFIX}/attempt", f"{PREFIX}/spec-hash"
NAME = f"{PREFIX}/attempt-name"
PART = f"{PREFIX}/part"
"""what a pod is within an attempt of several kinds of pods: head, worker or submitter"""
SUBMITTER = "submitter"
INDEX = "batch.kubernetes.io/job-completion-index"
QUEUE = "kueue.x-k8s.io/queue-name"
CONTAINER = "trainer"
EXCLUDED_AT_MOST = 64
"""more excluded nodes than this are left to their taints: an affinity term of hundreds of names slows the scheduler"""
UNREACHABLE_S = 30


def labels(plan: AttemptPlan) -> dict[str, str]:
    """What every object of the attempt carries."""
    return {
        "app.kubernetes.io/managed-by": "trimtab",
        RUN: plan.run_uid,
        ATTEMPT: str(plan.attempt_no),
        NAME: plan.name,
    }


def adopted(found: Json, plan: AttemptPlan) -> Json:
    """The object that bears the attempt's name, if its marks are the attempt's own; SubmitConflict if not."""
    head = found["metadata"]
    marks, notes = head.get("labels") or {}, head.get("annotations") or {}
    if (marks.get(RUN), marks.get(ATTEMPT), notes.get(SPEC)) != (plan.run_uid, str(plan.attempt_no), plan.spec_hash):
        where = f"{plan.name} exists in {head.get('namespace')}"
        raise SubmitConflict(f"a {found.get('kind')} {where} and is not this attempt")
    return found


def selector(name: str) -> str:
    """The label selector of an attempt's pods."""
    return f"{NAME}={name}"


def queue_of(plan: AttemptPlan, options: KubeOptions) -> str:
    """The Kueue queue that lets the Job go; empty when the controller does."""
    return plan.placing.get("queue") or options.queue


def job(plan: AttemptPlan, options: KubeOptions) -> Json:
    """The Job, created suspended; a Kueue queue, if the plan names one, is what lets it go."""
    marks = labels(plan)
    queue = queue_of(plan, options)
    head: Json = {
        "name": plan.name,
        "namespace": options.namespace,
        "labels": {**marks, QUEUE: queue} if queue else marks,
        "annotations": {SPEC: plan.spec_hash},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": head,
        "spec": {
            "suspend": True,
            "completionMode": "Indexed",
            "completions": plan.node_count,
            "parallelism": plan.node_count,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                    },
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "ttlSecondsAfterFinished": options.keep_finished_s,
            "template": {
                "metadata": {"labels": marks, "annotations": {SPEC: plan.spec_hash}},
                "spec": pod(plan, options),
            },
        },
    }


def service(plan: AttemptPlan, options: KubeOptions, job_uid: str) -> Json:
    """The headless Service that gives each pod its name; it goes with its Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": plan.name, "uid": job_uid, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": plan.name,
            "namespace": options.namespace,
            "labels": labels(plan),
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {NAME: plan.name},
            "ports": [{"name": "rendezvous", "port": options.rendezvous_port}],
        },
    }


def pod(plan: AttemptPlan, options: KubeOptions) -> Json:
    """One node's part: the launcher as PID 1, all GPUs of the node, nothing of the API server."""
    found: Json = {
        "restartPolicy": "Never",
        "subdomain": plan.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": max(1, int(plan.grace_s)),
        "tolerations": [*_tolerations(), *options.tolerations],
        "containers": [_container(plan, options)],
        "volumes": _volumes(options),
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    if options.service_account:
        found["serviceAccountName"] = options.service_account
    if options.node_selector:
        found["nodeSelector"] = dict(options.node_selector)
    if plan.placing.get("priorityClass"):
        found["priorityClassName"] = plan.placing["priorityClass"]
    affinity = _affinity(plan)
    if affinity:
        found["affinity"] = affinity
    return found


def launcher(plan: AttemptPlan) -> list[str]:
    """The words that a container starts: the launcher around the attempt's command, with the image's own Python."""
    command = ["python" if word == "{python}" else word for word in plan.command]
    return ["python", "-m", "jobs.launch", "--", *command]


def _container(plan: AttemptPlan, options: KubeOptions) -> Json:
    resources: Json = {}
    if plan.gpus_per_node:
        resources[GPU_RESOURCE] = str(plan.gpus_per_node)
    if options.cpu:
        resources["cpu"] = options.cpu
    if options.memory:
        resources["memory"] = options.memory
    return {
        "name": CONTAINER,
        "image": plan.placing.get("image") or options.image,
        "command": launcher(plan),
        "env": _environment(plan, options),
        "resources": {"limits": resources, "requests": resources},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "runs", "mountPath": options.volume_path},
            {"name": "runtime", "mountPath": options.runtime_path},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _environment(plan: AttemptPlan, options: KubeOptions) -> list[Json]:
    """The contract's variables; torchrun meets at the first pod, under the attempt's name."""
    fixed = {
        **plan.environment,
        "PET_NNODES": str(plan.node_count),
        "PET_NPROC_PER_NODE": str(plan.ranks_per_node),
        "PET_MAX_RESTARTS": "0",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{plan.name}-0.{plan.name}:{options.rendezvous_port}",
        "PET_RDZV_ID": plan.name,
        "PYTHONUNBUFFERED": "1",
        "TRIMTAB_HEARTBEAT_DIR": f"{options.runtime_path}/attempts/{plan.name}",
        "TRIMTAB_TERMINATION_LOG": "/dev/termination-log",
    }
    node: Json = {"name": "TRIMTAB_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    return [*({"name": name, "value": value} for name, value in sorted(fixed.items())), node]


def _volumes(options: KubeOptions) -> list[Json]:
    runs: Json = (
        {"persistentVolumeClaim": {"claimName": options.volume_claim}}
        if options.volume_claim
        else {"hostPath": {"path": options.volume_path, "type": "DirectoryOrCreate"}}
    )
    return [
        {"name": "runs", **runs},
        {"name": "runtime", "hostPath": {"path": options.runtime_path, "type": "DirectoryOrCreate"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": options.shared_memory}},
    ]


def _tolerations() -> list[Json]:
    """A node that fell silent keeps its pod for half a minute: by then the controller has decided."""
    return [
        {
            "key": f"node.kubernetes.io/{word}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": UNREACHABLE_S,
        }
        for word in ("not-ready", "unreachable")
    ]


def _affinity(plan: AttemptPlan) -> Json:
    """Never on an excluded node, and never two pods of an attempt on one node."""
    found: Json = (
        {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {NAME: plan.name}}}
                ]
            }
        }
        if plan.gpus_per_node < 8
        else {}
    )
    excluded = sorted(plan.excluded)[:EXCLUDED_AT_MOST]
    if excluded:
        term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": excluded}]}
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return found

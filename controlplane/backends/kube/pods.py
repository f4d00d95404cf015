"""What is read of a pod: whose it is, where, whether it runs, how it ended, and its launcher's last words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from controlplane.backends.base import Member
from controlplane.backends.kube import manifests
from jobs.termination import parse_termination

Json = dict[str, Any]


def member_of(pod: Json) -> Member:
    """A pod as a member of its gang."""
    status = pod.get("status") or {}
    ended = next((one for one in _terminated(status)), None)
    over = pod_over(pod)
    return Member(
        index=index_of(pod),
        node=node_of(pod),
        alive=not over,
        exit_code=int(ended["exitCode"]) if ended is not None else None,
        termination=_said(ended) if over else None,
        pod=str(pod["metadata"]["name"]),
        running=status.get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"],
        reason=_why(pod),
        deleted_s=_deleted_s(pod) if not over else None,
        disrupted=any(
            one["type"] == "DisruptionTarget" and one["status"] == "True" for one in status.get("conditions") or ()
        ),
    )


def _deleted_s(pod: Json) -> float | None:
    """When the grace of a deleted pod ends, by the cluster's clock; None if nobody deleted it."""
    at = pod["metadata"].get("deletionTimestamp")
    return datetime.fromisoformat(at).timestamp() if at else None


def _terminated(status: Json) -> Iterable[Json]:
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            yield ended


def _said(ended: Json | None) -> dict[str, object] | None:
    """The launcher's record out of the termination message; None when it left none."""
    return parse_termination(str((ended or {}).get("message") or ""))


def _why(pod: Json) -> str:
    """Why a pod does not run, in the cluster's words."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] in ("DisruptionTarget", "PodScheduled") and condition.get("message"):
            wanted = "True" if condition["type"] == "DisruptionTarget" else "False"
            if condition["status"] == wanted:
                return f"{condition.get('reason')}: {condition['message']}"
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']}: {waiting.get('message') or ''}".rstrip(": ")
    for ended in _terminated(status):
        if ended.get("reason") not in (None, "", "Completed", "Error"):  # the last two say no more than the code
            return str(ended["reason"])
    return str(status.get("message") or status.get("reason") or "")


def pod_over(pod: Json) -> bool:
    """Whether a pod has ended by itself or was ended."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def node_of(pod: Json) -> str:
    """The node that a pod was bound to, empty before that."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def holds_gpus(pod: Json) -> bool:
    """Whether it is one that keeps a node busy: a submitter holds none."""
    return bool(pod["metadata"]["labels"].get(manifests.PART) != manifests.SUBMITTER)


def attempt_of(pod: Json) -> str:
    """The name of the attempt that it belongs to."""
    return str((pod["metadata"].get("labels") or {}).get(manifests.NAME) or "")


def index_of(pod: Json) -> int:
    """Its number within an Indexed Job; -1 for a pod of another kind."""
    head = pod["metadata"]
    found = (head.get("labels") or {}).get(manifests.INDEX) or (head.get("annotations") or {}).get(manifests.INDEX)
    return int(found) if found is not None else -1


def slim(pod: Json) -> Json:
    """What is read of a pod: its template's environment alone is most of its bytes."""
    head, status = pod["metadata"], pod.get("status") or {}
    deletion = ("deletionTimestamp", "deletionGracePeriodSeconds")
    kept = ("name", "namespace", "uid", "labels", "resourceVersion", "creationTimestamp", *deletion)
    words = ("phase", "conditions", "containerStatuses", "message", "reason", "startTime", "podIP")
    return {
        "metadata": {name: head[name] for name in kept if name in head},
        "spec": {"nodeName": node_of(pod)},
        "status": {name: status[name] for name in words if name in status},
    }

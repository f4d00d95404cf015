"""How an attempt's pods are taken down: its Job is told to end, and a kill deletes the pods before.

A deadline that has passed is final (a Job that is only suspended may be let go by a queue): the Job's own controller
takes down all pods, with the time to save. A kill cuts that time by deleting the pods itself, some at a time by the
label of their index: the API server deletes a collection's objects one after the other, and 1,024 of them take longer
than a call may. It goes first: a pod that is already given one second costs the Job's controller no write more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from controlplane.backends.kube import manifests
from controlplane.backends.kube.api import KubeApi, NotFound

KILL_GRACE_S = 1
"""never 0: that only forgets the pod, while its processes may run on"""
PODS_A_CALL, CALLS_AT_ONCE = 64, 8


def take_down(api: KubeApi, job_path: str, pods_path: str, name: str, *, kill: bool, size: int | None) -> None:
    """Ends an attempt of `size` pods, if that is known; the Job stays as the record. Refused, BackendUnavailable.

    Pods that outlived their Job are deleted in either mode, since nobody else ends them.
    """
    of_attempt, grace_s = manifests.selector(name), KILL_GRACE_S if kill else None
    try:
        if kill and size is not None:
            parts = [range(first, min(first + PODS_A_CALL, size)) for first in range(0, size, PODS_A_CALL)]
            selectors = [f"{of_attempt},{manifests.INDEX} in ({','.join(map(str, part))})" for part in parts]
            with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="takedown") as calls:
                list(calls.map(lambda part: api.delete_all(pods_path, part, grace_s=grace_s), selectors))
    finally:
        there = _told_to_end(api, job_path)
    if not there or (kill and size is None):
        api.delete_all(pods_path, of_attempt, grace_s=grace_s)


def _told_to_end(api: KubeApi, job_path: str) -> bool:
    """Gives the Job a deadline that has passed; False when there is no Job."""
    try:
        api.patch(job_path, {"spec": {"activeDeadlineSeconds": 1}}, kind="merge")
    except NotFound:
        return False
    return True

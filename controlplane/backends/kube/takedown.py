"""How an attempt's pods are taken down: its Job is told to end, and a kill deletes the pods besides.

The deadline comes first, and is final (a Job that is only suspended may be let go by a queue): the Job's own controller
then takes down all pods, with the time to save. A kill cuts that time, by the label of the pods' index, some at a time:
the API server deletes a collection's objects one after the other, and 1,024 of them take longer than a call may.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from controlplane.backends.kube import manifests
from controlplane.backends.kube.api import KubeApi, NotFound

KILL_GRACE_S = 1
"""never 0: that only forgets the pod, while its processes may run on"""
PODS_A_CALL, CALLS_AT_ONCE = 128, 4


def take_down(api: KubeApi, job_path: str, pods_path: str, name: str, *, kill: bool) -> None:
    """Ends an attempt; the Job stays as the record of it. Refused, BackendUnavailable.

    Pods that outlived their Job are deleted in either mode, since nobody else ends them.
    """
    of_attempt, grace_s = manifests.selector(name), KILL_GRACE_S if kill else None
    size = _told_to_end(api, job_path)
    if size is None or (kill and size <= PODS_A_CALL):
        api.delete_all(pods_path, of_attempt, grace_s=grace_s)
    elif kill:
        parts = [range(first, min(first + PODS_A_CALL, size)) for first in range(0, size, PODS_A_CALL)]
        selectors = [f"{of_attempt},{manifests.INDEX} in ({','.join(map(str, part))})" for part in parts]
        with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="takedown") as calls:
            list(calls.map(lambda part: api.delete_all(pods_path, part, grace_s=grace_s), selectors))


def _told_to_end(api: KubeApi, job_path: str) -> int | None:
    """Gives the Job a deadline that has passed; how many pods it has, None when there is no Job."""
    try:
        job = api.patch(job_path, {"spec": {"activeDeadlineSeconds": 1}}, kind="merge")
    except NotFound:
        return None
    return int(job["spec"]["completions"])

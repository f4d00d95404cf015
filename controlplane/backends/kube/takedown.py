"""How an attempt's pods are taken down: its Job is told to end, and a kill deletes the pods before.

A deadline that has passed is final (a Job that is only suspended may be let go by a queue): the Job's own controller
takes down all pods, with the time to save. A kill cuts that time by deleting the pods itself. It goes first: a pod that
was given one second costs the Job's controller no write more, and 1,024 pods were gone sooner than the other way round.

Asked again in each round, by the copies: only what is not told yet is told. The API server deletes a collection's
objects one after the other: a gang goes in parts, by the label of the pods' index, and a large one in several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from controlplane.backends.kube import manifests
from controlplane.backends.kube.api import Json, KubeApi, NotFound, at_once
from controlplane.backends.kube.pods import index_of, pod_over

KILL_GRACE_S = 1
"""never 0: that only forgets the pod, while its processes may run on"""
DEADLINE_S = 1
PODS_A_CALL = 32
ROUND_S = 3.0
"""No call begins later than that in a round: other runs wait meanwhile."""


def take_down(
    api: KubeApi, job_path: str, pods_path: str, name: str, *, kill: bool, job: Json | None, pods: Sequence[Json] | None
) -> None:
    """Ends an attempt; the Job stays as the record of it. Refused, BackendUnavailable.

    `job` and `pods` as the copies have them; no pods means that nobody knows. Pods that outlived their Job are deleted
    in either mode, since nobody else ends them.
    """
    there = job is not None and job["spec"].get("activeDeadlineSeconds") == DEADLINE_S
    left = None if pods is None else [pod for pod in pods if not pod_over(pod)]
    try:
        if kill:
            _delete_pods(api, pods_path, name, left, grace_s=KILL_GRACE_S)
    finally:
        there = there or _told_to_end(api, job_path)
    if not there and not kill:
        _delete_pods(api, pods_path, name, left, grace_s=None)


def _delete_pods(api: KubeApi, pods_path: str, name: str, pods: Sequence[Json] | None, *, grace_s: int | None) -> None:
    """Deletes those of an attempt's pods that were not told to end within `grace_s`, as many as fit a round.

    No pods means that nobody knows them: all that bear the attempt's name are deleted.
    """
    of_attempt = manifests.selector(name)
    left = None if pods is None else sorted(index_of(pod) for pod in pods if not _told(pod, grace_s))
    if left is None or -1 in left:
        api.delete_all(pods_path, of_attempt, grace_s=grace_s)
        return
    parts = [left[first : first + PODS_A_CALL] for first in range(0, len(left), PODS_A_CALL)]
    until_s = time.monotonic() + ROUND_S

    def delete(part: Sequence[int]) -> None:
        if time.monotonic() < until_s:
            selector = f"{of_attempt},{manifests.INDEX} in ({','.join(map(str, part))})"
            api.delete_all(pods_path, selector, grace_s=grace_s)

    at_once(delete, parts)


def _told(pod: Json, grace_s: int | None) -> bool:
    """Whether it was deleted already, with no more time than that."""
    given_s = pod["metadata"].get("deletionGracePeriodSeconds")
    return given_s is not None and (grace_s is None or int(given_s) <= grace_s)


def _told_to_end(api: KubeApi, job_path: str) -> bool:
    """Gives the Job a deadline that has passed; False when there is no Job."""
    try:
        api.patch(job_path, {"spec": {"activeDeadlineSeconds": DEADLINE_S}}, kind="merge")
    except NotFound:
        return False
    return True

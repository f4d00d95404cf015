"""What a Job and its pods say together of an attempt. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from controlplane.backends.base import Observation
from controlplane.backends.kube.pods import member_of

Json = dict[str, Any]


def judged(name: str, job: Json, pods: Iterable[Json], now: float, gone: Iterable[Json] = ()) -> Observation:
    """What a Job and its pods say together: a gang ends with its first failure. `gone`: pods that were deleted."""
    past = (replace(member_of(pod), alive=False, running=False) for pod in gone)
    members = tuple(sorted((*map(member_of, pods), *past), key=lambda one: one.index))
    uid, wanted = str(job["metadata"]["uid"]), int(job["spec"]["completions"])
    seen = Observation(name, "pending", now, uid, members)
    condition = ended(job)
    if condition is not None and condition["type"] == "Complete":
        return replace(seen, state="succeeded")
    if condition is not None:
        return replace(seen, state="failed", reason=str(condition.get("message") or condition.get("reason") or ""))
    if any(not member.alive and member.exit_code not in (0, None) for member in members):
        return replace(seen, state="failed")
    running = sum(member.running for member in members)
    done = sum(member.exit_code == 0 for member in members)
    return replace(seen, state="running") if running + done >= wanted else seen


def ended(job: Json) -> Json | None:
    """The condition that ended the Job. FailureTarget counts: its pods are already being taken down."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next(
        (
            one
            for kind in ("Complete", "Failed", "FailureTarget")
            for one in conditions
            if one["type"] == kind and one["status"] == "True"
        ),
        None,
    )


def failed(job: Json) -> bool:
    """Whether it has ended, and not well."""
    condition = ended(job)
    return condition is not None and condition["type"] != "Complete"

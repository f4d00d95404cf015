"""What a RayJob and its pods say together of an attempt. Pure.

A gang ends with its first failure here too, although Ray would go on with what is left and KubeRay would make the pod
anew: once the job has been submitted, a pod that ended, left or was replaced ends the attempt, and so does whatever
would make KubeRay run it a second time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from controlplane.backends.base import Member, Observation, State
from controlplane.backends.kube.manifests import PART, QUEUE, SUBMITTER
from controlplane.backends.kube.pods import member_of, pod_over
from controlplane.backends.kube.rayjob_manifests import RELEASED
from jobs.contract import fingerprint
from jobs.launch import CLASSES

Json = dict[str, Any]
DEADLINE_S = 1
"""the active deadline of a RayJob that was told to end: the operator checks it before it does anything else"""
_CODE = re.compile(r"failed with exit code (-?\d+)")
_SAID = re.compile(r"^launch: (\w+): (.+)$", re.MULTILINE)


def ended(rayjob: Json) -> tuple[State, str] | None:
    """How the attempt ended and why, by the operator's record; None while it may still run.

    A job that KubeRay failed and is about to run again has ended here: what it runs then is not this attempt.
    """
    status = rayjob.get("status") or {}
    job, deployment = str(status.get("jobStatus") or ""), str(status.get("jobDeploymentStatus") or "")
    if job == "SUCCEEDED":
        return "succeeded", ""
    if job in ("FAILED", "STOPPED") or deployment in ("Complete", "Failed", "ValidationFailed", "Retrying"):
        told = str(status.get("reason") or f"KubeRay says {job or deployment}")
        return "failed", _first_line(status.get("message")) or told
    if int(status.get("failed") or 0):
        return "failed", "KubeRay counts a failed run and would run it again"
    return None


def told_to_end(rayjob: Json) -> bool:
    """Whether the operator will run nothing more of it: it is being deleted, or its deadline is over."""
    deadline_s = (rayjob.get("spec") or {}).get("activeDeadlineSeconds")
    return "deletionTimestamp" in rayjob["metadata"] or deadline_s == DEADLINE_S


def gang(pods: Iterable[Json], left: Iterable[Json] = (), before: Iterable[Member] = ()) -> tuple[Member, ...]:
    """The members: the head is number 0, the workers follow by name.

    `left` are copies of pods that are there no more, `before` the members of an earlier look: ended, whatever they say.
    """
    known = {one.pod: (one.index == 0, _gone(one)) for one in before}
    for pod, there in [*((one, False) for one in left), *((one, True) for one in pods)]:
        if _part(pod) != SUBMITTER:
            member = member_of(pod)
            known[member.pod] = _part(pod) == "head", member if there else _gone(member)
    heads = [member for is_head, member in known.values() if is_head][-1:]
    workers = sorted((member for is_head, member in known.values() if not is_head), key=lambda one: one.pod)
    numbered = [*((0, one) for one in heads), *enumerate(workers, 1)]
    return tuple(replace(member, index=index) for index, member in numbered)


def _gone(member: Member) -> Member:
    return replace(member, alive=False, running=False)


def submitter(pods: Iterable[Json]) -> str:
    """The name of the pod that shows the job's output; empty when there is none."""
    return next((str(pod["metadata"]["name"]) for pod in pods if _part(pod) == SUBMITTER), "")


def judged(
    name: str,
    rayjob: Json,
    pods: Sequence[Json],
    now: float,
    left: Sequence[Json] = (),
    before: tuple[Member, ...] = (),
) -> Observation:
    """The observation. `before` are the members of an earlier look: who they were, when some of them have left.

    Before the job is submitted KubeRay may make a pod anew, and then the earlier one was no member.
    """
    end = ended(rayjob)
    final = end is not None or told_to_end(rayjob) or bool(rayjob["spec"].get("suspend"))
    members = gang(pods, left, before if final else ())
    seen = Observation(name, "pending", now, str(rayjob["metadata"]["uid"]), members)
    if end is not None:
        state, reason = end
        word = _last_word(str((rayjob.get("status") or {}).get("message") or ""))
        return replace(seen, state=state, reason=reason, members=_with_word(members, word))
    reason = _broken(rayjob, pods, members, ran=bool(before))
    if reason:
        return replace(seen, state="failed", reason=reason)
    running = sum(member.running for member in members)
    begun = (rayjob.get("status") or {}).get("jobStatus") == "RUNNING"
    return replace(seen, state="running") if begun and running >= _wanted(rayjob) else seen


def _broken(rayjob: Json, pods: Sequence[Json], members: tuple[Member, ...], *, ran: bool) -> str:
    """Why an attempt that nobody ended is over all the same; empty when it is not."""
    live = sum(member.alive for member in members)
    if told_to_end(rayjob) and not live:
        return "it was told to end and none of its pods is left"
    suspended = bool(rayjob["spec"].get("suspend"))
    if suspended and (RELEASED in (rayjob["metadata"].get("annotations") or {}) or (ran and _queue(rayjob))):
        return "it was suspended after it had been let go; resumed, it would run a second time"
    failed = next((one for one in members if not one.alive and one.exit_code not in (0, None)), None)
    if failed is not None:
        return f"pod {failed.pod} ended with code {failed.exit_code}"
    if (rayjob.get("status") or {}).get("jobStatus") not in ("PENDING", "RUNNING"):
        return ""
    over = next((one for one in members if not one.alive), None)
    if over is not None:
        return f"pod {over.pod} of the gang has left"
    if live < _wanted(rayjob):
        return f"only {live} of the gang's {_wanted(rayjob)} pods are left"
    late = _made_after_the_submitter(pods)
    return f"pod {late} was made in place of another one while the job ran" if late else ""


def _made_after_the_submitter(pods: Sequence[Json]) -> str:
    """A pod younger than the submitter, which the operator makes when all others are ready; empty when none is."""
    began = min((_made_at(pod) for pod in pods if _part(pod) == SUBMITTER), default="")
    nodes = (pod for pod in pods if _part(pod) != SUBMITTER and not pod_over(pod))
    return next((str(pod["metadata"]["name"]) for pod in nodes if began and _made_at(pod) > began), "")


def _last_word(message: str) -> dict[str, object] | None:
    """The launcher's record out of Ray's message, which ends with the last lines of the output; None without one."""
    code = _CODE.search(message)
    if code is None:
        return None
    number = int(code[1])
    said = _SAID.findall(message)
    ended_as, text = said[-1] if said else (CLASSES.get(number, "error"), "")  # type: ignore[call-overload]  # any int
    kind, _, rest = text.partition(": ")
    mark = "killed from outside" if ended_as == "killed" else fingerprint(kind, rest) if text else f"exit: {number}"
    return {
        "code": number,
        "class": ended_as,
        "fingerprint": mark,
        "message": text or f"ended with code {number}",
        "first_rank": None,
        "at_s": 0.0,
    }


def _with_word(members: tuple[Member, ...], word: dict[str, object] | None) -> tuple[Member, ...]:
    """The driver runs on the head: what Ray says of it belongs there, unless the head's own pod kept a record."""
    if word is None:
        return members
    head, *rest = members or (Member(0, "", alive=False, running=False),)
    if head.termination is None:
        head = replace(head, exit_code=int(str(word["code"])), termination=word)
    return (head, *rest)


def _wanted(rayjob: Json) -> int:
    groups = rayjob["spec"]["rayClusterSpec"].get("workerGroupSpecs") or ()
    return 1 + sum(int(group.get("replicas") or 0) for group in groups)


def _queue(rayjob: Json) -> str:
    return str((rayjob["metadata"].get("labels") or {}).get(QUEUE) or "")


def _part(pod: Json) -> str:
    return str((pod["metadata"].get("labels") or {}).get(PART) or "")


def _made_at(pod: Json) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _first_line(message: object) -> str:
    return str(message or "").partition("\n")[0]

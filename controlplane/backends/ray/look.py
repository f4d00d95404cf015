"""What a Ray job, its driver's words and the cluster's nodes say together of an attempt. Pure.

A gang ends with its first failure. A member has ended when its keeper said that no process of it is left: to the
driver, or below the member's own output when no driver was there to hear it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.backends.base import Member, Observation, State
from controlplane.backends.ray.cluster import OVER, RayNode
from controlplane.backends.ray.words import read_end
from jobs.contract import fingerprint, is_text, is_whole

Json = dict[str, Any]
SIZE, RUN, ATTEMPT, SPEC = "trimtab-size", "trimtab-run", "trimtab-attempt", "trimtab-spec"
"""metadata of the Ray job of an attempt"""
AFTER = "trimtab-after"
"""metadata of a killer's Ray job: the attempt's job, by its uid, if that was over when the killer was sent"""


@dataclass(slots=True)
class Part:
    """What the driver said of one member."""

    node: str
    node_id: str
    started: bool = False
    end: Json | None = None
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a driver's output says. `refused`: why the driver placed nothing."""

    parts: dict[int, Part]
    refused: str = ""
    heard: bool = False
    """whether it holds any word of the driver's; each says one before it does anything"""


def told(words: Iterable[Json]) -> Told:
    """The members by index, out of the driver's words in order; words that make no sense are skipped."""
    parts: dict[int, Part] = {}
    refused, any_ = "", False
    for word in words:
        any_ = True
        kind, index = word["kind"], word.get("index")
        if kind == "refused":
            refused = str(word.get("reason") or "the driver gave no reason")
        if index is None or not is_whole(index):
            continue
        if kind == "placed" and is_text(word.get("node")) and is_text(word.get("node_id")):
            parts[index] = Part(word["node"], word["node_id"])
        elif index not in parts:
            continue
        elif kind == "started":
            parts[index].started = True
        elif kind == "ended":
            parts[index].end = read_end(word.get("end"))
        elif kind == "lost":
            parts[index].lost = str(word.get("reason") or "Ray lost its actor")
    return Told(parts, refused, any_)


def size(job: Mapping[str, Any]) -> int:
    """How many members an attempt's job is to have; 0 if it is no attempt's."""
    found = str((job.get("metadata") or {}).get(SIZE) or "")
    return int(found) if found.isdecimal() else 0


def uid(job: Mapping[str, Any]) -> str:
    """What tells a job from another of the same name: when Ray took it."""
    return f"{job.get('submission_id')}@{job.get('start_time')}"


def unseen(said: Told, job: Mapping[str, Any]) -> list[int]:
    """Members whose end nobody told the driver, although it is over or has lost them."""
    over = job.get("status") in OVER
    return [index for index, part in sorted(said.parts.items()) if part.end is None and (over or part.lost)]


def judged(
    name: str, job: Mapping[str, Any], said: Told, ends: Mapping[int, Json], nodes: Mapping[str, RayNode], now: float
) -> Observation:
    """The observation. `ends`: of members that the driver did not hear; `nodes`: by id, empty if nobody had to ask."""
    members = tuple(_member(index, part, ends, nodes) for index, part in sorted(said.parts.items()))
    state, reason = _state(job, said, members)
    if job.get("status") == "FAILED" and not members:
        members = (_nobody(job, said, reason),)
    return Observation(name, state, now, uid(job), members, reason)


def _nobody(job: Mapping[str, Any], said: Told, reason: str) -> Member:
    """In place of the members of a driver that placed none: what it failed of, where an end is looked for."""
    told = job.get("driver_exit_code")
    code = told if told is not None and is_whole(told) else 1
    kind = "never_started" if said.refused else "killed" if code < 0 else "error"
    record = {"code": code, "class": kind, "fingerprint": fingerprint(kind, reason), "message": reason}
    return Member(0, "", False, code, record | {"first_rank": None, "at_s": 0.0}, running=False, reason=reason)


def _member(index: int, part: Part, ends: Mapping[int, Json], nodes: Mapping[str, RayNode]) -> Member:
    end = part.end or ends.get(index)
    record = _lost(part.lost) if part.lost else None
    if end is not None:
        code, record = int(end["code"]), end["termination"] or record
        return Member(index, part.node, False, code, record, running=False, reason=str(end["reason"] or part.lost))
    under = nodes.get(part.node_id)
    dead = under is not None and not under.alive
    reason = part.lost or ("" if part.started else "it has not started yet")
    if dead and under is not None:
        reason = f"Ray counts its node as dead{f': {under.message}' if under.message else ''}"
    running = part.started and not part.lost and not dead
    return Member(index, part.node, True, termination=record, running=running, reason=reason, stuck=dead)


def _lost(reason: str) -> Json:
    """The record of a member whose actor Ray lost: the others were then told to end, and it is no end of theirs."""
    mark = "killed from outside"
    return {"code": 137, "class": "killed", "fingerprint": mark, "message": reason, "first_rank": None, "at_s": 0.0}


def _state(job: Mapping[str, Any], said: Told, members: tuple[Member, ...]) -> tuple[State, str]:
    status, wanted = str(job.get("status") or ""), size(job)
    bad = next((one for one in members if not one.alive and one.exit_code != 0), None)
    lost = next((one for one in members if one.alive and said.parts[one.index].lost), None)
    if bad is not None:
        return "failed", f"member {bad.index} on {bad.node} ended with code {bad.exit_code}"
    if lost is not None:
        return "failed", f"Ray lost member {lost.index} on {lost.node}: {lost.reason}"
    whole = len(members) == wanted > 0
    if whole and not any(one.alive for one in members):
        return "succeeded", ""
    if status in OVER:
        lines = str(job.get("message") or "").strip().splitlines()
        # without members the output is a traceback, and its last line says it; with them Ray's own first line does
        word = (lines[0] if members else lines[-1]) if lines else "nothing more"
        return "failed", said.refused or f"Ray says {status}: {word}"
    if whole and all(said.parts[one.index].started for one in members):
        return "running", ""
    return "pending", "" if members else "it waits for its nodes"


def unheard(said: Told, job: Mapping[str, Any]) -> bool:
    """Whether a job's driver was started and its output is gone: nobody knows whom it placed where."""
    return not said.heard and bool(job.get("driver_node_id"))


def long_over(job: Mapping[str, Any], head_s: float, gone_s: float) -> bool:
    """Whether a job ended so long ago that no member of it can write any more: Ray ends actors with their driver."""
    ended_s = float(job.get("end_time") or 0) / 1000  # milliseconds in Ray's record
    return 0 < ended_s <= head_s - gone_s


def given_up(node: RayNode | None, head_s: float, gone_s: float) -> bool:
    """Whether Ray gave a node up so long ago that nothing there can write any more.

    A raylet that cannot reach its head for 60 s ends itself, its workers with it, and a keeper ends with its worker.
    `node` is None for one that Ray remembers no more: it forgets only the dead, the oldest of a thousand first.
    """
    if node is None:
        return True
    return not node.alive and 0 < node.ended_s <= head_s - gone_s

"""What the platform itself says, asked now: where an attempt's members are, and what it holds of a node.

Nothing here is stored. A platform that cannot be asked is said to be so, beside whatever is known without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.backends.base import Backend, BackendUnavailable, Member, NodeStatus
from controlplane.store.tables import Attempt, Node

Json = dict[str, Any]


def members(backend: Backend, attempt: Attempt | None, ranks_per_node: int, now: float) -> Json:
    """Every member of an attempt, those in trouble first. API: runs/{id}/members."""
    answer: Json = {"backend": backend.name, "attempt": None, "state": None, "members": [], "problem": ""}
    if attempt is None:
        return answer
    answer["attempt"] = attempt.no
    try:
        seen = backend.observe([attempt.name], now)[attempt.name]
    except BackendUnavailable as error:
        return {**answer, "state": "unknown", "problem": str(error)}
    rows = [_member(one, ranks_per_node) for one in seen.members]
    rows.sort(key=lambda row: (row["level"] == "ok", row["level"] == "info", row["index"]))
    return {**answer, "state": seen.state, "members": rows, "problem": seen.reason}


def _member(one: Member, ranks_per_node: int) -> Json:
    first = one.index * ranks_per_node
    level, state = _state(one)
    return {
        "index": one.index,
        "ranks": [first, first + ranks_per_node - 1],
        "node": one.node,
        "pod": one.pod,
        "state": state,
        "level": level,
        "reason": one.reason,
        "exit_code": one.exit_code,
    }


def _state(one: Member) -> tuple[str, str]:
    """(level, words) of a member."""
    if not one.alive:
        if one.exit_code == 0:
            return "info", "ended well"
        return "fault", "ended" if one.exit_code is None else f"ended with code {one.exit_code}"
    if one.stuck:
        return "fault", "does not end; its node is not heard"
    if one.deleted_s is not None:
        return "warn", "is leaving"
    return ("ok", "runs") if one.running else ("warn", "waits")


def platform(backends: Mapping[str, Backend], node: Node) -> Json:
    """What each platform that knows the node says of it. API: nodes/{name}/platform."""
    found: list[Json] = []
    problems: list[str] = []
    for backend in backends.values():
        try:
            status = backend.node_status([node.name], leases=True).get(node.name)
        except BackendUnavailable as error:
            problems.append(f"{backend.name}: {error}")
            continue
        if status is not None and not any(row["conditions"] == list(status.conditions) for row in found):
            found.append(_status(backend.name, status, node))
    return {"node": node.name, "platforms": found, "problems": problems}


def _status(backend: str, status: NodeStatus, node: Node) -> Json:
    return {
        "backend": backend,
        "ready": status.ready,
        "schedulable": status.schedulable,
        "cordon": _cordon(status, node),
        "others": status.others,
        "conditions": list(status.conditions),
        "lease_age_s": status.lease_age_s,
    }


def _cordon(status: NodeStatus, node: Node) -> str:
    """Whose the cordon is, in words; "" when there is none."""
    if status.marked:
        session = "this session" if status.marked == node.session_id else f"an older session, {status.marked}"
        return f"by Trimtab, {session}"
    return "" if status.schedulable else "by somebody else"

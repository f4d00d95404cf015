"""Cordon and taint: what Trimtab asks of the cluster's nodes, and nothing that somebody else asked.

Level-triggered: told which nodes are to be out of service, under which session, it changes what differs. A node is
taken out by our own taint, whose value is the session's id, and by a cordon. It is given back by removing our taint,
and the cordon only if the cluster's own book-keeping (managedFields) says that we set it: one that a person placed, or
AMD's GPU operator, before, during or after ours stays. Every change is a patch that tests the version it was read at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from controlplane.backends.base import BackendUnavailable, NodeChange, NodeStatus, Quarantine
from controlplane.backends.kube.api import Conflict, Forbidden, Json, KubeApi, NotFound, Refused, at_once
from controlplane.backends.kube.options import PREFIX

TAINT = f"{PREFIX}/quarantine"
MANAGER = "trimtab-node"
_log = structlog.get_logger()


def patch_for(node: Json, wanted: Quarantine | None) -> list[Json]:
    """The JSON patch that brings a node to what is wanted; empty when it is there already. Pure.

    `node` is the object as read, managedFields included.
    """
    head, spec = node["metadata"], node.get("spec") or {}
    taints = list(spec.get("taints") or ())
    ours = [one for one in taints if one.get("key") == TAINT]
    others = [one for one in taints if one.get("key") != TAINT]
    steps: list[Json] = []
    if wanted is not None:
        mark = {"key": TAINT, "value": wanted.session_id, "effect": "NoSchedule"}
        if [(_session(one), one.get("effect")) for one in ours] != [(mark["value"], mark["effect"])]:
            steps.append({"op": "add", "path": "/spec/taints", "value": [*others, mark]})
        if not spec.get("unschedulable"):
            steps.append({"op": "add", "path": "/spec/unschedulable", "value": True})
    else:
        if not ours:
            return []  # what is cordoned without our taint was never ours
        steps.append(
            {"op": "replace", "path": "/spec/taints", "value": others}
            if others
            else {"op": "remove", "path": "/spec/taints"}
        )
        if spec.get("unschedulable") and cordoned_by_us(node):
            steps.append({"op": "remove", "path": "/spec/unschedulable"})
    if not steps:
        return []
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": head["resourceVersion"]}
    return [test, *steps]


def _session(taint: Mapping[str, Any]) -> str:
    """The session that a taint of ours names; the API server leaves an empty value out of what it stores."""
    return str(taint.get("value") or "")


def cordoned_by_us(node: Json) -> bool:
    """Whether the cordon was set by us and by nobody since, by the cluster's own record of who set which field."""
    owners = [
        entry.get("manager")
        for entry in node["metadata"].get("managedFields") or ()
        if "f:unschedulable" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return owners == [MANAGER]


def foreign(node: Mapping[str, Any]) -> str:
    """Who else keeps pods off this node, in words; empty when nobody does."""
    spec = node.get("spec") or {}
    keys = [
        str(one.get("key"))
        for one in spec.get("taints") or ()
        if one.get("effect") in ("NoSchedule", "NoExecute") and one.get("key") != TAINT
    ]
    keys = [key for key in keys if key != "node.kubernetes.io/unschedulable"]
    return ", ".join(keys)


def status_of(name: str, node: Json, lease_age_s: float | None) -> NodeStatus:
    """What the cluster says of a node."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    ours = next((_session(one) for one in spec.get("taints") or () if one.get("key") == TAINT), "")
    conditions = tuple(
        {word: str(one.get(word) or "") for word in ("type", "status", "reason", "message", "lastTransitionTime")}
        for one in status.get("conditions") or ()
    )
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return NodeStatus(name, ready, not spec.get("unschedulable"), ours, foreign(node), conditions, lease_age_s)


class NodeActuator:
    """Brings the cluster's nodes to what the control plane wants. Off unless the installation turns it on."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api

    def sync(self, wanted: Mapping[str, Quarantine | None], seen: Mapping[str, Json]) -> list[NodeChange]:
        """Changes what differs among `seen` (copies of nodes, by name); a node that cannot be changed stays for later.

        Several at a time: many nodes may err at once. Raises BackendUnavailable when none could be changed for it.
        """
        due = [(name, given) for name, given in wanted.items() if name in seen and _differs(seen[name], given)]
        changes: list[NodeChange] = []
        for part in (due[:1], due[1:]):  # the first alone: it shows whether nodes may be changed at all
            for found in at_once(self._tried, part):
                if isinstance(found, NodeChange):
                    changes.append(found)
                elif isinstance(found, Forbidden):
                    _log.error("nodes may not be changed; install the node actuator's role", error=str(found))
                    return changes
                elif isinstance(found, BackendUnavailable) and not changes:
                    raise found
        return changes

    def _tried(self, due: tuple[str, Quarantine | None]) -> NodeChange | Forbidden | BackendUnavailable | None:
        """What became of one node: changed, looked at again in the next round, or an error that others may have too."""
        name, quarantine = due
        try:
            return self._bring(name, quarantine)
        except (Forbidden, BackendUnavailable) as error:
            return error
        except (Conflict, NotFound) as error:
            _log.info("a node changed meanwhile and is looked at again", node=name, error=str(error))
        except Refused as error:
            _log.warning("a node could not be changed", node=name, error=str(error))
        return None

    def _bring(self, name: str, quarantine: Quarantine | None) -> NodeChange | None:
        """One node, read afresh: the copy has no managedFields and may be old."""
        node = self._api.get(f"/api/v1/nodes/{name}")
        steps = patch_for(node, quarantine)
        if not steps:
            return None
        self._api.patch(f"/api/v1/nodes/{name}", steps, kind="json", manager=MANAGER)
        if quarantine is not None:
            return NodeChange(name, f"{name} is cordoned and tainted in the cluster: {quarantine.reason}")
        still = "; it stays cordoned, which somebody else asked for" if _stays_cordoned(node, steps) else ""
        return NodeChange(name, f"{name} takes pods again{still}")


def _differs(copy: Json, wanted: Quarantine | None) -> bool:
    """Whether a copy calls for a closer look."""
    spec = copy.get("spec") or {}
    values = [_session(one) for one in spec.get("taints") or () if one.get("key") == TAINT]
    if wanted is None:
        return bool(values)
    return values != [wanted.session_id] or not spec.get("unschedulable")


def _stays_cordoned(node: Json, steps: list[Json]) -> bool:
    lifted = any(step["path"] == "/spec/unschedulable" and step["op"] == "remove" for step in steps)
    return bool((node.get("spec") or {}).get("unschedulable")) and not lifted

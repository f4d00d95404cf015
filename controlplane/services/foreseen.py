"""What a platform says of a job before it is submitted, in the preflight's words: manifests, quotas, capacity, nodes.

A platform that cannot be asked is said to be so: that is no fault of the job. Nothing here asks anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from controlplane.backends.base import Forecast, Limit, NodeForecast
from controlplane.runs import plan

Json = dict[str, Any]
NAMED = 3
"""nodes of one reason that are named; the rest is a number"""
NO_AGENT = "no agent of Trimtab reports from it"
UNKNOWN_NODE = "not in the cluster"


def line(level: str, name: str, sentence: str) -> Json:
    """A check: ok, warn or error."""
    return {"level": level, "name": name, "sentence": sentence}


def fits(judged: Sequence[plan.Fit], seen: Forecast | None) -> list[plan.Fit]:
    """Every node as placement judges it, and what the platform says where placement has nothing against it.

    Nodes that only the platform knows come last: nothing is placed by what no agent reports from.
    """
    if seen is None or seen.nodes is None:
        return list(judged)
    known = {one.node: one for one in seen.nodes}
    told = [_joined(one, known.get(one.node)) for one in judged]
    names = {one.node for one in judged}
    alone = [one for one in seen.nodes if one.node not in names]
    return told + [plan.Fit(one.node, False, one.refusal or NO_AGENT) for one in alone]


def _joined(fit: plan.Fit, node: NodeForecast | None) -> plan.Fit:
    if not fit.ok and fit.reason != plan.OUT_OF_REACH:
        return fit
    reason = UNKNOWN_NODE if node is None else node.refusal
    return plan.Fit(fit.node, False, reason) if reason else fit


def grouped(judged: Sequence[plan.Fit]) -> str:
    """Why nodes are left out, the commonest reason first: `2 cordoned (node-001, node-002), 1 in use …`."""
    by: dict[str, list[str]] = {}
    for one in judged:
        if not one.ok:
            by.setdefault(one.reason, []).append(one.node)
    parts = []
    for reason, names in sorted(by.items(), key=lambda item: (-len(item[1]), item[0])):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts.append(f"{len(names)} {reason} ({', '.join(names[:NAMED])}{more})")
    shown, rest = parts[: 2 * NAMED], len(parts) - 2 * NAMED
    return ", ".join([*shown, f"{rest} reasons more"] if rest > 0 else shown)


def checks(seen: Forecast) -> list[Json]:
    """What the platform takes or refuses, and what quota is short."""
    kinds = [str(body["kind"]) for body in seen.manifests]
    found = [line("error", "manifests", f"the API server would refuse: {one}") for one in seen.refusals]
    found += [
        line("warn", "cluster", f"it cannot be asked, which is no fault of the job: {one}") for one in seen.unasked
    ]
    if not seen.refusals and not seen.unasked:
        found.append(line("ok", "manifests", f"the API server takes the {' and the '.join(kinds)}"))
    return found + [_of_limit(one) for one in seen.limits] + _of_health(seen.nodes or ())


def _of_limit(one: Limit) -> Json:
    name = f"quota {one.quota}"
    if one.asked is None:
        missing = f"{one.resource} is limited there and the job's pods name none"
        return line("warn", name, f"{missing}: without a LimitRange that gives them one, no pod is admitted")
    has = f"{amount(one.resource, one.used)} of {amount(one.resource, one.hard)} {one.resource} are used"
    asks = f"{has}, {amount(one.resource, one.asked)} are asked for"
    if one.asked > one.hard:
        return line("error", name, f"{asks}: it never has so many")
    if one.short:
        return line("warn", name, f"{asks}: it waits for {amount(one.resource, one.short)} to be given back")
    return line("ok", name, asks)


def _of_health(nodes: Sequence[NodeForecast]) -> list[Json]:
    ill = [plan.Fit(one.node, False, one.health) for one in nodes if one.health and not one.refusal]
    return [line("warn", "health", f"nodes that may be chosen report: {grouped(ill)}")] if ill else []


def amount(resource: str, value: float) -> str:
    """A number of a quota's resource: memory and storage in GiB, the rest as it is."""
    if "memory" in resource or "storage" in resource:
        return f"{value / 2**30:.6g} GiB"
    return f"{value:.6g}"


def view(backend: str, seen: Forecast, judged: Sequence[plan.Fit]) -> Json:
    """The platform's part of a preflight, as data. Manifests as YAML, limits in the unit of their resource."""
    nodes = seen.nodes or ()
    gpus: Mapping[str, int] = {one.node: one.gpus for one in nodes}
    usable = [one.node for one in judged if one.ok]
    capacity = {
        "nodes": len(nodes),
        "gpus": sum(gpus.values()),
        "free_nodes": len(usable),
        "free_gpus": sum(gpus.get(name, 0) for name in usable),
    }
    limits = [
        {
            "quota": one.quota,
            "resource": one.resource,
            "used": one.used,
            "hard": one.hard,
            "asked": one.asked,
            "short": one.short,
        }
        for one in seen.limits
    ]
    return {
        "backend": backend,
        "asked": not seen.unasked,
        "unasked": list(seen.unasked),
        "refusals": list(seen.refusals),
        "capacity": capacity if seen.nodes is not None else None,
        "limits": limits,
        "manifests": yaml.safe_dump_all([_plain(body) for body in seen.manifests], sort_keys=False, width=100),
    }


def _plain(value: Any) -> Any:
    """A copy in which nothing is shared: YAML would write what is as an anchor."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

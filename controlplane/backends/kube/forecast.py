"""What a cluster says of an attempt before it is submitted: which nodes would take it, which quota is short. Pure.

The scheduler's own question cannot be asked without making pods, so its answers are worked out from what it looks at:
readiness, cordon, taints, labels, GPUs. Quotas are counted as the API server counts them: by the pods' requests and
limits and by the number of objects, for those pods that a quota's scopes name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from controlplane.backends.base import AttemptPlan, Limit, NodeForecast
from controlplane.backends.kube.options import GPU_RESOURCE, KubeOptions

Json = dict[str, Any]
HELD = frozenset({"NoSchedule", "NoExecute"})
CORDON = "node.kubernetes.io/unschedulable"
_PLAIN = ("cpu", "memory", "ephemeral-storage")
"""resources whose quota may leave out `requests.`"""
_NEEDED = ("cpu", "memory")
"""what every container has to name where a quota counts it: the API server refuses the pod otherwise"""
_MADE: Mapping[str, Mapping[str, int]] = {
    "Job": {"jobs.batch": 1},
    "Service": {"services": 1},
    "Secret": {"secrets": 1},
    # the operator makes a cluster with a service, and a Job that submits
    "RayJob": {"rayjobs.ray.io": 1, "rayclusters.ray.io": 1, "services": 1, "jobs.batch": 1},
}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def quantity(text: object) -> float:
    """Kubernetes' numbers: 8, 500m, 64Gi, 1e3. ValueError for what is none."""
    word = str(text).strip()
    for endings in (_BINARY, _DECIMAL):
        for ending, factor in endings.items():
            if word.endswith(ending):
                return float(word.removesuffix(ending)) * factor
    return float(word)


# --- nodes ---


def node_forecast(node: Json, plan: AttemptPlan, options: KubeOptions) -> NodeForecast:
    """Whether a node would take a pod of the attempt if it were free, and how it is."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    gpus = int(quantity(allocatable.get(GPU_RESOURCE) or 0))
    name = str(node["metadata"]["name"])
    return NodeForecast(name, gpus, _refusal(node, gpus, plan, options), _health(node))


def _refusal(node: Json, gpus: int, plan: AttemptPlan, options: KubeOptions) -> str:
    closed = barred(node, options)
    if closed:
        return closed
    if node["metadata"]["name"] in plan.excluded:
        return "excluded by a decision"
    if gpus < plan.gpus_per_node:
        return f"offers {gpus} GPUs, {plan.gpus_per_node} are asked for"
    return ""


def barred(node: Json, options: KubeOptions) -> str:
    """Why no pod of an installation would be put on a node, whatever the attempt; "" if nothing is in the way."""
    head, spec = node["metadata"], node.get("spec") or {}
    state = ready_condition(node)
    if state.get("status") != "True":
        reason = str(state.get("reason") or "its kubelet has said nothing")
        return f"not ready ({reason})"
    if spec.get("unschedulable"):
        return "cordoned in the cluster"
    held = [taint for taint in spec.get("taints") or () if not _tolerated(taint, options.tolerations)]
    if held:
        return f"tainted {', '.join(str(taint.get('key')) for taint in held)}"
    marks = head.get("labels") or {}
    lacking = [f"{key}={value}" for key, value in options.node_selector.items() if marks.get(key) != value]
    if lacking:
        return f"without the label {', '.join(lacking)}"
    return ""


def ready_condition(node: Json) -> Json:
    """What a kubelet says, or is no longer heard to say, of its readiness; empty when there is no word of it."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == "Ready"), {})


def _tolerated(taint: Json, tolerations: Iterable[Mapping[str, object]]) -> bool:
    """Whether the taint keeps no pod of ours away. The cordon's own taint says what the cordon says."""
    if taint.get("effect") not in HELD or taint.get("key") == CORDON:
        return True
    return any(
        one.get("key") in (None, "", taint.get("key"))
        and one.get("effect") in (None, "", taint.get("effect"))
        and (one.get("operator") == "Exists" or str(one.get("value") or "") == str(taint.get("value") or ""))
        for one in tolerations
    )


def _health(node: Json) -> str:
    """Conditions that hold and should not: pressure, and what other operators report."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    bad = [one for one in conditions if one["type"] != "Ready" and one["status"] == "True"]
    return ", ".join(f"{one['type']} ({one.get('reason') or 'no reason given'})" for one in bad)


# --- quotas ---


def limits(quotas: Iterable[Json], manifests: Sequence[Json]) -> list[Limit]:
    """Each limit that the attempt would draw on: what is used, what there is, what it would add."""
    found = []
    for quota in quotas:
        name, spec, status = str(quota["metadata"]["name"]), quota.get("spec") or {}, quota.get("status") or {}
        hard = status.get("hard") or spec.get("hard") or {}
        terms = _terms(spec)
        for resource, most in sorted(hard.items()):
            asked = _asked(resource, manifests, terms)
            if asked is None or asked > 0:
                used = quantity((status.get("used") or {}).get(resource) or 0)
                found.append(Limit(name, resource, used, quantity(most), asked))
    return found


def _asked(resource: str, manifests: Sequence[Json], terms: Sequence[Json]) -> float | None:
    """What the manifests add to a quota's resource; None when its pods have to name it and do not."""
    pods = [(pod, count) for body in manifests for pod, count in pods_of(body) if _within(pod, terms)]
    kind = resource.removeprefix("count/")
    if kind == "pods":
        return float(sum(count for _, count in pods))
    made = 0 if terms else sum(_MADE.get(str(body["kind"]), {}).get(kind, 0) for body in manifests)
    side, _, name = resource.partition(".")
    if resource in _PLAIN:
        side, name = "requests", resource
    if side not in ("requests", "limits") or made:
        return float(made)
    total = 0.0
    for pod, count in pods:
        told = [_told(container, side, name) for container in pod["containers"]]
        if name in _NEEDED and None in told:
            return None
        total += count * sum(one or 0.0 for one in told)
    return total


def _told(container: Json, side: str, name: str) -> float | None:
    """A container's request or limit; a request that is not named is as large as the limit."""
    resources = container.get("resources") or {}
    value = (resources.get(side) or {}).get(name)
    if value is None and side == "requests":
        value = (resources.get("limits") or {}).get(name)
    return None if value is None else quantity(value)


def pods_of(body: Json) -> Iterator[tuple[Json, int]]:
    """The pods that an object would lead to: each spec and how many of it."""
    spec = body.get("spec") or {}
    if body["kind"] == "Job":
        yield spec["template"]["spec"], int(spec["parallelism"])
    elif body["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        yield cluster["headGroupSpec"]["template"]["spec"], 1
        for group in cluster.get("workerGroupSpecs") or ():
            yield group["template"]["spec"], int(group["replicas"])
        yield spec["submitterPodTemplate"]["spec"], 1


def _terms(spec: Json) -> list[Json]:
    """A quota's scopes, all in the longer form."""
    plain = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or ()]
    return [*plain, *((spec.get("scopeSelector") or {}).get("matchExpressions") or ())]


def _within(pod: Json, terms: Sequence[Json]) -> bool:
    """Whether every scope of a quota names this pod; scopes that no pod of ours can be in do not."""
    return all(_in_scope(pod, one) for one in terms)


def _in_scope(pod: Json, term: Json) -> bool:
    scope, operator = term["scopeName"], term.get("operator")
    if scope == "PriorityClass":
        mine, values = pod.get("priorityClassName"), term.get("values") or ()
        inside = {"Exists": bool(mine), "DoesNotExist": not mine, "In": mine in values, "NotIn": mine not in values}
        return inside.get(str(operator), False)
    named = (_told(one, side, name) for one in pod["containers"] for side in ("requests", "limits") for name in _NEEDED)
    best_effort = not any(named)
    holds = {
        "Terminating": "activeDeadlineSeconds" in pod,
        "NotTerminating": "activeDeadlineSeconds" not in pod,
        "BestEffort": best_effort,
        "NotBestEffort": not best_effort,
    }
    return holds.get(str(scope), False)

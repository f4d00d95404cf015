"""Attempts as Kubernetes Jobs: the backend that the controller sees.

Two kinds of looking. A reflector's copy of Jobs and pods answers each round for nothing, as long as it says that all is
well. Whatever would end an attempt (gone, failed, succeeded, fenced) is asked of the API server itself before it is
said: a copy may be old, and a conclusion is for ever. What cannot be undone the copy may say: a pod that is over, and
that one is left. A copy that nobody refreshed is `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

import structlog

from controlplane.backends.base import (
    AttemptPlan,
    BackendUnavailable,
    Forecast,
    Handle,
    Limit,
    NodeCapacity,
    NodeChange,
    NodeForecast,
    NodeStatus,
    Observation,
    Quarantine,
    StopMode,
    SubmitConflict,
)
from controlplane.backends.kube import forecast, job_look, manifests
from controlplane.backends.kube.api import AlreadyExists, Conflict, Forbidden, Invalid, Json, KubeApi, NotFound, Refused
from controlplane.backends.kube.kubelets import Kubelets
from controlplane.backends.kube.nodes import NodeActuator, status_of
from controlplane.backends.kube.options import GPU_RESOURCE, KubeOptions
from controlplane.backends.kube.pods import attempt_of, holds_gpus, index_of, node_of, pod_over, slim
from controlplane.backends.kube.reflector import Reflector
from controlplane.backends.kube.takedown import take_down
from controlplane.clock import Clock

_log = structlog.get_logger()
STALE_S = 90.0
"""a watch with bookmarks says something each minute"""
STUCK_S = 10.0
LATE_S = 3.0
"""past its grace: what else its kubelet says, or does not say, is then worth a call"""
MOST_ASKED = 16
NOBODY = "00000000-0000-0000-0000-000000000000"
"""the uid of an owner that is only thought of"""


class KubeBackend:
    """One namespace of one cluster. `start` the copies, `stop` them."""

    name = "kube"
    pins_nodes = False
    """the scheduler places; a plan's nodes are what it must not be given"""
    keeps_logs = False

    def __init__(self, api: KubeApi, options: KubeOptions, clock: Clock, *, marks_nodes: bool = False) -> None:
        self._api, self.options, self._clock, self._kubelets = api, options, clock, Kubelets(api, clock)
        self._actuator = NodeActuator(api) if marks_nodes else None
        space = quote(options.namespace)
        self._jobs_path = f"/apis/batch/v1/namespaces/{space}/jobs"
        self._pods_path = f"/api/v1/namespaces/{space}/pods"
        self._services_path = f"/api/v1/namespaces/{space}/services"
        self._quotas_path = f"/api/v1/namespaces/{space}/resourcequotas"
        ours = "app.kubernetes.io/managed-by=trimtab"
        self.jobs = Reflector(api, self._jobs_path, clock, selector=ours)
        self.pods = Reflector(api, self._pods_path, clock, selector=ours, keep=slim)
        self.nodes = Reflector(api, "/api/v1/nodes", clock, keep=_slim_node)

    def start(self) -> None:
        """Begins to keep the copies."""
        for copy in (self.jobs, self.pods, self.nodes):
            copy.start()

    def stop_watching(self) -> None:
        """Ends the copies."""
        for copy in (self.jobs, self.pods, self.nodes):
            copy.stop()

    # --- submit ---

    def submit(self, plan: AttemptPlan) -> Handle:
        """Job, Service, then the Job is let go; each step finds out what an earlier try already did."""
        try:
            found, adopted = self._job(plan)
            uid = str(found["metadata"]["uid"])
            try:
                self._api.create(self._services_path, manifests.service(plan, self.options, uid))
            except AlreadyExists:
                self._check_service(plan, uid)
            if found["spec"].get("suspend") and not manifests.queue_of(plan, self.options):
                self._let_go(plan, uid)
        except (Forbidden, Invalid) as error:
            raise SubmitConflict(str(error)) from error
        except Refused as error:
            raise BackendUnavailable(str(error)) from error
        return Handle(plan.name, uid, adopted)

    def _job(self, plan: AttemptPlan) -> tuple[Json, bool]:
        try:
            return self._api.create(self._jobs_path, manifests.job(plan, self.options)), False
        except AlreadyExists:
            return manifests.adopted(self._api.get(f"{self._jobs_path}/{plan.name}"), plan), True

    def _check_service(self, plan: AttemptPlan, job_uid: str) -> None:
        found = self._api.get(f"{self._services_path}/{plan.name}")
        owners = [one.get("uid") for one in found["metadata"].get("ownerReferences") or ()]
        if job_uid not in owners:
            raise SubmitConflict(f"a Service {plan.name} exists in {self.options.namespace} and is not this attempt's")

    def _let_go(self, plan: AttemptPlan, uid: str) -> None:
        """Unsuspends the very Job that was made or adopted."""
        steps: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "replace", "path": "/spec/suspend", "value": False},
        ]
        self._api.patch(f"{self._jobs_path}/{plan.name}", steps, kind="json")

    def dry_run(self, plan: AttemptPlan) -> list[str]:
        """What the API server would refuse of this plan, in its own words; nothing is made."""
        return dry_run(self._api, self._rendered(plan))

    def _rendered(self, plan: AttemptPlan) -> list[tuple[str, Json]]:
        """The objects of a plan, each with the path of its collection."""
        made = manifests.service(plan, self.options, NOBODY)
        return [(self._jobs_path, manifests.job(plan, self.options)), (self._services_path, made)]

    def forecast(self, plan: AttemptPlan, /) -> Forecast:
        """What the API server says of the manifests, the namespace's quotas, and every node."""
        return self.forecast_of(plan, self._rendered(plan), self.dry_run)

    def forecast_of(
        self, plan: AttemptPlan, rendered: Sequence[tuple[str, Json]], ask: Callable[[AttemptPlan], list[str]]
    ) -> Forecast:
        """As `forecast`, for other manifests: `ask` is their dry run."""
        bodies = [body for _, body in rendered]
        refusals: list[str] = []
        limits: list[Limit] = []
        unasked: list[str] = []
        try:
            refusals = ask(plan)
            limits = forecast.limits(self._api.get(self._quotas_path)["items"], bodies)
        except BackendUnavailable as error:
            unasked.append(str(error))
        except Refused as error:
            unasked.append(f"the namespace's quotas cannot be seen: {error}")
        nodes: tuple[NodeForecast, ...] | None = None
        if self.nodes.age_s > STALE_S:
            unasked.append("the cluster's nodes have not been seen lately")
        else:
            seen = [forecast.node_forecast(node, plan, self.options) for node in self.nodes.objects().values()]
            nodes = tuple(sorted((one for one in seen if one.gpus or not plan.gpus_per_node), key=lambda one: one.node))
        return Forecast(tuple(bodies), tuple(refusals), tuple(limits), nodes, tuple(unasked))

    # --- observe ---

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        """From the copies while they say that all is well, else from the API server itself."""
        age_s = max(self.jobs.age_s, self.pods.age_s)
        return {name: self._look(name, now, age_s) for name in names}

    def _look(self, name: str, now: float, age_s: float) -> Observation:
        if age_s <= STALE_S:
            job = self.jobs.get(name, self.options.namespace)
            if job is not None:
                seen = self.mark_stuck(job_look.judged(name, job, self.copied_pods(name), now))
                if seen.state in ("pending", "running"):
                    return seen
        try:
            return self._look_again(name, now)
        except BackendUnavailable as error:
            return Observation(name, "unknown", now, reason=str(error))

    def _look_again(self, name: str, now: float) -> Observation:
        """A fresh read. Pods that have left since are remembered by the copy of them.

        A Job that has failed says so itself: how its pods fare is then read off the copy, in each round of its leaving.
        """
        try:
            job = self._api.get(f"{self._jobs_path}/{name}")
            pods = [] if job_look.failed(job) and self.pods.age_s <= STALE_S else self.read_pods(name)
        except NotFound:
            return Observation(name, "absent", now)
        except Refused as error:
            return Observation(name, "unknown", now, reason=str(error))
        found = {index_of(pod): pod for pod in (*self.copied_pods(name), *pods)}
        gone = {index_of(pod): pod for pod in self.pods.departed() if attempt_of(pod) == name}
        return self.mark_stuck(
            job_look.judged(name, job, found.values(), now, [gone[at] for at in gone.keys() - found.keys()])
        )

    def mark_stuck(self, seen: Observation) -> Observation:
        """Members past their grace on a node whose kubelet is silent: deleting them again would change nothing."""
        overdue = {one.node: one.overdue_s(seen.observed_s) for one in seen.members if one.node and one.alive}
        late = {node: late_s for node, late_s in overdue.items() if late_s > LATE_S}
        if not late or self.nodes.age_s > STALE_S:
            return seen
        stuck = {node for node, late_s in late.items() if late_s > STUCK_S and not ready(self.nodes.get(node) or {})}
        heard = (name for (_, name), node in self.nodes.objects().items() if name not in late and ready(node))
        if len(late) <= MOST_ASKED:  # more than that is a slow cluster, no dead node
            stuck |= self._kubelets.silent(late.keys() - stuck, next(heard, ""))
        return replace(seen, members=tuple(replace(m, stuck=m.alive and m.node in stuck) for m in seen.members))

    def copied_pods(self, name: str) -> list[Json]:
        """An attempt's pods in the copy."""
        return [pod for pod in self.pods.objects().values() if attempt_of(pod) == name]

    def read_pods(self, name: str) -> list[Json]:
        """An attempt's pods, asked of the API server; raises its refusals."""
        found: list[Json] = []
        token = ""
        while True:
            page = self._api.get(
                self._pods_path, labelSelector=manifests.selector(name), limit=500, **{"continue": token}
            )
            found += page["items"]
            token = str(page["metadata"].get("continue") or "")
            if not token:
                return found

    # --- stop, fence ---

    def stop(self, name: str, *, mode: StopMode) -> None:
        """SIGTERM and the time to save (`terminate`), or one second (`kill`). The Job stays as the record of it."""
        try:
            path, job = f"{self._jobs_path}/{name}", self.jobs.get(name, self.options.namespace)
            pods = self.copied_pods(name) if self.pods.age_s <= STALE_S else None
            take_down(self._api, path, self._pods_path, name, kill=mode == "kill", job=job, pods=pods)
        except Refused as error:
            raise BackendUnavailable(str(error)) from error

    def fenced(self, name: str) -> bool:
        """Whether every pod is over or gone, or on a node that is out of service. Asked of the API server.

        Unless the copies say no: 1,024 pods are not read again and again while they run or end. A Job that is complete
        has none left, whatever the copy of its pods still shows.
        """
        job = self.jobs.get(name, self.options.namespace)
        under_way = job is not None and (job_look.ended(job) is None or job_look.failed(job))
        if under_way and self.pods.age_s <= STALE_S and not all(map(self._cannot_write, self.copied_pods(name))):
            return False
        try:
            pods = self.read_pods(name)
            job = self._api.get(f"{self._jobs_path}/{name}")
        except NotFound:
            job = None
        except Refused as error:
            raise BackendUnavailable(str(error)) from error
        over = job is None or job_look.ended(job) is not None or bool(job["spec"].get("suspend"))
        return over and all(map(self._cannot_write, pods))

    def _cannot_write(self, pod: Json) -> bool:
        return pod_over(pod) or self.out_of_service(node_of(pod))

    def out_of_service(self, node: str) -> bool:
        """Whether somebody said of a node that it is off: what ran there cannot write."""
        found = self.nodes.get(node) if node else None
        taints = ((found or {}).get("spec") or {}).get("taints") or ()
        return any(taint.get("key") == "node.kubernetes.io/out-of-service" for taint in taints)

    # --- capacity, logs ---

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        """Nodes with GPUs on which our pods may be put; free are those on which no pod holds a GPU."""
        if self.nodes.age_s > STALE_S or self.pods.age_s > STALE_S:
            raise BackendUnavailable(f"the copy of the cluster's nodes is {self.nodes.age_s:.0f} s old")
        busy = {node_of(pod) for pod in self.pods.objects().values() if not pod_over(pod) and holds_gpus(pod)}
        found = []
        for name in nodes:
            node = self.nodes.get(name)
            if node is not None and has_gpus(node) and not forecast.barred(node, self.options):
                found.append(NodeCapacity(name, name not in busy))
        return found

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        """Cordons, taints and their lifting, where the installation lets us; needs a copy that is not old."""
        if self._actuator is None or self.nodes.age_s > STALE_S:
            return []
        seen = {name: node for name in wanted if (node := self.nodes.get(name)) is not None}
        return self._actuator.sync(wanted, seen)

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        """From the copy of the nodes; leases are asked of the API server, one call each."""
        if self.nodes.age_s > STALE_S:
            raise BackendUnavailable(f"the copy of the cluster's nodes is {self.nodes.age_s:.0f} s old")
        found = {name: node for name in nodes if (node := self.nodes.get(name)) is not None}
        return {
            name: status_of(name, node, self._kubelets.lease_age_s(name) if leases else None)
            for name, node in found.items()
        }

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        """The end of a pod's log; empty when the pod is gone or never ran."""
        pod = next((one for one in self.copied_pods(name) if index_of(one) == index), None)
        if pod is None:
            return b""
        path = f"{self._pods_path}/{pod['metadata']['name']}/log"
        try:
            return self._api.tail(path, limit)
        except (NotFound, Invalid, Conflict):
            return b""
        except Refused as error:
            raise BackendUnavailable(str(error)) from error


def dry_run(api: KubeApi, rendered: Iterable[tuple[str, Json]], unknown: Mapping[str, str] | None = None) -> list[str]:
    """What the API server would refuse of these objects; nothing is made. BackendUnavailable if it cannot be asked.

    `unknown`: by kind, what it means when the API server does not know the kind.
    """
    refused = []
    for path, body in rendered:
        try:
            api.create(path, body, dry_run=True)
        except AlreadyExists:
            continue
        except Refused as error:
            words = (unknown or {}).get(body["kind"]) if isinstance(error, NotFound) else None
            refused.append(f"{body['kind']}: {words or error.message}")
    return refused


def has_gpus(node: Json) -> bool:
    """Whether its device plugin offers GPUs."""
    return GPU_RESOURCE in ((node.get("status") or {}).get("allocatable") or {})


def ready(node: Json) -> bool:
    """Whether its kubelet says, and is still heard to say, that it can run pods."""
    return forecast.ready_condition(node).get("status") == "True"


def _slim_node(node: Json) -> Json:
    """What is read of a node; its image list is most of its bytes."""
    head, status, spec = node["metadata"], node.get("status") or {}, node.get("spec") or {}
    kept = ("name", "uid", "labels", "annotations", "resourceVersion", "creationTimestamp")
    return {
        "metadata": {name: head[name] for name in kept if name in head},
        "spec": {name: spec[name] for name in ("unschedulable", "taints", "providerID") if name in spec},
        "status": {
            name: status[name] for name in ("conditions", "allocatable", "capacity", "nodeInfo") if name in status
        },
    }

"""Attempts as KubeRay RayJobs, for jobs that bring a Ray program: the same questions as the plain Job backend answers.

It shares that backend's copies of pods and nodes and its two kinds of looking: a copy may say that all is well, an end
is asked of the API server first. A stop with time to save goes through Ray's own Jobs API, since KubeRay ends the pods,
and a Ray that is ended kills its processes at once. It is level-triggered: Ray is told and the call returns; asked
again after Ray says that the job is over, it deletes the RayJob. A caller that does not ask again loses nothing: the
operator takes the pods of a stopped job down itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote, urlsplit

from controlplane.backends.base import (
    AttemptPlan,
    BackendUnavailable,
    Forecast,
    Handle,
    Member,
    NodeCapacity,
    NodeChange,
    NodeStatus,
    Observation,
    Quarantine,
    StopMode,
    SubmitConflict,
)
from controlplane.backends.kube import manifests, rayjob_look, rayjob_manifests
from controlplane.backends.kube.api import AlreadyExists, Conflict, Forbidden, Invalid, Json, KubeApi, NotFound, Refused
from controlplane.backends.kube.backend import NOBODY, STALE_S, KubeBackend, dry_run
from controlplane.backends.kube.pods import node_of, pod_over
from controlplane.backends.kube.ray_api import OVER, RayApi
from controlplane.backends.kube.reflector import Reflector
from controlplane.backends.kube.takedown import KILL_GRACE_S
from controlplane.clock import Clock

NO_KUBERAY = "the cluster does not know RayJobs in this namespace; install KubeRay"
RAY_PORT = 8265
REMEMBERED_AT_MOST = 256


class RayJobBackend:
    """RayJobs in the namespace of `kube`, whose copies must be kept too. `key` makes the Ray token of each attempt."""

    name = "rayjob"
    pins_nodes = False
    keeps_logs = False

    def __init__(
        self,
        api: KubeApi,
        kube: KubeBackend,
        clock: Clock,
        key: bytes,
        *,
        may_write: Callable[[], bool] = lambda: True,
        hosts: Sequence[str] = (),
    ) -> None:
        """`hosts`: where a Ray dashboard may be besides the namespace's services; the token goes nowhere else."""
        self._api, self._kube, self.options, self._key = api, kube, kube.options, key
        self._hosts = tuple(hosts)
        space = quote(self.options.namespace)
        self._path = f"/apis/ray.io/v1/namespaces/{space}/rayjobs"
        self._secrets_path = f"/api/v1/namespaces/{space}/secrets"
        self._pods_path = f"/api/v1/namespaces/{space}/pods"
        self.rayjobs = Reflector(api, self._path, clock, selector="app.kubernetes.io/managed-by=trimtab")
        self._ray = RayApi(self.token, may_write)
        self._before: dict[str, tuple[Member, ...]] = {}

    def start(self) -> None:
        """Begins to keep the copy of RayJobs."""
        self.rayjobs.start()

    def stop_watching(self) -> None:
        """Ends the copy."""
        self.rayjobs.stop()

    def token(self, name: str) -> str:
        """The Ray token of an attempt."""
        return rayjob_manifests.ray_token(self._key, name)

    # --- submit ---

    def submit(self, plan: AttemptPlan) -> Handle:
        """RayJob, Secret, then the RayJob is let go, once; each step finds out what an earlier try already did."""
        problem = rayjob_manifests.name_problem(plan.name)
        if problem:
            raise SubmitConflict(problem)
        try:
            found, adopted = self._rayjob(plan)
            uid = str(found["metadata"]["uid"])
            try:
                token = self.token(plan.name)
                self._api.create(self._secrets_path, rayjob_manifests.secret(plan, self.options, token, uid))
            except AlreadyExists:
                pass  # from an earlier try: the token is the same each time it is made
            if found["spec"].get("suspend") and not manifests.queue_of(plan, self.options):
                self._let_go(plan, found)
        except (Forbidden, Invalid) as error:
            raise SubmitConflict(str(error)) from error
        except Refused as error:
            raise BackendUnavailable(str(error)) from error
        return Handle(plan.name, uid, adopted)

    def _rayjob(self, plan: AttemptPlan) -> tuple[Json, bool]:
        try:
            return self._api.create(self._path, rayjob_manifests.rayjob(plan, self.options)), False
        except NotFound as error:
            raise SubmitConflict(f"{NO_KUBERAY}: {error.message}") from error
        except AlreadyExists:
            return manifests.adopted(self._api.get(f"{self._path}/{plan.name}"), plan), True

    def _let_go(self, plan: AttemptPlan, found: Json) -> None:
        """Unsuspends the very RayJob that was made or adopted, once: one that was let go before others suspended."""
        if rayjob_manifests.RELEASED in (found["metadata"].get("annotations") or {}):
            return
        mark = rayjob_manifests.RELEASED.replace("/", "~1")
        steps: list[Json] = [
            {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]},
            {"op": "add", "path": f"/metadata/annotations/{mark}", "value": "true"},
            {"op": "replace", "path": "/spec/suspend", "value": False},
        ]
        self._api.patch(f"{self._path}/{plan.name}", steps, kind="json")

    def dry_run(self, plan: AttemptPlan) -> list[str]:
        """What KubeRay or the API server would refuse of this plan; nothing is made."""
        problem = rayjob_manifests.name_problem(plan.name)
        refused = [f"RayJob: {problem}"] if problem else []
        return refused + dry_run(self._api, self._rendered(plan), {"RayJob": NO_KUBERAY})

    def _rendered(self, plan: AttemptPlan) -> list[tuple[str, Json]]:
        """The objects of a plan, each with the path of its collection; the token in them is none."""
        made = rayjob_manifests.secret(plan, self.options, "not a token", NOBODY)
        return [(self._path, rayjob_manifests.rayjob(plan, self.options)), (self._secrets_path, made)]

    def forecast(self, plan: AttemptPlan, /) -> Forecast:
        """What the API server says of the manifests, the namespace's quotas, and every node."""
        return self._kube.forecast_of(plan, self._rendered(plan), self.dry_run)

    # --- observe ---

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        """From the copies while they say that all is well, else from the API server itself."""
        age_s = max(self.rayjobs.age_s, self._kube.pods.age_s)
        return {name: self._look(name, now, age_s) for name in names}

    def _look(self, name: str, now: float, age_s: float) -> Observation:
        if age_s <= STALE_S:
            rayjob = self.rayjobs.get(name, self.options.namespace)
            if rayjob is not None:
                before = self._before.get(name, ())
                pods = self._kube.copied_pods(name)
                seen = self._kube.mark_stuck(rayjob_look.judged(name, rayjob, pods, now, before=before))
                if seen.state in ("pending", "running"):
                    return self._remembered(seen)
        try:
            return self._look_again(name, now)
        except BackendUnavailable as error:
            return Observation(name, "unknown", now, reason=str(error))

    def _look_again(self, name: str, now: float) -> Observation:
        """A fresh read, the RayJob first: pods that it speaks of and that are not there have left."""
        try:
            rayjob = self._api.get(f"{self._path}/{name}")
            pods = self._kube.read_pods(name)
        except NotFound:
            self._before.pop(name, None)
            return Observation(name, "absent", now)
        except Refused as error:
            return Observation(name, "unknown", now, reason=str(error))
        there = {pod["metadata"]["name"] for pod in pods}
        left = [pod for pod in self._kube.copied_pods(name) if pod["metadata"]["name"] not in there]
        seen = rayjob_look.judged(name, rayjob, pods, now, left, self._before.get(name, ()))
        return self._remembered(self._kube.mark_stuck(seen))

    def _remembered(self, seen: Observation) -> Observation:
        """Keeps who the members were: the operator takes the pods of a finished job away within seconds."""
        if seen.members:
            self._before.pop(seen.name, None)
            self._before[seen.name] = seen.members
            if len(self._before) > REMEMBERED_AT_MOST:
                del self._before[next(iter(self._before))]
        return seen

    # --- stop, fence ---

    def stop(self, name: str, *, mode: StopMode) -> None:
        """`kill`: the pods at once, and the RayJob stays as the record. `terminate`: Ray first, then the RayJob goes.

        Asked again while Ray's job saves, it tells Ray again, which changes nothing, and returns.
        """
        try:
            if mode == "kill":
                self._kill(name)
                return
            rayjob = self._api.get(f"{self._path}/{name}")
            if rayjob_look.ended(rayjob) is None and self._ray_stops(name, rayjob):
                return
            self._api.delete(f"{self._path}/{name}", uid=str(rayjob["metadata"]["uid"]))
        except NotFound:
            return
        except Refused as error:
            raise BackendUnavailable(str(error)) from error

    def _kill(self, name: str) -> None:
        """One second for every pod, the submitter's too, and a deadline that has passed: nothing is run again."""
        self._api.delete_all(self._pods_path, manifests.selector(name), grace_s=KILL_GRACE_S)
        rayjob = self._api.get(f"{self._path}/{name}")
        if rayjob_look.ended(rayjob) is None and not rayjob_look.told_to_end(rayjob):
            wanted = {"spec": {"activeDeadlineSeconds": rayjob_look.DEADLINE_S}}
            self._api.patch(f"{self._path}/{name}", wanted, kind="merge")

    def _ray_stops(self, name: str, rayjob: Json) -> bool:
        """Tells Ray; False when it has nothing of this attempt to stop. BackendUnavailable: it was not told."""
        address = self._dashboard(rayjob)
        status = self._ray.status(address, name) if address else ""
        if not status or status in OVER:
            return False
        if not self._ray.stop(address, name):
            raise BackendUnavailable(f"Ray has not started {name} yet and cannot stop it; it is asked again")
        return True

    def _dashboard(self, rayjob: Json) -> str:
        """Where this attempt's Ray is; empty before there is one. The token goes to no host outside the namespace."""
        told = str((rayjob.get("status") or {}).get("dashboardURL") or "")
        if not told:
            return ""
        place = urlsplit(told if "://" in told else f"//{told}")
        service, *domain = (place.hostname or "").split(".")
        port = place.port or RAY_PORT
        if place.hostname in self._hosts:
            return f"http://{place.hostname}:{port}"
        if domain[:2] != [self.options.namespace, "svc"]:
            raise BackendUnavailable(f"the dashboard of the RayJob is said to be {told}, no service of its namespace")
        return f"http://{service}.{self.options.namespace}.svc:{port}"

    def fenced(self, name: str) -> bool:
        """Whether nothing of the attempt can write any more: it is over, and so is each pod or the node under it.

        A RayJob that was told to end counts as over: what the operator may still bring up is a Ray without a job.
        """
        try:
            rayjob: Json | None = self._api.get(f"{self._path}/{name}")
        except NotFound:
            rayjob = None
        except Refused as error:
            raise BackendUnavailable(str(error)) from error
        if rayjob is not None and rayjob_look.ended(rayjob) is None and not rayjob_look.told_to_end(rayjob):
            return False
        try:
            pods = self._kube.read_pods(name)
        except Refused as error:
            raise BackendUnavailable(str(error)) from error
        return all(pod_over(pod) or self._kube.out_of_service(node_of(pod)) for pod in pods)

    # --- capacity, logs ---

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        """As the plain Job backend sees it: whole nodes are whole nodes."""
        return self._kube.capacity(nodes)

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        """As the plain Job backend does; asked by both, the second finds nothing to change."""
        return self._kube.mark_nodes(wanted)

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        """As the plain Job backend sees it."""
        return self._kube.node_status(nodes, leases=leases)

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        """The job's output for the head, by its submitter, who shows it and stays; Ray's own for a worker."""
        pods = self._kube.copied_pods(name)
        member = next((one for one in rayjob_look.gang(pods) if one.index == index), None)
        pod = rayjob_look.submitter(pods) if index == 0 else ""
        pod = pod or (member.pod if member is not None else "")
        if not pod:
            return b""
        try:
            return self._api.tail(f"{self._pods_path}/{pod}/log", limit)
        except (NotFound, Invalid, Conflict):
            return b""
        except Refused as error:
            raise BackendUnavailable(str(error)) from error

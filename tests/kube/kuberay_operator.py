"""What KubeRay's operator would do, done by the tests: no operator runs here, since it is not published as a module.

The definitions are KubeRay's own where TRIMTAB_KUBERAY_CRDS names them (kuberay/README.md). The RayJob's status, the
Ray pods and the submitter's Job are written to the real API server as the operator writes them; scheduler, job
controller and garbage collector are real.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import KubeApi, NotFound
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.rayjob import RayJobBackend
from controlplane.clock import SystemClock
from tests.kube.conftest import NAMESPACE, OPTIONS, World, rules, until

Json = dict[str, Any]
SMALL = Path(__file__).parent / "kuberay" / "fields.yaml"
RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
KEY = b"the control plane's key"


def own_definitions() -> list[Path]:
    """KubeRay's own definitions, where there are any."""
    folder = os.environ.get("TRIMTAB_KUBERAY_CRDS")
    return sorted(Path(folder).glob("ray.io_ray*s.yaml")) if folder else []


def install(admin: KubeApi) -> None:
    """Registers the definitions by server-side apply: they are too large for anything else."""
    for path in own_definitions() or [SMALL]:
        body = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        place = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        admin.patch(place, body, kind="apply", force=True)
        until(lambda place=place: _established(admin.get(place)))
    until(lambda: _served(admin))


def _established(definition: Json) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _served(admin: KubeApi) -> bool:
    try:
        return "items" in admin.get(RAYJOBS)
    except (NotFound, BackendUnavailable):  # HTTP 429 while the server makes room for them
        return False


@contextmanager
def opened(world: World, account: str, hosts: tuple[str, ...] = ()) -> Iterator[RayJobBackend]:
    """The backend on a cluster that knows RayJobs, with the rules that ship, through a service account's token."""
    install(world.admin)
    api = world.account(account, {"role": [*rules("controller"), *rules("ray")], "cluster": rules("reader")})
    kube = KubeBackend(api, OPTIONS, SystemClock())
    found = RayJobBackend(api, kube, SystemClock(), KEY, hosts=hosts)
    kube.start()
    found.start()
    until(lambda: max(found.rayjobs.age_s, kube.pods.age_s, kube.nodes.age_s) < 60)
    yield found
    found.stop_watching()
    kube.stop_watching()


class Operator:
    """The operator's hand in one RayJob."""

    def __init__(self, admin: KubeApi, name: str) -> None:
        self.admin, self.name = admin, name

    def rayjob(self) -> Json:
        return self.admin.get(f"{RAYJOBS}/{self.name}")

    def say(self, job: str = "", deployment: str = "Running", **more: object) -> None:
        """The RayJob's status."""
        status = {"jobStatus": job, "jobDeploymentStatus": deployment, "jobId": self.name, **more}
        self.admin.patch(f"{RAYJOBS}/{self.name}/status", {"status": status}, kind="merge", manager="kuberay")

    def bring_up(self) -> None:
        """The Ray pods, then the submitter's Job, as for a RayJob that is not suspended."""
        rayjob = self.rayjob()
        assert rayjob["spec"]["suspend"] is False
        spec = rayjob["spec"]["rayClusterSpec"]
        self.make_pod("head", spec["headGroupSpec"]["template"])
        for group in spec.get("workerGroupSpecs") or ():
            for number in range(group["replicas"]):
                self.make_pod(f"{group['groupName']}-{number}", group["template"])
        until(lambda: all(pod["status"].get("phase") == "Running" for pod in self.pods()))
        self.say("", "Initializing")
        self._submit(rayjob)

    def run(self) -> None:
        """All of it up and the job submitted."""
        self.bring_up()
        until(lambda: len(self.pods()) == len(self.pods("submitter")) + self.wanted() > self.wanted())
        self.say("RUNNING", dashboardURL=f"{self.name}-head-svc.{NAMESPACE}.svc.cluster.local:8265")

    def wanted(self) -> int:
        groups = self.rayjob()["spec"]["rayClusterSpec"].get("workerGroupSpecs") or ()
        return 1 + sum(group["replicas"] for group in groups)

    def make_pod(self, suffix: str, template: Json) -> None:
        """A Ray pod out of a group's template, with the command that the operator writes."""
        head, spec = template["metadata"], template["spec"]
        (container,) = spec["containers"]
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**head, "name": f"{self.name}-{suffix}", "ownerReferences": [self._owner(self.rayjob())]},
            "spec": {**spec, "containers": [{**container, "command": ["/bin/bash", "-c"], "args": ["ray start"]}]},
        }
        self.admin.create(PODS, body, manager="kuberay")

    def submitter_line(self, address: str) -> str:
        """What the submitter's shell runs: the operator's own line (KubeRay 1.7), as the kubelet hands it over."""
        words = self.rayjob()["spec"]["entrypoint"].replace("$$", "$")
        return (
            f"if ! ray job status --address {address} {self.name} >/dev/null 2>&1 ; then "
            f"ray job submit --address {address} --no-wait --submission-id {self.name} -- {words} ; fi ; "
            f"ray job logs --address {address} --follow {self.name}"
        )

    def _submit(self, rayjob: Json) -> None:
        template = rayjob["spec"]["submitterPodTemplate"]
        (container,) = template["spec"]["containers"]
        args = [f"… ray job submit --submission-id {self.name} -- {rayjob['spec']['entrypoint']} ; …"]
        pod = {**template["spec"], "containers": [{**container, "command": ["/bin/bash", "-ec"], "args": args}]}
        body = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self.name, "ownerReferences": [self._owner(rayjob)]},
            "spec": {
                "backoffLimit": rayjob["spec"]["submitterConfig"]["backoffLimit"],
                "template": {**template, "spec": pod},
            },
        }
        self.admin.create(JOBS, body, manager="kuberay")

    def _owner(self, rayjob: Json) -> Json:
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "name": self.name,
            "uid": rayjob["metadata"]["uid"],
            "controller": True,
        }

    def pods(self, part: str = "") -> list[Json]:
        """The attempt's pods, or those of one part."""
        chosen = f"trimtab.dev/attempt-name={self.name}" + (f",trimtab.dev/part={part}" if part else "")
        return list(self.admin.get(PODS, labelSelector=chosen)["items"])

    def shut_down(self) -> None:
        """The Ray pods go, as after the end of the job; the submitter's Job stays."""
        for pod in self.pods():
            if pod["metadata"]["labels"]["trimtab.dev/part"] != "submitter":
                self.admin.delete(f"{PODS}/{pod['metadata']['name']}", grace_s=0)
        until(lambda: len(self.pods()) == len(self.pods("submitter")))

    def clear(self) -> None:
        """Everything of the attempt is removed."""
        self.admin.delete(f"{RAYJOBS}/{self.name}")
        self.admin.delete(f"{JOBS}/{self.name}")
        self.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/{self.name}")
        self.admin.delete_all(PODS, f"trimtab.dev/attempt-name={self.name}", grace_s=0)
        until(lambda: self.pods() == [])

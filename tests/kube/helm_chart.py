"""The chart as the tests use it: rendered, installed and removed by the real helm, judged by a real API server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controlplane.backends.kube.api import Json, KubeApi
from tests.built import built

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "trimtab"
ALL_OPTIONS = Path(__file__).parent / "all-options.yaml"
MONITORING = Path(__file__).parent / "monitoring-crds.yaml"


def find_helm() -> Path:
    """helm by $HELM_BIN, $KUBEBUILDER_ASSETS, or as `make kube` built it; a missing one is a failure, not a skip."""
    places = [Path(os.environ["HELM_BIN"])] if os.environ.get("HELM_BIN") else []
    places += [Path(os.environ["KUBEBUILDER_ASSETS"]) / "helm"] if os.environ.get("KUBEBUILDER_ASSETS") else []
    places.append(built("helm"))
    found = next((place for place in places if place.exists()), None)
    assert found is not None, f"helm is in none of {', '.join(map(str, places))}: make kube"
    return found


@dataclass(frozen=True)
class Helm:
    """One release in one namespace; with a kubeconfig also on its cluster."""

    folder: Path
    namespace: str = "trimtab"
    release: str = "trimtab"
    kubeconfig: Path | None = None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A helm command; nothing of the machine's own helm is read or written."""
        places = {f"HELM_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        kept.pop("KUBECONFIG", None)
        if self.kubeconfig is not None:
            kept["KUBECONFIG"] = str(self.kubeconfig)
        command = [str(find_helm()), *words, "-n", self.namespace]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**kept, **places}, check=False)

    def done(self, *words: str) -> str:
        """A helm command that succeeds."""
        answer = self.run(*words)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def template(self, *more: str) -> list[Json]:
        """Every object that would be made."""
        rendered = self.done("template", self.release, str(CHART), *more)
        return [one for one in yaml.safe_load_all(rendered) if one]

    def refused(self, values: dict[str, Any]) -> str:
        """What helm says of values that cannot be."""
        file = self.folder / "values.yaml"
        file.write_text(json.dumps(values))
        answer = self.run("template", self.release, str(CHART), "-f", str(file))
        assert answer.returncode != 0, "helm took it"
        return answer.stderr

    def upgrade(self, *more: str) -> None:
        """Installs the chart, or brings it to other values."""
        self.done("upgrade", "--install", self.release, str(CHART), *more)


def of_kind(objects: list[Json], kind: str, ending: str = "") -> Json:
    """The one object of a kind whose name ends so."""
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(ending)]
    assert len(found) == 1, [one["metadata"]["name"] for one in found]
    return found[0]


def pod_spec(objects: list[Json], part: str) -> Json:
    """The pods' spec of server, dashboard or agent."""
    spec: Json = of_kind(objects, "DaemonSet" if part == "agent" else "Deployment", f"-{part}")["spec"]["template"][
        "spec"
    ]
    return spec


def papers(secret: Json) -> dict[str, bytes]:
    """The files that a secret holds."""
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


def place(api: KubeApi, body: Json) -> str:
    """Where objects of this kind are created, as the API server itself says."""
    version = body["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    kinds = api.get(root)["resources"]
    kind = next(one for one in kinds if one["kind"] == body["kind"] and "/" not in one["name"])
    space = f"/namespaces/{body['metadata']['namespace']}" if kind["namespaced"] else ""
    return f"{root}{space}/{kind['name']}"


def make_namespace(api: KubeApi, name: str, level: str = "privileged") -> None:
    """A namespace that admits pods of one of the Pod Security levels."""
    labels = {"pod-security.kubernetes.io/enforce": level}
    api.create(
        "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    )

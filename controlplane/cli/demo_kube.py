"""The demo's stage on Kubernetes: a real control plane on loopback, and a runner that is the kubelet of its nodes.

The control plane, the scheduler, the Job controller and the rights of the server's service account are real; the nodes
are simulated; what their pods say is run for real by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controlplane.backends.kube.options import KubeOptions
from controlplane.cli import cluster_access, cluster_nodes, cluster_parts
from controlplane.cli.cluster_parts import Cluster, ClusterError
from controlplane.cli.demo_processes import DemoError, Stage
from controlplane.cli.output import hint

IMAGE = "trimtab-trainer:demo"


class KubeStage(Stage):
    """A stage with a cluster beneath it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.cluster: Cluster | None = None
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)

    def prepare(self, nodes: Sequence[str]) -> None:
        """The cluster with its nodes, the namespace, the controller's rights, and the runner."""
        try:
            programs = cluster_parts.find_programs()
            self.cluster = cluster_parts.start(
                self.folder / "cluster", programs, lambda words: hint(f"demo: cluster: {words}")
            )
        except ClusterError as error:
            raise DemoError(str(error)) from error
        admin = cluster_nodes.administrator(self.cluster)
        options = KubeOptions()
        cluster_access.namespace(admin, options.namespace)
        for index, name in enumerate(nodes):
            node = cluster_nodes.node(index, "runner")
            if node["metadata"]["name"] != name:
                raise DemoError(f"node {index} is to be called {name}")
            admin.create("/api/v1/nodes", node)
        self._config = cluster_access.controller_kubeconfig(self.cluster, admin, options.namespace)
        arguments = ["--kubeconfig", str(self.cluster.kubeconfig), "--namespace", options.namespace]
        arguments += ["--folder", str(self.folder / "pods")]
        arguments += ["--mount", f"{options.runtime_path}={self.nodes}/{{node}}"]
        self._start("runner", "controlplane.cli.cluster_runner", *arguments, *nodes)
        self._line("runner")

    def server_options(self) -> list[str]:
        """Attempts run on the cluster; the volume of runs is a folder here, under the same path for all."""
        return [
            "--backend",
            "kube",
            "--kube-config",
            str(self._config),
            "--kube-image",
            IMAGE,
            "--kube-volume-path",
            str(self.runs),
            "--kube-node-actuator",
        ]

    def end(self) -> None:
        """The processes, then the cluster beneath them."""
        try:
            super().end()
        finally:
            if self.cluster is not None:
                self.cluster.end()

"""`trimtab cluster up|down|status`: a real Kubernetes control plane on loopback with simulated MI300X nodes.

For a person who wants to try the Kubernetes backend without a cluster, and for the tests, which start the very same.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from controlplane.backends.base import BackendUnavailable
from controlplane.cli.output import EXIT, Exit, Form, Output, hint, show

app = typer.Typer(no_args_is_help=True, help="A Kubernetes control plane on this machine, with simulated nodes.")
DEFAULT_FOLDER = Path(".trimtab/cluster")

Folder = Annotated[Path, typer.Option("--data", help="folder of the cluster's files")]


@app.command()
def up(
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=5000, help="simulated nodes of 8 MI300X")] = 128,
    data: Folder = DEFAULT_FOLDER,
) -> None:
    """Start a cluster and print the path of its kubeconfig."""
    from controlplane.cli import cluster_nodes, cluster_parts  # heavy: the official client and its keys

    folder = data.resolve()
    earlier = cluster_parts.Cluster.load(folder)
    if earlier is not None and any(earlier.running().values()):
        hint(f"A cluster runs already in {folder}: trimtab cluster down, or choose another folder with --data.")
        raise Exit(EXIT.ERROR)
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    try:
        cluster = cluster_nodes.open_cluster(folder, nodes, lambda sentence: hint(f"cluster: {sentence}"))
    except (cluster_parts.ClusterError, BackendUnavailable) as error:
        hint(f"cluster: {error}")
        raise Exit(EXIT.ERROR) from error
    hint(f"cluster: up after {time.monotonic() - began:.0f} s; its nodes are simulated, its control plane is real")
    hint(f"cluster: export KUBECONFIG={cluster.kubeconfig}")
    print(cluster.kubeconfig)


@app.command()
def down(data: Folder = DEFAULT_FOLDER) -> None:
    """End the cluster of a folder, by its process ids."""
    from controlplane.cli.cluster_parts import Cluster

    cluster = Cluster.load(data.resolve())
    if cluster is None:
        hint(f"cluster: there is none in {data}")
        return
    cluster.end()
    hint("cluster: ended")


@app.command()
def status(data: Folder = DEFAULT_FOLDER, output: Output = Form.table) -> None:
    """Which parts of the cluster run, and how many nodes are Ready; exit code 1 when it is not whole."""
    from controlplane.cli import cluster_nodes, cluster_parts

    cluster = cluster_parts.Cluster.load(data.resolve())
    if cluster is None:
        hint(f"cluster: there is none in {data}: trimtab cluster up")
        raise Exit(EXIT.NOT_FOUND)
    parts = cluster.running()
    ready: int | None = None
    if parts.get("kube-apiserver"):
        try:
            ready = len(cluster_nodes.ready_nodes(cluster_nodes.administrator(cluster)))
        except BackendUnavailable as error:
            hint(f"cluster: {error}")
    rows = [{"part": name, "state": "runs" if runs else "ended"} for name, runs in parts.items()]
    rows.append({"part": "ready nodes", "state": "unknown" if ready is None else str(ready)})
    show(rows, [("part", lambda row: row["part"]), ("state", lambda row: row["state"])], output, name="part")
    if not all(parts.values()) or not ready:
        raise Exit(EXIT.ERROR)

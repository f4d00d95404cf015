"""The Kubernetes backends out of the server's settings: settings may not know a backend, so it stands here."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.backends.base import Backend
from controlplane.backends.kube.api import KubeApi, connect
from controlplane.backends.kube.backend import KubeBackend
from controlplane.backends.kube.options import KubeOptions
from controlplane.backends.kube.rayjob import RayJobBackend
from controlplane.clock import Clock
from controlplane.settings import Settings


def kube_options(settings: Settings) -> KubeOptions | None:
    """Defaults of every attempt on Kubernetes; None when attempts do not run there."""
    if settings.backend != "kube":
        return None
    return KubeOptions(
        namespace=settings.kube_namespace,
        image=settings.kube_image,
        volume_claim=settings.kube_volume_claim,
        volume_path=settings.kube_volume_path,
        runtime_path=settings.kube_runtime_path,
        queue=settings.kube_queue,
    )


def open_kube(
    settings: Settings, clock: Clock, may_write: Callable[[], bool], ray_key: Callable[[], bytes]
) -> list[Backend]:
    """The cluster's backends, connected, their copies not yet kept: Jobs, and RayJobs if they are asked for.

    `may_write` is asked before each call that changes the cluster: whether this server still leads. `ray_key` gives the
    key that the attempts' Ray tokens are made with. BackendUnavailable without a way to the API server.
    """
    options = kube_options(settings)
    if options is None:
        raise ValueError("attempts do not run on Kubernetes here")
    api = KubeApi(connect(settings.kube_config), may_write=may_write)
    kube = KubeBackend(api, options, clock, marks_nodes=settings.kube_node_actuator)
    if not settings.kube_ray:
        return [kube]
    return [kube, RayJobBackend(api, kube, clock, ray_key(), may_write=may_write)]

"""The Ray backend out of the server's settings: settings may not know a backend, so it stands here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.ray.backend import RayBackend
from controlplane.backends.ray.cluster import RayCluster
from controlplane.backends.ray.http import RayHttp
from controlplane.settings import Settings


def open_ray(settings: Settings, may_write: Callable[[], bool]) -> RayBackend:
    """The backend of the cluster that the settings name; nothing is asked yet.

    `may_write` is asked before each call that changes something: whether this server still leads.
    """
    path = settings.ray_token_file

    def token() -> str:
        """Read anew for each call, so that a new token needs no restart. BackendUnavailable if it cannot be read."""
        if not path:
            return ""
        try:
            return Path(path).read_text().strip()
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"the Ray token in {path} cannot be read: {error}") from error

    cluster = RayCluster(settings.ray_address, RayHttp(token), may_write)
    return RayBackend(cluster, runtime_path=settings.ray_runtime_path)

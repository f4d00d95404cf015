"""What can be set, where from, and what holds: flag > environment > file > default. The origin of each value is kept.

The file is TOML in the data directory (`trimtab.toml`). Nothing here opens anything.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "TRIMTAB_"
FILE = "trimtab.toml"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
BACKENDS = ("local", "kube", "ray")


class SettingsError(ValueError):
    """A setting that cannot hold; the message names it, where it came from, and what it may be."""


@dataclass(frozen=True)
class Settings:
    """Every setting of the server. Ports may be 0: a free one is taken and told."""

    data: Path = Path(".trimtab")
    host: str = "127.0.0.1"
    port: int = 8440
    dashboard_port: int = 8441
    dashboard: bool = True
    database: str = ""
    runtime: str = ""
    webhook_loopback: bool = False
    public_url: str = ""
    dashboard_url: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    backend: str = "local"
    kube_config: str = ""
    kube_namespace: str = "trimtab-jobs"
    kube_image: str = ""
    kube_volume_claim: str = ""
    kube_volume_path: str = "/var/lib/trimtab/runs"
    kube_runtime_path: str = "/run/trimtab"
    kube_queue: str = ""
    kube_ray: bool = False
    kube_node_actuator: bool = False
    ray_address: str = ""
    ray_token_file: str = ""
    ray_runs_path: str = ""
    ray_runtime_path: str = "/run/trimtab"
    quarantine_share: float = 0.05
    expert_raw_days: int = 7
    expert_eighth_days: int = 30
    log: str = "info"
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def database_url(self) -> str:
        """The store's URL: SQLite in the data directory unless another is set."""
        return self.database or f"sqlite:///{self.data.resolve() / 'trimtab.sqlite'}"

    @property
    def runtime_dir(self) -> Path:
        """Where the local backend finds the nodes' runtime directories."""
        return Path(self.runtime) if self.runtime else self.data.resolve() / "nodes"

    @property
    def scheme(self) -> str:
        """What API and dashboard speak."""
        return "https" if self.tls_cert else "http"


HELP: Mapping[str, str] = {
    "data": "folder of everything that the server keeps",
    "host": "address that API and dashboard listen on; anything but loopback needs tls_cert and tls_key",
    "port": "port of the API",
    "dashboard_port": "port of the dashboard",
    "dashboard": "start the dashboard as a child process",
    "database": "store URL, sqlite:///… or postgresql://…; empty: SQLite in the data folder",
    "runtime": "folder of the nodes' runtime directories; empty: `nodes` in the data folder",
    "webhook_loopback": "allow webhook receivers on this machine",
    "public_url": "address by which jobs, agents and browsers reach the API; empty: made of host and port",
    "dashboard_url": "address by which people reach the dashboard, for links in messages; empty: made of host and "
    "dashboard_port",
    "tls_cert": "PEM file of the certificate of API and dashboard, with its chain",
    "tls_key": "PEM file of that certificate's key",
    "tls_ca": "PEM file of the authority that the certificate is checked by; empty: those that this machine trusts",
    "backend": "where attempts run: local (processes of this machine), kube (Kubernetes Jobs) or ray (an existing Ray "
    "cluster)",
    "kube_config": "kubeconfig file; empty: the service account of the pod that the server runs in",
    "kube_namespace": "namespace of the jobs",
    "kube_image": "image of trainers; empty: each job names its own",
    "kube_volume_claim": "claim that holds runs and checkpoints; empty: a folder of each node",
    "kube_volume_path": "where that volume is mounted, in the trainers and in the server",
    "kube_runtime_path": "folder of each node where trainers leave heartbeats and rings for the node's agent",
    "kube_queue": "Kueue queue of jobs that name none; empty: no queue",
    "kube_ray": "run jobs that ask for Ray as RayJobs; KubeRay has to be there, and the rights for it",
    "kube_node_actuator": "cordon and taint bad nodes in the cluster; its service account must be allowed to",
    "ray_address": "URL of the Ray cluster's dashboard, http://head:8265",
    "ray_token_file": "file that holds the Ray cluster's token; empty: the cluster asks for none",
    "ray_runs_path": "folder of runs and checkpoints that the server and every Ray node mount; empty: `runs` in the "
    "data folder",
    "ray_runtime_path": "folder of each Ray node where trainers leave heartbeats and rings for the node's agent",
    "quarantine_share": "share (0 to 1) of the fleet that may leave service in 10 min by itself; 2 nodes always may",
    "expert_raw_days": "days for which expert counts and biases of every step are kept",
    "expert_eighth_days": "days from which on they are kept of every 64th step, before of every 8th; statistics, and "
    "steps around what happened to a run, always",
    "log": "debug, info, warning or error",
}


def _convert(name: str, value: Any, origin: str) -> Any:
    kind = {setting.name: setting.type for setting in fields(Settings)}[name]
    try:
        if kind == "bool":
            return (
                value
                if isinstance(value, bool)
                else {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            )
        if kind == "int":
            number = int(value)
            if not 0 <= number <= 65_535:
                raise ValueError
            return number
        if kind == "float":
            share = float(value)
            if not 0 <= share <= 1:
                raise ValueError
            return share
        return Path(value).expanduser() if kind == "Path" else str(value)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        whole = "days, 0 to 65535" if name.endswith("_days") else "a port, 0 to 65535"
        words = {"bool": "true or false", "int": whole, "float": "a share, 0 to 1"}.get(str(kind), "text")
        raise SettingsError(f"{name} (from {origin}) must be {words}, not {value!r}") from error


def load(flags: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Settings:
    """The settings that hold; a flag that is None was not given. Raises SettingsError."""
    environment = os.environ if env is None else env
    names = [setting.name for setting in fields(Settings) if setting.name != "origins"]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(name: str, value: Any, origin: str) -> None:
        if name not in values and value is not None:
            values[name], origins[name] = _convert(name, value, origin), origin

    for name in names:
        take(name, flags.get(name), f"--{name.replace('_', '-')}")
        take(name, environment.get(PREFIX + name.upper()), PREFIX + name.upper())
    folder = Path(values.get("data", Settings.data))
    for name, value in _file(folder / FILE, names).items():
        take(name, value, str(folder / FILE))
    settings = Settings(**values, origins=origins)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """What holds between settings."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        there, lacking = ("tls_cert", "tls_key") if settings.tls_cert else ("tls_key", "tls_cert")
        raise SettingsError(f"{there} is set and {lacking} is not: TLS needs both")
    if settings.host not in LOOPBACK and not settings.tls_cert:
        raise SettingsError(
            f"host {settings.host} is not loopback, and nothing is served beyond it without TLS: set tls_cert and "
            "tls_key, or use 127.0.0.1 and a tunnel"
        )
    if settings.backend not in BACKENDS:
        raise SettingsError(f"backend must be {' or '.join(BACKENDS)}, not {settings.backend!r}")
    if settings.backend == "ray" and not settings.ray_address.startswith(("http://", "https://")):
        raise SettingsError(
            "backend ray needs ray_address, the URL of the Ray dashboard (http://head:8265), not "
            f"{settings.ray_address!r}"
        )
    if settings.expert_eighth_days < settings.expert_raw_days:
        raise SettingsError(
            f"expert_eighth_days must be {settings.expert_raw_days} (expert_raw_days) or more, not "
            f"{settings.expert_eighth_days}"
        )


def _file(path: Path, names: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise SettingsError(f"{path}: {', '.join(unknown)} is not a setting; there are {', '.join(names)}")
    return found

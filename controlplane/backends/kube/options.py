"""What an installation of the Kubernetes backend is told: namespace, image, volumes, labels. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

GPU_RESOURCE = "amd.com/gpu"
PREFIX = "trimtab.dev"


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """Defaults of every attempt; a job's own `kubernetes` part goes before them."""

    namespace: str = "trimtab-jobs"
    image: str = ""
    """the trainer's image; empty: each job has to name its own"""
    service_account: str = ""
    volume_claim: str = ""
    """the claim that holds runs and checkpoints, the same for all pods; empty: the path is on the node's own disk"""
    volume_path: str = "/var/lib/trimtab/runs"
    runtime_path: str = "/run/trimtab"
    """on each node: where trainers leave heartbeats and rings for the node's agent"""
    queue: str = ""
    """the Kueue queue of jobs that name none; empty: no queue, the controller lets go of each Job itself"""
    rendezvous_port: int = 29400
    cpu: str = ""
    memory: str = ""
    shared_memory: str = "64Gi"
    keep_finished_s: int = 86_400
    tolerations: tuple[dict[str, object], ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)

"""The jobs of the reference workload by the module that their command runs. Standard library only.

Nothing is known of a command that is not ours.
"""

from __future__ import annotations

TRAIN, RL, PREPARE = "jobs.zaya.train", "jobs.zaya.rl", "jobs.zaya.prepare"
EVALUATE, RELEASE = "jobs.zaya.evaluate", "jobs.zaya.release"
ALL = (TRAIN, RL, PREPARE, EVALUATE, RELEASE)
ALONE = (RL, EVALUATE, PREPARE, RELEASE)
"""Those that are one process; on a RayJob reinforcement learning is too, and the nodes are its actors'."""


def module_of(job: object) -> str:
    """The module that a job, as plain data, runs; "" for another command."""
    command = job.get("command") if isinstance(job, dict) else None
    words = command if isinstance(command, list) else []
    return next((word for word in words if word in ALL), "")

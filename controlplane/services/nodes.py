"""What a person may do to a machine: keep new ranks off it, empty it, return it, have a simulated one show a fault.

Each is part of the caller's transaction. Nothing here reaches a machine: placement looks at what is written, and a
drill travels in the reply to the node's next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.services import runs as run_service
from controlplane.store import drills, events, faults, nodes, runs
from controlplane.store.engine import Joined, Session
from controlplane.store.tables import Drill, Run

_MORE_THAN_AN_ALERT = ("drain", "restart", "rma")


class NodeNotFound(LookupError):
    """There is no node of this name."""


class NodeStillFires(ValueError):
    """What took the node out of service is still there; `sentences` says what."""

    def __init__(self, node: str, sentences: Sequence[str]) -> None:
        super().__init__(f"{node} still shows what took it out of service")
        self.node, self.sentences = node, tuple(sentences)


class NotSimulated(ValueError):
    """A fault is never made on real hardware."""


class NoSuchGpu(ValueError):
    """The node has no GPU of this number; the message says which it has."""


def still_fires(session: Session, name: str) -> list[str]:
    """What fires on a node and asks for more than an alert, as sentences."""
    return [fault.sentence for fault in faults.firing(session, [name]) if fault.action in _MORE_THAN_AN_ALERT]


def cordon(session: Session, name: str, *, actor: str, reason: str, now: float) -> None:
    """Keeps new ranks off a node; what runs there goes on. NodeNotFound."""
    if not nodes.cordon(session, name, reason=reason or f"cordoned by {actor}", now=now):
        raise NodeNotFound(f"there is no node {name}")
    _tell(session, name, "node_cordoned", f"{actor} cordoned {name}{_why(reason)}.", now)


@dataclass(frozen=True, slots=True)
class Asked:
    """A run on a node that is being drained; `why` says why it could not be asked to leave, "" if it was."""

    run_id: str
    name: str
    why: str = ""


def drain(session: Session, name: str, *, actor: str, reason: str, now: float) -> list[Asked]:
    """Takes a node out of service and asks every run on it to save, stop and go on without it. NodeNotFound.

    A run that is being restarted already is not asked a second time; it is named with the reason. Undo: `give_back`.
    """
    words = reason or f"drained by {actor}"
    if not nodes.cordon(session, name, reason=words, now=now):
        raise NodeNotFound(f"there is no node {name}")
    nodes.set_state(session, name, "drained", reason=words, now=now)
    _tell(session, name, "node_drained", f"{actor} drains {name}{_why(reason)}.", now)
    asked = []
    for run_id, held in runs.taken_nodes(session).items():
        if name not in held:
            continue
        run = runs.get(session, run_id)
        if run is not None:
            asked.append(Asked(run_id, run.name, _leave(session, run, name, actor=actor, now=now)))
    return asked


def _leave(session: Session, run: Run, node: str, *, actor: str, now: float) -> str:
    """Asks a run to go on without a node; why that cannot be, or ""."""
    if run.desired != "run":
        return f"{run.id} is leaving: it was asked to {run.desired}"
    try:
        run_service.restart(Joined(session), run.id, actor=actor, now=now, exclude_nodes=(node,))
    except run_service.RunRefused as error:
        return str(error)
    return ""


def give_back(session: Session, name: str, *, actor: str, reason: str, now: float, force: bool = False) -> list[str]:
    """Lets a node take ranks again. Returns what still fires there, which only `force` with a reason passes over.

    Placement keeps avoiding a fault that fires until it clears or a person resolves its incident.
    NodeNotFound, NodeStillFires.
    """
    if nodes.get(session, name) is None:
        raise NodeNotFound(f"there is no node {name}")
    firing = still_fires(session, name)
    if firing and not (force and reason):
        raise NodeStillFires(name, firing)
    words = f"returned to service by {actor}{_why(reason)}"
    nodes.uncordon(session, name, reason=words, now=now)
    although = f" although {'; '.join(firing)}" if firing else ""
    _tell(session, name, "node_returned", f"{actor} returned {name} to service{although}{_why(reason)}.", now)
    return firing


def drill(session: Session, name: str, *, kind: str, gpu: int, actor: str, now: float) -> Drill:
    """Has a simulated device report a fault with its next sample. NodeNotFound, NotSimulated, NoSuchGpu."""
    node = nodes.get(session, name)
    if node is None:
        raise NodeNotFound(f"there is no node {name}")
    if not node.simulated:
        raise NotSimulated(f"{name} is a real node; drills are for simulated ones")
    gpus = len(node.facts.get("gpus", ()))
    if gpu >= gpus:
        raise NoSuchGpu(f"{name} has GPUs 0 to {gpus - 1}")
    return drills.add(session, node=name, kind=kind, gpu=gpu, now=now, created_by=actor)


def _why(reason: str) -> str:
    return f": {reason.rstrip('.')}" if reason else ""


def _tell(session: Session, name: str, kind: str, sentence: str, now: float) -> None:
    events.add(session, at_s=now, kind=kind, sentence=sentence, node=name, data={"lane": "rule", "level": "info"})

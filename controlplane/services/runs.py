"""What a person may do to a run: submit, stop, pause, resume, restart. Each is one transaction that states a wish.

Nothing here starts or ends a process: the controller sees the wish at its next look and brings it about.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from controlplane.backends.base import Backend
from controlplane.ids import uuid7
from controlplane.runs.states import RUN_ENDED
from controlplane.services import foreign
from controlplane.services.outcomes import tell
from controlplane.store import events, runs
from controlplane.store.engine import Session, Sessions, Store
from controlplane.store.tables import Run
from jobs.contract import ContractError, read_manifest
from jobs.lifecycle import Lifecycle
from jobs.spec import JobSpec, Problem, SpecError

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


class RunNotFound(LookupError):
    """There is no run of this id or name."""


class RunRefused(ValueError):
    """The run is in a state in which this cannot be done; the message says which."""


class StaleTrainer(PermissionError):
    """A trainer of another attempt or of a past epoch."""


def on_what(spec: JobSpec, usual: Backend, ray: Backend | None) -> Backend:
    """The backend of a job: `usual`, or `ray` if it brings a Ray program. SpecError where this server has none."""
    if not spec.spec.kubernetes.ray:
        return usual
    if ray is None:
        raise SpecError([Problem("kubernetes.ray", "this server runs no jobs on Ray (--kube-ray)")])
    return ray


def submit(session: Session, spec: JobSpec, *, backend: str, actor: str, now: float) -> Run:
    """A new run, queued, with the spec as it was given; its plan is the one stage that it is."""
    plan = Lifecycle.of_job(spec)
    lifecycle = runs.add_lifecycle(session, name=plan.name, spec=plan.to_dict(), now=now, by=actor)
    return make(session, spec, lifecycle_id=lifecycle.id, backend=backend, actor=actor, now=now)


def make(session: Session, spec: JobSpec, *, lifecycle_id: str, backend: str, actor: str, now: float) -> Run:
    """A new run of a plan, queued: `<name>-<6 letters>`."""
    uid = uuid7(now)
    ending = "".join(secrets.choice(_LETTERS) for _ in range(6))
    run = runs.add_run(
        session,
        id=f"{spec.name}-{ending}",
        name=spec.name,
        lifecycle_id=lifecycle_id,
        stage=spec.spec.stage,
        spec=spec.to_dict(),
        spec_hash=spec.hash(),
        created_s=now,
        created_by=actor,
        queue_since_s=now,
        backend=backend,
        uid=uid,
        write_epoch=0,
        reason="",
    )
    session.flush()
    resources = spec.spec.resources
    sentence = f"{actor} submitted {run.id}: {spec.spec.stage}, {resources.nodes} nodes, {spec.spec.train.steps} steps."
    tell(session, run, sentence, kind="run_submitted", now=now)
    return run


def _found(session: Session, run_id: str) -> Run:
    known = runs.get(session, run_id)
    run = runs.locked(session, known.id) if known is not None else None
    if run is None:
        raise RunNotFound(f"there is no run {run_id}")
    return run


def _refuse_ended(run: Run, verb: str) -> None:
    if run.status in RUN_ENDED:
        raise RunRefused(f"{run.id} has {run.status}: it cannot be {verb}")


def _want(store: Sessions, run_id: str, desired: str, verb: str, *, actor: str, now: float) -> None:
    with store.write() as session:
        run = _found(session, run_id)
        _refuse_ended(run, verb)
        # paused with its lifecycle, it is now to stay so when that is resumed
        alone = desired == "pause" and not (run.desired == "pause" and runs.paused_alone(session, run.id))
        if run.desired == desired and not alone:
            return
        run.desired = desired
        words, kind = f"{actor} asked for {run.id} to be {verb}.", f"run_wish_{desired}"
        tell(session, run, words, kind=kind, now=now, alone=alone)


def stop(store: Sessions, run_id: str, *, actor: str, now: float) -> None:
    """Saves, stops and ends the run for good. RunNotFound, RunRefused."""
    _want(store, run_id, "cancel", "stopped", actor=actor, now=now)


def pause(store: Sessions, run_id: str, *, actor: str, now: float) -> None:
    """Saves and stops; the run can be resumed. RunNotFound, RunRefused."""
    _want(store, run_id, "pause", "paused", actor=actor, now=now)


def resume(store: Sessions, run_id: str, *, actor: str, now: float) -> None:
    """Lets a paused run go on, or hands one that waits for a person back to the controller. RunNotFound, RunRefused."""
    with store.read() as session:
        found = runs.get(session, run_id)
        waits = found is not None and found.status == "needs_human"
    if waits:
        restart(store, run_id, actor=actor, now=now)
        return
    _want(store, run_id, "run", "resumed", actor=actor, now=now)


def restart(
    store: Sessions,
    run_id: str,
    *,
    actor: str,
    now: float,
    checkpoint_id: str | None = None,
    exclude_nodes: tuple[str, ...] = (),
) -> None:
    """Ends the attempt, if one is alive, and begins another from a checkpoint. RunNotFound, RunRefused."""
    with store.write() as session:
        run = _found(session, run_id)
        if run.status in ("cancelled", "succeeded"):
            raise RunRefused(f"{run.id} has {run.status}: clone it to run it again")
        _refuse_ended(run, "restarted")
        if checkpoint_id is not None:
            _refuse_unusable(session, run, checkpoint_id)
        decided = runs.open_decision(session, run.id) is not None and run.status != "needs_human"
        if decided or runs.latest_wish(session, run.id) is not None:
            raise RunRefused(f"{run.id} is being restarted already")
        run.desired = "run"
        wish = {"actor": actor, "checkpoint_id": checkpoint_id, "exclude_nodes": list(exclude_nodes), "hidden": True}
        events.add(session, at_s=now, kind=runs.WISH, sentence="", run_id=run.id, data=wish)


def _refuse_unusable(session: Session, run: Run, checkpoint_id: str) -> None:
    found = runs.checkpoint(session, checkpoint_id)
    if found is None or found.run_id != run.id:
        raise RunRefused(f"{run.id} has no checkpoint {checkpoint_id}")
    if found.state != "validated":
        raise RunRefused(f"checkpoint {found.step} is {found.state}: {found.reason or 'it was never verified'}")


def manifest(store: Store, run_id: str, checkpoint_id: str) -> dict[str, Any]:
    """What a checkpoint's own manifest says, read from its disk now; nothing of it comes from the store but the path.

    Where its trainer writes none, the list of its files that was made here, with what the store knows.

    RunNotFound; RunRefused when there is no such checkpoint or its manifest cannot be trusted.
    """
    with store.read() as session:
        run = runs.get(session, run_id)
        found = runs.checkpoint(session, checkpoint_id)
    if run is None:
        raise RunNotFound(f"there is no run {run_id}")
    if found is None or found.run_id != run.id:
        raise RunRefused(f"{run.id} has no checkpoint {checkpoint_id}")
    listed = foreign.listed(found)
    if listed is not None:
        return {"run_id": run.id, "stage": run.stage, **listed}
    try:
        read = read_manifest(Path(found.path))
    except ContractError as error:
        raise RunRefused(str(error)) from error
    names = ("run_id", "attempt_no", "epoch", "stage", "step", "world_size", "data_position", "bias_checksum", "parent")
    told: dict[str, Any] = {name: getattr(read, name) for name in names}
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in read.files]
    return {**told, "state_at_s": read.state_at_s, "written_at_s": read.written_at_s, "files": files}


def announce(store: Store, run_id: str, *, attempt_no: int, epoch: int, path: str, run_dir: Path) -> int:
    """A trainer's word that a checkpoint is complete: (nothing is believed yet: the controller verifies it).

    Returns the manifest's step. RunNotFound; StaleTrainer for a past epoch; RunRefused for a path outside of the run.
    """
    with store.read() as session:
        run = runs.get(session, run_id)
        attempt = next((one for one in runs.attempts(session, run_id) if one.no == attempt_no), None)
    if run is None:
        raise RunNotFound(f"there is no run {run_id}")
    if attempt is None or attempt.epoch != epoch or run.write_epoch != epoch:
        raise StaleTrainer(f"{run_id} is at write epoch {run.write_epoch}; epoch {epoch} may no longer save")
    directory = Path(path).resolve()
    if run_dir.resolve() not in directory.parents:
        raise RunRefused("the checkpoint does not lie in the run's own directory")
    try:
        return read_manifest(directory).step
    except ContractError as error:
        raise RunRefused(str(error)) from error

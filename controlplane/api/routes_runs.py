"""/api/v1/runs and templates: read, submit, and what people ask of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.access import Caller, Operator, Parts, Viewer, note, refuse
from controlplane.api.context import Context
from controlplane.api.deeds import Asked, Deed, Doing
from controlplane.api.described import WHO
from controlplane.api.problems import Problem, chosen, not_found
from controlplane.backends.absent import backend_of
from controlplane.backends.base import BackendUnavailable
from controlplane.services import lastwords, preflight, runs, views_platform, views_runs, views_why
from controlplane.store import experts, last_words, telemetry
from controlplane.store import runs as rows
from controlplane.store.base import RUN_STATUSES
from controlplane.store.engine import Joined, Session
from controlplane.store.tables import Run
from jobs.spec import JobSpec, SpecError, load_preset, load_template, parse_job, presets, templates

router = APIRouter(tags=["runs"])
Json = dict[str, Any]


class Submission(BaseModel):
    """A job as a mapping or as YAML text; one of the two."""

    model_config = ConfigDict(extra="forbid")
    spec: dict[str, Any] | None = None
    yaml: str | None = None

    def source(self) -> dict[str, Any] | str:
        """What was given."""
        if (self.spec is None) == (self.yaml is None):
            raise Problem(422, "bad_request", "Give the job as spec or as yaml, one of the two")
        return self.spec if self.spec is not None else self.yaml or ""


class Restart(Asked):
    """From which checkpoint (the newest verified one by default) and without which nodes."""

    checkpoint_id: str | None = None
    exclude_nodes: list[str] = Field(default_factory=list, max_length=1024)


class Announcement(Asked):
    """A trainer's word that a checkpoint is complete; whatever else it says is not read."""

    model_config = ConfigDict(extra="ignore")
    attempt_no: int
    epoch: int
    step: int
    path: str = Field(max_length=4096)


def found(session: Session, run_id: str) -> Run:
    """The run of an id or name; 404 otherwise."""
    run = rows.get(session, run_id)
    if run is None:
        raise not_found("run", run_id)
    return run


@router.get("/runs")
def list_runs(
    parts: Parts, _caller: Viewer, status: str | None = None, limit: int = 50, cursor: str | None = None
) -> Json:
    """Runs, newest first, a page at a time: `next` is the cursor of the page after it."""
    limit = max(1, min(limit, 500))
    statuses = chosen("status", status, RUN_STATUSES)
    with parts.store.read() as session:
        page = views_runs.rows(session, statuses=statuses, limit=limit, before=cursor, now=parts.clock.now())
    return {"runs": page, "next": page[-1]["id"] if len(page) == limit else None}


@router.post("/runs", status_code=201)
def submit(parts: Parts, caller: Operator, deed: Doing, body: Submission) -> Json:
    """Submit a job; answers the run."""
    spec = parse_job(body.source())
    backend = runs.on_what(spec, parts.backend, parts.ray).name

    def act(session: Session) -> Json:
        run = runs.submit(session, spec, backend=backend, **_by(parts, caller))
        deed.note(session, "submitted", {"run": run.id, "hash": spec.hash()})
        return views_runs.view(session, run, parts.clock.now())

    answer = deed.once(body.model_dump(), act)
    parts.wake()
    return answer


@router.post("/runs/validate")
def validate(parts: Parts, _caller: Viewer, body: Submission) -> Json:
    """What would happen to this job now: problems with paths, checks, candidate nodes, a cluster's word. No change."""
    now, refusing = parts.clock.now(), parts.book.refusing
    source = body.source()
    return preflight.check(parts.store, parts.backend, parts.places, source, now, ray=parts.ray, refusing=refusing)


@router.get("/runs/{run_id}")
def read_run(parts: Parts, _caller: Viewer, run_id: str) -> Json:
    """One run, whole: attempts, decisions, checkpoints, incidents, goodput."""
    with parts.store.read() as session:
        return views_runs.view(session, found(session, run_id), parts.clock.now())


@router.get("/runs/{run_id}/why")
def why(parts: Parts, _caller: Viewer, run_id: str) -> Json:
    """Why a run restarted: cause, decision, cost, verification, and the timeline."""
    with parts.store.read() as session:
        return views_why.why(session, found(session, run_id), parts.clock.now())


@router.get("/runs/{run_id}/timeline")
def timeline(parts: Parts, _caller: Viewer, run_id: str) -> Json:
    """What happened to a run, in order."""
    with parts.store.read() as session:
        return {"timeline": views_why.timeline(session, found(session, run_id))}


@router.get("/runs/{run_id}/steps")
def steps(parts: Parts, _caller: Viewer, run_id: str, points: int = 800) -> Json:
    """Loss, gradient norm, step seconds and rate over a run's steps, an attempt at a time."""
    with parts.store.read() as session:
        return views_runs.step_series(session, found(session, run_id).id, points=max(2, min(points, 5000)))


@router.get("/runs/{run_id}/checkpoints")
def checkpoints(parts: Parts, _caller: Viewer, run_id: str) -> Json:
    """A run's checkpoints, newest first, each with what was found of it."""
    with parts.store.read() as session:
        return {"checkpoints": views_runs.checkpoints(session, found(session, run_id).id, parts.clock.now())}


@router.get("/runs/{run_id}/checkpoints/{checkpoint_id}/manifest")
def manifest(parts: Parts, _caller: Viewer, run_id: str, checkpoint_id: str) -> Json:
    """A checkpoint in its own words: the manifest as it lies on disk now."""
    return runs.manifest(parts.store, run_id, checkpoint_id)


@router.get("/runs/{run_id}/stored")
def stored(parts: Parts, _caller: Viewer, run_id: str) -> Json:
    """How much of a run and of its fleet is in the store: steps with expert records, GPU samples of all nodes."""
    with parts.store.read() as session:
        run = found(session, run_id)
        return {"expert_records": experts.counted(session, run.id), "gpu_samples": telemetry.counted(session, "gpu")}


@router.get("/runs/{run_id}/members")
def members(parts: Parts, _caller: Viewer, run_id: str, attempt: int | None = None) -> Json:
    """Where the members (pods, launchers) of an attempt, the last one, are and what they do; asked of the platform."""
    with parts.store.read() as session:
        run = found(session, run_id)
        attempts = rows.attempts(session, run.id)
    chosen_one = next((one for one in reversed(attempts) if attempt is None or one.no == attempt), None)
    if attempt is not None and chosen_one is None:
        raise Problem(404, "not_found", f"{run.id} has no attempt {attempt}")
    per_node = int(run.spec["spec"]["resources"].get("ranksPerNode", 1))
    return views_platform.members(backend_of(parts.backends, run.backend), chosen_one, per_node, parts.clock.now())


@router.get("/runs/{run_id}/logs")
def logs(
    parts: Parts,
    _caller: Viewer,
    run_id: str,
    attempt: int | None = None,
    rank: int | None = None,
    limit: int = 65_536,
) -> Json:
    """The end of a rank's output, of the last attempt and the rank that failed first unless others are named."""
    with parts.store.read() as session:
        run = found(session, run_id)
        attempts = {one.no: one for one in rows.attempts(session, run.id)}
        number = attempt if attempt is not None else max(attempts, default=0)
        kept = last_words.of_attempt(session, run.id, number)
    resources = run.spec["spec"]["resources"]
    per_node = int(resources.get("ranksPerNode", 1))
    ranks = int(resources["nodes"]) * per_node
    rank = rank if rank is not None else lastwords.first_rank(kept, per_node)
    if not 0 <= rank < ranks:
        hint = f"It has rank{'s 0 to' if ranks > 1 else ''} {ranks - 1}."
        raise Problem(404, "not_found", f"{run.id} has no rank {rank}", hint=hint)
    if attempt is not None and number not in attempts:
        hint = f"It has {', '.join(map(str, attempts)) or 'none yet'}."
        raise Problem(404, "not_found", f"{run.id} has no attempt {number}", hint=hint)
    if number not in attempts:
        return {"attempt": None, "rank": rank, "text": "", "truncated": False, "kept": False, "ended": None}
    limit = max(1, min(limit, 1 << 20))
    word = next((one for one in kept if one.member == rank // per_node), None)
    try:
        body = backend_of(parts.backends, run.backend).read_logs(attempts[number].name, rank // per_node, limit)
    except BackendUnavailable as error:
        if word is None or not word.log:
            raise Problem(503, "backend_unavailable", "The log cannot be read now", str(error)) from error
        body = b""
    old = not body and word is not None and bool(word.log)
    body = word.log[-limit:] if word is not None and old else body
    return {
        "attempt": number,
        "rank": rank,
        "text": body.decode(errors="replace"),
        "truncated": len(body) >= (min(limit, lastwords.BYTES) if old else limit),
        "kept": old,
        "ended": None if word is None else lastwords.shown(word),
    }


@router.post("/runs/{run_id}/stop")
def stop(parts: Parts, caller: Operator, deed: Doing, run_id: str) -> Json:
    """Save, stop and end a run for good."""
    return _ask(parts, deed, run_id, None, lambda joined: runs.stop(joined, run_id, **_by(parts, caller)))


@router.post("/runs/{run_id}/pause")
def pause(parts: Parts, caller: Operator, deed: Doing, run_id: str) -> Json:
    """Save and stop; resume goes on."""
    return _ask(parts, deed, run_id, None, lambda joined: runs.pause(joined, run_id, **_by(parts, caller)))


@router.post("/runs/{run_id}/resume")
def resume(parts: Parts, caller: Operator, deed: Doing, run_id: str) -> Json:
    """Go on with a paused run, or with one that waits for a person."""
    return _ask(parts, deed, run_id, None, lambda joined: runs.resume(joined, run_id, **_by(parts, caller)))


@router.post("/runs/{run_id}/restart")
def restart(parts: Parts, caller: Operator, deed: Doing, run_id: str, body: Restart | None = None) -> Json:
    """End the attempt and begin another from a checkpoint."""
    given = body or Restart()

    def wish(joined: Joined) -> None:
        chosen, without = given.checkpoint_id, tuple(given.exclude_nodes)
        runs.restart(joined, run_id, checkpoint_id=chosen, exclude_nodes=without, **_by(parts, caller))

    return _ask(parts, deed, run_id, given.model_dump(), wish)


def _by(parts: Context, caller: Operator) -> Json:
    return {"actor": caller.actor, "now": parts.clock.now()}


def _ask(parts: Context, deed: Deed, run_id: str, body: Json | None, wish: Callable[[Joined], None]) -> Json:
    def act(session: Session) -> Json:
        wish(Joined(session))
        deed.note(session, "asked", body)
        return {"run": run_id, "asked": deed.path.rsplit("/", 1)[-1]}

    answer = deed.once(body, act)
    parts.wake()
    return answer


@router.post("/runs/{run_id}/checkpoints", status_code=202, openapi_extra={WHO: "the attempt's trainer"})
def announce(request: Request, parts: Parts, caller: Caller, run_id: str, body: Announcement) -> Json:
    """A trainer's word that a checkpoint is complete; the controller verifies it itself."""
    own = (caller.kind, caller.run_id, caller.attempt_no, caller.epoch)
    if own != ("trainer", run_id, body.attempt_no, body.epoch):
        refuse(request, parts, caller, "a trainer may announce checkpoints of its own run, attempt and epoch only")
    try:
        step = runs.announce(
            parts.store,
            run_id,
            attempt_no=body.attempt_no,
            epoch=body.epoch,
            path=body.path,
            run_dir=parts.places.run(run_id),
        )
    except runs.StaleTrainer as error:
        note(request, parts, caller, "refused", {"why": str(error)})
        raise
    parts.wake()
    return {"step": step}


@router.get("/templates")
def list_templates(_parts: Parts, _caller: Viewer) -> Json:
    """The jobs that ship, and presets: jobs for trainers that are not ours, to be filled in."""
    found = [_shown(name, load_preset(name)) for name in presets()]
    return {"templates": [_shown(name, load_template(name)) for name in templates()], "presets": found}


@router.get("/templates/{name}")
def template(_parts: Parts, _caller: Viewer, name: str) -> Json:
    """One job that ships, or one preset, as a mapping and as YAML."""
    try:
        return _shown(name, load_preset(name) if name in presets() else load_template(name))
    except SpecError as error:
        raise not_found("template", name) from error


def _shown(name: str, spec: JobSpec) -> Json:
    return {"name": name, "job": spec.name, "stage": spec.spec.stage, "spec": spec.to_dict(), "yaml": spec.to_yaml()}

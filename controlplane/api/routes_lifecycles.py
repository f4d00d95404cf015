"""/api/v1/lifecycles and their templates: read, submit, and what people ask of a lifecycle and of its stages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from controlplane.api.access import Caller, Operator, Parts, Viewer
from controlplane.api.context import Context
from controlplane.api.deeds import Asked, Deed, Doing
from controlplane.api.problems import Problem, chosen, not_found
from controlplane.services import lifecycles, lifecycles_lineage, lifecycles_rows, views_lifecycles
from controlplane.services import runs as run_service
from controlplane.store import lifecycles as rows
from controlplane.store.base import LIFECYCLE_STATUSES
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from jobs.lifecycle import lifecycle_templates, lifecycle_text, parse_lifecycle
from jobs.spec import JobSpec, SpecError

router = APIRouter(tags=["lifecycles"])
Json = dict[str, Any]
_DIGITS = re.compile("[0-9a-fA-F]{8,64}")
_ALIAS = re.compile("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def _hash(value: str) -> str:
    if not _DIGITS.fullmatch(value):
        raise ValueError(f"must be a checkpoint's hash or its first 8 digits or more, not {value[:80]!r}")
    return value


def _alias(value: str) -> str:
    if not _ALIAS.fullmatch(value):
        how = "must be 1 to 40 lower-case letters, digits or hyphens, without one at either end"
        raise ValueError(f"{how}, not {value[:80]!r}")
    return value


Hash = Annotated[str, AfterValidator(_hash)]


class Plan(BaseModel):
    """A lifecycle as a mapping or as YAML text; one of the two."""

    model_config = ConfigDict(extra="forbid")
    spec: dict[str, Any] | None = None
    yaml: str | None = None

    def source(self) -> dict[str, Any] | str:
        """What was given."""
        if (self.spec is None) == (self.yaml is None):
            raise Problem(422, "bad_request", "Give the lifecycle as spec or as yaml, one of the two")
        return self.spec if self.spec is not None else self.yaml or ""


class Clone(Asked):
    """The stage with which the new one begins, and a changed plan as YAML if it is to have one."""

    begin: str = Field(max_length=40)
    yaml: str | None = None


class Word(Asked):
    """The checkpoint that is meant, by its hash or at least eight digits of it, and why."""

    hash: Hash
    reason: str = Field(default="", max_length=1000)


class Retry(Asked):
    """Its own job from the stage's source, a training with another seed; or only the evaluation. Without either what
    failed or was stopped is done again; where nothing did, it is one of the two."""

    fresh: bool = False
    evaluation: bool = False


class Promotion(Asked):
    """The alias and the checkpoint at which it is to point."""

    alias: Annotated[str, AfterValidator(_alias)]
    hash: Hash


def found(session: Session, named: str) -> Executed:
    """The lifecycle of an id or name; 404 otherwise."""
    known = rows.get(session, named)
    if known is None:
        raise not_found("lifecycle", named)
    return known


def _where(parts: Context) -> Callable[[JobSpec], str]:
    return lambda spec: run_service.on_what(spec, parts.backend, parts.ray).name


@router.get("/lifecycles")
def list_lifecycles(
    parts: Parts,
    _caller: Viewer,
    status: str | None = None,
    waits_for_person: bool | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Json:
    """Lifecycles with progress and cost, newest first, a page at a time: `next` is the cursor of the page after it."""
    limit = max(1, min(limit, 500))
    statuses = chosen("status", status, LIFECYCLE_STATUSES)
    with parts.store.read() as session:
        now = parts.clock.now()
        page = lifecycles_rows.rows(
            session, statuses=statuses, waits=waits_for_person, limit=limit, before=cursor, now=now
        )
    return {"lifecycles": page, "next": page[-1]["id"] if len(page) == limit else None}


@router.post("/lifecycles", status_code=201)
def submit_lifecycle(parts: Parts, caller: Operator, deed: Doing, body: Plan) -> Json:
    """Submit a lifecycle; answers it whole."""
    plan = parse_lifecycle(body.source())

    def act(session: Session) -> Json:
        made = lifecycles.submit(session, plan, source=body.yaml or "", where=_where(parts), **_by(parts, caller))
        deed.note(session, "submitted", {"lifecycle": made.id, "hash": plan.hash()})
        return views_lifecycles.view(session, made, parts.clock.now())

    answer = deed.once(body.model_dump(), act)
    parts.wake()
    return answer


@router.post("/lifecycles/validate")
def validate_lifecycle(parts: Parts, _caller: Viewer, body: Plan) -> Json:
    """What is wrong with a lifecycle, what it would do, and what differs from the last of its name. No change."""
    return views_lifecycles.check(parts.store, body.source(), _where(parts))


@router.get("/lifecycles/{lifecycle}")
def read_lifecycle(parts: Parts, _caller: Viewer, lifecycle: str) -> Json:
    """One lifecycle, whole: stages with gates, progress, cost and runs, aliases, approvals, timeline."""
    with parts.store.read() as session:
        return views_lifecycles.view(session, found(session, lifecycle), parts.clock.now())


@router.get("/lifecycles/{lifecycle}/lineage")
def lineage(parts: Parts, _caller: Viewer, lifecycle: str) -> Json:
    """Where its checkpoints come from: nodes by hash, edges, tainted branches, a line for each stage."""
    with parts.store.read() as session:
        return lifecycles_lineage.graph(session, found(session, lifecycle))


@router.get("/lifecycles/{lifecycle}/diff")
def diff_lifecycle(parts: Parts, _caller: Viewer, lifecycle: str, against: str | None = None) -> Json:
    """What differs from another lifecycle, or from the last one of the same name before it."""
    with parts.store.read() as session:
        other = found(session, against) if against else None
        return views_lifecycles.diff(session, found(session, lifecycle), other)


@router.post("/lifecycles/{lifecycle}/pause")
def pause_lifecycle(parts: Parts, caller: Operator, deed: Doing, lifecycle: str) -> Json:
    """Save and stop what runs, begin nothing; resume goes on."""
    return _ask(parts, deed, None, lambda session: lifecycles.pause(session, lifecycle, **_by(parts, caller)))


@router.post("/lifecycles/{lifecycle}/resume")
def resume_lifecycle(parts: Parts, caller: Operator, deed: Doing, lifecycle: str) -> Json:
    """Go on with a paused lifecycle."""
    return _ask(parts, deed, None, lambda session: lifecycles.resume(session, lifecycle, **_by(parts, caller)))


@router.post("/lifecycles/{lifecycle}/cancel")
def cancel_lifecycle(parts: Parts, caller: Operator, deed: Doing, lifecycle: str) -> Json:
    """Save, stop and end a lifecycle for good."""
    return _ask(parts, deed, None, lambda session: lifecycles.cancel(session, lifecycle, **_by(parts, caller)))


@router.post("/lifecycles/{lifecycle}/clone", status_code=201)
def clone_lifecycle(parts: Parts, caller: Operator, deed: Doing, lifecycle: str, body: Clone) -> Json:
    """A new lifecycle that begins with a stage of this one and inherits the checkpoints before it; answers it whole."""
    plan = parse_lifecycle(body.yaml) if body.yaml is not None else None

    def act(session: Session) -> Json:
        made = lifecycles.clone(
            *(session, lifecycle),
            begin=body.begin,
            plan=plan,
            source=body.yaml or "",
            where=_where(parts),
            **_by(parts, caller),
        )
        deed.note(session, "cloned", {"lifecycle": made.id, "begin": body.begin})
        return views_lifecycles.view(session, made, parts.clock.now())

    answer = deed.once(body.model_dump(), act)
    parts.wake()
    return answer


@router.post("/lifecycles/{lifecycle}/stages/{stage}/approve")
def approve(parts: Parts, caller: Operator, deed: Doing, lifecycle: str, stage: str, body: Word) -> Json:
    """Let a held stage pass with the checkpoint of this hash; against its gate only with a reason."""
    return _say(parts, caller, deed, lifecycle, stage, "approved", body)


@router.post("/lifecycles/{lifecycle}/stages/{stage}/refuse")
def refuse_stage(parts: Parts, caller: Operator, deed: Doing, lifecycle: str, stage: str, body: Word) -> Json:
    """Give up a held stage: it fails, and all that waits for it is cancelled."""
    return _say(parts, caller, deed, lifecycle, stage, "refused", body)


@router.post("/lifecycles/{lifecycle}/stages/{stage}/retry")
def retry(parts: Parts, caller: Operator, deed: Doing, lifecycle: str, stage: str, body: Retry | None = None) -> Json:
    """Have a held stage tried again."""
    given = body or Retry()

    def act(session: Session) -> Executed:
        fresh, evaluation = given.fresh, given.evaluation
        return lifecycles.retry(session, lifecycle, stage, fresh=fresh, evaluation=evaluation, **_by(parts, caller))

    return _ask(parts, deed, given.model_dump(), act)


@router.post("/lifecycles/{lifecycle}/promote")
def promote(parts: Parts, caller: Operator, deed: Doing, lifecycle: str, body: Promotion) -> Json:
    """Point an alias at a verified checkpoint of this lifecycle; answers where it pointed before."""

    def act(session: Session) -> Json:
        told = lifecycles.promote(session, lifecycle, body.alias, body.hash, **_by(parts, caller))
        deed.note(session, "promoted", dict(told))
        return dict(told)

    return deed.once(body.model_dump(), act)


def _by(parts: Context, caller: Caller) -> Json:
    return {"actor": caller.actor, "now": parts.clock.now()}


def _say(parts: Context, caller: Caller, deed: Deed, lifecycle: str, stage: str, verdict: str, body: Word) -> Json:
    def act(session: Session) -> Executed:
        return lifecycles.say(
            *(session, lifecycle, stage),
            verdict=verdict,
            checkpoint_hash=body.hash,
            reason=body.reason,
            **_by(parts, caller),
        )

    return _ask(parts, deed, body.model_dump(), act)


def _ask(parts: Context, deed: Deed, body: Json | None, wish: Callable[[Session], Executed]) -> Json:
    def act(session: Session) -> Json:
        asked = wish(session)
        deed.note(session, "asked", body)
        return {"lifecycle": asked.id, "name": asked.state.name, "asked": deed.path.rsplit("/", 1)[-1]}

    answer = deed.once(body, act)
    parts.wake()
    return answer


@router.get("/lifecycle-templates")
def list_lifecycle_templates(_parts: Parts, _caller: Viewer) -> Json:
    """The lifecycles that ship."""
    return {"templates": [_template(name) for name in lifecycle_templates()]}


@router.get("/lifecycle-templates/{name}")
def lifecycle_template(_parts: Parts, _caller: Viewer, name: str) -> Json:
    """One lifecycle that ships, as a mapping and as the YAML that was written."""
    try:
        return _template(name)
    except SpecError as error:
        raise not_found("lifecycle template", name) from error


def _template(name: str) -> Json:
    text = lifecycle_text(name)
    plan = parse_lifecycle(text)
    return {"name": name, "lifecycle": plan.name, "stages": list(plan.stages), "spec": plan.to_dict(), "yaml": text}

"""/api/v1: nodes, drills, the fleet's and the experts' frames, ingest."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field
from starlette.concurrency import run_in_threadpool

from agents.drills import DRILLS
from agents.wire import CONTENT_TYPE, MAX_BATCH_BYTES, WAITING_HEADER, Batch, WireError, decode
from controlplane.api.access import Operator, Parts, Viewer, identity, refuse
from controlplane.api.context import Context
from controlplane.api.deeds import Asked, Doing
from controlplane.api.described import LAST_STEP, WHO, Step
from controlplane.api.problems import Problem, not_found
from controlplane.services import experts_over_time, nodes, views_experts, views_fleet, views_now, views_platform
from controlplane.store import nodes as node_rows
from controlplane.store import runs as rows
from controlplane.store.engine import Session

router = APIRouter(tags=["fleet"])
Json = dict[str, Any]
FRAME = "application/vnd.trimtab.frame"
FRAMES: dict[int | str, Json] = {
    200: {"description": "The frame", "content": {FRAME: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The caller has it: If-None-Match names its ETag"},
}
INGEST: Json = {
    WHO: "the node's agent",
    "requestBody": {"required": True, "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
}


class Reason(Asked):
    """Why, for the audit and the page."""

    reason: str = Field(default="", max_length=500)


class Return(Reason):
    """Why; with `force` also while a fault that asks for more than an alert fires there."""

    force: bool = False


def _known_drill(kind: str) -> str:
    if kind not in DRILLS:
        raise ValueError(f"must be one of {', '.join(DRILLS)}")
    return kind


class DrillOrder(Asked):
    """A fault to simulate on one GPU (or the NIC of that index)."""

    kind: Annotated[str, AfterValidator(_known_drill), Field(json_schema_extra={"enum": list(DRILLS)})]
    gpu: int = Field(ge=0, le=63)


@router.post("/ingest", openapi_extra=INGEST)
async def ingest(request: Request, parts: Parts) -> Response:
    """One batch of a node's own agent; answered after it is durable."""
    caller = await run_in_threadpool(identity, request, parts)
    body = await _body(request)
    try:
        batch: Batch = await run_in_threadpool(decode, body)
    except WireError as error:
        status = {"oversized": 413, "wrong_version": 426}.get(error.code, 400)
        raise Problem(status, error.code, "The batch cannot be read", error.message) from error
    if caller.kind != "agent" or caller.node != batch.node:
        why = f"this token may write {caller.node or 'no node'}, the batch is {batch.node}'s"
        await run_in_threadpool(refuse, request, parts, caller, why)
    said = request.headers.get(WAITING_HEADER, "")
    behind = int(said[:9]) if said.isascii() and said.isdecimal() else 0
    reply = await asyncio.wrap_future(parts.ingest.submit(batch, parts.clock.now(), behind=behind))
    return Response(reply.to_json(), media_type="application/json")


async def _body(request: Request) -> bytes:
    """The request's body, refused as soon as it is too long, whatever its header says."""
    parts = bytearray()
    async for piece in request.stream():
        parts += piece
        if len(parts) > MAX_BATCH_BYTES:
            raise Problem(413, "oversized", f"A batch has {MAX_BATCH_BYTES} bytes at most")
    return bytes(parts)


@router.get("/now")
def now(parts: Parts, _caller: Viewer) -> Json:
    """What needs a person, and the state of everything in a few numbers."""
    with parts.store.read() as session:
        return views_now.now_view(session, parts.live, parts.book, parts.clock.now())


@router.get("/nodes")
def list_nodes(parts: Parts, _caller: Viewer) -> Json:
    """Every node with its GPUs, as last heard."""
    with parts.store.read() as session:
        return {"nodes": views_fleet.node_rows(session, parts.live, now=parts.clock.now())}


@router.get("/nodes/{node}")
def read_node(parts: Parts, _caller: Viewer, node: str) -> Json:
    """One node with its GPUs, NICs, findings and timeline."""
    with parts.store.read() as session:
        found = views_fleet.node_view(session, parts.live, node, now=parts.clock.now())
    if found is None:
        raise not_found("node", node)
    return found


@router.get("/nodes/{node}/platform")
def platform(parts: Parts, _caller: Viewer, node: str) -> Json:
    """What the platform says of a node now: ready, conditions, whose its cordon is, its kubelet's lease."""
    with parts.store.read() as session:
        row = node_rows.get(session, node)
    if row is None:
        raise not_found("node", node)
    return views_platform.platform(parts.backends, row)


@router.get("/nodes/{node}/series")
def series(
    parts: Parts,
    _caller: Viewer,
    node: str,
    metric: str,
    entity: int = 0,
    since: float | None = None,
    until: float | None = None,
    points: int = 300,
) -> Json:
    """One measure of one device over time, thinned to `points`; the last hour unless times are given."""
    end = until if until is not None else parts.clock.now()
    begin = since if since is not None else end - 3600
    with parts.store.read() as session:
        return views_fleet.series(session, node, metric, entity, since_s=begin, until_s=end, points=points)


@router.post("/nodes/{node}/cordon")
def cordon(parts: Parts, caller: Operator, deed: Doing, node: str, body: Reason | None = None) -> Json:
    """Keep new ranks off a node; what runs there goes on."""
    reason = (body or Reason()).reason.strip()

    def act(session: Session) -> Json:
        nodes.cordon(session, node, actor=caller.actor, reason=reason, now=parts.clock.now())
        deed.note(session, "done", {"reason": reason})
        return {"node": node, "cordoned": True}

    return _changed(parts, deed.once(reason, act))


@router.post("/nodes/{node}/drain")
def drain(parts: Parts, caller: Operator, deed: Doing, node: str, body: Reason | None = None) -> Json:
    """Take a node out of service; what runs on it saves, stops and goes on without it."""
    reason = (body or Reason()).reason.strip()

    def act(session: Session) -> Json:
        asked = nodes.drain(session, node, actor=caller.actor, reason=reason, now=parts.clock.now())
        rows = [{"run": one.run_id, "name": one.name, "asked": not one.why, "why": one.why} for one in asked]
        deed.note(session, "done", {"reason": reason, "runs": rows})
        return {"node": node, "cordoned": True, "runs": rows}

    return _changed(parts, deed.once(reason, act))


@router.post("/nodes/{node}/uncordon")
def uncordon(parts: Parts, caller: Operator, deed: Doing, node: str, body: Return | None = None) -> Json:
    """Return a node to service; refused while a fault fires there that asks for more than an alert, unless forced."""
    given = body or Return()
    reason, force = given.reason.strip(), given.force

    def act(session: Session) -> Json:
        now = parts.clock.now()
        firing = nodes.give_back(session, node, actor=caller.actor, reason=reason, now=now, force=force)
        deed.note(session, "done", {"reason": reason, "force": force, "firing": firing})
        return {"node": node, "cordoned": False, "firing": firing}

    return _changed(parts, deed.once(given.model_dump(), act))


def _changed(parts: Context, answer: Json) -> Json:
    parts.live.forget_statuses()
    parts.wake()
    return answer


@router.post("/nodes/{node}/drills", status_code=202)
def order_drill(parts: Parts, caller: Operator, deed: Doing, node: str, body: DrillOrder) -> Json:
    """Have a simulated device report a fault with its next sample; real nodes are refused."""

    def act(session: Session) -> Json:
        now = parts.clock.now()
        made = nodes.drill(session, node, kind=body.kind, gpu=body.gpu, actor=caller.actor, now=now)
        deed.note(session, "ordered", body.model_dump())
        return {"id": made.id, "node": node, "kind": body.kind, "gpu": body.gpu, "at_s": now}

    return deed.once(body.model_dump(), act)


# --- frames ---


def framed(request: Request, found: tuple[str, bytes] | None, what: str) -> Response:
    """A frame with its ETag; 304 when the caller has it."""
    if found is None:
        raise Problem(404, "no_data", f"There is no {what} yet")
    tag, frame = f'"{found[0]}"', found[1]
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(frame, media_type=FRAME, headers=headers)


@router.get("/fleet/frame", response_class=Response, responses=FRAMES)
def fleet_frame(request: Request, parts: Parts, _caller: Viewer) -> Response:
    """Every GPU's state as a binary frame, with an ETag."""
    return framed(request, parts.live.fleet_frame(), "fleet")


@router.get("/runs/{run_id}/experts/frame", response_class=Response, responses=FRAMES)
def experts_frame(request: Request, parts: Parts, _caller: Viewer, run_id: str, step: Step = None) -> Response:
    """A step's load by layer and expert as a binary frame, the newest unless a step is named, with an ETag."""
    run, live = _known(parts, run_id), parts.live
    found = live.experts_frame(run) if step is None else None
    if found is None:
        with parts.store.read() as session:
            if step is None:
                found = views_experts.newest_frame(session, live, run, now=parts.clock.now(), book=parts.book)
            else:
                found = views_experts.frame_at(session, live, run, step, parts.book)
    return framed(request, found, f"expert record of {run_id}")


@router.get("/runs/{run_id}/experts/raster", response_class=Response, responses=FRAMES)
def raster(
    request: Request,
    parts: Parts,
    _caller: Viewer,
    run_id: str,
    layer: int = 0,
    columns: int = 256,
    first: Annotated[int | None, Query(alias="from", ge=0, le=LAST_STEP)] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, le=LAST_STEP)] = None,
    steps: Annotated[int | None, Query(ge=1, le=LAST_STEP)] = None,
) -> Response:
    """One layer's load by expert over steps (from, to, or the last so many) as a binary frame, with an ETag."""
    with parts.store.read() as session:
        found = views_experts.raster_frame(
            session,
            _known(parts, run_id),
            layer,
            first=first,
            last=last,
            steps=steps,
            columns=columns,
            book=parts.book,
        )
    return framed(request, found, f"record of layer {layer} of {run_id}")


@router.get("/runs/{run_id}/experts/layers", response_class=Response, responses=FRAMES)
def layers_over_time(
    request: Request,
    parts: Parts,
    _caller: Viewer,
    run_id: str,
    columns: int = 256,
    first: Annotated[int | None, Query(alias="from", ge=0, le=LAST_STEP)] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, le=LAST_STEP)] = None,
    steps: Annotated[int | None, Query(ge=1, le=LAST_STEP)] = None,
) -> Response:
    """Every layer's distance from its sampling floor and skip share over steps as a binary frame, with an ETag."""
    run = _known(parts, run_id)
    with parts.store.read() as session:
        found = experts_over_time.over_time_frame(
            session, parts.live, run, first=first, last=last, steps=steps, columns=columns, book=parts.book
        )
    return framed(request, found, f"expert record of {run_id}")


@router.get("/runs/{run_id}/experts/swings", response_class=Response, responses=FRAMES)
def swings(request: Request, parts: Parts, _caller: Viewer, run_id: str, step: Step = None) -> Response:
    """How each layer's loads repeat over 64 steps, by lag, as a binary frame, with an ETag."""
    with parts.store.read() as session:
        found = experts_over_time.swings_frame(session, parts.live, _known(parts, run_id), step, parts.book)
    return framed(request, found, f"expert record of {run_id}")


@router.get("/runs/{run_id}/experts/summary")
def summary(parts: Parts, _caller: Viewer, run_id: str, step: Step = None) -> Json:
    """A run's expert balance in words and numbers, of its newest step unless one is named: sentence, tiles, layers."""
    with parts.store.read() as session:
        run = rows.get(session, run_id)
        if run is None:
            raise not_found("run", run_id)
        found = views_experts.summary(session, parts.live, run.id, now=parts.clock.now(), step=step, book=parts.book)
    if found is None:
        which = "expert record yet" if step is None else f"record of step {step}"
        raise Problem(404, "no_data", f"{run_id} has no {which}")
    return found


def _known(parts: Context, run_id: str) -> str:
    """The id of a run that is named by id or by name."""
    if parts.live.run(run_id) is not None:
        return run_id
    with parts.store.read() as session:
        run = rows.get(session, run_id)
    if run is None:
        raise not_found("run", run_id)
    return run.id

"""The HTTP application: routers under /api/v1, health outside of it, problem documents and request ids everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane import metrics
from controlplane.api import (
    described,
    problems,
    routes_experts,
    routes_fleet,
    routes_kubeflow,
    routes_lifecycles,
    routes_people,
    routes_runs,
)
from controlplane.api.access import Viewer
from controlplane.api.context import Context, RoundsSeen
from controlplane.ids import uuid7
from controlplane.metrics import ServerState
from controlplane.store import incidents, lifecycles, nodes, runs
from controlplane.store.engine import StoreUnavailable

PREFIX = "/api/v1"
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/api/v1/session/open"})
"""What a caller without a token may reach; a test compares this with the built application."""
STALE_LOOP_S = 60.0
MODULES = (routes_runs, routes_lifecycles, routes_kubeflow, routes_experts, routes_fleet, routes_people)


def routed() -> FastAPI:
    """The application without a server behind it: routes, refusals and the document that describes them."""
    # its own routes for the document and its pages ask for no token
    app = FastAPI(title="Trimtab", version="0.1.0", docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)
    for module in MODULES:
        app.include_router(module.router, prefix=PREFIX)

    @app.get(f"{PREFIX}/openapi.json", tags=["people"])
    def document(_caller: Viewer) -> dict[str, Any]:
        """This API, as OpenAPI."""
        return app.openapi()

    routes = [(PREFIX, module.router.routes) for module in MODULES]
    # replacing the method is the way that FastAPI itself offers
    app.openapi = lambda: described.document(app, [*routes, ("", app.routes)], OPEN)  # type: ignore[method-assign]
    return app


class Marked:
    """Every request's id, and the headers of every answer.

    Not one of Starlette's function middlewares: those end a streamed answer as if it were whole when its making fails.
    """

    def __init__(self, app: ASGIApp, now: Callable[[], float]) -> None:
        self._app, self._now = app, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = uuid7(self._now())
        scope.setdefault("state", {})["request_id"] = request_id

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        return await self._app(scope, receive, marked)


class Legible:
    """Refuses an address with a NUL before anybody reads it, whatever the route and the database."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            where = "path" if "\0" in scope["path"] else "query" if b"%00" in scope["query_string"] else ""
            if where:
                return await problems.not_text(where).response()(scope, receive, send)
        return await self._app(scope, receive, send)


def create_app(context: Context) -> FastAPI:
    """The application over one server's parts."""
    app = routed()
    app.state.context = context
    app.state.identities = {}
    _health(app, context)

    app.add_middleware(Legible)
    app.add_middleware(Marked, now=context.clock.now)
    return app


def _health(app: FastAPI, context: Context) -> None:
    @app.get("/healthz", include_in_schema=False)
    def healthz() -> dict[str, str]:
        """The process answers. It never looks at the database: a lost database must restart nobody."""
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> JSONResponse:
        """Whether the store answers with the right schema, batches are written and, on the leader, loops are fresh."""
        lacking = _not_ready(context)
        return JSONResponse({"ready": not lacking, "lacking": lacking}, 200 if not lacking else 503)

    @app.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        return Response(
            metrics.exposition(lambda: server_state(context)), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _not_ready(context: Context) -> list[str]:
    lacking = []
    try:
        context.store.check()
    except Exception as error:  # whatever is wrong with the store is the answer, not a failure of asking
        lacking.append(f"store: {error}")
    if trouble := context.ingest.trouble():
        lacking.append(f"ingest: {trouble}")
    if context.leadership.epoch is not None:
        lacking += _stale_loops(context)
    return lacking


def _stale_loops(context: Context) -> list[str]:
    """The loops without a good round for too long, counted from their beginning while there was none."""
    now, found = context.clock.monotonic(), []
    for name, loop in context.loops.items():
        finished, started = loop.state.finished_s, loop.state.started_s
        since = finished if finished is not None else started
        if since is not None and now - since > STALE_LOOP_S + loop.interval_s:
            words = (
                f"last good round {now - since:.0f} s ago"
                if finished is not None
                else f"no good round in {now - since:.0f} s"
            )
            found.append(f"loop {name}: {words}")
    return found


def server_state(context: Context) -> ServerState:
    """What /metrics shows; what the store cannot tell right now is left out."""
    counters = context.ingest.counters
    now = context.clock.monotonic()
    state: dict[str, dict[str, int]] = {"runs": {}, "incidents": {}, "nodes": {}, "stages": {}}
    try:
        with context.store.read() as session:
            state["runs"] = runs.counted(session)
            state["stages"] = lifecycles.stages_counted(session)
            for incident in incidents.unclosed(session):
                state["incidents"][incident.state] = state["incidents"].get(incident.state, 0) + 1
            for node in nodes.listed(session):
                state["nodes"][node.state] = state["nodes"].get(node.state, 0) + 1
    except StoreUnavailable:
        state = {"runs": {}, "incidents": {}, "nodes": {}, "stages": {}}
    return ServerState(
        leader=context.leadership.epoch is not None,
        counters={
            "batches": counters.batches,
            "replayed_batches": counters.replays,
            "refused_batches": counters.refused_batches,
            "samples": counters.samples,
            "transactions": counters.transactions,
            "failed_transactions": counters.failed_transactions,
            "expert_steps": counters.expert_steps,
        },
        refused_records=dict(counters.refused_records),
        runs=state["runs"],
        incidents=state["incidents"],
        nodes=state["nodes"],
        stages=state["stages"],
        loops={name: _loop(loop.state, now) for name, loop in context.loops.items()},
    )


def _loop(state: RoundsSeen, now: float) -> tuple[int, int, float | None, float | None]:
    age = None if state.finished_s is None else now - state.finished_s
    return state.runs, state.failures, age, state.seconds

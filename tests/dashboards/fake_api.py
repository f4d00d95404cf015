"""A small server that speaks the API's JSON and binary frames for the live pages, with invented data: a test double.

`python tests/dashboards/fake_api.py --port 8400` serves it for looking at pages; tests run it in a thread.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import uvicorn
from fake_experts import summary_view, table_view
from fake_fleet import Fleet
from fake_training import Training
from fastapi import FastAPI, Request
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import JSONResponse, Response

TOKENS = {
    "tt_login_viewer": {"actor": "v.reader", "role": "viewer", "kind": "login"},
    "tt_login_operator": {"actor": "o.perator", "role": "operator", "kind": "login"},
    "tt_agent_node": {"actor": "sim-node-00", "role": "", "kind": "agent"},
}
CODE = "one-time-code-0001"


@dataclass
class World:
    """What the double answers from; a test changes it."""

    training: Training = field(default_factory=Training)
    fleet: Fleet = field(default_factory=Fleet)
    runs: list[dict[str, Any]] = field(default_factory=list)
    older: list[dict[str, Any]] = field(default_factory=list)
    now: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    broken: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    posts: list[tuple[str, str, Any]] = field(default_factory=list)
    codes: set[str] = field(default_factory=lambda: {CODE})
    revoked: set[str] = field(default_factory=set)
    platform: dict[str, Any] = field(default_factory=lambda: {"platforms": [], "problems": []})
    others: list[Training] = field(default_factory=list)
    url: str = ""

    def trained(self, run: str) -> Training | None:
        """What a run trained, of the one that the tests look at or of another."""
        return next((one for one in (self.training, *self.others) if one.run == run), None)


def problem(status: int, code: str, title: str) -> JSONResponse:
    return JSONResponse({"type": "about:blank", "title": title, "status": status, "code": code, "detail": ""}, status)


def build(world: World) -> FastAPI:
    """The app over one world."""
    app = FastAPI()
    _add_session(app, world)
    _add_frames(app, world)
    _add_experts(app, world)
    _add_views(app, world)
    return app


def _add_session(app: FastAPI, world: World) -> None:
    @app.middleware("http")
    async def authorise(request: Request, call_next: RequestResponseEndpoint) -> Response:
        path = request.url.path.removeprefix("/api/v1")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        world.calls.append((request.method, path, token))
        if path != "/session/open" and (token not in TOKENS or token in world.revoked):
            return problem(401, "unauthenticated", "Sign in first.")
        if path in world.broken:
            return problem(world.broken[path], "broken", "It does not work today.")
        return await call_next(request)

    @app.get("/api/v1/session")
    async def session(request: Request) -> Any:
        return TOKENS[request.headers["authorization"].removeprefix("Bearer ")]

    @app.delete("/api/v1/session")
    async def end(request: Request) -> Any:
        world.revoked.add(request.headers["authorization"].removeprefix("Bearer "))
        return {}

    @app.post("/api/v1/session/open")
    async def open_link(body: dict[str, str]) -> Any:
        if body.get("code") not in world.codes:
            return problem(401, "link_used", "This link has been used.")
        world.codes.discard(body["code"])
        return {"token": "tt_login_operator", "role": "operator", "expires_s": time.time() + 3600}


def _framed(found: tuple[str, bytes], request: Request) -> Response:
    etag, body = found
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, media_type="application/octet-stream", headers={"ETag": etag})


def _add_frames(app: FastAPI, world: World) -> None:
    @app.get("/api/v1/fleet/frame")
    async def fleet_frame(request: Request) -> Response:
        return _framed(world.fleet.frame(), request)

    @app.get("/api/v1/runs/{run}/experts/frame")
    async def experts_frame(run: str, request: Request, step: int | None = None) -> Response:
        found = world.trained(run)
        return _framed(found.frame(step), request) if found else no_run()

    @app.get("/api/v1/runs/{run}/experts/swings")
    async def swings(run: str, request: Request, step: int | None = None) -> Response:
        found = world.trained(run)
        return _framed(found.swings(step), request) if found else no_run()

    @app.get("/api/v1/runs/{run}/experts/layers")
    async def layers(run: str, request: Request, columns: int = 256, steps: int | None = None) -> Response:
        found = world.trained(run)
        return _framed(found.layers_over_time(columns, steps), request) if found else no_run()

    @app.get("/api/v1/runs/{run}/experts/raster")
    async def raster(
        run: str, request: Request, layer: int = 0, columns: int = 256, to: int | None = None, steps: int = 1200
    ) -> Response:
        found = world.trained(run)
        if found is None or layer >= found.layers:
            return problem(404, "not_found", "There is no such layer.")
        return _framed(found.raster(layer, columns, to, steps), request)

    @app.get("/api/v1/runs/{run}/experts/export")
    async def export(run: str, request: Request) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{run}.csv"'}
        return Response(f"query\n{request.url.query}\n", media_type="text/csv", headers=headers)


def no_run() -> JSONResponse:
    return problem(404, "not_found", "There is no such run.")


def _add_experts(app: FastAPI, world: World) -> None:
    @app.get("/api/v1/runs/{run}/experts/summary")
    async def summary(run: str, step: int | None = None) -> Any:
        found = world.trained(run)
        if found is None:
            return no_run()
        told = world.summary if world.summary is not None and found is world.training else summary_view(found)
        return told if step is None else {**told, "step": step}

    @app.get("/api/v1/runs/{run}/experts/table")
    async def table(run: str, step: int | None = None) -> Any:
        found = world.trained(run)
        return no_run() if found is None else table_view(found, step)


def _add_views(app: FastAPI, world: World) -> None:
    @app.get("/api/v1/now")
    async def now() -> Any:
        return world.now if world.now is not None else now_view(world)

    @app.get("/api/v1/runs")
    async def runs() -> Any:
        return {"runs": world.runs, "next": None}

    @app.get("/api/v1/runs/{run}")
    async def one_run(run: str) -> Any:
        found = [row for row in (*world.runs, *world.older) if run in (row["id"], row["name"])]
        return found[0] if found else problem(404, "not_found", "There is no such run.")

    @app.get("/api/v1/nodes")
    async def nodes() -> Any:
        return {"nodes": world.fleet.rows()}

    @app.get("/api/v1/nodes/{name}")
    async def node(name: str) -> Any:
        return world.fleet.view(name) or problem(404, "not_found", "There is no such node.")

    @app.get("/api/v1/nodes/{name}/platform")
    async def platform(name: str) -> Any:
        return {"node": name, **world.platform}

    @app.post("/api/v1/nodes/{name}/{verb}")
    async def act(name: str, verb: str, body: dict[str, Any], request: Request) -> Any:
        world.posts.append((f"nodes/{name}/{verb}", request.headers.get("idempotency-key", ""), body))
        findings = (world.fleet.view(name) or {}).get("findings")
        if verb == "uncordon" and findings and not (body.get("force") and body.get("reason")):
            return problem(409, "node_still_fires", "A finding still fires on it.")
        if verb == "cordon":
            world.fleet.cordoned.add(name)
        elif verb == "uncordon":
            world.fleet.cordoned.discard(name)
        return {}

    @app.post("/api/v1/incidents/{number}/ack")
    async def ack(number: int, body: dict[str, Any], request: Request) -> Any:
        world.posts.append((f"incidents/{number}/ack", request.headers.get("idempotency-key", ""), body))
        return {}


def run_row(run: str = "run-01", name: str = "zaya1-8b-pt2", **changes: Any) -> dict[str, Any]:
    """A RunRow that trains."""
    row: dict[str, Any] = {
        "id": run,
        "name": name,
        "stage": "pretrain",
        "status": "active",
        "desired": "run",
        "attempt": 2,
        "nodes": ["sim-node-00"],
        "gpus": 896,
        "step": 36_957,
        "steps": 238_419,
        "progress": 0.155,
        "eta": {"low_s": 52_000.0, "high_s": 61_600.0},
        "tokens_per_s": 23_654_400.0,
        "loss": 2.031,
        "created_s": time.time() - 86_400,
        "created_by": "m.okafor",
        "reason": "",
        "backend": "local",
        "simulated": True,
    }
    return {**row, **changes}


def incident_row(number: int = 412, **changes: Any) -> dict[str, Any]:
    """An open IncidentRow."""
    row: dict[str, Any] = {
        "number": number,
        "label": f"INC-{number:04d}",
        "rule": "hbm_uncorrectable",
        "severity": "critical",
        "state": "open",
        "title": "sim-node-017 GPU 3, uncorrectable ECC",
        "node": "sim-node-017",
        "gpu": 3,
        "entity": "sim-node-017/gpu3",
        "run": "run-01",
        "opened_s": time.time() - 7920,
        "age_s": 7920.0,
        "owner": None,
        "acked_s": None,
        "resolved_s": None,
        "reopened": 0,
        "action": "drain",
    }
    return {**row, **changes}


def now_view(world: World) -> dict[str, Any]:
    """A Now view with two needs."""
    fleet = world.fleet
    count = fleet.nodes * fleet.gpus
    names = ["training", "idle", "warning", "fault", "drained", "nodata"]
    counts = {name: int((fleet.state() == index).sum()) for index, name in enumerate(names)}
    dead = incident_row(415, title="L31: 2 dead experts", severity="warning", owner="m.okafor", age_s=2100.0)
    return {
        "sentence": {
            "lead": "Two things need a person.",
            "rest": "1,006 of 1,024 GPUs are healthy; one job trains on schedule.",
        },
        "needs": needs(),
        "tiles": now_tiles(counts["training"] + counts["idle"], count),
        "running": world.runs,
        "incidents": [incident_row(), dead],
        "fleet": {"nodes": fleet.nodes, "gpus": count, "counts": counts},
        "age_s": 0.8,
        "simulated": fleet.simulated,
        "incidents_cleared": 7,
        "lost": lost(time.time()),
        "lost_of": {"gpu_h": 24.0 * count, "gpus": count},
    }


def needs() -> list[dict[str, Any]]:
    """An incident nobody has, and a layer somebody looks at."""
    return [
        {
            "level": "fault",
            "lead": "Return or replace sim-node-017.",
            "rest": "GPU 3 has 1,893 uncorrectable memory errors; its job moved.",
            "since_s": 7920.0,
            "owner": None,
            "incident": 412,
            "link": {"kind": "incident", "id": 412},
            "actions": [{"verb": "open", "label": "Open INC-0412"}, {"verb": "ack", "label": "Take it"}],
        },
        {
            "level": "warn",
            "lead": "Decide on layer 31 of zaya1-8b-pt2.",
            "rest": "Experts 3 and 11 have had no tokens for 35 min.",
            "since_s": 2100.0,
            "owner": "m.okafor",
            "incident": 415,
            "link": {"kind": "layer", "id": "run-01/31"},
            "actions": [{"verb": "open", "label": "Open layer 31"}],
        },
    ]


def now_tiles(healthy: int, count: int) -> list[dict[str, str]]:
    """The four big tiles."""
    rows = (
        ("healthy GPUs", f"{healthy:,}", f"of {count:,}", "1 warn, 1 fault, 7 drained with it, 8 silent"),
        ("goodput, 24 h", "94.1", "%", "lost: 3.2 % restarts, 1.6 % waiting"),
        ("worst imbalance", "8.2×", "floor", "layer 31 of zaya1-8b-pt2"),
        ("recovery, last 10 faults", "3 m 04 s", "median", "9 without a person"),
    )
    names = ("label", "value", "unit", "context")
    return [{**dict(zip(names, row, strict=True)), "level": "ok"} for row in rows]


RESTARTS = {33: 398, 90: 412}


def lost(end_s: float) -> list[dict[str, Any]]:
    """A day of small losses with two restarts."""
    hours = {"out of service": lambda slot: 2.0, "queue, drain, checkpoint": lambda slot: 4.0 if slot % 7 else 9.0}
    hours["start, load, steps run twice"] = lambda slot: 60.0 if slot in RESTARTS else 1.0
    return [
        {"from_s": begin, "to_s": begin + 900, "cause": cause, "gpu_h": of(slot), "incident": RESTARTS.get(slot)}
        for slot in range(96)
        for begin in (end_s - 86_400 + 900 * slot,)
        for cause, of in hours.items()
    ]


@contextmanager
def serving(world: World, port: int = 0) -> Iterator[World]:
    """The double on a loopback port, in a thread of this process."""
    config = uvicorn.Config(build(world), host="127.0.0.1", port=port, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    world.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    thread = Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    try:
        yield world
    finally:
        server.should_exit = True
        thread.join(10)
        for each in sockets:
            each.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    world = World(
        Training(layers=options.layers, experts=options.experts, expert_parallel=options.ranks),
        Fleet(options.nodes),
        [run_row(), run_row("run-02", "zaya1-8b-pt1")],
    )
    world.others = [Training(run="run-02", layers=options.layers, experts=options.experts, first_step=36_000)]
    uvicorn.run(build(world), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()

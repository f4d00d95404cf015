"""Every refusal as a problem document (RFC 9457) with a stable code and, where there is one, a hint on what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from controlplane.services.admission import BatchRefused
from controlplane.services.deliveries import ChannelRefused
from controlplane.services.incidents import IncidentNotFound, IncidentRefused
from controlplane.services.ingest import IngestBusy
from controlplane.services.lifecycles import LifecycleNotFound, LifecycleRefused
from controlplane.services.nodes import NodeNotFound, NodeStillFires, NoSuchGpu, NotSimulated
from controlplane.services.runs import RunNotFound, RunRefused, StaleTrainer
from controlplane.services.views_fleet import UnknownSeries
from controlplane.store.engine import StoreConflict, StoreRejected, StoreUnavailable, UnknownCursor
from jobs.spec import SpecError

_log = structlog.get_logger()
TYPE = "application/problem+json"


class Problem(Exception):
    """A refusal that a handler has words for."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str = "",
        hint: str = "",
        problems: Sequence[dict[str, str]] = (),
    ) -> None:
        super().__init__(title)
        self.status, self.body = (
            status,
            {
                "type": "about:blank",
                "title": title,
                "status": status,
                "code": code,
                "detail": detail,
                "hint": hint,
                "problems": list(problems),
            },
        )

    def response(self) -> Response:
        """The document as it is sent."""
        headers = {"Retry-After": "2"} if self.status in (429, 503) else {}
        # in ASCII: what is refused may hold halves of characters, and is quoted
        return Response(json.dumps(self.body), self.status, headers=headers, media_type=TYPE)


def not_found(what: str, name: object) -> Problem:
    """There is no such thing."""
    return Problem(404, "not_found", f"There is no {what} {name}")


def not_text(name: str) -> Problem:
    """A part of the address holds a NUL: no name does, and PostgreSQL cannot even be asked for it."""
    rows = [{"path": name, "message": "holds a NUL, which no name has"}]
    return Problem(422, "bad_request", "The request cannot be read", problems=rows)


def chosen(name: str, given: str | None, known: Sequence[str]) -> list[str] | None:
    """The words of a comma-separated filter, each a known one; None when nothing was given."""
    if not given:
        return None
    words = given.split(",")
    unknown = [word for word in words if word not in known]
    if unknown:
        message = f"must be of {', '.join(known)}, not {', '.join(unknown)}"
        row = {"path": name, "message": message}
        raise Problem(422, "bad_request", "The request cannot be read", problems=[row])
    return words


def _of_spec(error: SpecError) -> Problem:
    rows = [{"path": one.path, "message": one.message} for one in error.problems]
    title = "It cannot be accepted as it is"
    return Problem(422, "bad_spec", title, str(error), "Mend each of the listed fields.", rows)


def _of_validation(error: RequestValidationError) -> Problem:
    rows = [
        {"path": ".".join(map(str, one["loc"][1:])), "message": str(one["msg"]).removeprefix("Value error, ")}
        for one in error.errors()
    ]
    return Problem(422, "bad_request", "The request cannot be read", problems=rows)


def _of_firing(error: NodeStillFires) -> Problem:
    hint = (
        "Mend it and let it clear. To return the node all the same, say why: force with a reason "
        f"(trimtab node return {error.node} --force --reason …)."
    )
    return Problem(409, "node_still_fires", str(error), "; ".join(error.sentences), hint)


# each error of a service, with what becomes of it
_KNOWN: dict[type[Exception], Callable[[Any], Problem]] = {
    SpecError: _of_spec,
    RequestValidationError: _of_validation,
    RunNotFound: lambda e: Problem(404, "not_found", str(e)),
    RunRefused: lambda e: Problem(409, "not_now", str(e)),
    LifecycleNotFound: lambda e: Problem(404, "not_found", str(e)),
    LifecycleRefused: lambda e: Problem(409, "not_now", str(e)),
    StaleTrainer: lambda e: Problem(403, "stale_epoch", "This attempt may no longer write", str(e)),
    IncidentNotFound: lambda e: Problem(404, "not_found", str(e)),
    IncidentRefused: lambda e: Problem(409, "not_now", str(e)),
    NodeNotFound: lambda e: Problem(404, "not_found", str(e)),
    NodeStillFires: _of_firing,
    NotSimulated: lambda e: Problem(409, "not_simulated", "A fault is never made on real hardware", str(e)),
    NoSuchGpu: lambda e: Problem(422, "bad_request", str(e)),
    ChannelRefused: lambda e: Problem(
        422, "bad_channel", "The channel cannot be set like this", problems=[{"path": e.path, "message": e.message}]
    ),
    UnknownSeries: lambda e: Problem(404, "not_found", str(e).strip("'\"")),
    BatchRefused: lambda e: Problem(400, e.code, "The batch cannot be taken", str(e), "It must not be sent again."),
    IngestBusy: lambda e: Problem(503, "busy", "More batches wait than can be written", str(e), "Send it again later."),
    UnknownCursor: lambda e: Problem(
        422, "bad_request", "The request cannot be read", problems=[{"path": "cursor", "message": str(e)}]
    ),
    StoreRejected: lambda e: Problem(422, "bad_value", "The database cannot hold a value of the request", str(e)),
    StoreConflict: lambda e: Problem(409, "conflict", "It contradicts what the database has", str(e)),
    StoreUnavailable: lambda e: Problem(
        503, "store_unavailable", "The database does not answer", str(e), "Nothing was lost: try again."
    ),
}


def install(app: FastAPI) -> None:
    """Answers every error of `app` with a problem document."""

    async def known(request: Request, error: Exception) -> Response:
        if isinstance(error, StoreRejected | StoreConflict):  # a check that comes before the database lets it through
            _log.warning("the database refused a request", path=request.url.path, error=str(error))
        make = next(make for kind, make in _KNOWN.items() if isinstance(error, kind))
        return make(error).response()

    async def own(_request: Request, error: Exception) -> Response:
        return error.response() if isinstance(error, Problem) else await unexpected(_request, error)

    async def http(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return await unexpected(_request, error)
        codes = {404: "not_found", 405: "method_not_allowed"}
        return Problem(error.status_code, codes.get(error.status_code, "refused"), str(error.detail)).response()

    async def unexpected(request: Request, error: Exception) -> Response:
        _log.exception("a request failed", path=request.url.path, error=str(error))
        hint = "Try again; if it stays, look into the server's log for the request id."
        return Problem(500, "internal", "The server failed at this", hint=hint).response()

    for kind in _KNOWN:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(Problem, own)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)

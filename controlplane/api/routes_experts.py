"""/api/v1/runs/{run}/experts: one step as a table, and records as a file. Frames are routes_fleet's."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from controlplane.api.access import Parts, Viewer
from controlplane.api.context import Context
from controlplane.api.described import LAST_STEP, Step
from controlplane.api.problems import Problem, not_found
from controlplane.services import experts_export, experts_table
from controlplane.services.experts_export import Asked, ExportRefused, ParquetMissing
from controlplane.store import runs as rows
from controlplane.store.expert_stretches import nearest_kept

router = APIRouter(tags=["runs"])
Json = dict[str, Any]
LAYERS = 4096
BYTES: Json = {"schema": {"type": "string", "format": "binary"}}
FILES: dict[int | str, Json] = {
    200: {"description": "The file", "content": dict.fromkeys(experts_export.FORMATS.values(), BYTES)}
}


def known(parts: Context, run_id: str) -> str:
    """The id of a run that is named by id or by name."""
    with parts.store.read() as session:
        run = rows.get(session, run_id)
    if run is None:
        raise not_found("run", run_id)
    return run.id


def no_step(parts: Context, run_id: str, step: int | None) -> Problem:
    """Why there is no record of a step, or of the run: one that was thinned says which one is nearest."""
    if step is not None:
        with parts.store.read() as session:
            near = nearest_kept(session, run_id, step)
        if near is not None:
            detail = f"Its counts and biases were thinned with age; the nearest step that has them is {near}."
            return Problem(404, "thinned", f"Of step {step} of {run_id} only statistics are left", detail)
    which = f"record of step {step}" if step is not None else "expert record"
    return Problem(404, "no_data", f"There is no {which} of {run_id}{'' if step is not None else ' yet'}")


@router.get("/runs/{run_id}/experts/table")
def table(parts: Parts, _caller: Viewer, run_id: str, step: Step = None, layer: int | None = None) -> Json:
    """A step's balance in words and a row a layer, the newest unless a step is named; of a layer a row a slot."""
    run = known(parts, run_id)
    with parts.store.read() as session:
        found = experts_table.table(
            session, parts.live, run, step=step, layer=layer, now=parts.clock.now(), book=parts.book
        )
    if found is None:
        raise no_step(parts, run, step)
    if layer is not None and found["by_slot"] is None:
        hint = f"It has layers 0 to {found['layers'] - 1}."
        raise Problem(404, "not_found", f"{run} has no layer {layer}", hint=hint)
    return found


@router.get("/runs/{run_id}/experts/export", response_class=StreamingResponse, responses=FILES)
def export(
    parts: Parts,
    _caller: Viewer,
    run_id: str,
    form: Annotated[Literal["csv", "parquet", "npz"], Query(alias="format")] = "csv",
    what: Literal["loads", "layers"] = "loads",
    layers: str | None = None,
    first: Annotated[int | None, Query(alias="from", ge=0, le=LAST_STEP)] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, le=LAST_STEP)] = None,
) -> StreamingResponse:
    """Expert records as a file, sent as it is made: loads (a row a step, layer and slot) or layers (statistics).

    `layers` as in 0-5,9; `from` and `to` are steps. npz has matrices in place of rows. Steps that were thinned with age
    are in `layers` only.
    """
    asked = Asked(known(parts, run_id), form, what, _numbers(layers), first, last)
    try:
        made = experts_export.begin(parts.store, asked)
    except ParquetMissing as error:
        hint = "In the server's checkout: pip install '.[parquet]'. Or ask for csv or npz."
        raise Problem(501, "no_pyarrow", "This server has no pyarrow, which writes Parquet", hint=hint) from error
    except ExportRefused as error:
        raise Problem(error.status, error.code, error.title, hint=error.hint) from error
    headers = {"Content-Disposition": f'attachment; filename="{made.name}"', "Cache-Control": "no-store"}
    return StreamingResponse(made.pieces, media_type=made.media_type, headers=headers)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """The layers of 0-5,9 in order; None for all."""
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        given = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        begin, end = (int(given[1]), int(given[2] or given[1])) if given else (1, 0)
        if begin > end or end >= LAYERS:
            row = {"path": "layers", "message": f"must be layers as in 0-5,9, not {text[:80]}"}
            raise Problem(422, "bad_request", "The request cannot be read", problems=[row])
        found.update(range(begin, end + 1))
    return tuple(sorted(found))

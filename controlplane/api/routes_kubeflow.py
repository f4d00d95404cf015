"""/api/v1/runs/{run}/kubeflow/status: where a trainer that knows Kubeflow Trainer's protocol reports.

The controller sets KUBEFLOW_TRAINER_SERVER_URL to it in every attempt, with the attempt's own token, so that
transformers ≥ 5 reports without a change to its code. It is that protocol's one message and nothing else of Kubeflow.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.access import Caller, Parts, note, refuse
from controlplane.api.described import WHO
from controlplane.services import kubeflow, reports, runs

router = APIRouter(tags=["runs"])
Text = Annotated[str, Field(max_length=256)]


class Metric(BaseModel):
    """One number by name, as text."""

    name: Text
    value: Text


class TrainerStatus(BaseModel):
    """What a trainer says of itself; all of it may be missing."""

    model_config = ConfigDict(populate_by_name=True)
    progress: int | None = Field(default=None, ge=0, le=100, alias="progressPercentage")
    remaining_s: int | None = Field(default=None, ge=0, le=2**53, alias="estimatedRemainingSeconds")
    metrics: list[Metric] = Field(default_factory=list, max_length=256)


class Status(BaseModel):
    """The message."""

    model_config = ConfigDict(populate_by_name=True)
    trainer_status: TrainerStatus = Field(alias="trainerStatus")


@router.post("/runs/{run_id}/kubeflow/status", openapi_extra={WHO: "the attempt's trainer"})
def status(request: Request, parts: Parts, caller: Caller, run_id: str, body: Status) -> dict[str, Any]:
    """A trainer's progress in Kubeflow Trainer's form; answers how many steps were taken from it."""
    if caller.kind != "trainer" or caller.run_id != run_id or caller.attempt_no is None:
        refuse(request, parts, caller, "a trainer may report on its own run and attempt only")
    told = body.trainer_status
    report = kubeflow.report(told.progress, told.remaining_s, ((one.name, one.value) for one in told.metrics))
    try:
        with parts.store.write() as session:
            kubeflow.refuse_stale(session, run_id, caller.epoch or 0)
            taken = reports.take(session, run_id, caller.attempt_no or 0, report, now=parts.clock.now())
    except runs.StaleTrainer as error:
        note(request, parts, caller, "refused", {"why": str(error)})
        raise
    parts.wake()
    return {"steps": taken}

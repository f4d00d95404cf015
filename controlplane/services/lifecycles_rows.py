"""The list of lifecycles as pages and the CLI show it: where each stands, how far, what it cost and what it waits for.

A page of the list asks the database as often for a hundred lifecycles as for one: costs of ended runs are a sum of what
is kept, and of the runs that live all is read together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.runs.lifecycle_states import LIFECYCLE_ENDED, STAGE_ENDED
from controlplane.services import lifecycles_cost, lifecycles_unread
from controlplane.services.lifecycles_cost import Cost
from controlplane.store import lifecycle_costs, lifecycles
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed, OfStage
from controlplane.store.tables import Attempt, LifecycleStage

Json = dict[str, Any]


def rows(
    session: Session,
    *,
    statuses: Sequence[str] | None,
    waits: bool | None = None,
    limit: int,
    before: str | None,
    now: float,
) -> list[Json]:
    """LifecycleRows with progress and cost, newest first; `waits`: by their `waits_for_person`. API: lifecycles."""
    found = lifecycles.listed(session, statuses, waits=waits, limit=limit, before=before)
    ids = [one.id for one in found]
    cost = {id_: Cost(*hours) for id_, hours in lifecycle_costs.kept(session, ids).items()}
    live = lifecycle_costs.not_kept(session, ids)
    under_way = lifecycle_costs.under_way(session, ids)
    known = lifecycles_cost.known(session, live, now, also=[one.run.id for one in under_way.values()])
    for one in live:
        cost[one.work.lifecycle_id] = cost.get(one.work.lifecycle_id, Cost()) + known.costs[one.run.id]
    listed = []
    for lifecycle in found:
        stage = current(lifecycle)
        run = under_way.get((lifecycle.id, stage.name)) if stage is not None else None
        last = known.attempts.get(run.run.id, ()) if run is not None else ()
        far = progress(run, last[-1] if last else None) if run is not None else None
        spent = cost.get(lifecycle.id, Cost()).as_dict()
        listed.append({**row(lifecycle, now), "progress": far, "cost": spent})
    return listed


def current(found: Executed) -> LifecycleStage | None:
    """The first stage that is under way, else the first that waits; None once all have ended."""
    under_way = [one for one in found.stages if one.state not in ("waiting", *STAGE_ENDED)]
    return next(iter([*under_way, *(one for one in found.stages if one.state == "waiting")]), None)


def row(found: Executed, now: float) -> Json:
    """One LifecycleRow. `waits_for_person`: a stage is held; `waits_for_disk`: what a run of it left cannot be read;
    `stage`: the first that is under way or waits."""
    state, stage = found.state, current(found)
    held = [one for one in found.stages if one.state == "held"]
    open_ = state.status not in LIFECYCLE_ENDED
    reason = held[0].reason if held and open_ else state.reason
    unread = next((one for one in found.stages if one.unread is not None), None)
    if unread is not None and open_ and not held:
        reason = f"Stage {unread.name} {lifecycles_unread.waits(unread, now)}"
    return {
        "id": found.id,
        "name": state.name,
        "status": state.status,
        "desired": state.desired,
        "reason": reason,
        "waits_for_person": bool(held) and open_,
        "waits_for_disk": unread is not None and open_,
        "stage": stage.name if stage is not None else None,
        "stages": [{"name": one.name, "state": one.state, "hold": one.hold or None} for one in found.stages],
        "passed": sum(one.state == "passed" for one in found.stages),
        "created_s": state.created_s,
        "created_by": found.plan.created_by,
        "ended_s": state.ended_s,
        "parent": state.parent_id,
    }


def last_step(attempt: Attempt | None) -> int | None:
    """The last step that an attempt has done, or the one from which it goes on."""
    if attempt is None:
        return None
    return attempt.last_step if attempt.last_step is not None else attempt.resume_step


def progress(one: OfStage, attempt: Attempt | None) -> Json:
    """How far a run is; `share` None before its first step."""
    step, steps = last_step(attempt), int(one.run.spec["spec"]["train"]["steps"])
    done = one.run.status == "succeeded"
    return {
        "run": one.run.id,
        "role": one.work.role,
        "item": one.work.item or None,
        "step": step,
        "steps": steps,
        "share": 1.0 if done else min(1.0, step / steps) if step is not None else None,
    }

"""What pages show of a lifecycle: one whole, what differs between two, what a plan says. The list is lifecycles_rows'.

Everything is read from the store; what is not known is None, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane.runs.lifecycle_states import APPROVABLE, AT_WORK, STAGE_ENDED
from controlplane.services import lifecycles_cost, lifecycles_unread, views_runs
from controlplane.services.lifecycles_cost import Cost
from controlplane.services.lifecycles_rows import last_step, progress, row
from controlplane.store import deliveries, events, lifecycles
from controlplane.store.engine import Session, Store
from controlplane.store.lifecycles import Executed, OfStage
from controlplane.store.tables import Approval, Attempt, Delivery, LifecycleStage
from jobs.lifecycle import Lifecycle, Requirement, Stage, parse_lifecycle
from jobs.spec import JobSpec, SpecError

Json = dict[str, Any]
TIMELINE = 200
_MISSING = object()


def view(session: Session, found: Executed, now: float) -> Json:
    """A LifecycleView. API: lifecycles/{id}."""
    plan = parse_lifecycle(found.plan.spec)
    made = lifecycles.runs_of(session, found.id)
    known = lifecycles_cost.known(session, made, now, also=[one.run.id for one in made])
    last = {run_id: attempts[-1] for run_id, attempts in known.attempts.items()}
    words = lifecycles.approvals(session, found.id)
    aliases = lifecycles.aliases(session, found.state.name)
    hashes = [one for stage in found.stages for one in (stage.init_hash, stage.candidate_hash) if one]
    hashes += [one.checkpoint_hash for one in aliases]
    tainted = lifecycles.tainted(session, hashes)
    stages, whole = [], Cost()
    for stage in found.stages:
        mine = [one for one in made if one.work.stage == stage.name]
        spent = sum((known.costs[one.run.id] for one in mine), Cost())
        whole += spent
        shown = _stage(stage, plan.stage(stage.name), mine, last, tainted, now)
        stages.append({**shown, "cost": spent.as_dict(), "budget": _budget(stage, plan.stage(stage.name), spent)})
    return {
        **row(found, now),
        "stages": stages,
        "edges": _edges(plan),
        "cost": whole.as_dict(),
        "aliases": [
            {
                "alias": a.alias,
                "checkpoint_hash": a.checkpoint_hash,
                "tainted": a.checkpoint_hash in tainted,
                "stage": a.stage,
                "at_s": a.moved_s,
                "by": a.moved_by,
            }
            for a in aliases
        ],
        "approvals": [_word(one) for one in words],
        "deliveries": [_message(one) for one in deliveries.of_lifecycle(session, found.id)],
        "timeline": timeline(session, found.id),
        "yaml": found.state.source,
        "spec": found.plan.spec,
    }


def _edges(plan: Lifecycle) -> list[Json]:
    """Who waits for whom, and whose checkpoint is used."""
    found = []
    for stage in plan.spec.stages:
        for before in stage.after:
            kind = "from" if before == stage.source else "after"
            found.append({"from": before, "to": stage.name, "kind": kind})
        if stage.source and stage.source not in stage.after:
            found.append({"from": stage.source, "to": stage.name, "kind": "from"})
    return found


def _word(one: Approval) -> Json:
    return {
        "stage": one.stage,
        "verdict": one.verdict,
        "checkpoint_hash": one.checkpoint_hash,
        "actor": one.actor,
        "reason": one.reason,
        "at_s": one.at_s,
        "used_s": one.used_s,
        "voided_s": one.voided_s,
    }


def _message(one: Delivery) -> Json:
    """What a channel was told, or is to be told."""
    return {
        "channel": one.channel,
        "seq": one.seq,
        "type": one.body["type"],
        "stage": one.body["data"]["stage"],
        "state": one.state,
        "told_s": one.told_s,
        "tries": one.tries,
        "last_error": one.last_error or None,
    }


def timeline(session: Session, lifecycle_id: str, limit: int = TIMELINE) -> list[Json]:
    """What happened to a lifecycle, in order, the newest lines."""
    return [
        {
            "at_s": one.at_s,
            "kind": one.kind,
            "sentence": one.sentence,
            "stage": one.data.get("stage") or None,
            "level": one.data.get("level", "info"),
            "run": one.data.get("run"),
        }
        for one in events.listed(session, lifecycle_id=lifecycle_id, limit=limit)
    ]


# --- one stage ---


def _stage(
    row_: LifecycleStage,
    plan: Stage,
    mine: Sequence[OfStage],
    last: Mapping[str, Attempt],
    tainted: frozenset[str],
    now: float,
) -> Json:
    return {
        "name": row_.name,
        "role": plan.role,
        "after": plan.after,
        "from": plan.source or None,
        "state": row_.state,
        "hold": row_.hold or None,
        "reason": row_.reason,
        "unread": lifecycles_unread.shown(row_, now),
        "state_since_s": row_.state_since_s,
        "began_s": row_.began_s,
        "ended_s": row_.ended_s,
        "round": row_.round,
        "retries": {"used": row_.retries, "allowed": plan.budget.retries},
        "inherited": row_.inherited,
        "init": {"hash": row_.init_hash, "tainted": row_.init_hash in tainted} if row_.init_hash else None,
        "candidate": _candidate(row_, tainted),
        "promote": plan.promote or None,
        "gate": _gate(row_, plan),
        "progress": _progress(row_, plan, mine, last),
        "runs": [_run(one, last.get(one.run.id)) for one in mine],
        "can": _can(row_, tainted),
    }


def _candidate(row_: LifecycleStage, tainted: frozenset[str]) -> Json | None:
    if not row_.candidate_hash:
        return None
    return {
        "hash": row_.candidate_hash,
        "step": row_.candidate_step,
        "run": row_.candidate_run_id,
        "path": row_.candidate_path,
        "tainted": row_.candidate_hash in tainted,
    }


def _gate(row_: LifecycleStage, plan: Stage) -> Json | None:
    """The gate with what was found of each requirement; `ok` None: it was not judged yet."""
    if plan.gate is None:
        return None
    verdict = row_.verdict or {}
    judged = {one["requirement"]: one for one in verdict.get("requirements", ())}
    requirements = []
    for text in plan.gate.require:
        asked = Requirement.parse(text)
        bound = asked.bound if isinstance(asked.bound, float) else None
        blank = {"metric": asked.metric, "op": asked.op, "value": None, "bound": bound, "ok": None, "sentence": ""}
        requirements.append({"requirement": text, **(judged.get(str(asked)) or blank)})
    return {
        "state": _gate_state(row_, verdict.get("ok")),
        "requirements": requirements,
        "approval": plan.gate.approval,
        "sentence": verdict.get("sentence", ""),
        "checkpoint_hash": verdict.get("checkpoint_hash") or row_.candidate_hash or None,
    }


def _gate_state(row_: LifecycleStage, ok: bool | None) -> str:
    """What a gate says, by its verdict (`ok` None: there is none) and by where the stage is.

    `overridden`: it refused and a person let it pass; `undecided`: it was reached, and the stage neither passed nor
    waits at it any more.
    """
    if row_.state == "passed":
        return "overridden" if ok is False else "passed"
    if ok is False or row_.state == "failed":
        return "refused"
    if row_.state == "held" and row_.hold in APPROVABLE:
        return "waits"
    reached = ok is not None or (row_.candidate_hash and row_.state == "cancelled")
    return "undecided" if reached else "open"


def _run(one: OfStage, attempt: Attempt | None) -> Json:
    run, work = one.run, one.work
    result = work.result or {}
    return {
        "id": run.id,
        "role": work.role,
        "item": work.item or None,
        "no": work.no,
        "round": work.round,
        "status": run.status,
        "reason": run.reason,
        "step": last_step(attempt),
        "steps": int(run.spec["spec"]["train"]["steps"]),
        "attempt": attempt.no if attempt is not None else 0,
        "attempt_state": attempt.state if attempt is not None else None,
        "created_s": run.created_s,
        "ended_s": run.ended_s,
        "init_hash": work.init_hash or None,
        "continues": work.continues_id,
        "metrics": result.get("metrics") or {},
        "result_hash": result.get("checkpoint_hash") or None,
        "missing": (result.get("missing") or None) if work.role in ("evaluate", "release") else None,
    }


def _progress(row_: LifecycleStage, plan: Stage, mine: Sequence[OfStage], last: Mapping[str, Attempt]) -> Json | None:
    """How far the run under way is; of a stage that passed its own job's end; None before anything runs."""
    own = [one for one in mine if one.work.role == plan.role]
    current = own[-1] if own and row_.state in STAGE_ENDED else mine[-1] if mine else None
    if current is None:
        return {
            "run": None,
            "role": plan.role,
            "item": None,
            "step": None,
            "steps": plan.job.train.steps,
            "share": None,
        }
    return progress(current, last.get(current.run.id))


def _budget(row_: LifecycleStage, plan: Stage, spent: Cost) -> Json:
    limit = plan.budget.gpu_hours
    return {"gpu_hours": limit, "used": max(0.0, spent.used - row_.gpu_h_before) if limit is not None else None}


def _can(row_: LifecycleStage, tainted: frozenset[str]) -> list[str]:
    """What a person may ask of the stage now."""
    if row_.state != "held" or row_.wish is not None:
        return []
    found = []
    if row_.hold in APPROVABLE and row_.candidate_hash:
        found = ["refuse"] if row_.candidate_hash in tainted else ["approve", "refuse"]
    return found if row_.init_hash in tainted and row_.init_hash else [*found, "retry"]


# --- plans ---


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Json]:
    """What differs between two plans, as paths with both values; a stage is known by its name, not by its place."""
    old, new = views_runs.flattened(_by_name(before)), views_runs.flattened(_by_name(after))
    paths = [*old, *(one for one in new if one not in old)]
    return [
        {"path": path, "before": old.get(path), "after": new.get(path)}
        for path in paths
        if old.get(path, _MISSING) != new.get(path, _MISSING)
    ]


def _by_name(plan: Mapping[str, Any]) -> Json:
    stages = {}
    for at, one in enumerate(plan["spec"]["stages"]):
        prepare = {each["name"]: each["job"] for each in one.get("prepare", ())}
        stages[one["name"]] = {"place": at + 1, **{k: v for k, v in one.items() if k != "name"}, "prepare": prepare}
    return {"metadata": plan["metadata"], "stages": stages}


def diff(session: Session, found: Executed, against: Executed | None) -> Json:
    """What differs from another lifecycle, or from the last one of the name before it. API: lifecycles/{id}/diff."""
    if against is None:
        earlier = lifecycles.newest(session, found.state.name, before_s=found.state.created_s)
        against = lifecycles.get(session, earlier.lifecycle_id) if earlier is not None else None
    changes = differences(against.plan.spec, found.plan.spec) if against is not None else []
    return {"lifecycle": found.id, "against": _named(against), "diff": changes}


def _named(found: Executed | None) -> Json | None:
    return {"id": found.id, "name": found.state.name, "created_s": found.state.created_s} if found is not None else None


def check(store: Store, source: Mapping[str, Any] | str, where: Callable[[JobSpec], str]) -> Json:
    """What a plan says and what is wrong with it, and what differs from the last of its name. No change."""
    try:
        plan = parse_lifecycle(source)
        for stage in plan.spec.stages:
            for role, item, _ in stage.works():
                where(plan.job(stage.name, role, item))
    except SpecError as error:
        problems = [{"path": one.path, "message": one.message} for one in error.problems]
        count = len(problems)
        sentence = f"{count} thing{'s' if count != 1 else ''} to mend before this can be submitted."
        return {"problems": problems, "sentence": sentence, "stages": [], "against": None, "diff": [], "yaml": None}
    with store.read() as session:
        state = lifecycles.newest(session, plan.name)
        last = lifecycles.get(session, state.lifecycle_id) if state is not None else None
    return {
        "problems": [],
        "sentence": _sentence(plan),
        "stages": [_planned(plan, stage) for stage in plan.spec.stages],
        "edges": _edges(plan),
        "against": _named(last),
        "diff": differences(last.plan.spec, plan.to_dict()) if last is not None else [],
        "yaml": plan.to_yaml(),
    }


def _sentence(plan: Lifecycle) -> str:
    gates = sum(stage.gate is not None for stage in plan.spec.stages)
    nodes = max(job.resources.nodes for stage in plan.spec.stages for _, _, job in stage.works())
    people = sum(stage.wants_approval for stage in plan.spec.stages)
    stages = f"{len(plan.spec.stages)} stage{'s' if len(plan.spec.stages) != 1 else ''}"
    whole = f"{stages} on up to {nodes} node{'s' if nodes != 1 else ''}, {gates} with a gate"
    return f"{whole}, {people} of them waiting for a person." if people else f"{whole}."


def _planned(plan: Lifecycle, stage: Stage) -> Json:
    resources = stage.job.resources
    return {
        "name": stage.name,
        "role": stage.role,
        "state": "waiting",
        "work": AT_WORK[stage.role],
        "after": stage.after,
        "from": stage.source or None,
        "steps": stage.job.train.steps,
        "nodes": resources.nodes,
        "gpus": resources.nodes * resources.gpus_per_node,
        "prepare": [one.name for one in stage.prepare],
        "require": list(stage.requirements),
        "approval": stage.wants_approval,
        "promote": stage.promote or None,
        "retries": stage.budget.retries,
        "gpu_hours": stage.budget.gpu_hours,
        "runs": [plan.job(stage.name, role, item).name for role, item, _ in stage.works()],
    }

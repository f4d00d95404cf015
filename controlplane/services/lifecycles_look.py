"""Everything the controller knows of one lifecycle, gathered fresh from its rows as the policy sees it.

Read in one short session; it asks no backend. What lies on disk (results, checkpoints) is read by the conductor and
reaches the policy through the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from controlplane.runs.checkpoints import Saved, lineage, resumable
from controlplane.runs.lifecycle_gates import Found
from controlplane.runs.lifecycle_states import STAGE_ENDED
from controlplane.runs.lifecycle_view import Again, Kept, PlanView, StageView, Tried, Word
from controlplane.runs.taint import way
from controlplane.services import lifecycles_cost, observe
from controlplane.store import lifecycles, runs
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed, OfStage
from controlplane.store.tables import Approval, Attempt, LifecycleStage
from jobs.lifecycle import Lifecycle, Stage


def view_of(
    session: Session,
    found: Executed,
    plan: Lifecycle,
    now: float,
    *,
    settled: Collection[str] = frozenset(),
    unread: Collection[str] = frozenset(),
) -> PlanView:
    """The view that `controlplane.runs.lifecycle.decide` judges. `settled`: runs whose disk was looked at; `unread`:
    those of which it could not be looked at just now."""
    rows = lifecycles.runs_of(session, found.id)
    last = lifecycles.last_attempts(session, [one.run.id for one in rows])
    hashes = [one for stage in found.stages for one in (stage.init_hash, stage.candidate_hash) if one]
    tainted = lifecycles.tainted(session, hashes)
    words = lifecycles.approvals(session, found.id)
    stages = []
    for stage in found.stages:
        mine = [one for one in rows if one.work.stage == stage.name]
        ended = stage.state in STAGE_ENDED  # nobody asks any more what its runs left
        tried = tuple(
            replace(
                _tried(session, one, last.get(one.run.id), one.run.id in settled, ended), unread=one.run.id in unread
            )
            for one in mine
        )
        stages.append(_stage(session, stage, plan.stage(stage.name), mine, tried, words, tainted, now))
    state = found.state
    return PlanView(found.id, plan.name, state.desired, state.status, tuple(stages), now)


def _stage(
    session: Session,
    row: LifecycleStage,
    plan: Stage,
    mine: Sequence[OfStage],
    tried: tuple[Tried, ...],
    words: Sequence[Approval],
    tainted: Collection[str],
    now: float,
) -> StageView:
    limited = plan.budget.gpu_hours is not None and row.state not in STAGE_ENDED
    used = sum(lifecycles_cost.used(session, one.run, now) for one in mine) if limited else 0.0
    return StageView(
        plan=plan,
        state=row.state,
        hold=row.hold,
        reason=row.reason,
        round=row.round,
        retries=row.retries,
        used_gpu_h=max(0.0, used - row.gpu_h_before),
        init=_kept(row.init_hash, row.init_path, None, None, tainted),
        candidate=_kept(row.candidate_hash, row.candidate_path, row.candidate_step, row.candidate_run_id, tainted),
        runs=tried,
        words=tuple(_word(one) for one in words if one.stage == row.name and one.open),
        wish=again_of(row.wish),
    )


def _kept(hash_: str, path: str, step: int | None, run_id: str | None, tainted: Collection[str]) -> Kept | None:
    return Kept(hash_, path, step, run_id, hash_ in tainted) if hash_ else None


def _word(row: Approval) -> Word:
    return Word(row.id, row.checkpoint_hash, row.verdict, row.actor, row.reason)


def again_of(wish: Mapping[str, object] | None) -> Again | None:
    """A wish to try again as it is kept."""
    if wish is None:
        return None
    return Again(str(wish.get("actor", "")), bool(wish.get("fresh")), bool(wish.get("evaluation")))


def _tried(session: Session, one: OfStage, last: Attempt | None, settled: bool, ended: bool) -> Tried:
    run, work = one.run, one.work
    done = work.role == "train" and run.status == "succeeded"
    return Tried(
        id=run.id,
        role=work.role,
        item=work.item,
        round=work.round,
        status=run.status,
        desired=run.desired,
        reason=run.reason,
        busy=lifecycles.busy(last),
        end_class=last.end_class if last is not None else "",
        mode=str((run.spec["spec"].get("faults") or {}).get("mode", "act")),
        init_hash=work.init_hash,
        wished=run.status == "needs_human" and taken_up(session, run.id),
        settled=settled or work.role != "train",
        final=final(session, run.id) if done and not ended else None,
        found=found_of(work.result),
    )


def taken_up(session: Session, run_id: str) -> bool:
    """Whether a person has asked for a restart of a run that is not under way yet."""
    decision = runs.open_decision(session, run_id)
    return runs.latest_wish(session, run_id) is not None or (decision is not None and decision.rule == "person")


def found_of(result: Mapping[str, object] | None) -> Found | None:
    """A kept result as gates judge it; None while nothing was read."""
    if result is None:
        return None
    metrics = result.get("metrics")
    numbers = {str(name): float(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return Found(numbers, str(result.get("checkpoint_hash") or ""), str(result.get("missing") or ""))


def final(session: Session, run_id: str) -> Kept | None:
    """The newest verified checkpoint on a run's way, those of the runs that it continues included."""
    rows = {one.id: one for one in runs.checkpoints(session, run_id)}
    work = lifecycles.work_of(session, run_id)
    before = observe.continued(session, work.continues_id) if work is not None else observe.Before()
    saved: list[Saved] = [*before.saved, *(observe.saved_of(one) for one in rows.values())]
    attempts = [observe.attempt_of(one) for one in runs.attempts(session, run_id)]
    chosen = resumable(lineage(saved, way(attempts)))
    row = runs.checkpoint(session, chosen.id) if chosen is not None else None
    return Kept(row.hash, row.path, row.step, row.run_id) if row is not None and row.hash else None

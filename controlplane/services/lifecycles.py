"""What a person may do to a lifecycle: submit, pause, resume, cancel, clone, approve, refuse, try again, promote.

Each is one transaction that states a wish or a word, or that moves an alias. Nothing here starts or ends a process or
passes a stage: the conductor sees the wish at its next look and brings it about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controlplane.runs import lifecycle_again
from controlplane.runs.lifecycle_gates import short
from controlplane.runs.lifecycle_states import APPROVABLE, LIFECYCLE_ENDED, STAGE_ENDED
from controlplane.runs.lifecycle_view import Again
from controlplane.runs.states import RUN_ENDED
from controlplane.services import lifecycles_look, lifecycles_moves
from controlplane.services.lifecycles_moves import tell
from controlplane.services.outcomes import tell as tell_run
from controlplane.store import lifecycles, runs
from controlplane.store.engine import Session
from controlplane.store.lifecycles import Executed
from controlplane.store.tables import Checkpoint, LifecycleStage
from jobs.lifecycle import Lifecycle, Stage, parse_lifecycle
from jobs.spec import JobSpec

SHORTEST_HASH = 8


class LifecycleNotFound(LookupError):
    """There is no lifecycle of this id or name, or none of its stages is called so."""


class LifecycleRefused(ValueError):
    """This cannot be done now; the message says why."""


def submit(
    session: Session, plan: Lifecycle, *, source: str = "", where: Callable[[JobSpec], str], actor: str, now: float
) -> Executed:
    """A new lifecycle, active. SpecError if a job of it cannot run on this server."""
    _place_all(plan, where)
    stages = [{"name": one.name} for one in plan.spec.stages]
    found = _add(session, plan, stages, source=source, parent_id=None, actor=actor, now=now)
    sentence = f"{actor} submitted {plan.name}: {len(stages)} stages, {', '.join(plan.stages)}."
    tell(session, found, sentence, kind="lifecycle_submitted", now=now)
    return found


def _place_all(plan: Lifecycle, where: Callable[[JobSpec], str]) -> None:
    for stage in plan.spec.stages:
        for role, item, _ in stage.works():
            where(plan.job(stage.name, role, item))


def _add(
    session: Session,
    plan: Lifecycle,
    stages: list[dict[str, Any]],
    *,
    source: str,
    parent_id: str | None,
    actor: str,
    now: float,
) -> Executed:
    return lifecycles.add(
        session,
        name=plan.name,
        spec=plan.to_dict(),
        source=source or plan.to_yaml(),
        stages=stages,
        parent_id=parent_id,
        now=now,
        by=actor,
    )


def clone(
    session: Session,
    named: str,
    *,
    begin: str,
    plan: Lifecycle | None = None,
    source: str = "",
    where: Callable[[JobSpec], str],
    actor: str,
    now: float,
) -> Executed:
    """A new lifecycle that begins with a stage of another one: what that stage waits for is inherited by its hash.

    `plan`: a changed plan of the same stages up to there. LifecycleNotFound, LifecycleRefused, SpecError.
    """
    parent = _found(session, named)
    made = plan or parse_lifecycle(parent.plan.spec)
    _place_all(made, where)
    if begin not in made.stages:
        raise LifecycleNotFound(f"{made.name} has no stage {begin}; it has {', '.join(made.stages)}")
    needed, again = made.upstream(begin), {begin, *made.downstream(begin)}
    for name in made.stages:
        why = _unfit_to_inherit(session, parent, made, name)
        if name in needed and why:
            raise LifecycleRefused(f"a clone cannot begin with {begin}: {why}")
        if why:
            again |= {name, *made.downstream(name)}
    stages = [
        {"name": name} if row is None or name in again else _inherited(row, parent)
        for name, row in ((name, parent.stage(name)) for name in made.stages)
    ]
    found = _add(session, made, stages, source=source, parent_id=parent.id, actor=actor, now=now)
    kept = ", ".join(one["name"] for one in stages if one.get("inherited")) or "no stage"
    sentence = f"{actor} cloned {parent.state.name} from stage {begin}: {kept} inherited from {parent.id}."
    tell(session, found, sentence, kind="lifecycle_cloned", now=now, parent=parent.id, begin=begin)
    return found


def _unfit_to_inherit(session: Session, parent: Executed, plan: Lifecycle, name: str) -> str:
    """Why a stage of a clone has to run, "" if what its parent's stage made and found is its own too."""
    row = parent.stage(name)
    if row is None:
        return f"stage {name} is not in the lifecycle that is cloned"
    if row.state != "passed":
        return f"stage {name} is {row.state}, only a passed one is inherited"
    if row.candidate_hash and lifecycles.tainted(session, [row.candidate_hash]):
        return f"checkpoint {short(row.candidate_hash)} of stage {name} is tainted"
    if not row.candidate_hash and any(one.source == name for one in plan.spec.stages):
        return f"stage {name} left no checkpoint, and another one starts from it"
    if _asked(plan.stage(name)) != _asked(parse_lifecycle(parent.plan.spec).stage(name)):
        return f"stage {name} is planned differently from the lifecycle that is cloned: begin with it"
    return ""


def _asked(stage: Stage) -> tuple[Any, ...]:
    """What decides what a stage makes and whether it passes."""
    return stage.role, stage.source, list(stage.works()), stage.requirements, stage.wants_approval


def _inherited(row: LifecycleStage, parent: Executed) -> dict[str, Any]:
    words = f"inherited from {parent.id}: {row.reason}" if not row.inherited else row.reason
    names = ("init_hash", "init_path", "candidate_hash", "candidate_path", "candidate_step", "candidate_run_id")
    kept = {name: getattr(row, name) for name in (*names, "name", "verdict", "began_s", "ended_s")}
    return {**kept, "state": "passed", "inherited": True, "reason": words}


def _found(session: Session, named: str) -> Executed:
    known = lifecycles.get(session, named)
    found = lifecycles.locked(session, known.id) if known is not None else None
    if found is None:
        raise LifecycleNotFound(f"there is no lifecycle {named}")
    return found


def _refuse_ended(found: Executed, verb: str) -> None:
    if found.state.status in LIFECYCLE_ENDED:
        raise LifecycleRefused(f"{found.state.name} has {found.state.status}: it cannot be {verb}; clone it")


# --- the whole ---


def _want(session: Session, named: str, desired: str, verb: str, *, actor: str, now: float) -> Executed:
    found = _found(session, named)
    _refuse_ended(found, verb)
    if found.state.desired == "cancel" and desired != "cancel":
        raise LifecycleRefused(f"{found.state.name} is being cancelled: it cannot be {verb}")
    if found.state.desired == desired:
        return found
    found.state.desired = desired
    for one in lifecycles.runs_of(session, found.id):
        run = one.run
        if run.status in RUN_ENDED or run.desired in ("cancel", desired):
            continue
        if desired == "run" and runs.paused_alone(session, run.id):
            continue  # what a person wants of one run alone stays
        run.desired = desired
        tell_run(session, run, f"{actor} asked for its lifecycle to be {verb}.", kind=f"run_wish_{desired}", now=now)
    sentence = f"{actor} asked for {found.state.name} to be {verb}."
    tell(session, found, sentence, kind=f"lifecycle_wish_{desired}", now=now)
    return found


def pause(session: Session, named: str, *, actor: str, now: float) -> Executed:
    """Its runs save and stop and no other begins; it can be resumed. LifecycleNotFound, LifecycleRefused."""
    return _want(session, named, "pause", "paused", actor=actor, now=now)


def resume(session: Session, named: str, *, actor: str, now: float) -> Executed:
    """Lets a paused lifecycle go on. LifecycleNotFound, LifecycleRefused."""
    return _want(session, named, "run", "resumed", actor=actor, now=now)


def cancel(session: Session, named: str, *, actor: str, now: float) -> Executed:
    """Its runs save and end for good, and so does it. LifecycleNotFound, LifecycleRefused."""
    return _want(session, named, "cancel", "cancelled", actor=actor, now=now)


# --- one stage ---


def _held(session: Session, named: str, stage: str, verb: str) -> tuple[Executed, LifecycleStage]:
    found = _found(session, named)
    _refuse_ended(found, verb)
    row = found.stage(stage)
    if row is None:
        names = ", ".join(one.name for one in found.stages)
        raise LifecycleNotFound(f"{found.state.name} has no stage {stage}; it has {names}")
    if row.state in STAGE_ENDED:
        raise LifecycleRefused(f"stage {stage} is {row.state}: it cannot be {verb} any more")
    if row.state != "held":
        raise LifecycleRefused(f"stage {stage} is {row.state} and waits for nobody: it cannot be {verb} now")
    return found, row


def say(
    session: Session,
    named: str,
    stage: str,
    *,
    verdict: str,
    checkpoint_hash: str,
    reason: str = "",
    actor: str,
    now: float,
) -> Executed:
    """A person's word, `approved` or `refused`, on the checkpoint with which a stage is held.

    It names the hash and holds once, for that checkpoint alone. LifecycleNotFound; LifecycleRefused for another
    checkpoint than the one that is asked about, a tainted one, or against a gate without a reason.
    """
    found, row = _held(session, named, stage, verdict)
    asked = row.candidate_hash
    if row.hold not in APPROVABLE or not asked:
        raise LifecycleRefused(f"stage {stage} is not held for a word on a checkpoint: {row.reason}")
    if row.wish is not None:
        raise LifecycleRefused(f"stage {stage} is being tried again: there is no checkpoint to speak of")
    given = checkpoint_hash.lower()
    if not same(given, asked):
        about = f"stage {stage} is held with checkpoint {short(asked)}"
        raise LifecycleRefused(f"{about}, not {short(given)}: look at it before it is {verdict}")
    if verdict == "approved" and lifecycles.tainted(session, [asked]):
        raise LifecycleRefused(f"checkpoint {short(asked)} is tainted: nobody may approve it")
    if verdict == "approved" and row.hold == "refused" and not reason.strip():
        raise LifecycleRefused(f"the gate of stage {stage} refused: say why it is approved all the same")
    if _open_word(session, found, row):
        raise LifecycleRefused(f"a person's word on checkpoint {short(asked)} of stage {stage} is being carried out")
    lifecycles.add_approval(
        session,
        now=now,
        lifecycle_id=found.id,
        stage=stage,
        checkpoint_hash=asked,
        verdict=verdict,
        actor=actor,
        reason=reason.strip(),
    )
    return found


def _open_word(session: Session, found: Executed, row: LifecycleStage) -> bool:
    """Whether a person's word on a stage's candidate has not had its effect yet."""
    words = lifecycles.approvals(session, found.id, row.name)
    return any(one.open and one.checkpoint_hash == row.candidate_hash for one in words)


def same(given: str, full: str) -> bool:
    """Whether a hash, or its beginning of at least eight digits, names this one."""
    return len(given) >= SHORTEST_HASH and full.startswith(given)


def retry(
    session: Session,
    named: str,
    stage: str,
    *,
    fresh: bool = False,
    evaluation: bool = False,
    actor: str,
    now: float,
) -> Executed:
    """Has a held stage tried again: what failed or was stopped, from where it came to; `fresh`: its own job from the
    stage's source, a training with another seed; `evaluation`: that alone.

    LifecycleNotFound; LifecycleRefused, also without either where nothing failed: a gate refuses, or a person is asked.
    """
    found, row = _held(session, named, stage, "tried again")
    if row.wish is not None:
        raise LifecycleRefused(f"stage {stage} is being tried again already")
    view = lifecycles_look.view_of(session, found, parse_lifecycle(found.plan.spec), now)
    why = lifecycle_again.refuses(view.stage(stage), Again(actor, fresh, evaluation))
    if why:
        raise LifecycleRefused(why)
    if row.hold in APPROVABLE and _open_word(session, found, row):
        about = f"checkpoint {short(row.candidate_hash)} of stage {stage}"
        raise LifecycleRefused(f"a person's word on {about} is being carried out: it cannot be tried again now")
    row.wish = {"actor": actor, "fresh": fresh, "evaluation": evaluation}
    what = "its evaluation alone" if evaluation else "afresh" if fresh else "what failed or was stopped"
    tell(session, found, f"{actor} asked for stage {stage} to be tried again: {what}.", kind="stage_wish", now=now)
    return found


# --- aliases ---


def promote(
    session: Session, named: str, alias: str, checkpoint_hash: str, *, actor: str, now: float
) -> Mapping[str, Any]:
    """Points an alias of the lifecycles of a name at one of their checkpoints; says where it pointed before.

    LifecycleNotFound; LifecycleRefused for a checkpoint that is unknown, tainted or was never verified.
    """
    found = _found(session, named)
    row = _own_checkpoint(session, found, checkpoint_hash.lower())
    if row.state != "validated" or not row.hash:
        why = row.reason or "it was never verified"
        raise LifecycleRefused(f"checkpoint {short(row.hash or '')} is {row.state} and cannot be promoted: {why}")
    if lifecycles.tainted(session, [row.hash]):
        raise LifecycleRefused(f"checkpoint {short(row.hash)} is tainted in another place and cannot be promoted")
    stage = next((one.name for one in found.stages if one.candidate_hash == row.hash), "")
    before = lifecycles_moves.promote(session, found, alias, row.hash, stage=stage, actor=actor, now=now)
    return {"alias": alias, "owner": found.state.name, "checkpoint_hash": row.hash, "before": before or None}


def _own_checkpoint(session: Session, found: Executed, given: str) -> Checkpoint:
    """The one checkpoint that a hash, or its beginning, names among those of a lifecycle and of what it inherited."""
    if len(given) < SHORTEST_HASH:
        raise LifecycleRefused(f"a checkpoint is named by its hash, by {SHORTEST_HASH} digits at least, not {given!r}")
    rows = lifecycles.checkpoints_of(session, found.id)
    for stage in found.stages:
        inherited = lifecycles.checkpoint(session, stage.candidate_hash)
        rows += [inherited] if inherited is not None else []
    named = {one.hash: one for one in rows if one.hash and one.hash.startswith(given)}
    if not named:
        raise LifecycleRefused(f"{found.state.name} has no checkpoint {short(given)}")
    if len(named) > 1:
        raise LifecycleRefused(f"{short(given)} is the beginning of {len(named)} checkpoints: give more of it")
    return next(iter(named.values()))

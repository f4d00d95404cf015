"""One lifecycle, one look, one move. Pure and level-triggered: the same view gives the same move.

The order of the questions is the policy: what a person wants of the whole, then stage by stage what must not be used
any more, what has run out, what a person said, and only then what comes next. It starts no process: a run that it asks
for is brought about by the controller like any other (controlplane.runs.decide).
"""

from __future__ import annotations

from controlplane.runs import lifecycle_again
from controlplane.runs.lifecycle_gates import Found, Verdict, judge, short
from controlplane.runs.lifecycle_states import APPROVABLE, AT_WORK, LIFECYCLE_ENDED, STAGE_ENDED
from controlplane.runs.lifecycle_view import (
    Again,
    Begin,
    Keep,
    Kept,
    MoveStage,
    Pass,
    PlanMove,
    PlanView,
    Rest,
    SetLifecycle,
    StageView,
    StartRun,
    StopRuns,
    Tried,
)

_FOR_A_PERSON = ("configuration", "submit_conflict")
"""ends that another run would only meet again"""


def decide(view: PlanView) -> PlanMove:
    """The next move for a lifecycle."""
    if view.status in LIFECYCLE_ENDED:
        return Rest()
    if view.desired == "cancel":
        return _cancel(view)
    for stage in view.stages:
        move = _stage(view, stage)
        if not isinstance(move, Rest):
            return move
    return _whole(view)


def _live(stage: StageView) -> tuple[Tried, ...]:
    return tuple(one for one in stage.runs if not one.ended)


def _cancel(view: PlanView) -> PlanMove:
    live = [one for stage in view.stages for one in _live(stage)]
    untold = tuple(one.id for one in live if one.desired != "cancel")
    if untold:
        return StopRuns(untold)
    if live:
        return Rest()
    for stage in view.stages:
        if stage.state not in STAGE_ENDED:
            return MoveStage(stage.name, "cancelled", f"Stage {stage.name} is cancelled with its lifecycle.")
    return SetLifecycle("cancelled", f"{view.name} is cancelled by a person.")


def _whole(view: PlanView) -> PlanMove:
    """The lifecycle's own status, when no stage has anything to do."""
    states = [stage.state for stage in view.stages]
    if all(state == "passed" for state in states):
        return SetLifecycle("succeeded", f"{view.name} is done: all {len(states)} stages passed.", "ok")
    if all(state in STAGE_ENDED for state in states):
        failed = ", ".join(stage.name for stage in view.stages if stage.state == "failed")
        return SetLifecycle("failed", f"{view.name} failed: {failed or 'a stage'} did not pass.", "fault")
    if view.desired == "pause" and view.status == "active":
        quiet = all(one.ended or (one.status in ("paused", "needs_human") and not one.busy) for one in _runs(view))
        return SetLifecycle("paused", f"{view.name} is paused by a person.") if quiet else Rest()
    if view.desired == "run" and view.status == "paused":
        return SetLifecycle("active", f"{view.name} is resumed by a person.")
    return Rest()


def _runs(view: PlanView) -> list[Tried]:
    return [one for stage in view.stages for one in stage.runs]


# --- one stage ---


def _stage(view: PlanView, stage: StageView) -> PlanMove:
    if stage.state in STAGE_ENDED:
        return Rest()
    if stage.state == "waiting":
        return _waiting(view, stage)
    spoilt = _spoilt(stage)
    if spoilt is not None:
        return spoilt
    spent = _spent(stage)
    if spent is not None:
        return spent
    if stage.wish is not None:
        return _again(view, stage, stage.wish)
    if stage.state == "held":
        return _held(stage)
    return _at_work(view, stage)


def _waiting(view: PlanView, stage: StageView) -> PlanMove:
    before = [view.stage(name) for name in stage.plan.after]
    lost = next((one for one in before if one.state in ("failed", "cancelled")), None)
    if lost is not None:
        words = f"Stage {stage.name} is cancelled: stage {lost.name}, for which it waited, is {lost.state}."
        return MoveStage(stage.name, "cancelled", words, level="warn")
    if view.desired != "run" or any(one.state != "passed" for one in before):
        return Rest()
    init = view.stage(stage.plan.source).candidate if stage.plan.source else None
    if init is not None and init.tainted:
        words = (
            f"Stage {stage.name} cannot begin: checkpoint {short(init.hash)} of stage {stage.plan.source} is tainted."
        )
        return MoveStage(stage.name, "held", words, hold="tainted", level="fault", init=init)
    state = "preparing" if stage.plan.prepare else AT_WORK[stage.plan.role]
    source = f" from checkpoint {short(init.hash)} of stage {stage.plan.source}" if init is not None else ""
    return Begin(stage.name, state, init, f"Stage {stage.name} begins{source}.")


def _spoilt(stage: StageView) -> MoveStage | None:
    """A stage that works on, or has made, a checkpoint that is not to be trusted is held and its runs are ended."""
    if stage.hold == "tainted":
        return None
    for kept, what in ((stage.init, "from which it started"), (stage.candidate, "which it made")):
        if kept is not None and kept.tainted:
            words = f"Stage {stage.name} is held: checkpoint {short(kept.hash)}, {what}, is tainted."
            if stage.wish is not None:
                words += f" The retry that {stage.wish.actor} asked for is dropped."
            stop = tuple(one.id for one in _live(stage) if one.desired != "cancel")
            return MoveStage(stage.name, "held", words, hold="tainted", level="fault", stop=stop)
    return None


def _spent(stage: StageView) -> MoveStage | None:
    """More GPU-hours than the stage may use: its runs save and end."""
    limit, live = stage.plan.budget.gpu_hours, _live(stage)
    if limit is None or stage.used_gpu_h <= limit or stage.hold or not live:
        return None
    words = f"Stage {stage.name} has used {stage.used_gpu_h:.2f} of {limit:g} GPU-hours: its run saves and ends."
    stop = tuple(one.id for one in live if one.desired != "cancel")
    return MoveStage(stage.name, "held", words, hold="budget", level="warn", stop=stop)


def _again(view: PlanView, stage: StageView, wish: Again) -> PlanMove:
    """What a person asked for, once what ran before has ended; not what has become impossible since."""
    why = lifecycle_again.refuses(stage, wish)
    if why:
        words = f"Stage {stage.name} cannot be tried again as {wish.actor} asked: {why}."
        return MoveStage(stage.name, stage.state, words, hold=stage.hold, level="warn")
    back = lifecycle_again.resumed(stage) if stage.hold == "failed" else None
    if back is not None:
        words = f"Stage {stage.name} goes on: its run was taken up again by a person"
        return MoveStage(stage.name, back, f"{words}, and the retry that {wish.actor} asked for is dropped.")
    back = lifecycle_again.at_its_end(stage, wish)
    if back is not None:
        words = f"{wish.actor} has stage {stage.name} go on: its run came to its end."
        return MoveStage(stage.name, back, words, asked=True)
    return lifecycle_again.move(stage, wish) if view.desired == "run" else Rest()


def _held(stage: StageView) -> PlanMove:
    if stage.hold in APPROVABLE and stage.candidate is not None:
        for word in stage.words:
            if word.checkpoint_hash != stage.candidate.hash:
                continue  # of a checkpoint that is not asked about any more: it holds for nothing
            because = f": {word.reason}" if word.reason else ""
            if word.verdict == "refused":
                words = f"{word.actor} refused checkpoint {short(word.checkpoint_hash)} of stage {stage.name}{because}."
                return MoveStage(stage.name, "failed", words, level="warn", word=word.id)
            against = ", against its gate" if stage.hold == "refused" else ""
            words = f"{word.actor} approved checkpoint {short(word.checkpoint_hash)} of stage {stage.name}{against}"
            return Pass(stage.name, stage.candidate, f"{words}{because}.", word=word.id)
    if stage.hold == "failed":
        back = lifecycle_again.resumed(stage)
        if back is not None:
            return MoveStage(stage.name, back, f"Stage {stage.name} goes on: its run was taken up again by a person.")
    return Rest()


def _at_work(view: PlanView, stage: StageView) -> PlanMove:
    if stage.state == "preparing":
        for one in stage.plan.prepare:
            move = _brought_about(view, stage, "prepare", one.name)
            if move is not None:
                return move
        words = f"Stage {stage.name} is prepared."
        return MoveStage(stage.name, AT_WORK[stage.plan.role], words)
    if stage.state == "evaluating" and stage.plan.role == "train":
        move = _brought_about(view, stage, "evaluate", "", init=stage.candidate)
        return move if move is not None else _judged(stage, _evaluation(stage), stage.candidate)
    move = _brought_about(view, stage, stage.plan.role, "")
    if move is not None:
        return move
    own = stage.newest(stage.plan.role, round=stage.round)
    if stage.plan.role != "train":
        return _judged(stage, own, stage.init)
    return _trained(view, stage, own)


def _trained(view: PlanView, stage: StageView, own: Tried | None) -> PlanMove:
    """The training has succeeded: its last verified checkpoint is the stage's candidate."""
    if own is None:
        raise ValueError(f"stage {stage.name} has not trained")
    candidate = own.final
    if candidate is None and _is_asked_for(view, stage):
        words = f"Stage {stage.name} is held: its training ended well and left no verified checkpoint."
        return MoveStage(stage.name, "held", words, hold="failed", level="warn")
    if stage.plan.gate is not None and stage.plan.gate.evaluation is not None:
        step = candidate.step if candidate is not None else None
        words = f"Stage {stage.name} has trained; its checkpoint of step {step} is evaluated."
        return MoveStage(stage.name, "evaluating", words, candidate=candidate)
    return _judged(stage, own, candidate)


def _is_asked_for(view: PlanView, stage: StageView) -> bool:
    """Whether anything needs the stage's checkpoint."""
    used = any(other.plan.source == stage.name for other in view.stages)
    return used or stage.plan.gate is not None or bool(stage.plan.promote)


def _evaluation(stage: StageView) -> Tried | None:
    init = stage.candidate.hash if stage.candidate is not None else ""
    return stage.newest("evaluate", round=stage.round, init=init)


def _judged(stage: StageView, own: Tried | None, candidate: Kept | None) -> PlanMove:
    """The gate's answer: pass, or wait for a person."""
    found = own.found if own is not None and own.found is not None else Found({}, "", "there is no result")
    hash_ = candidate.hash if candidate is not None else ""
    verdict: Verdict | None = None
    if stage.plan.requirements:
        verdict = judge(stage.plan.requirements, found, hash_)
        if not verdict.ok:
            words = f"Stage {stage.name} is held. {verdict.sentence}"
            return MoveStage(stage.name, "held", words, "refused", "warn", candidate=candidate, verdict=verdict)
    if stage.plan.wants_approval:
        words = f"Stage {stage.name} waits for a person to approve checkpoint {short(hash_)}."
        return MoveStage(stage.name, "held", words, "approval", candidate=candidate, verdict=verdict)
    words = f"Stage {stage.name} passed" + (f" with checkpoint {short(hash_)}" if hash_ else "")
    return Pass(stage.name, candidate, f"{words}{f'. {verdict.sentence}' if verdict else '.'}", verdict)


# --- a stage's run ---


def _brought_about(
    view: PlanView, stage: StageView, role: str, item: str, *, init: Kept | None = None
) -> PlanMove | None:
    """The move that leads to a succeeded run of a role; None once there is one and all of it is known."""
    asked = None if role == "prepare" else stage.round
    last = stage.newest(role, item, round=asked, init=init.hash if init is not None else None)
    source = init or stage.init
    if last is None:
        if view.desired != "run":
            return Rest()
        what = f"{role} {item}".strip()
        words = f"Stage {stage.name} begins to {what}." if role != "prepare" else f"Stage {stage.name} prepares {item}."
        return StartRun(stage.name, stage.state, role, item, stage.round, source, words)
    if last.status == "succeeded" and not last.busy:
        if last.found is not None and last.settled:
            return None
        return Rest() if last.unread else Keep(last.id)
    if last.status in ("failed", "cancelled") and not last.busy:
        who = "was stopped" if last.status == "cancelled" else "failed"
        words = f"Stage {stage.name} is held: its run {last.id} {who}: {last.reason or 'no reason was given'}."
        return MoveStage(stage.name, "held", words, hold="failed", level="warn")
    if last.status == "needs_human" and last.closable:
        return _broken(view, stage, last, source)
    return Rest()


def _broken(view: PlanView, stage: StageView, last: Tried, source: Kept | None) -> PlanMove:
    """A run that waits for a person: the stage's budget may have a new one for it."""
    left = stage.plan.budget.retries - stage.retries
    if left > 0 and last.mode == "act" and last.end_class not in _FOR_A_PERSON:
        if view.desired != "run":
            return Rest()
        goes_on = last.id if last.role == "train" else None
        words = f"Run {last.id} of stage {stage.name} failed ({last.reason}); a new one is begun, {left - 1} left."
        return StartRun(
            *(stage.name, stage.state, last.role, last.item, stage.round, source, words),
            continues=goes_on,
            closes=last.id,
            charged=True,
        )
    why = "" if left > 0 else f"; its {stage.plan.budget.retries} retries are used"
    words = f"Stage {stage.name} is held: run {last.id} waits for a person: {last.reason.rstrip('.')}{why}."
    return MoveStage(stage.name, "held", words, hold="failed", level="warn")

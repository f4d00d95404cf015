"""A held stage is tried again: which of its roles, from which checkpoint, and what a person may ask for. Pure.

The same answer is given before a wish is taken (`refuses`) and when it is carried out (`move`).
"""

from __future__ import annotations

from controlplane.runs.lifecycle_gates import short
from controlplane.runs.lifecycle_states import APPROVABLE, AT_WORK
from controlplane.runs.lifecycle_view import Again, PlanMove, Rest, StageView, StartRun, Tried


def refuses(stage: StageView, wish: Again) -> str:
    """Why a stage cannot be tried again like this; "" when it can."""
    if stage.state != "held":
        return f"stage {stage.name} is {stage.state}: only a held stage can be tried again"
    if stage.init is not None and stage.init.tainted:
        spoilt = f"checkpoint {short(stage.init.hash)}, from which stage {stage.name} starts, is tainted"
        return f"{spoilt}: clone the lifecycle from stage {stage.plan.source}"
    if stage.hold in APPROVABLE and not (wish.fresh or wish.evaluation):
        return f"nothing of stage {stage.name} failed: ask for --fresh or --evaluation"
    if wish.evaluation and wish.fresh:
        return "an evaluation has nothing to begin afresh: ask for one of the two"
    if wish.evaluation and (stage.candidate is None or stage.newest("evaluate") is None):
        return f"stage {stage.name} has no evaluation to repeat"
    if wish.evaluation and stage.candidate is not None and stage.candidate.tainted:
        return f"checkpoint {short(stage.candidate.hash)} is tainted: it needs no evaluation"
    return ""


def move(stage: StageView, wish: Again) -> PlanMove:
    """The run with which a held stage goes on; it waits until what ran before has ended, or can be closed."""
    open_runs = [one for one in stage.runs if not one.ended]
    closable = [one for one in open_runs if one.closable]
    if len(open_runs) > len(closable):
        return Rest()
    closes = closable[-1].id if closable else None
    again = f"{wish.actor} has stage {stage.name} tried again"
    item = None if wish.evaluation else _unprepared(stage)
    if item is not None:
        words = f"{again}: prepare {item}."
        return StartRun(
            *(stage.name, "preparing", "prepare", item, stage.round, stage.init, words), closes=closes, asked=True
        )
    last = _held_by(stage, wish)
    role = last.role if last is not None else stage.plan.role
    if role == "evaluate" and role != stage.plan.role:
        return StartRun(
            *(stage.name, "evaluating", role, "", stage.round, stage.candidate, f"{again}: evaluate."),
            closes=closes,
            asked=True,
        )
    goes_on = _goes_on(stage, wish, last)
    fresh = role == "train" and goes_on is None and last is not None
    words = f"{again}, from where run {goes_on} came to" if goes_on else f"{again}, afresh"
    round_ = stage.round + 1
    return StartRun(
        *(stage.name, AT_WORK[role], role, "", round_, stage.init, f"{words}{' with another seed' if fresh else ''}."),
        continues=goes_on,
        closes=closes,
        asked=True,
        seed_shift=round_ - 1 if fresh else 0,
    )


def _goes_on(stage: StageView, wish: Again, last: Tried | None) -> str | None:
    """The training run from whose checkpoint the next one goes on: one that did not come to its end."""
    if wish.fresh or last is None or last.role != "train":
        return None
    return None if last.status == "succeeded" and stage.hold != "tainted" else last.id


def _unprepared(stage: StageView) -> str | None:
    """The first preparation that is not done: without it nothing else of the stage may begin."""
    for one in stage.plan.prepare:
        last = stage.newest("prepare", one.name)
        if last is None or last.status != "succeeded":
            return one.name
    return None


def _held_by(stage: StageView, wish: Again) -> Tried | None:
    """The run of a prepared stage that is to be done again."""
    if wish.evaluation:
        return stage.newest("evaluate")
    last = stage.runs[-1] if stage.runs else None
    if stage.hold in ("failed", "budget") and not wish.fresh and last is not None and last.role != "prepare":
        return last
    return stage.newest(stage.plan.role)


def at_its_end(stage: StageView, wish: Again) -> str | None:
    """The state in which a stage goes on whose run was told to save and end, and came to its own end all the same."""
    last = stage.runs[-1] if stage.runs else None
    if stage.hold != "budget" or wish.fresh or wish.evaluation or last is None:
        return None
    return _at_work(last) if last.status == "succeeded" and not last.busy else None


def resumed(stage: StageView) -> str | None:
    """The state of a stage whose run a person took up again himself; None while it still waits."""
    last = stage.runs[-1] if stage.runs else None
    if last is None or last.status not in ("queued", "active", "succeeded"):
        return None
    if last.status == "succeeded" and last.role == stage.plan.role == "train" and last.final is None:
        return None  # that is why it is held
    return _at_work(last)


def _at_work(last: Tried) -> str:
    return "preparing" if last.role == "prepare" else AT_WORK[last.role]

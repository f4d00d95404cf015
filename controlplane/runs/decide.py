"""One run, one look, one move. Pure and level-triggered: the same view gives the same move, whatever happened before.

The order of the questions is the policy: what must not be used any more, what a person wants, then whether the old
attempt is fenced, then hardware, then the attempt's own end, then progress. Not being able to look is never a reason to
act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controlplane.runs import checkpoints, choices, leaving, plan, skips, taint
from controlplane.runs.checkpoints import Saved
from controlplane.runs.ends import abandoned, of_look
from controlplane.runs.states import ENDED, LEAVING, RUN_ENDED
from controlplane.runs.taint import REPLANNED, Spoils, way
from controlplane.runs.view import (
    Advance,
    AttemptView,
    Beat,
    Conclude,
    Decide,
    EndAttempt,
    Look,
    Move,
    PlanAttempt,
    Press,
    SetRun,
    Submit,
    Trouble,
    View,
    Wait,
)
from jobs.contract import format_ranges

KILL_AFTER_S = 5.0
RUNS_S = 120.0
VERIFY_S = 600.0
PLACED_S = 10.0
SUSPECT_S, SUSPECT_STEPS = 20.0, 5
_BY_MACHINE = ("killed", "lost", "peer_lost", "never_started", "preempted", "error")
"""ends that a fault of the hardware may well have brought about"""
_WORK = ("train", "rollout", "eval")
"""phases in which a job that counts no steps does what it is for"""
_ORDER = ("submitting", "pending", "starting", "init", "training")


def decide(view: View) -> Move:
    """The next move for a run."""
    last = view.last
    spoilt = taint.spoils(view.attempts, view.saved, view.corruptions)
    suspects = taint.suspects(view.saved, spoilt)
    if suspects is not None:
        return suspects
    if last is not None and last.state not in (*ENDED, "planned"):
        return _live(view, last, spoilt)
    if view.status in RUN_ENDED:
        return Wait()
    if last is not None and last.state == "succeeded" and view.status == "active" and not _asked(view, last, spoilt):
        return _done(view)
    if view.desired == "cancel":
        return _give_up(view, last, "cancelled", _wanted(view))
    if view.desired == "pause":
        return _give_up(view, last, "paused", _wanted(view))
    if last is not None and last.state == "planned":
        return _planned(view, last, spoilt)
    if view.status == "paused":
        return SetRun("queued", "resumed by a person")
    if view.status == "needs_human" and view.wish is None and view.decision is None:
        return Wait()
    return _between(view, next((one for one in reversed(view.attempts) if one.end_class != REPLANNED), None), spoilt)


def _done(view: View) -> SetRun:
    reason = "its command returned 0" if not view.counts_steps else f"all {view.steps} steps done"
    return SetRun("succeeded", reason, "ok")


def _asked(view: View, last: AttemptView, spoilt: Spoils) -> bool:
    """Whether a restart is wanted, needed or under way: the last attempt's end is then not the run's."""
    return view.wish is not None or view.decision is not None or bool(_struck(view, last, spoilt))


def _wanted(view: View) -> str:
    """That it is to end or to pause, and who or what wants it."""
    if view.desired == "pause":
        return "paused by a person"
    return f"cancelled: {view.because}" if view.because else "cancelled by a person"


def _give_up(view: View, last: AttemptView | None, status: str, reason: str) -> Move:
    if last is not None and last.state == "planned":
        return EndAttempt("stopped", "person", f"Attempt {last.no} was never started: {reason}.")
    return Wait() if view.status == status else SetRun(status, reason)


def _planned(view: View, attempt: AttemptView, spoilt: Spoils) -> Move:
    reason = taint.unfit(view, attempt, spoilt)
    if not reason:
        return Submit()
    # nothing of it ran: what it was planned for is planned anew, under the same decision
    return EndAttempt("superseded", REPLANNED, f"Attempt {attempt.no} was never started: {reason}.", level="warn")


# --- no attempt is alive ---


def _between(view: View, last: AttemptView | None, spoilt: Spoils) -> Move:
    """`last`: the newest attempt that was started."""
    if view.wish is not None and (view.decision is None or view.status == "needs_human"):
        return Decide(choices.of_wish(view, last), "none")
    if last is not None and view.decision is not None and last.no > view.decision.attempt_no:
        return _unproven(view, last)
    struck = _struck(view, last, spoilt) if last is not None else []
    if last is not None and struck:
        return Decide(choices.of_trouble(view, last, struck, _source(last, struck, spoilt)), "none")
    coming = taint.unplaced(last, spoilt, since_s=view.now - PLACED_S) if last is not None else None
    if coming is not None:
        return Wait(f"{coming.sentence}; the incident is being opened")
    if last is not None and view.decision is None:
        if last.state == "succeeded":
            return _done(view)
        if last.state != "stopped":  # after a pause no decision is needed to go on
            suspect = choices.suspect(view)
            spared = [suspect] if suspect and _placed(view, [suspect]).nodes else []
            return Decide(choices.of_failure(view, last, spared), "none")
    return _plan(view, last)


def _struck(view: View, last: AttemptView, spoilt: Spoils) -> list[Trouble]:
    """The troubles of an attempt that is over, told before its successor is planned: they belong to its end."""
    found = taint.hits(view, last, spoilt)
    unexplained = last.state in ("failed", "preempted") and view.decision is None
    if any(one.corrupting for one in found):
        # where the policy does not act only the reason is missing why a person must restart it
        return found if view.mode == "act" or unexplained else []
    return found if unexplained and last.end_class in _BY_MACHINE else []


def _source(attempt: AttemptView, troubles: Sequence[Trouble], spoilt: Spoils) -> Saved | None:
    """The spoilt checkpoint that the attempt went on from, unless one of the troubles is on its own nodes."""
    if any(one.node in attempt.nodes or not one.node for one in troubles):
        return None
    return next((one.source for one in spoilt.get(attempt.no, ()) if one.source is not None), None)


def _unproven(view: View, last: AttemptView) -> Move:
    """The attempt that was to prove a decision is over: it proved it in its last beat, or not at all."""
    first = min((beat.first_step for beat in view.beats if beat.first_step is not None), default=last.first_step)
    proof = _proof(view, last, first)
    if proof is None and last.state == "succeeded":
        return Conclude(True, f"Attempt {last.no} ended well: {_done(view).reason}.", first)
    if isinstance(proof, Conclude):
        return replace(proof, stop=False)
    return Conclude(False, f"Attempt {last.no} ended before it completed a step.")


def _plan(view: View, last: AttemptView | None) -> Move:
    if last is not None and last.ended_s is not None and not (view.decision and view.decision.by_person):
        held = choices.brake(view)
        if held:
            return Wait() if view.status == "needs_human" else SetRun("needs_human", held, "warn")
        until = last.ended_s + choices.wait_s(view)
        if view.now < until:
            return Wait(f"waits {until - view.now:.0f} s before the next attempt")
    if last is not None and last.ended_s is not None and view.verifying and view.now < last.ended_s + VERIFY_S:
        return Wait("a checkpoint is being verified")
    if view.candidates is None:
        return Wait("the backend cannot be asked for its nodes")
    placed = _placed(view)
    if not placed.nodes:
        if view.status in ("active", "needs_human"):
            return SetRun("queued", placed.missing, "warn")
        return Wait(placed.missing)
    resume = _resume(view, last)
    skip = _skip(view, last, resume)
    source = f"resumes from checkpoint {resume.step}" if resume else "starts from step 0"
    number = (view.last.no if view.last else 0) + 1
    if view.pins_nodes:
        sentence = f"Attempt {number} is placed on {choices.joined(placed.nodes)} and {source}."
        return PlanAttempt(placed.nodes, _excluded(view), resume, skip, sentence)
    excluded = _excluded(view)
    barred = plan.barred(view.candidates or (), excluded)
    left_out = [f"never {choices.joined(excluded)}"] if excluded else []
    left_out += [f"without {len(barred)} that are out of service"] if barred else []
    without = f", {', '.join(left_out)}," if left_out else ""
    sentence = f"Attempt {number} is to be placed on {view.nodes} nodes by the cluster{without} and {source}."
    return PlanAttempt((), tuple(sorted({*excluded, *barred})), resume, skip, sentence)


def _excluded(view: View) -> tuple[str, ...]:
    return tuple(sorted({*view.excluded, *(view.decision.excluded if view.decision else ())}))


def _placed(view: View, without: Sequence[str] = ()) -> plan.Placement:
    """Where an attempt would go now, also without some nodes more."""
    return plan.place(
        view.candidates or (),
        nodes=view.nodes,
        gpus=view.gpus_per_node,
        excluded=(*_excluded(view), *without),
        before=view.last.nodes if view.last else (),
    )


def _resume(view: View, last: AttemptView | None) -> Saved | None:
    """The checkpoint to go on from."""
    decision = view.decision
    chosen = next((one for one in view.saved if decision is not None and one.id == decision.checkpoint_id), None)
    if chosen is not None:
        if chosen.state == "validated":
            return chosen
        # it was tainted since it was chosen: the newest good one before it, on its own path
        return checkpoints.resumable(_path(view, chosen.attempt_no), below_step=chosen.step)
    saved = _path(view, last.no if last is not None else 0)
    if decision is not None and decision.action == "restart_rollback" and last is not None:
        return checkpoints.resumable(saved, below_step=last.last_step)
    return checkpoints.resumable(saved)


def _path(view: View, no: int) -> list[Saved]:
    """What lies on the way to an attempt."""
    return checkpoints.lineage(view.saved, way([one for one in view.attempts if one.no <= no]))


def _skip(view: View, last: AttemptView | None, resume: Saved | None) -> str:
    """The data to leave out (TRIMTAB_SKIP_STEPS): a decision to roll back gives up what was read since `resume`."""
    rolls_back = view.decision is not None and view.decision.action == "restart_rollback"
    return format_ranges(skips.left_out(view.attempts, resume, last if rolls_back else None, view.given_up))


# --- an attempt is alive ---


def _live(view: View, attempt: AttemptView, spoilt: Spoils) -> Move:
    placed = _whereabouts(view, attempt)
    if placed is not None:
        return placed
    troubles = taint.hits(view, attempt, spoilt)
    source = _source(attempt, troubles, spoilt)
    if attempt.state in LEAVING:
        return _leave(view, attempt, [one for one in troubles if one.corrupting], source)
    if attempt.state == "submitting":
        return Submit()
    if view.desired in ("cancel", "pause"):
        return Press("terminate", "stopping", f"Attempt {attempt.no} is asked to save and stop: {_wanted(view)}.")
    if view.wish is not None:
        return Decide(choices.of_wish(view, attempt), "terminate")
    if troubles and view.decision is None:
        choice = choices.of_trouble(view, attempt, troubles, source)
        if view.mode != "act":
            return Decide(choice, "none")
        return Decide(choice, "kill" if choice.corrupting_since_s is not None else "terminate")
    if troubles:
        # the attempt that was to prove a decision is itself hit: the older decision has come to nothing
        return Conclude(False, f"Attempt {attempt.no} was hit before it proved the restart: {troubles[0].sentence}.")
    if view.look is None or view.look.state == "unknown":
        return Wait()
    return _astray(view, attempt) or of_look(view, attempt, view.look) or _advanced(view, attempt, view.look)


def _whereabouts(view: View, attempt: AttemptView) -> Move | None:
    """Where the platform placed the whole gang, as soon as it says so: faults of those nodes are the attempt's."""
    if view.pins_nodes or view.look is None or len(view.look.members) < view.nodes:
        return None
    nodes = view.look.nodes
    if not nodes or nodes == tuple(sorted(attempt.nodes)):
        return None
    return Advance(attempt.state, sentence=f"Attempt {attempt.no} is placed on {choices.joined(nodes)}.", nodes=nodes)


def _leave(view: View, attempt: AttemptView, hit: Sequence[Trouble], source: Saved | None) -> Move:
    look, decision = view.look, view.decision
    if look is None:
        return Wait()
    ours = decision is not None and decision.attempt_no == attempt.no
    corrupting = decision.corrupting_since_s if decision is not None and ours else None
    if hit and corrupting is None and view.mode == "act":
        # it is leaving for another reason, with time to save: what it would save now cannot be trusted
        return Decide(choices.of_trouble(view, attempt, hit, source), "kill")
    if look.fenced:
        if decision is not None and ours:
            sentence = f"Attempt {attempt.no} has ended; none of its processes is left."
            end_class = "person" if decision.by_person else "hardware"
            return EndAttempt("superseded", end_class, sentence, fingerprint=decision.fingerprint)
        if view.status == "needs_human":
            return EndAttempt("stopped", "unverified", f"Attempt {attempt.no} was stopped: its restart was not proved.")
        saved = "it saved first" if any(m.exit_code == 75 for m in look.members) else "it did not save"
        return EndAttempt("stopped", "person", f"Attempt {attempt.no} was stopped; {saved}.")
    saves = corrupting is None and (attempt.state == "draining" or view.desired in ("cancel", "pause"))
    waited_s = view.now - attempt.state_since_s
    if waited_s > KILL_AFTER_S + (view.grace_s if saves else 0.0):
        return abandoned(attempt, look) or Press("kill", "stopping")
    if not view.told:
        # the server that meant to tell it may have died first, or was not heard
        return Press("terminate" if saves else "kill", attempt.state)
    if attempt.state == "draining" and waited_s > KILL_AFTER_S and leaving.in_vain(view, look):
        return Press("kill", "stopping")
    return Wait()


def _advanced(view: View, attempt: AttemptView, look: Look) -> Move:
    first = min((beat.first_step for beat in view.beats if beat.first_step is not None), default=None)
    last = min((beat.last_step for beat in view.beats if beat.last_step is not None), default=None)
    verdict = _proof(view, attempt, first)
    if verdict is not None:
        return verdict
    silent = _silent(view) if attempt.state in ("training", "suspect") else []
    if silent and attempt.state == "training":
        return Advance("suspect", first, last, _suspicion(attempt, silent))
    state = _phase(view, look)
    recovered = attempt.state == "suspect" and not silent and state != "pending"
    if recovered or (attempt.state != "suspect" and _ORDER.index(state) > _ORDER.index(attempt.state)):
        sentence = ""
        if recovered:
            sentence = f"Attempt {attempt.no} is heard again."
        elif state == "training":
            resumed = f", the one after checkpoint {attempt.resume_step}" if attempt.resume_step is not None else ""
            sentence = f"Attempt {attempt.no} trains: its first step is {first}{resumed}."
        return Advance(state, first, last, sentence)
    if first is not None and (first, last) != (attempt.first_step, attempt.last_step):
        return Advance(attempt.state, first, last)
    return Wait()


def _silent(view: View) -> list[Beat]:
    """The training ranks that have said nothing for long. Suspicion only: what to do about it is the rules' affair."""
    limits = ((beat, max(SUSPECT_S, SUSPECT_STEPS * (beat.step_s or 0.0))) for beat in view.beats)
    return [beat for beat, limit_s in limits if beat.phase == "train" and beat.silent_s > limit_s]


def _suspicion(attempt: AttemptView, silent: Sequence[Beat]) -> str:
    longest = max(silent, key=lambda beat: beat.silent_s)
    more = f" and {len(silent) - 1} more have" if len(silent) > 1 else " has"
    who = f"rank {longest.rank} on {longest.node}{more}"
    return f"Attempt {attempt.no} is suspect: {who} said nothing for {longest.silent_s:.0f} s."


def _phase(view: View, look: Look) -> str:
    if any(beat.first_step is not None for beat in view.beats):
        return "training"
    if view.beats:
        return "init"
    return "starting" if look.state == "running" else "pending"


def _astray(view: View, attempt: AttemptView) -> Move | None:
    """Whoever has a checkpoint to go on from begins with the step after it, whether or not a decision waits for it.

    A silent restart from scratch would overwrite what was learned: it is stopped. Of a job that does not tell each of
    its steps (below level 2) the first that is heard may come later, but none that the checkpoint holds already.
    """
    first = min((beat.first_step for beat in view.beats if beat.first_step is not None), default=None)
    if attempt.resume_step is None or first is None or first == attempt.resume_step + 1:
        return None
    if not view.counts_steps and (view.role not in ("", "train") or first > attempt.resume_step):
        return None
    sentence = f"Attempt {attempt.no} began with step {first}; it had to begin with {attempt.resume_step + 1}."
    return Conclude(False, sentence, first, stop=True)


def _proof(view: View, attempt: AttemptView, first: int | None) -> Move | None:
    """A fresh look at a restart: another attempt, no excluded node, and progress from where it was meant to go on."""
    decision = view.decision
    if decision is None or decision.attempt_no == attempt.no or attempt.decision_id != decision.id:
        return None
    if not attempt.nodes:
        return None  # the platform has not said yet where it runs
    forbidden = sorted(set(attempt.nodes) & {*decision.excluded, *attempt.excluded})
    if forbidden:
        sentence = f"Attempt {attempt.no} runs on {choices.joined(forbidden)}, which the decision had excluded."
        return Conclude(False, sentence, stop=True)
    if not view.counts_steps:
        return _loose_proof(view, attempt)
    if first is None:
        return None
    expected = (attempt.resume_step or 0) + 1
    if first != expected:
        sentence = f"Attempt {attempt.no} began with step {first}; it had to begin with {expected}."
        return Conclude(False, sentence, first, stop=True)
    where = choices.joined(attempt.nodes)
    return Conclude(True, f"Attempt {attempt.no} completed step {first}, as planned, on {where}.", first)


def _loose_proof(view: View, attempt: AttemptView) -> Move | None:
    """Jobs that say less prove less: a heartbeat from their work, or two minutes of running (level 0)."""
    where = choices.joined(attempt.nodes)
    phases = ("train",) if view.contract_level == 1 else _WORK
    if view.contract_level >= 1 and any(beat.phase in phases or beat.first_step is not None for beat in view.beats):
        return Conclude(True, f"Attempt {attempt.no} {'trains' if view.role in ('', 'train') else 'works'} on {where}.")
    running = view.look is not None and view.look.state == "running"
    since = attempt.submitted_s if attempt.submitted_s is not None else view.now
    if view.contract_level == 0 and running and view.now - since >= RUNS_S:
        return Conclude(True, f"Attempt {attempt.no} has run for {RUNS_S:.0f} s on {where}.")
    return None

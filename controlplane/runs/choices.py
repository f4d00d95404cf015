"""Which decision answers a trouble or a failure, with the sentence that people read. Pure.

Hardware evidence: leave the node (K > D > A). A failure of the job's own: again from the newest checkpoint, within its
budgets. Numerics: roll back and skip the data. Configuration: a person.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from controlplane.runs.checkpoints import Saved
from controlplane.runs.ledger import Budget, Failure, budget
from controlplane.runs.view import AttemptView, Choice, Trouble, View

POLICY_VERSION = "1"
_ASKS_RESTART = ("restart", "rma")


def of_trouble(view: View, attempt: AttemptView, troubles: Sequence[Trouble], source: Saved | None = None) -> Choice:
    """Restart without the nodes that the incidents blame; the strongest and oldest one gives the sentence.

    `source`: the spoilt checkpoint that the attempt went on from, if that is why. Of an attempt that ended by itself
    the troubles are the cause; where the policy does not act, a person begins the next one.
    """
    ordered = sorted(troubles, key=lambda one: (one.action not in _ASKS_RESTART, one.onset_s))
    leading = ordered[0]
    nodes = tuple(sorted({one.node for one in ordered if _to_blame(one, attempt)}))
    corrupting = [one.last_clean_s for one in ordered if one.corrupting]
    cause = leading.sentence
    if source is not None:
        cause += f"; attempt {attempt.no} had gone on from checkpoint {source.step}, which that spoilt"
    without = f" without {joined(nodes)}" if nodes else ""
    corrupt = "; what was saved since the last clean sample is not used" if corrupting else ""
    reason = f"{cause}, so {view.name} restarts{without} from its newest verified checkpoint{corrupt}."
    ended = attempt.ended_s is not None
    waits = ended and view.mode != "act"
    if waits:
        reason = f"{cause}, and attempt {attempt.no} ended; its policy is {view.mode}: a person restarts it."
    hit = None if ended else Failure(attempt.no, view.now, "hardware", leading.rule, leading.node, None)
    asked = view.decision if view.decision is not None and view.decision.by_person else None
    return Choice(
        action="pause_for_human" if waits else "restart_exclude" if nodes else "restart",
        reason=reason,
        rule=leading.rule,
        mode="act" if waits else view.mode,
        excluded=() if waits else nodes,
        checkpoint_id=asked.checkpoint_id if asked is not None else None,
        evidence=tuple(_evidence(ordered)),
        failure_class="hardware",
        fingerprint=leading.rule,
        entity=f"{leading.node}/{leading.entity}" if leading.node else leading.entity,
        progress=_progress(view, attempt),
        incidents=tuple(dict.fromkeys(one.incident_id for one in ordered)),
        corrupting_since_s=min(corrupting) if corrupting else None,
        budgets_before=_budget(view, leave_out=attempt.no).as_dict(),
        budgets_after=_budget(view, hit).as_dict(),
    )


def _to_blame(trouble: Trouble, attempt: AttemptView) -> bool:
    """Whether its node must be left; it may be one that only an attempt before was on."""
    return trouble.node != "" and not trouble.over and (trouble.corrupting or trouble.node in attempt.nodes)


def _evidence(troubles: Sequence[Trouble]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    told: set[int] = set()
    for one in troubles:
        if one.number not in told:
            label = f"INC-{one.number:04d}"
            found.append({"kind": "incident", "id": one.number, "label": label, "sentence": one.sentence})
        told.add(one.number)
        for fault in one.fault_ids:
            found.append({"kind": "fault", "id": fault, "label": one.rule, "sentence": one.sentence})
    return found


def of_failure(view: View, attempt: AttemptView, spared: Collection[str]) -> Choice:
    """What follows an attempt that ended by itself; `spared`: the nodes that the run could do without now."""
    message = str(attempt.end.get("message") or attempt.end_class)
    action, reason, excluded = _answer(view, attempt, message, spared)
    evidence = {"kind": "attempt", "id": attempt.no, "label": f"attempt {attempt.no}", "sentence": message}
    return Choice(
        action=action,
        reason=reason,
        rule=f"exit:{attempt.end_class}",
        excluded=excluded,
        evidence=(evidence,),
        failure_class=attempt.end_class,
        fingerprint=str(attempt.end.get("fingerprint") or attempt.end_class),
        entity=str(attempt.end.get("node") or ""),
        progress=_progress(view, attempt),
        budgets_before=_budget(view, leave_out=attempt.no).as_dict(),
        budgets_after=_budget(view).as_dict(),
    )


def _answer(
    view: View, attempt: AttemptView, message: str, spared: Collection[str]
) -> tuple[str, str, tuple[str, ...]]:
    """(action, sentence, nodes to leave out), the first line that fits."""
    name, ended = view.name, f"Attempt {attempt.no} of {view.name}"
    node = str(attempt.end.get("node") or "")
    left = _budget(view)
    exhausted, suspect = left.exhausted, left.suspect
    if attempt.end_class in ("configuration", "submit_conflict"):
        return "pause_for_human", f"{ended} stopped on its configuration: {message}. A person must mend it.", ()
    if exhausted:
        return "pause_for_human", f"{name} failed again ({message}) and {exhausted}. A person must look.", ()
    if view.mode != "act":
        return "pause_for_human", f"{ended} ended ({message}); its policy is {view.mode}: a person restarts it.", ()
    if attempt.end_class == "numerics":
        reason = f"{message} in attempt {attempt.no}, so {name} goes back to a checkpoint and skips the data since."
        return "restart_rollback", reason, ()
    if attempt.end_class == "bad_node" and node:
        reason = f"Attempt {attempt.no} says that {node} computes wrongly, so {name} is restarted without it."
        return "restart_exclude", reason, (node,)
    if attempt.end_class == "saved":
        return "restart", f"{ended} saved and stopped without being asked, so it goes on from there.", ()
    if suspect in spared:
        reason = f"{ended} ended on {suspect} as one did before: {message}. It is restarted without that node."
        return "restart_exclude", reason, (suspect,)
    return "restart", f"{ended} ended: {message}. It is restarted from its newest verified checkpoint.", ()


def of_wish(view: View, attempt: AttemptView | None) -> Choice:
    """A restart that a person asked for."""
    wish = view.wish
    if wish is None:
        raise ValueError("nobody asked for a restart")
    chosen = next((one for one in view.saved if one.id == wish.checkpoint_id), None)
    source = f"from checkpoint {chosen.step}" if chosen else "from its newest verified checkpoint"
    without = f" without {joined(wish.exclude_nodes)}" if wish.exclude_nodes else ""
    return Choice(
        action="restart_exclude" if wish.exclude_nodes else "restart",
        reason=f"{wish.actor} asked to restart {view.name} {source}{without}.",
        rule="person",
        excluded=wish.exclude_nodes,
        checkpoint_id=wish.checkpoint_id,
        evidence=({"kind": "person", "id": wish.actor, "label": wish.actor, "sentence": "asked for a restart"},),
        failure_class="person",
        fingerprint="person",
        progress=_progress(view, attempt) if attempt else "",
        person=wish.actor,
    )


_BADLY = ("failed", "preempted", "abandoned")


def failures(view: View) -> list[Failure]:
    """The attempts that ended badly, as the ledger counts them; what a person ended is not a failure."""
    return [
        Failure(
            one.no,
            one.ended_s,
            one.end_class,
            str(one.end.get("fingerprint") or one.end_class),
            str(one.end.get("node") or ""),
            one.last_step,
        )
        for one in view.attempts
        if one.ended_s is not None and (one.state in _BADLY or one.end_class == "hardware")
    ]


def wait_s(view: View) -> float:
    """How long to wait after the last failure before the next attempt, in seconds."""
    return _budget(view).wait_s


def suspect(view: View) -> str:
    """The node on which the newest failure has struck too often for chance; "" if there is none."""
    return _budget(view).suspect


def brake(view: View) -> str:
    """Why the controller may not begin another attempt by itself now; "" while it may."""
    exhausted = _budget(view).exhausted
    return f"{exhausted}; a person must look" if exhausted else ""


def _budget(view: View, more: Failure | None = None, leave_out: int | None = None) -> Budget:
    counted = [one for one in failures(view) if one.attempt_no != leave_out]
    return budget([*counted, *([more] if more else [])], restarts=view.restarts, now=view.now, seed=len(view.run_id))


def _progress(view: View, attempt: AttemptView) -> str:
    """How far the attempt came, in words; unknown is said as unknown."""
    if attempt.last_step is None:
        return "unknown: no completed step was seen"
    before = max((one.last_step or 0 for one in view.attempts if one.no < attempt.no), default=0)
    if attempt.last_step > before:
        return f"moved from step {before} to {attempt.last_step}"
    return f"none: step {attempt.last_step}, before {before}"


def joined(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

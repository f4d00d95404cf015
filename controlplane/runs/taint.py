"""What a data-corrupting fault spoils, and which faults a decision on an attempt has to answer. Pure.

Whoever trained on the node has a state that cannot be trusted from the last clean sample on, to the attempt's own end;
so has every attempt that went on from such a state. It follows from the fault alone: when it was told, who decided on
it and whether the run's policy acts make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.runs.checkpoints import Saved
from controlplane.runs.view import AttemptView, Corruption, Taint, Tainted, Trouble, View

REPLANNED = "replanned"
"""The end class of an attempt that was planned and not started: it has done nothing that could count."""
OF_ALERT = "alert"
_SUSPECT = "its state was computed between the last clean sample before the fault and the end of the ranks"


def way(attempts: Sequence[AttemptView]) -> list[tuple[int, int]]:
    """(attempt, step it went on from) of those that were started; 0 stands for the runs that this one continues."""
    return [(0, 0), *((one.no, one.resume_step or 0) for one in attempts if one.end_class != REPLANNED)]


@dataclass(frozen=True, slots=True)
class Spoil:
    """From when on an attempt's state is not to be trusted.

    `source`: the spoilt checkpoint that it went on from, if that is the way. `cause` None: the fault is long forgotten,
    what it did is still known.
    """

    since_s: float
    cause: Corruption | None = None
    source: Saved | None = None

    def holds(self, saved: Saved) -> bool:
        """Whether a checkpoint of the attempt is spoilt; one of an unknown time is."""
        return saved.state_at_s is None or saved.state_at_s >= self.since_s


Spoils = Mapping[int, tuple[Spoil, ...]]
"""By attempt number."""


def spoils(attempts: Sequence[AttemptView], saved: Sequence[Saved], corruptions: Sequence[Corruption]) -> Spoils:
    """What is spoilt of each attempt."""
    remembered = _remembered(saved)
    if not corruptions and not remembered:
        return {}
    by_id = {one.id: one for one in saved}
    first_clean_s = min((one.trouble.last_clean_s for one in corruptions), default=math.inf)
    found: dict[int, tuple[Spoil, ...]] = {}
    for attempt in attempts:  # by number: an attempt's checkpoint is of one before it
        over = attempt.ended_s is not None and attempt.ended_s < first_clean_s
        own = [] if over else [Spoil(one.trouble.last_clean_s, one) for one in corruptions if _strikes(one, attempt)]
        first_s = remembered.get((attempt.no, attempt.epoch))
        if first_s is not None and first_s < min((one.since_s for one in own), default=math.inf):
            own.append(Spoil(first_s))
        source = by_id.get(attempt.resume_id) if attempt.resume_id is not None else None
        if source is not None and (source.state == "tainted" or source.attempt_no in found):
            own += _inherited(source, found.get(source.attempt_no, ()))
        if own:
            found[attempt.no] = tuple(own)
    return found


def _inherited(source: Saved, of_attempt: Sequence[Spoil]) -> list[Spoil]:
    """What an attempt has from the checkpoint that it went on from."""
    before = [one for one in of_attempt if one.holds(source)]
    if not before and source.state == "tainted":
        return [Spoil(-math.inf, None, source)]
    return [Spoil(-math.inf, one.cause, source) for one in before]


def _strikes(corruption: Corruption, attempt: AttemptView) -> bool:
    """Whether an attempt was on the node while its memory could not be trusted."""
    begun = corruption.end_s is None or attempt.created_s < corruption.end_s
    over = attempt.ended_s is not None and attempt.ended_s < corruption.trouble.last_clean_s
    return begun and not over and corruption.trouble.node in attempt.nodes


def _remembered(saved: Sequence[Saved]) -> Mapping[tuple[int, int], float]:
    """By attempt and epoch the first state that is known to be spoilt: the attempt has none afterwards that is not."""
    found: dict[tuple[int, int], float] = {}
    for one in saved:  # once: a long run has hundreds of attempts and thousands of checkpoints
        if one.state == "tainted" and one.state_at_s is not None:
            key = (one.attempt_no, one.epoch)
            found[key] = min(found.get(key, math.inf), one.state_at_s)
    return found


def suspects(saved: Sequence[Saved], spoilt: Spoils) -> Taint | None:
    """The checkpoints that must not be used and are not marked so yet; None if there are none.

    What could not be read has no time, is not used, and is judged when it can be.
    """
    found = []
    for one in saved:
        if one.attempt_no not in spoilt or one.state == "tainted":
            continue
        why = [spoil for spoil in spoilt[one.attempt_no] if spoil.holds(one)]
        if not why or (one.state != "validated" and one.state_at_s is None):
            continue
        source = why[0].source
        reason = _SUSPECT
        if source is not None:
            reason = f"it goes back to checkpoint {source.step} of attempt {source.attempt_no}, which is tainted"
        found.append(Tainted(one.id, one.step, one.attempt_no, reason))
    return Taint(tuple(found)) if found else None


def touches(view: View, trouble: Trouble, attempt: AttemptView) -> bool:
    """Whether a trouble that waits for a decision is this attempt's, alive or ended since."""
    if attempt.ended_s is not None and attempt.ended_s < trouble.last_clean_s:
        return False
    if trouble.node:
        return trouble.node in attempt.nodes
    return (trouble.run_id, trouble.attempt_no) == (view.run_id, attempt.no)


def hits(view: View, attempt: AttemptView, spoilt: Spoils) -> list[Trouble]:
    """The troubles that a decision on the attempt answers: on its nodes, or spoiling the state that it works on."""
    found = [one for one in view.troubles if touches(view, one, attempt)]
    known = {fault for one in found for fault in one.fault_ids}
    for spoil in spoilt.get(attempt.no, ()):
        cause = spoil.cause
        if cause is None or cause.decided or not cause.trouble.number or cause.trouble.action == OF_ALERT:
            continue
        if known.isdisjoint(cause.trouble.fault_ids):
            known |= set(cause.trouble.fault_ids)
            found.append(cause.trouble)
    return found


def unplaced(attempt: AttemptView, spoilt: Spoils, *, since_s: float) -> Trouble | None:
    """A data-corrupting fault on the attempt told since then that has no incident yet: it will be decided on."""
    causes = [one.cause for one in spoilt.get(attempt.no, ()) if one.cause is not None and not one.cause.trouble.number]
    return next((one.trouble for one in causes if one.told_s >= since_s), None)


def unfit(view: View, attempt: AttemptView, spoilt: Spoils) -> str:
    """Why a planned attempt must not be started any more; "" while it may."""
    for spoil in spoilt.get(attempt.no, ()):
        if spoil.source is not None:
            return f"checkpoint {spoil.source.step}, from which it was to go on, is tainted"
        cause = spoil.cause
        if cause is not None and cause.end_s is None and cause.trouble.action != OF_ALERT:
            return cause.trouble.sentence
    return next((one.sentence for one in view.troubles if touches(view, one, attempt)), "")

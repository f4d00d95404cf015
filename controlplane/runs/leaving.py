"""Whether an attempt that was asked to save still may: the grace is not waited out for a gang that cannot. Pure."""

from __future__ import annotations

from controlplane.runs.view import Look, View

STUCK_S, STUCK_STEPS = 10.0, 3


def in_vain(view: View, look: Look) -> bool:
    """Whether nobody of a leaving gang is waited for any more."""
    return _unheard(view, look) or _stuck(view)


def _unheard(view: View, look: Look) -> bool:
    """Whether all that is left of a gang is on nodes that nobody hears from: the others saved, or could not."""
    left = [member.node for member in look.members if member.alive]
    return bool(left) and view.unheard.issuperset(left)


def _stuck(view: View) -> bool:
    """Whether no rank will save: all that are heard stand in a step for longer than one takes, and none has begun to.

    One that counts steps says so when it saves; in a collective with a rank that is gone nobody comes to that.
    """
    heard = [beat for beat in view.beats if beat.node not in view.unheard]
    return bool(heard) and all(
        beat.phase == "train" and beat.last_step is not None and beat.silent_s > stuck_after_s(beat.step_s)
        for beat in heard
    )


def stuck_after_s(step_s: float | None) -> float:
    """Seconds without a step after which a rank that is to save stands still; `step_s` is its median step."""
    return max(STUCK_S, STUCK_STEPS * (step_s or 0.0))

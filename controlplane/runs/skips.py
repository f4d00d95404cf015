"""Which data the next attempt leaves out: what a roll-back gives up, and all that was given up before. Pure.

What a step reads depends on the ranges before it. So an attempt keeps those of the attempt that wrote its checkpoint as
they are, and of all others only what lies beyond the data that this checkpoint has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.runs.checkpoints import Saved
from controlplane.runs.view import AttemptView
from jobs.contract import Ranges, data_index, merged


def left_out(
    attempts: Sequence[AttemptView], resume: Saved | None, failed: AttemptView | None = None, before: Ranges = ()
) -> Ranges:
    """The data indices that an attempt which goes on from `resume` leaves out.

    `failed`: the attempt whose data since that checkpoint is given up, up to the step that it did not complete.
    `before`: what the runs that this one continues have given up.
    """
    wrote = next((one for one in attempts if resume is not None and one.no == resume.attempt_no), resume)
    own = wrote.skips if wrote is not None else ()
    seen = data_index(resume.step, own) if resume is not None else 0
    given_up = [*before, *(found for one in attempts for found in one.skips)]
    if failed is not None:
        first = (resume.step if resume is not None else 0) + 1
        last = max(first, (failed.last_step or first) + 1)
        given_up.append((data_index(first, failed.skips), data_index(last, failed.skips)))
    return merged([*own, *((max(first, seen + 1), last) for first, last in given_up if last > seen)])

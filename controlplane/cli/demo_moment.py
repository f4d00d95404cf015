"""When the demo orders its drill: so that a checkpoint is computed in the second before the fault is seen.

Only the moment is chosen, nothing else is helped along: the node's agent samples once a second, so a drill that it is
handed between two samples shows in the second of them, and what was computed since the first is not trusted. When a
step will end is judged by how long the steps before it took. It knows no drill and no run, and reads no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BEAT_S = 1.0
"""between two samples of an agent"""
EARLIEST_S, LATEST_S = 0.03, 0.25
"""after a sample: a drill ordered then has reached the agent before the next one"""
TOLD_AFTER_S = 0.4
"""a step that ended longer ago than this is known"""
LEARNED_STEPS, FEWEST_STEPS = 32, 8
SURE_UNTIL_STEP, LAST_STEP, LEAST = 90, 160, 0.5
"""until the first only a sure moment will do, then less and less; at the last any moment must do"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known at `now`: when each step so far ended, the node's newest sample, how long a save takes."""

    now: float
    steps: Sequence[int]
    ends_s: Sequence[float]
    sampled_s: float
    save_s: float


def good(sight: Sight, every: int) -> bool:
    """Whether now is a moment to order the drill, as good as can be hoped for by this step."""
    return bool(sight.steps) and likelihood(sight, every) >= wanted(sight.steps[-1])


def likelihood(sight: Sight, every: int) -> float:
    """How likely it is, from 0 to 1, that of a drill ordered now the suspicion window will hold a whole checkpoint:
    computed since the node's newest sample, and written before the next one.
    """
    sample_s = sight.sampled_s + BEAT_S * math.floor((sight.now - sight.sampled_s) / BEAT_S)
    if not EARLIEST_S <= sight.now - sample_s <= LATEST_S or len(sight.steps) < FEWEST_STEPS:
        return 0.0
    step, end_s = sight.steps[-1], sight.ends_s[-1]
    ahead = -step % every
    ends = [end_s + length_s for length_s in _lengths(sight, ahead, every)] if ahead else [end_s]
    # what had ended by now would be known by now
    possible = [end for end in ends if not ahead or end > sight.now - TOLD_AFTER_S]
    within = [end for end in possible if sample_s <= end and end + sight.save_s <= sample_s + BEAT_S]
    return len(within) / len(possible) if possible else 0.0


def _lengths(sight: Sight, count: int, every: int) -> list[float]:
    """How long each stretch of `count` steps of late took, without the pause for a save."""
    learned = list(zip(sight.steps, sight.ends_s, strict=True))[-LEARNED_STEPS:]
    single = [end - begun for (step, begun), (_, end) in pairwise(learned) if step % every]
    return [sum(single[at : at + count]) for at in range(len(single) - count + 1)]


def wanted(step: int) -> float:
    """How likely it must be at a step for the drill to be ordered."""
    if step >= LAST_STEP:
        return 0.0
    late = max(0.0, (step - SURE_UNTIL_STEP) / (LAST_STEP - SURE_UNTIL_STEP))
    return 1.0 - (1.0 - LEAST) * late


def rest_s(sight: Sight) -> float:
    """How long nothing need be looked at, in seconds: a little while a drill could be ordered, else until it can."""
    since_s = (sight.now - sight.sampled_s) % BEAT_S
    if since_s < EARLIEST_S:
        return EARLIEST_S - since_s
    return 0.05 if since_s < LATEST_S else BEAT_S - since_s + EARLIEST_S

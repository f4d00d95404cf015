"""The states of lifecycles and of their stages and every legal step between them, as data. Nothing else moves one.

`check_*` is asked by the one function that writes each state (controlplane.store.lifecycles).
"""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.runs.states import check

STAGE_ENDED = ("passed", "failed", "cancelled")
LIFECYCLE_ENDED = ("succeeded", "failed", "cancelled")
AT_WORK: Mapping[str, str] = {"train": "training", "evaluate": "evaluating", "release": "releasing"}
"""The state of a stage while its own job, of this role, runs."""
APPROVABLE = ("approval", "refused")
"""the holds that a person's word on the checkpoint ends"""

_STOPS = frozenset({"held", "failed", "cancelled"})

STAGE: Mapping[str, frozenset[str]] = {
    "waiting": frozenset({"preparing", "training", "evaluating", "releasing", "held", "cancelled"}),
    "preparing": frozenset({"training", "evaluating", "releasing"}) | _STOPS,
    "training": frozenset({"evaluating", "passed"}) | _STOPS,
    "evaluating": frozenset({"passed"}) | _STOPS,
    "releasing": frozenset({"passed"}) | _STOPS,
    # a person lets it go on, tries again or gives it up; or the run that held it goes on
    "held": frozenset({"waiting", "preparing", "training", "evaluating", "releasing", "passed", "failed", "cancelled"}),
    "passed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

LIFECYCLE: Mapping[str, frozenset[str]] = {
    "active": frozenset({"paused", "succeeded", "failed", "cancelled"}),
    # what was under way when it was paused may be the last of it
    "paused": frozenset({"active", "succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def check_stage(before: str, after: str) -> None:
    """Raises IllegalTransition unless a stage may go from `before` to `after`."""
    check(STAGE, "a stage that is", before, after)


def check_lifecycle(before: str, after: str) -> None:
    """Raises IllegalTransition unless a lifecycle may go from `before` to `after`."""
    check(LIFECYCLE, "a lifecycle that is", before, after)

"""The states of runs and attempts and every legal step between them, as data. Nothing else may move a state.

`check_*` is asked by the one function that writes each state (controlplane.store.runs); the tables are rendered into
ARCHITECTURE.md by `as_markdown`.
"""

from __future__ import annotations

from collections.abc import Mapping


class IllegalTransition(RuntimeError):
    """A state was asked to move where no table lets it go."""


PLANNED = "planned"
LIVE = ("submitting", "pending", "starting", "init", "training", "suspect", "draining", "stopping")
ENDED = ("succeeded", "failed", "preempted", "stopped", "superseded", "abandoned")
RUN_ENDED = ("succeeded", "failed", "cancelled")

LEAVING = frozenset({"draining", "stopping"})
"""told to end, and not ended yet"""

_ENDS_BY_ITSELF = frozenset({"succeeded", "failed", "preempted"})

ATTEMPT: Mapping[str, frozenset[str]] = {
    "planned": frozenset({"submitting", "stopped", "superseded", "abandoned"}),
    "submitting": frozenset({"pending", "starting", "init", "training"}) | _ENDS_BY_ITSELF | LEAVING,
    "pending": frozenset({"starting", "init", "training", "suspect"}) | _ENDS_BY_ITSELF | LEAVING,
    "starting": frozenset({"init", "training", "suspect"}) | _ENDS_BY_ITSELF | LEAVING,
    "init": frozenset({"training", "suspect"}) | _ENDS_BY_ITSELF | LEAVING,
    "training": frozenset({"suspect"}) | _ENDS_BY_ITSELF | LEAVING,
    # entered freely, left only by recovery or by a decision
    "suspect": frozenset({"starting", "init", "training"}) | _ENDS_BY_ITSELF | LEAVING,
    "draining": frozenset({"stopping", "stopped", "superseded", "abandoned"}) | _ENDS_BY_ITSELF,
    "stopping": frozenset({"stopped", "superseded", "abandoned"}) | _ENDS_BY_ITSELF,
    **{state: frozenset() for state in ENDED},
}

RUN: Mapping[str, frozenset[str]] = {
    "draft": frozenset({"queued", "cancelled"}),
    "waiting_gate": frozenset({"queued", "cancelled", "failed"}),
    "queued": frozenset({"active", "paused", "needs_human", "failed", "cancelled"}),
    "active": frozenset({"queued", "paused", "needs_human", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "needs_human": frozenset({"queued", "paused", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

DECISION: Mapping[str, frozenset[str]] = {
    "proposed": frozenset({"approved", "executing", "superseded", "expired"}),
    "approved": frozenset({"executing", "superseded", "expired"}),
    "executing": frozenset({"verified", "failed", "superseded"}),
    "verified": frozenset(),
    "failed": frozenset(),
    "superseded": frozenset(),
    "expired": frozenset(),
}


def check(table: Mapping[str, frozenset[str]], what: str, before: str, after: str) -> None:
    """Raises IllegalTransition unless `table` lets something go from `before` to `after`."""
    if after not in table.get(before, frozenset()):
        allowed = ", ".join(sorted(table.get(before, ()))) or "nothing: it is terminal"
        raise IllegalTransition(f"{what} {before} cannot become {after}; it may become {allowed}")


def check_attempt(before: str, after: str) -> None:
    """Raises IllegalTransition unless an attempt may go from `before` to `after`."""
    check(ATTEMPT, "an attempt that is", before, after)


def check_run(before: str, after: str) -> None:
    """Raises IllegalTransition unless a run may go from `before` to `after`."""
    check(RUN, "a run that is", before, after)


def check_decision(before: str, after: str) -> None:
    """Raises IllegalTransition unless a decision may go from `before` to `after`."""
    check(DECISION, "a decision that is", before, after)


def as_markdown(table: Mapping[str, frozenset[str]]) -> str:
    """A transition table as Markdown rows, in the table's order."""
    order = list(table)
    rows = ["| from | to |", "|---|---|"]
    for state, targets in table.items():
        named = ", ".join(sorted(targets, key=order.index)) or "– (terminal)"
        rows.append(f"| {state} | {named} |")
    return "\n".join(rows)

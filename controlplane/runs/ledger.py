"""Restart budgets: how often what may happen again before a person is asked. Pure questions with a value for an answer.

A root is a failure's fingerprint, never its rank or node. What the machines did is held to a rate of its own and not to
the run's budget; exit 75 (saved, resume) is charged to nobody, but an attempt an hour too many stops every kind.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

SAME_ROOT_WITHOUT_PROGRESS = 3
SAME_ROOT_AND_ENTITY = 1
INFRASTRUCTURE_PER_HOUR, ATTEMPTS_PER_HOUR = 6, 20
QUIET_RESET_S, HOUR_S = 6 * 3600.0, 3600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 300.0
QUARANTINE_WINDOW_S, QUARANTINE_NODES = 600.0, 2
QUARANTINE_SHARE = 0.05
"""of the fleet; the setting `quarantine_share` replaces it"""
FREE = frozenset({"saved"})
INFRASTRUCTURE = frozenset({"hardware", "killed", "lost", "bad_node", "node_lost", "preempted"})


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt's end as the ledger counts it. `last_step` None: unknown progress, which consumes nothing."""

    attempt_no: int
    at_s: float
    failure_class: str
    fingerprint: str
    entity: str
    last_step: int | None


@dataclass(frozen=True, slots=True)
class Budget:
    """What is used of what; `exhausted` is the sentence for the person, "" while there is something left.

    `suspect` is the node on which the newest root has now struck more often than one node may be blamed for chance.
    """

    restarts_used: int
    restarts: int
    same_root: int
    infrastructure: int
    exhausted: str
    wait_s: float
    suspect: str = ""

    def as_dict(self) -> dict[str, int | float | str]:
        """The budget as a decision keeps it."""
        return {
            "restarts_used": self.restarts_used,
            "restarts": self.restarts,
            "same_root_without_progress": self.same_root,
            "infrastructure_last_hour": self.infrastructure,
            "wait_s": round(self.wait_s, 1),
        }


def may_quarantine(recent: int, fleet: int, share: float = QUARANTINE_SHARE) -> bool:
    """Whether one node more may leave service by itself, after `recent` ones within the window, of a fleet of so many.

    Beyond that it is likelier that a rule, an agent or we are wrong than that so much hardware broke at once.
    """
    return recent + 1 <= max(QUARANTINE_NODES, share * fleet)


def _charged(failures: Sequence[Failure], now: float) -> list[Failure]:
    """Those that still count: after six hours without any, the ledger begins anew."""
    counted: list[Failure] = []
    for failure in sorted(failures, key=lambda one: one.at_s):
        if counted and failure.at_s - counted[-1].at_s > QUIET_RESET_S:
            counted = []
        if failure.failure_class not in FREE:
            counted.append(failure)
    return counted if counted and now - counted[-1].at_s <= QUIET_RESET_S else []


def _same_root(charged: Sequence[Failure]) -> int:
    """How often the newest root came in a row without the last completed step moving on."""
    if not charged:
        return 0
    newest, count = charged[-1], 0
    for failure in reversed(charged):
        if failure.fingerprint != newest.fingerprint or failure.last_step is None or newest.last_step is None:
            break
        if failure.last_step < newest.last_step:
            break
        count += 1
    return count


def _unmoved(failures: Sequence[Failure]) -> int:
    """How many attempts in a row, up to the newest, saved and left without having done a step more than the last."""
    count, after = 0, None
    for failure in reversed(failures):
        moved = after is not None and after.last_step is not None and (failure.last_step or 0) < after.last_step
        if failure.failure_class not in FREE or moved:
            break
        count, after = count + 1, failure
    return count


def _suspect(charged: Sequence[Failure]) -> str:
    """The node of the newest failure, if the same root struck there before; a failure that names none accuses none."""
    if not charged or not charged[-1].entity:
        return ""
    newest = charged[-1]
    before = [one for one in charged[:-1] if (one.fingerprint, one.entity) == (newest.fingerprint, newest.entity)]
    return newest.entity if len(before) >= SAME_ROOT_AND_ENTITY else ""


def _wait_s(repeats: int, seed: str) -> float:
    """Doubles with each repetition, with jitter; a first failure is answered at once."""
    if repeats <= 0:
        return 0.0
    ceiling = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**repeats)
    return random.Random(seed).uniform(ceiling / 2, ceiling)


def budget(failures: Sequence[Failure], *, restarts: int, now: float, seed: int = 0) -> Budget:
    """The state of the ledger after `failures`; what the newest one may not do is judged by what kind it is."""
    ordered = sorted(failures, key=lambda one: one.at_s)
    charged = _charged(ordered, now)
    own = [one for one in charged if one.failure_class not in INFRASTRUCTURE]
    recent = [one for one in ordered if now - one.at_s <= HOUR_S]
    machines = [one for one in recent if one.failure_class in INFRASTRUCTURE]
    same = _same_root(charged)
    newest = ordered[-1] if ordered else None
    exhausted = ""
    if newest in own and len(own) > restarts:
        exhausted = f"the run's budget of {restarts} restarts is used up"
    elif newest in charged and same >= SAME_ROOT_WITHOUT_PROGRESS:
        exhausted = f"the same failure came {same} times without progress past step {charged[-1].last_step}"
    elif newest in machines and len(machines) > INFRASTRUCTURE_PER_HOUR:
        exhausted = f"{len(machines)} restarts for the machines' sake in an hour: something else is wrong"
    elif len(recent) > ATTEMPTS_PER_HOUR:
        exhausted = f"{len(recent)} attempts ended within an hour, whatever each of them said"
    repeats = max(same - 1, len(own) - 1 if newest in own else 0, _unmoved(recent) - 1)
    wait = _wait_s(repeats, f"{seed}/{len(ordered)}")
    return Budget(len(own), restarts, same, len(machines), exhausted, wait, _suspect(charged))

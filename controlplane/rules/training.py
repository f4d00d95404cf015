"""Rules over a run's ranks and its loss: hangs, and losses that are no numbers. Pure.

A heartbeat travels through its node's agent. When that agent is silent the heartbeat is unknown, never stale: such a
node is the fleet rules' affair, and what its peers' ranks show is their evidence (`stalled_by_blind_nodes`). An agent
that was cut off tells old things first: its ranks are unknown until it has caught up, and a rank's silence is counted
on its node's clock between its heartbeat and its agent's last word, never from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from controlplane.rules.book import RuleBook
from controlplane.rules.findings import RUN, Finding, Judgement, Subject
from jobs.contract import Heartbeat, hang_limit_s

STEPPING_S = 10.0
_ENDING = frozenset({"exit"})


@dataclass(frozen=True, slots=True)
class RankSeen:
    """A rank of a live attempt: its last heartbeat and the node it runs on.

    silent_s: how long the rank had said nothing at `told_s`, by its node's own clock. told_s: up to when the word of
    that node reaches, by the server's clock; what came after it is not known.
    """

    run_id: str
    run_name: str
    attempt_no: int
    beat: Heartbeat
    silent_s: float
    node: str
    told_s: float
    longest_checkpoint_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepSeen:
    """Loss and gradient norm of one rank's step, as far as they were sent; NaN and infinity are what it said."""

    step: int
    at_s: float
    loss: float
    grad_norm: float
    rank: int = 0


def hang(ranks: Iterable[RankSeen], book: RuleBook, *, now: float, watching_since_s: float) -> Judgement:
    """Runs with a rank whose heartbeat is older than its phase's limit while its node's telemetry is alive.

    One finding a run, however many ranks wait in the same collective. The run is unknown while any of its nodes is
    silent (a blind node with stalled peers is the fleet rule's) and while this server has not looked for long enough.
    """
    alive_s = book["hang"].thresholds["telemetry_alive_s"]
    findings: list[Finding] = []
    unknown: set[Subject] = set()
    for run_id, members in _by_run(ranks).items():
        seen = [rank for rank in members if now - rank.told_s <= alive_s]
        stale = [rank for rank in seen if _overdue_s(rank, now, watching_since_s) > 0]
        if len(seen) == len(members) and stale:
            findings.append(_hung(members, stale, book))
        elif len(seen) < len(members) or any(_overdue_s(rank, now, -math.inf) > 0 for rank in seen):
            unknown.add(Subject("hang", run_id, RUN))
    return Judgement(tuple(findings), frozenset(unknown))


def stalled_by_blind_nodes(
    ranks: Iterable[RankSeen], book: RuleBook, *, now: float, watching_since_s: float
) -> dict[str, str]:
    """Silent nodes whose runs stand still on other, visible nodes; by node, the clause that says so."""
    alive_s = book["hang"].thresholds["telemetry_alive_s"]
    evidence: dict[str, str] = {}
    for members in _by_run(ranks).values():
        blind = sorted({rank.node for rank in members if now - rank.told_s > alive_s})
        stale = [
            rank
            for rank in members
            if rank.node not in blind and _overdue_s(rank, now, watching_since_s) > 0 and rank.beat.phase == "train"
        ]
        for node in blind if stale else ():
            first = max(stale, key=lambda rank: rank.silent_s)
            evidence[node] = (
                f"rank {first.beat.rank} of {first.run_name} on {first.node} has waited in a step for "
                f"{first.silent_s:.0f} s"
            )
    return evidence


def moving(ranks: Iterable[RankSeen], *, now: float) -> frozenset[str]:
    """Nodes of runs that another node's rank shows to be stepping: the trainer there lives, whoever else is silent.

    Ranks step together; one that trains and was heard within two of its steps, and 10 s at least, has not been left.
    """
    alive: set[str] = set()
    for members in _by_run(ranks).values():
        for rank in members:
            patience_s = max(STEPPING_S, 2 * (rank.beat.step_seconds_median or 0.0))
            if rank.beat.phase == "train" and now - rank.told_s + rank.silent_s < patience_s:
                alive |= {other.node for other in members if other.node != rank.node}
    return frozenset(alive)


def _by_run(ranks: Iterable[RankSeen]) -> Mapping[str, list[RankSeen]]:
    ordered = sorted(ranks, key=lambda rank: (rank.run_id, rank.beat.rank))
    return {run_id: list(members) for run_id, members in groupby(ordered, key=lambda rank: rank.run_id)}


def _overdue_s(rank: RankSeen, now: float, watching_since_s: float) -> float:
    """How long the heartbeat is past its phase's limit, in seconds; negative while it is not.

    A rank that says it exits is not hung. Patience starts anew when this server starts to look.
    """
    if rank.beat.phase in _ENDING:
        return -math.inf
    return min(rank.silent_s, now - watching_since_s) - hang_limit_s(rank.beat, rank.longest_checkpoint_s)


def _hung(members: Sequence[RankSeen], stale: Sequence[RankSeen], book: RuleBook) -> Finding:
    rule = book["hang"]
    first = max(stale, key=lambda rank: rank.silent_s - hang_limit_s(rank.beat, rank.longest_checkpoint_s))
    blamed = _behind(members)
    limit = hang_limit_s(first.beat, first.longest_checkpoint_s)
    beat_s = first.told_s - first.silent_s
    names = ", ".join(str(rank.beat.rank) for rank in stale[:8]) + (" …" if len(stale) > 8 else "")
    plural = "s" if len(stale) > 1 else ""
    return Finding(
        rule=rule.id,
        severity=rule.plain.severity,
        action=rule.plain.action,
        entity=RUN,
        sentence=rule.plain.sentence.format(
            run=first.run_name,
            attempt=first.attempt_no,
            ranks=f"rank{plural} {names}",
            seconds=round(first.silent_s),
            phase=first.beat.phase,
            limit=round(limit),
        ),
        onset_s=beat_s + limit,
        last_clean_s=beat_s,
        value=first.silent_s,
        threshold=limit,
        node=blamed.node if blamed else "",
        run_id=first.run_id,
        attempt_no=first.attempt_no,
        rank=blamed.beat.rank if blamed else -1,
        evidence={
            "ranks": [rank.beat.rank for rank in stale],
            "last_steps": {str(rank.beat.rank): rank.beat.step for rank in members},
            "phases": {str(rank.beat.rank): rank.beat.phase for rank in members},
        },
    )


def _behind(members: Sequence[RankSeen]) -> RankSeen | None:
    """The one rank that completed fewer steps than all others, if there is one: the others wait for it.

    With everybody at the same step nobody is blamed: which rank entered the collective last is not in a heartbeat.
    """
    if len(members) < 2:
        return None
    ordered = sorted(members, key=lambda rank: -1 if rank.beat.step is None else rank.beat.step)
    steps = [-1 if rank.beat.step is None else rank.beat.step for rank in ordered[:2]]
    return ordered[0] if steps[0] < steps[1] else None


def loss_not_finite(
    run_id: str, run_name: str, attempt_no: int, steps: Sequence[StepSeen], book: RuleBook
) -> Judgement:
    """A loss or gradient norm that is NaN or infinite among the newest `steps` (ascending) of a live attempt.

    A trainer that scales its loss skips a step with an infinite gradient norm on purpose, so the norm counts only if
    the last step has it too; a loss counts at once. No steps: unknown.
    """
    rule = book["loss-not-finite"]
    if not steps:
        return Judgement(unknown=frozenset({Subject(rule.id, run_id, RUN)}))
    bad = [(step, "the loss", step.loss) for step in steps if not math.isfinite(step.loss)]
    if not bad and not math.isfinite(steps[-1].grad_norm):
        bad = [(step, "the gradient norm", step.grad_norm) for step in steps if not math.isfinite(step.grad_norm)]
    if not bad:
        return Judgement()
    first, measure, value = bad[0]
    clean = [step.at_s for step in steps if step.step < first.step]
    finding = Finding(
        rule=rule.id,
        severity=rule.plain.severity,
        action=rule.plain.action,
        entity=RUN,
        sentence=rule.plain.sentence.format(
            run=run_name, attempt=attempt_no, measure=measure, step=first.step, value=value
        ),
        onset_s=first.at_s,
        last_clean_s=max(clean, default=first.at_s),
        value=float(first.step),
        threshold=0.0,
        run_id=run_id,
        attempt_no=attempt_no,
        evidence={"step": first.step, "rank": first.rank, "measure": measure, "said": str(value)},
    )
    return Judgement((finding,))

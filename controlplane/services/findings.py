"""The control plane's own rules, run over the store: what they find becomes faults beside those that nodes sent.

`Watch.judge` reads and judges, writing nothing; `tellings` says what of a judgement is news to the store. The memory of
a Watch is a cache of expensive verdicts (expert windows) and the moment it began to look; all else is level-triggered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from agents.readings import Fault, fault_id
from controlplane.rules import alarms, fleet, training
from controlplane.rules.book import RuleBook
from controlplane.rules.findings import RUN, Finding, Judgement, Subject
from controlplane.runs.ledger import QUARANTINE_SHARE
from controlplane.services import breaker, expert_places, expert_windows
from controlplane.services.peers import Comparison
from controlplane.services.pulses import no_pulse
from controlplane.store import experts, incidents, nodes, steps, tables, watch
from controlplane.store.engine import Session
from controlplane.store.watch import LiveAttempt

EVERY_STEPS = 8
"""An expert window is judged again after so many new steps: it is the costly part, and a window moves slowly."""
LOSS_STEPS = 16
RETOLD_S = 10.0
"""How often a finding that goes on is written anew, for its sentence and value."""
_ORIGIN = "server"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What was said of an attempt's steps up to `step`."""

    attempt_no: int
    step: int
    judgement: Judgement


class Watch:
    """The rules of one server. Not for several threads at once: one loop owns it."""

    def __init__(
        self,
        book: RuleBook,
        *,
        since_s: float,
        quarantine_share: float = QUARANTINE_SHARE,
        pulses: Callable[[float], dict[str, str]] = no_pulse,
    ) -> None:
        """since_s: when this server began to listen; no silence before it counts against anybody.

        `pulses` says of silent nodes what the platform knows against them (services/pulses.py).
        """
        self.book, self.since_s, self.quarantine_share = book, since_s, quarantine_share
        self._pulses = pulses
        self._comparison = Comparison(book)
        self._experts: dict[str, _Verdict] = {}
        self._losses: dict[str, _Verdict] = {}

    def judge(self, session: Session, now: float) -> Judgement:
        """Everything the rules say now."""
        attempts = [attempt for attempt in watch.live_attempts(session) if not attempt.ending]
        ranks = self._ranks(session, attempts)
        stalled = training.stalled_by_blind_nodes(ranks, self.book, now=now, watching_since_s=self.since_s)
        living = training.moving(ranks, now=now)
        pulseless = {node: clause for node, clause in self._pulses(now).items() if node not in living}
        everyone = nodes.listed(session)
        seen = [fleet.NodeSeen(node.name, node.last_seen_s, node.state) for node in everyone]
        judgement = fleet.no_telemetry(seen, pulseless | stalled, self.book, now=now, watching_since_s=self.since_s)
        judgement += self._held(session, everyone, now)
        judgement += training.hang(ranks, self.book, now=now, watching_since_s=self.since_s)
        offsets = watch.clock_offsets(session)
        judgement += self._comparison.judge(session, attempts, everyone, offsets, now)
        for attempt in attempts:
            offset = offsets.get(attempt.nodes[0], 0.0) if attempt.nodes else 0.0
            judgement += self._loss(session, attempt, offset)
            judgement += self._experts_apart(session, attempt, offset)
        self._forget({attempt.run_id for attempt in attempts})
        return judgement

    def _held(self, session: Session, everyone: Sequence[tables.Node], now: float) -> Judgement:
        """Nodes that the breaker keeps in service although they have faults."""
        if not breaker.closed(everyone, self.quarantine_share, now):
            return Judgement()
        afflicted = incidents.afflicted(session)
        held = [one.name for one in everyone if one.name in afflicted and not one.cordoned]
        return fleet.quarantine_held(held, breaker.recent(everyone, now), self.book, now)

    def _ranks(self, session: Session, attempts: Sequence[LiveAttempt]) -> list[training.RankSeen]:
        slowest = watch.longest_checkpoints(session, {attempt.run_id for attempt in attempts})
        return [
            training.RankSeen(
                run_id=found.attempt.run_id,
                run_name=found.attempt.run_name,
                attempt_no=found.attempt.no,
                beat=found.beat,
                silent_s=found.silent_s,
                node=found.beat.node,
                told_s=found.told_s,
                longest_checkpoint_s=slowest.get(found.attempt.run_id),
            )
            for found in watch.rank_beats(session, attempts)
        ]

    def _loss(self, session: Session, attempt: LiveAttempt, offset: float) -> Judgement:
        last = steps.last_step(session, attempt.run_id, attempt.no)
        if last is None:
            return training.loss_not_finite(attempt.run_id, attempt.run_name, attempt.no, (), self.book)
        known = self._losses.get(attempt.run_id)
        if known is not None and (known.attempt_no, known.step) == (attempt.no, last):
            return known.judgement
        seen = [
            training.StepSeen(int(step), float(at_s) + offset, float(loss), float(norm), int(rank))
            for found in steps.read(session, attempt.run_id, first=last - LOSS_STEPS + 1)
            if found.attempt_no == attempt.no
            for step, at_s, loss, norm, rank in zip(
                found.step, found.at_s, found.loss, found.grad_norm, found.rank, strict=True
            )
        ]
        judgement = training.loss_not_finite(attempt.run_id, attempt.run_name, attempt.no, seen, self.book)
        self._losses[attempt.run_id] = _Verdict(attempt.no, last, judgement)
        return judgement

    def _experts_apart(self, session: Session, attempt: LiveAttempt, offset: float) -> Judgement:
        """The expert alarms of one run: records that nobody foresaw must not end what is judged of everything else."""
        try:
            return self._expert_alarms(session, attempt, offset)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            _log.exception("a run's expert records cannot be judged", run=attempt.run_id, attempt=attempt.no)
            return alarms.unseen(attempt.run_id)

    def _expert_alarms(self, session: Session, attempt: LiveAttempt, offset: float) -> Judgement:
        last = experts.last_steps(session, [(attempt.run_id, attempt.no)]).get((attempt.run_id, attempt.no))
        if last is None:
            return alarms.unseen(attempt.run_id)
        known = self._experts.get(attempt.run_id)
        if known is not None and known.attempt_no == attempt.no and known.step <= last < known.step + EVERY_STEPS:
            return known.judgement
        window = expert_windows.of_attempt(session, attempt, offset, self.book)
        if window is None:
            return alarms.unseen(attempt.run_id)
        judgement = self._placed(session, attempt, alarms.judge(window, self.book))
        self._experts[attempt.run_id] = _Verdict(attempt.no, last, judgement)
        return judgement

    @staticmethod
    def _placed(session: Session, attempt: LiveAttempt, judgement: Judgement) -> Judgement:
        """Skewed ranks joined with step time and health: is the rank hot, or sick?"""
        if not any(finding.rule == "expert-parallel-skew" for finding in judgement.findings):
            return judgement
        recent = experts.recent(session, attempt.run_id, limit=expert_windows.WINDOW_STEPS)
        loads = expert_places.loads_of_ranks(session, recent) if recent else None
        ranks = expert_places.ranks_view(session, recent, loads)
        if ranks is None:
            return judgement
        joined = {"verdict": ranks["sentence"], "tax": ranks["tax"], "skews": ranks["skews"]}
        findings = tuple(
            replace(finding, sentence=f"{finding.sentence} {ranks['sentence']}", evidence=finding.evidence | joined)
            if finding.rule == "expert-parallel-skew"
            else finding
            for finding in judgement.findings
        )
        return replace(judgement, findings=findings)

    def _forget(self, live: set[str]) -> None:
        for cache in (self._experts, self._losses):
            for run_id in cache.keys() - live:
                del cache[run_id]


def subject_of(fault: tables.Fault) -> Subject:
    """The subject of a stored finding."""
    return Subject(fault.rule, fault.run_id if fault.entity == RUN else fault.node, fault.entity)


def tellings(judgement: Judgement, firing: Iterable[tables.Fault], now: float) -> list[Fault]:
    """What must be written so that the stored findings say what `judgement` says; nothing if nothing changed.

    firing: the stored findings of the server's own rules that fire. A finding whose action or severity changes becomes
    a new fault beside the end of the old one: what a fault asks for never changes.
    """
    stored = {subject_of(fault): fault for fault in firing}
    told: list[Fault] = []
    for finding in judgement.findings:
        before = stored.pop(finding.subject, None)
        if before is None:
            told.append(_telling(finding, now))
        elif (before.severity, before.action) != (finding.severity, finding.action):
            told += [_ended(before, now), _telling(finding, now)]
        elif now - before.observed_s >= RETOLD_S:
            told.append(_telling(finding, now, before.id))
    told += [_ended(fault, now) for subject, fault in stored.items() if subject not in judgement.unknown]
    return told


def _telling(finding: Finding, now: float, known_id: str = "") -> Fault:
    subject = finding.subject
    return Fault(
        id=known_id or fault_id(subject.where, _ORIGIN, f"{subject.rule}/{finding.action}", subject.entity, now),
        rule=finding.rule,
        severity=finding.severity,
        action=finding.action,
        node=finding.node,
        entity=finding.entity,
        state="firing",
        onset_s=finding.onset_s,
        last_clean_s=finding.last_clean_s,
        observed_s=now,
        value=finding.value,
        threshold=finding.threshold,
        sentence=finding.sentence,
        evidence=finding.evidence,
        run_id=finding.run_id,
        attempt_no=finding.attempt_no,
        rank=finding.rank,
    )


def _ended(fault: tables.Fault, now: float) -> Fault:
    return Fault(
        id=fault.id,
        rule=fault.rule,
        severity=fault.severity,  # type: ignore[arg-type]  # rows hold plain text
        action=fault.action,  # type: ignore[arg-type]  # rows hold plain text
        node=fault.node,
        entity=fault.entity,
        state="clear",
        onset_s=fault.onset_s,
        last_clean_s=fault.last_clean_s,
        observed_s=now,
        value=math.nan if fault.value is None else fault.value,
        threshold=math.nan if fault.threshold is None else fault.threshold,
        sentence=fault.sentence,
        evidence=dict(fault.evidence),
        run_id=fault.run_id,
        attempt_no=fault.attempt_no,
        rank=fault.rank,
    )

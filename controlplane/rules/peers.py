"""Rules that need peers: one GPU against the others of its job, one node against the others of its kind. Pure.

What is unlike its peers may be slow or strange without any limit of its own being passed, and only they show it. A GPU
of which too little is known is neither found nor cleared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from controlplane.rules.book import Rule, RuleBook
from controlplane.rules.findings import Finding, Judgement, Subject

FEWEST_PEERS = 3
"""Among fewer nobody is the odd one out."""
HOST = "host"


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """A GPU of a job over the window: means, but the clock's median; None where too little of it is known."""

    node: str
    gpu: int
    activity_percent: float | None
    clock_mhz: float | None
    power_w: float | None
    capped_percent: float | None

    @property
    def entity(self) -> str:
        return f"gpu{self.gpu}"


@dataclass(frozen=True, slots=True)
class JobSeen:
    """A live attempt and its GPUs; `slow` has, by node, how much longer its steps took than the median rank's, in %."""

    run_id: str
    run_name: str
    attempt_no: int
    gpus: tuple[GpuSeen, ...]
    slow: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class NodeMade:
    """What a node is made of, by the name of each thing; and who its peers are: those of its job, or the free ones."""

    name: str
    peers: str
    made_of: Mapping[str, str]


def _finding(
    rule: Rule, job: JobSeen, one: GpuSeen, value: float, now: float, *, worse: bool = False, **words: object
) -> Finding:
    level = rule.worse if worse and rule.worse else rule.plain
    window_s = rule.thresholds["window_s"]
    return Finding(
        rule=rule.id,
        severity=level.severity,
        action=level.action,
        entity=one.entity,
        sentence=level.sentence.format(gpu=one.gpu, node=one.node, run=job.run_name, value=f"{value:.0f}", **words),
        onset_s=now - window_s,
        last_clean_s=now - window_s,
        value=value,
        threshold=rule.thresholds["percent"],
        node=one.node,
        run_id=job.run_id,
        attempt_no=job.attempt_no,
    )


def _unknown(rule: Rule, gpus: Iterable[GpuSeen]) -> frozenset[Subject]:
    return frozenset(Subject(rule.id, one.node, one.entity) for one in gpus)


def power_cap(job: JobSeen, book: RuleBook, now: float) -> Judgement:
    """GPUs that their power limit holds down for `percent` more of the time than the job's median GPU."""
    rule = book["power-cap"]
    known = [(one, one.capped_percent) for one in job.gpus if one.capped_percent is not None]
    if len(known) < FEWEST_PEERS:
        return Judgement((), _unknown(rule, job.gpus))
    usual = median(share for _, share in known)
    found = [
        _finding(rule, job, one, share, now, usual=f"{usual:.0f}")
        for one, share in known
        if share - usual > rule.thresholds["percent"]
    ]
    return Judgement(tuple(found), _unknown(rule, [one for one in job.gpus if one.capped_percent is None]))


def straggler(job: JobSeen, book: RuleBook, now: float) -> Judgement:
    """GPUs whose clock or power is under `percent` of the job's median while they are as busy; graver where their
    node's ranks are the slow ones as well."""
    rule = book["straggler"]
    known = [one for one in job.gpus if None not in (one.activity_percent, one.clock_mhz, one.power_w)]
    unknown = _unknown(rule, [one for one in job.gpus if one not in known])
    busy = median([one.activity_percent or 0.0 for one in known]) if known else 0.0
    alike = [one for one in known if abs((one.activity_percent or 0.0) - busy) <= rule.thresholds["alike_percent"]]
    if len(alike) < FEWEST_PEERS or busy < rule.thresholds["busy_percent"]:
        return Judgement((), _unknown(rule, job.gpus))
    clock, power = median([one.clock_mhz or 0.0 for one in alike]), median([one.power_w or 0.0 for one in alike])
    found = []
    for one in alike:
        share = 100.0 * min((one.clock_mhz or 0.0) / clock, (one.power_w or 0.0) / power)
        if share < rule.thresholds["percent"]:
            slow = job.slow.get(one.node, 0.0)
            agrees = slow > rule.thresholds["slow_percent"]
            found.append(_finding(rule, job, one, share, now, worse=agrees, slow=f"{slow:.0f}"))
    return Judgement(tuple(found), unknown)


def drift(nodes: Sequence[NodeMade], book: RuleBook, now: float) -> Judgement:
    """Nodes that are made of something else than most of their peers: driver, firmware, partition, number of ports."""
    rule = book["drift"]
    groups: dict[str, list[NodeMade]] = {}
    for one in nodes:
        groups.setdefault(one.peers, []).append(one)
    found = []
    for peers in groups.values():
        if len(peers) < FEWEST_PEERS:
            continue
        for what in sorted({name for one in peers for name in one.made_of}):
            usual = _usual(peers, what)
            found += [
                _odd(rule, one, what, usual, now)
                for one in peers
                if usual and one.made_of.get(what, "") not in ("", usual)
            ]
    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.node, finding)
    return Judgement(tuple(first.values()))


def odd_of(one: NodeMade, peers: Sequence[NodeMade]) -> list[dict[str, str]]:
    """Everything that a node is made of and most of its peers are not: {what, own, usual}."""
    if len(peers) + 1 < FEWEST_PEERS:
        return []
    usual = {what: _usual([*peers, one], what) for what in one.made_of}
    return [
        {"what": what, "own": own, "usual": usual[what]}
        for what, own in sorted(one.made_of.items())
        if own and usual[what] and own != usual[what]
    ]


def _usual(peers: Sequence[NodeMade], what: str) -> str:
    """What more than half of the peers have; "" without a majority to differ from."""
    value, many = Counter(one.made_of.get(what, "") for one in peers).most_common(1)[0]
    return value if 2 * many > len(peers) else ""


def _odd(rule: Rule, one: NodeMade, what: str, usual: str, now: float) -> Finding:
    return Finding(
        rule=rule.id,
        severity=rule.plain.severity,
        action=rule.plain.action,
        entity=HOST,
        sentence=rule.plain.sentence.format(node=one.name, what=what, own=one.made_of[what], usual=usual),
        onset_s=now,
        last_clean_s=now,
        value=1.0,
        threshold=1.0,
        node=one.name,
        evidence={"what": what, "own": one.made_of[what], "usual": usual},
    )

"""Rules over the fleet: nodes that cannot be seen. Pure; a node's own faults are judged by its agent.

Blind is not broken: silence alone only alerts. A restart without the node needs evidence that does not travel through
its agent, such as another node's ranks that wait for this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.rules.book import RuleBook
from controlplane.rules.findings import FLEET, NODE, Finding, Judgement, Subject

OUT_OF_SERVICE = frozenset({"drained", "remediating", "retired"})
"""Node states in which silence is expected: somebody may have pulled the plug."""
NAMED = 3
"""so many nodes a sentence names"""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node as the server knows it: when its last batch was received, by the server's clock."""

    name: str
    last_seen_s: float
    state: str = "healthy"


def no_telemetry(
    nodes: Iterable[NodeSeen], stalled: Mapping[str, str], book: RuleBook, *, now: float, watching_since_s: float
) -> Judgement:
    """Nodes that sent nothing for `blind_s` although another node was heard since: the way to this server works.

    stalled: by node, why its ranks are known to have stopped, told by somebody else ("rank 0 on node-a waits …").
    watching_since_s: silence counts from here at the earliest, so that a server that just started does not mistake its
    own absence for the nodes'. When every one of several nodes is silent the finding is the fleet's, and no node's.
    """
    rule = book["no-telemetry"]
    blind_s = rule.thresholds["blind_s"]
    expected = [node for node in nodes if node.state not in OUT_OF_SERVICE]
    if not expected:
        return Judgement()
    since = {node.name: max(node.last_seen_s, watching_since_s) for node in expected}
    latest = max(since.values())
    unknown = {Subject(rule.id, node.name, NODE) for node in expected if now - node.last_seen_s > blind_s}
    if len(expected) > 1 and now - latest > book["no-telemetry-fleet"].thresholds["blind_s"]:
        return Judgement((_all_blind(len(expected), latest, book, now),), frozenset(unknown))
    findings = tuple(
        _blind(node.name, since[node.name], stalled.get(node.name, ""), book, now)
        for node in expected
        if now - since[node.name] > blind_s and (len(expected) == 1 or latest > since[node.name] + blind_s)
    )
    return Judgement(findings, frozenset(unknown - {finding.subject for finding in findings}))


def quarantine_held(held: Sequence[str], taken: int, book: RuleBook, now: float) -> Judgement:
    """Nodes with faults that the breaker keeps in service, after so many that it let go."""
    if not held:
        return Judgement()
    rule = book["quarantine-held"]
    names = ", ".join(held[:NAMED]) + (f" and {len(held) - NAMED} more" if len(held) > NAMED else "")
    have = "has a fault and stays" if len(held) == 1 else "have faults and stay"
    finding = Finding(
        rule=rule.id,
        severity=rule.plain.severity,
        action=rule.plain.action,
        entity=FLEET,
        sentence=rule.plain.sentence.format(nodes=names, have=have, taken=taken),
        onset_s=now,
        last_clean_s=now,
        value=float(len(held)),
        threshold=float(taken),
        evidence={"nodes": list(held)},
    )
    return Judgement((finding,))


def _all_blind(nodes: int, since_s: float, book: RuleBook, now: float) -> Finding:
    rule = book["no-telemetry-fleet"]
    return Finding(
        rule=rule.id,
        severity=rule.plain.severity,
        action=rule.plain.action,
        entity=FLEET,
        sentence=rule.plain.sentence.format(nodes=nodes, seconds=round(now - since_s)),
        onset_s=since_s + rule.thresholds["blind_s"],
        last_clean_s=since_s,
        value=now - since_s,
        threshold=rule.thresholds["blind_s"],
    )


def _blind(name: str, since_s: float, evidence: str, book: RuleBook, now: float) -> Finding:
    rule = book["no-telemetry"]
    words = rule.worse if evidence and rule.worse else rule.plain
    return Finding(
        rule=rule.id,
        severity=words.severity,
        action=words.action,
        entity=NODE,
        sentence=words.sentence.format(node=name, seconds=round(now - since_s), evidence=evidence),
        onset_s=since_s + rule.thresholds["blind_s"],
        last_clean_s=since_s,
        value=now - since_s,
        threshold=rule.thresholds["blind_s"],
        node=name,
        evidence={"independent": evidence} if evidence else {},
    )

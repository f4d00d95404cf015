"""What a rule of the control plane says: a finding, and what it could not see.

Values only. A rule is a pure function from a view of the world to a `Judgement`; the service in
`controlplane.services.findings` stores findings beside the faults that nodes sent, and both become incidents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agents.readings import Action, Severity

SEVERITIES: tuple[Severity, ...] = ("warning", "error", "critical")
ACTIONS: tuple[Action, ...] = ("alert", "drain", "restart", "rma")
"""From the weakest to the strongest: of several, the strongest is done."""

FLEET = "fleet"
NODE = "node"
RUN = "run"


def gravest(severities: Iterable[str]) -> str:
    """The highest severity; "warning" of none."""
    return max(severities, key=SEVERITIES.index, default="warning")


def strongest(actions: Iterable[str]) -> str:
    """The strongest action; "alert" of none."""
    return max(actions, key=ACTIONS.index, default="alert")


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule is satisfied, now. Times by the server's clock.

    `onset_s` is the first moment that satisfied the rule, `last_clean_s` the last one known before it that did not.
    `entity` is "node", "fleet" or "run"; a run's finding names its node only if the rule can blame one.
    """

    rule: str
    severity: Severity
    action: Action
    entity: str
    sentence: str
    onset_s: float
    last_clean_s: float
    value: float
    threshold: float
    node: str = ""
    run_id: str = ""
    attempt_no: int = 0
    rank: int = -1
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """What the finding is about: two findings of one subject are the same one, seen twice."""
        return Subject(self.rule, self.run_id if self.entity == RUN else self.node, self.entity)


@dataclass(frozen=True, slots=True)
class Subject:
    """A rule on one thing: `where` is a node, a run, or "" for the fleet."""

    rule: str
    where: str
    entity: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What rules say at one moment. What is neither found nor `unknown` is clear.

    An unknown subject keeps the state it had: not being able to look is no evidence, of a fault or of its end.
    """

    findings: tuple[Finding, ...] = ()
    unknown: frozenset[Subject] = frozenset()

    def __add__(self, other: Judgement) -> Judgement:
        return Judgement(self.findings + other.findings, self.unknown | other.unknown)

"""The rule book: every rule in force, the agents' and the control plane's, as the API lists them.

The control plane's own rules are data (`rules.toml`); reading it checks it whole, so that a slip in the file stops the
server at its start instead of a rule at its first fault. What a rule computes stands in fleet, training and alarms.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Any

from agents.readings import Action, Severity
from agents.rules import load as agent_rules
from controlplane.rules.findings import ACTIONS, SEVERITIES

HOLD_S = 120.0
"""How long the members of an incident must be clear where a rule (an agent's, say) names no time of its own."""

# what each rule's code takes from the file, and what its sentence may speak of
_SAYS = {
    "no-telemetry": {"node", "seconds", "evidence"},
    "no-telemetry-fleet": {"nodes", "seconds"},
    "quarantine-held": {"nodes", "have", "taken"},
    "hang": {"run", "attempt", "ranks", "seconds", "phase", "limit"},
    "loss-not-finite": {"run", "attempt", "measure", "step", "value"},
    "expert-imbalance": {"run", "layers", "of", "layer", "cv", "floors", "effective", "fullest"},
    "expert-oscillation": {"run", "layers", "of", "layer", "period", "correlation", "lag", "floors"},
    "expert-dead": {"run", "experts", "steps", "layer", "count", "of"},
    "expert-runaway": {"run", "layers", "of", "layer", "same", "floors", "gain"},
    "expert-bias-frozen": {"run", "layers", "of", "layer", "steps", "floors"},
    "expert-bias-lost": {"run", "layers", "of", "layer", "attempt", "step", "before"},
    "expert-skip": {"run", "layers", "of", "layer", "share"},
    "expert-parallel-skew": {"run", "layers", "of", "layer", "rank", "ranks", "skew"},
    "route-mismatch": {"run", "share", "usual"},
    "power-cap": {"gpu", "node", "run", "value", "usual"},
    "straggler": {"gpu", "node", "run", "value", "slow"},
    "drift": {"node", "what", "own", "usual"},
}
_TAKES = {
    "no-telemetry": {"blind_s"},
    "no-telemetry-fleet": {"blind_s"},
    "quarantine-held": set[str](),
    "hang": {"telemetry_alive_s"},
    "loss-not-finite": set[str](),
    "expert-imbalance": {
        *("window_steps", "warmup_steps", "cv_floor", "cv", "effective", "falling", "trend"),
        *("worse_cv_floor", "worse_cv", "worse_effective"),
        *("maxvio", "worse_maxvio", "maxvio_floors"),
    },
    "expert-oscillation": {
        *("window_steps", "warmup_steps", "lag1", "cv_floor", "worse_lag1"),
        *("slow", "worse_slow", "slow_lag", "slow_lags", "slow_cv"),
    },
    "expert-dead": {"steps", "warmup_steps", "patience_steps"},
    "expert-runaway": {
        "window_steps",
        "warmup_steps",
        "same_direction",
        "cv_floor",
        "falling",
        "trend",
        "least_r2",
        "least_pid_r2",
        "inverted_cv_floor",
    },
    "expert-bias-frozen": {"window_steps", "warmup_steps", "cv_floor"},
    "expert-bias-lost": {"told_steps"},
    "expert-skip": {"window_steps", "warmup_steps", "share"},
    "expert-parallel-skew": {"window_steps", "warmup_steps", "skew", "worse_skew", "floors", "falling", "trend"},
    "route-mismatch": {"window_steps", "share", "above_usual"},
    "power-cap": {"window_s", "percent"},
    "straggler": {"window_s", "percent", "alike_percent", "busy_percent", "slow_percent"},
    "drift": set[str](),
}
_TEXTS = ("id", "title", "fires", "sentence", "severity", "action", "window", "source")
_WORSE = {
    *("no-telemetry", "straggler"),
    *("expert-imbalance", "expert-oscillation", "expert-runaway", "expert-parallel-skew"),
}


class RuleError(ValueError):
    """The rule file cannot be used; the message lists every problem."""


@dataclass(frozen=True, slots=True)
class Words:
    """How a rule speaks and what it asks for, at one of its levels."""

    severity: Severity
    action: Action
    sentence: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the control plane."""

    id: str
    title: str
    fires: str
    plain: Words
    worse: Words | None
    hold_s: float
    window: str
    source: str
    thresholds: Mapping[str, float] = field(default_factory=dict)
    refuses: bool = False
    """whether nothing new is placed on its node while it fires"""


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The control plane's rules by id, the agents' beside them, and what an incident must know of both."""

    rules: Mapping[str, Rule]
    node_rules: Mapping[str, agent_rules.Rule] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    corrupting: frozenset[str] = frozenset()

    def __getitem__(self, rule_id: str) -> Rule:
        return self.rules[rule_id]

    def hold_s(self, rule_id: str) -> float:
        """How long all members must be clear before an incident of this rule (an agent's too) resolves."""
        found = self.rules.get(rule_id)
        return found.hold_s if found else HOLD_S

    def title(self, rule_id: str) -> str:
        """A rule's title; the id of one that an agent has and this server does not know."""
        found = self.rules.get(rule_id) or self.node_rules.get(rule_id)
        return found.title if found else rule_id

    def is_own(self, rule_id: str) -> bool:
        """Whether this server finds it, by its own clock; everything else comes from a node, by the node's."""
        return rule_id in self.rules

    def root(self, rule_id: str) -> str:
        """The rule of which this one is a graver or wider form, or itself: faults of one root are one incident."""
        return self.roots.get(rule_id, rule_id)

    @property
    def refusing(self) -> frozenset[str]:
        """The rules that keep new attempts off a node while they fire, though they only alert."""
        own = frozenset(rule.id for rule in self.rules.values() if rule.refuses)
        return own | {rule.id for rule in self.node_rules.values() if rule.refuses}

    def corrupts(self, rule_id: str) -> bool:
        """Whether memory cannot be trusted after it: no save, and checkpoints since the onset are tainted."""
        return rule_id in self.corrupting


def load(path: Path | None = None, node_path: Path | None = None) -> RuleBook:
    """Reads and checks the rule file and the agents'; RuleError names every problem at once."""
    source = path or Path(str(files("controlplane.rules") / "rules.toml"))
    try:
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RuleError(f"{source.name} cannot be read: {error}") from error
    tables = found.get("rule", [])
    problems = [problem for table in tables for problem in _problems(table)]
    ids = [table.get("id") for table in tables]
    problems += [f"{rule}: stands twice" for rule in sorted({str(rule) for rule in ids if ids.count(rule) > 1})]
    problems += [f"{rule}: is missing" for rule in sorted(_SAYS.keys() - set(ids))]
    problems += [f"{key} is not known" for key in sorted(found.keys() - {"rule", "roots", "corrupts"})]
    try:
        node_rules = {rule.id: rule for rule in agent_rules.load_rules(node_path)}
    except agent_rules.RuleError as error:
        node_rules = {}
        problems.append(str(error))
    if problems:
        raise RuleError("; ".join(problems))
    return RuleBook(
        {table["id"]: _rule(table) for table in tables},
        node_rules,
        dict(found.get("roots", {})),
        frozenset(found.get("corrupts", ())),
    )


def listed(book: RuleBook) -> list[dict[str, Any]]:
    """Every rule in force as the API lists it: where it runs, when it fires, what it does, where it comes from."""
    own = [
        {
            "id": rule.id,
            "title": rule.title,
            "runs_in": "server",
            "severity": rule.plain.severity,
            "action": rule.plain.action,
            "sentence": rule.fires,
            "window": rule.window,
            "thresholds": dict(rule.thresholds),
            "hold_s": rule.hold_s,
            "worse": {"severity": rule.worse.severity, "action": rule.worse.action} if rule.worse else None,
            "source": rule.source,
        }
        for rule in book.rules.values()
    ]
    of_nodes = [
        {
            "id": rule.id,
            "title": rule.title,
            "runs_in": "agent",
            "severity": rule.severity,
            "action": rule.action,
            "sentence": _fires(rule),
            "window": f"{rule.window_s:g} s" if rule.window_s else "1 sample",
            "thresholds": {"threshold": rule.threshold},
            "hold_s": HOLD_S,
            "worse": None,
            "source": rule.source,
        }
        for rule in book.node_rules.values()
    ]
    return of_nodes + own


def _fires(rule: agent_rules.Rule) -> str:
    """When a node-local rule fires, from its own condition."""
    what = f"the slowest of {rule.metrics[0]} …" if rule.signal == "laggard" else " + ".join(rule.metrics)
    lasting = f" for {rule.window_s:g} s" if rule.window_s else ""
    within = f" within {rule.window_s:g} s"
    jobs = ", each in another run" if rule.distinct_jobs else ""
    condition = {
        "increase": f"{what} rises by at least {rule.threshold:g}{f', {rule.window_s:g} s ago' if lasting else ''}",
        "below": f"{what} is below {rule.threshold:g}{lasting}",
        "above": f"{what} is above {rule.threshold:g}{lasting}",
        "degraded": f"{what} is below the best that it was{lasting}",
        "still": f"{what} moves by less than {rule.threshold:g} a sample{lasting}",
        "share": f"{what} grows by more than {rule.threshold:g} % of what {rule.of} does{within}",
        "ratio": f"{what} is at least {rule.threshold:g} % of {rule.of}",
        "rate": f"{what} grows by more than {rule.threshold:g} in each {rule.per_s:g} s{lasting}",
        "burst": f"{what} grows by at least {rule.threshold:g}{within}",
        "laggard": f"{what} grows by less than {rule.threshold:g} % of the median of the others{within}",
        "event": f"a line of the kernel log or an error record is of kind {' or '.join(rule.events)}",
        "recurrence": f"{' or '.join(rule.faults)} began at least {rule.threshold:g} times{within}{jobs}",
    }
    more = [*rule.when]
    more += [f"no heartbeat for {rule.heartbeat_stale_s:g} s"] if rule.heartbeat_stale_s else []
    more += ["a job there"] if rule.needs_job else []
    return condition[rule.signal] + (f", with {' and '.join(more)}" if more else "")


def _problems(table: Mapping[str, Any]) -> Iterator[str]:
    name = str(table.get("id", "a rule without id"))
    missing = [key for key in (*_TEXTS, "hold_s", "thresholds") if key not in table]
    if missing:
        yield f"{name}: lacks {', '.join(missing)}"
        return
    unknown = table.keys() - {*_TEXTS, "hold_s", "thresholds", "worse", "refuses"}
    if unknown:
        yield f"{name}: knows no {', '.join(sorted(unknown))}"
    if name not in _SAYS:
        yield f"{name}: no code computes it"
        return
    if not isinstance(table["hold_s"], int | float) or table["hold_s"] < 0:
        yield f"{name}: hold_s must be a number of seconds"
    if table["thresholds"].keys() != _TAKES[name]:
        yield f"{name}: thresholds must be {', '.join(sorted(_TAKES[name])) or 'empty'}"
    if not all(isinstance(value, int | float) for value in table["thresholds"].values()):
        yield f"{name}: thresholds must be numbers"
    if (name in _WORSE) != ("worse" in table):
        yield f"{name}: a worse level {'is needed' if name in _WORSE else 'is not known'}"
    for level in (table, table.get("worse", table)):
        yield from _word_problems(name, level)


def _word_problems(name: str, level: Mapping[str, Any]) -> Iterator[str]:
    if level.get("severity") not in SEVERITIES:
        yield f"{name}: severity must be one of {', '.join(SEVERITIES)}"
    if level.get("action") not in ACTIONS:
        yield f"{name}: action must be one of {', '.join(ACTIONS)}"
    try:
        spoken = {field for _, field, _, _ in Formatter().parse(str(level.get("sentence", ""))) if field is not None}
    except ValueError as error:
        yield f"{name}: sentence: {error}"
        return
    if not spoken <= _SAYS[name]:
        yield f"{name}: sentence speaks of {', '.join(sorted(spoken - _SAYS[name]))}"


def _rule(table: Mapping[str, Any]) -> Rule:
    worse = table.get("worse")
    return Rule(
        id=table["id"],
        title=table["title"],
        fires=table["fires"],
        plain=_words(table),
        worse=_words(worse) if worse else None,
        hold_s=float(table["hold_s"]),
        window=table["window"],
        source=table["source"],
        thresholds={name: float(value) for name, value in table["thresholds"].items()},
        refuses=bool(table.get("refuses", False)),
    )


def _words(level: Mapping[str, Any]) -> Words:
    return Words(level["severity"], level["action"], level["sentence"])

"""Reads the rule file: a frozen Rule a row, or an error that names the row and what is wrong with it."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agents.readings import INDEX, Action, Severity
from agents.rules import kernel

DEFAULT_PATH = Path(__file__).with_name("faults.toml")
VERSION = 2
SCOPES = ("gpu", "nic", "host")
SEVERITIES = ("warning", "error", "critical")
ACTIONS = ("alert", "drain", "restart", "rma")
SIGNALS: dict[str, frozenset[str]] = {
    "increase": frozenset({"metrics"}),
    "below": frozenset({"metrics"}),
    "above": frozenset({"metrics"}),
    "degraded": frozenset({"metrics"}),
    "still": frozenset({"metrics"}),
    "share": frozenset({"metrics", "of", "window_s"}),
    "ratio": frozenset({"metrics", "of"}),
    "rate": frozenset({"metrics", "window_s", "per_s"}),
    "burst": frozenset({"metrics", "window_s"}),
    "laggard": frozenset({"metrics", "window_s"}),
    "event": frozenset({"events"}),
    "recurrence": frozenset({"faults", "window_s"}),
}
"""The kinds of signal, each with the keys that it needs beyond those of every rule."""
_AFID = re.compile(r"afid-\d+")
_GUARD = re.compile(r"(\w+) ([<>]) (\d+(?:\.\d+)?)")
_NUMBERS = ("threshold", "clear_s", "window_s", "per_s", "least", "apart_s", "heartbeat_stale_s")
_LISTS = ("metrics", "events", "faults", "when")
_SWITCHES = ("latch", "needs_job", "distinct_jobs", "refuses")
_NEEDED = ("id", "title", "scope", "signal", "severity", "action", "sentence", "source", "threshold", "clear_s")


class RuleError(ValueError):
    """A rule file that cannot be used; the message lists each row and problem."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition beside the signal: a metric of the same device above or below a figure, in its unit."""

    metric: str
    above: bool
    figure: float

    def holds(self, value: float) -> bool:
        """Whether a value, in the figure's unit, satisfies it."""
        return value > self.figure if self.above else value < self.figure


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: what is looked at, when it fires, when it clears, what should be done."""

    id: str
    title: str
    scope: str
    signal: str
    severity: Severity
    action: Action
    sentence: str
    source: str
    threshold: float
    clear_s: float
    metrics: tuple[str, ...] = ()
    of: str = ""
    events: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    when: tuple[str, ...] = ()
    window_s: float = 0.0
    per_s: float = 0.0
    least: float = 0.0
    apart_s: float = 0.0
    heartbeat_stale_s: float = 0.0
    latch: bool = False
    needs_job: bool = False
    distinct_jobs: bool = False
    refuses: bool = False

    @property
    def guards(self) -> tuple[Guard, ...]:
        """`when`, read."""
        found = [match for text in self.when if (match := _GUARD.fullmatch(text))]
        return tuple(Guard(one[1], one[2] == ">", float(one[3])) for one in found)

    def say(self, entity: str, node: str, value: float, baseline: float, held_s: float) -> str:
        """The sentence of a fault; raises KeyError, ValueError or IndexError if it asks for more than there is."""
        kind, number = entity[:3], entity[3:]
        return self.sentence.format(
            entity="the host" if entity == "host" else f"{kind.upper()} {number}",
            node=node,
            value=value,
            baseline=baseline,
            held=held_s,
            errors="error" if round(value) == 1 else "errors",
            times="time" if round(value) == 1 else "times",
        )


def _problems(row: dict[str, Any]) -> list[str]:
    known = {field.name for field in fields(Rule)}
    found = [f"{name} is not known" for name in sorted(set(row) - known)]
    found += [f"{name} is needed" for name in sorted(set(_NEEDED) - set(row))]
    if found:
        return found
    return [*_value_problems(row), *(_signal_problems(row) if row["signal"] in SIGNALS else ())] or [
        *_sentence_problems(row)
    ]


def _value_problems(row: dict[str, Any]) -> Iterator[str]:
    allowed = {"signal": tuple(SIGNALS), "severity": SEVERITIES, "action": ACTIONS, "scope": SCOPES}
    for name, values in allowed.items():
        if row[name] not in values:
            yield f"{name} must be one of {', '.join(values)}"
    for name in _NUMBERS:
        value = row.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            yield f"{name} must be a number ≥ 0"
    for name in ("id", "title", "sentence", "source", "of"):
        if not isinstance(row.get(name, ""), str):
            yield f"{name} must be text"
    for name in _LISTS:
        if not isinstance(row.get(name, []), list) or not all(isinstance(one, str) for one in row.get(name, [])):
            yield f"{name} must be a list of names"
    for name in _SWITCHES:
        if not isinstance(row.get(name, False), bool):
            yield f"{name} must be true or false"


def _signal_problems(row: dict[str, Any]) -> Iterator[str]:
    signal, index = row["signal"], INDEX.get(str(row["scope"]), {})
    for name in sorted(SIGNALS[signal]):
        if not row.get(name):
            yield f"{name} is needed for the signal {signal}"
    for name in sorted(({"metrics", "of", "events", "faults", "per_s"} & set(row)) - SIGNALS[signal]):
        yield f"{name} says nothing to the signal {signal}"
    if not all(isinstance(row.get(name, []), list) for name in _LISTS):
        return
    for name in [*row.get("metrics", []), *([row["of"]] if row.get("of") else [])]:
        if name not in index:
            yield f"{name} is not a metric of a {row['scope']}"
    for text in row.get("when", []):
        found = _GUARD.fullmatch(str(text))
        if found is None:
            yield f"when {text!r} must read like: gfx_activity_percent > 50"
        elif found[1] not in index:
            yield f"{found[1]} is not a metric of a {row['scope']}"
    for name in row.get("events", []):
        if name not in kernel.table().kinds and not _AFID.fullmatch(str(name)):
            yield f"{name} is no kind of kernel line and no AFID"
    if row.get("latch") and signal != "increase":
        yield "latch is for a counter's increase"


def _sentence_problems(row: dict[str, Any]) -> Iterator[str]:
    """A sentence that cannot be said would only be noticed by the first fault."""
    try:
        _rule(row).say("gpu0", "node", 1.0, 1.0, 1.0)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        yield f"sentence cannot be said: {error}"


def _rule(row: dict[str, Any]) -> Rule:
    return Rule(**{**row, **{name: tuple(row.get(name, ())) for name in _LISTS}})


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a TOML text; raises RuleError with everything that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RuleError(f"the rule file is not TOML: {error}") from error
    if document.get("version") != VERSION:
        raise RuleError(f"the rule file has version {document.get('version')}, {VERSION} is read here")
    rows = document.get("rule", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RuleError("the rule file's rows must be [[rule]] tables")
    problems = [f"rule {row.get('id', number)}: {p}" for number, row in enumerate(rows) for p in _problems(row)]
    ids = [str(row.get("id")) for row in rows]
    problems += [f"rule {name}: given twice" for name in sorted({i for i in ids if ids.count(i) > 1})]
    if problems:
        raise RuleError("; ".join(problems))
    return tuple(map(_rule, rows))


def load_rules(path: Path | None = None) -> tuple[Rule, ...]:
    """The rules of a file, the shipped one by default."""
    chosen = path or DEFAULT_PATH
    try:
        return parse_rules(chosen.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"the rule file {chosen} cannot be read: {error}") from error

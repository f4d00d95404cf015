"""Reads the rule file: a frozen Rule a row, or an error that names the row and what is wrong with it."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agents.readings import GPU_INDEX, NIC_INDEX, Action, Severity

DEFAULT_PATH = Path(__file__).with_name("faults.toml")
VERSION = 1
SCOPES = ("gpu", "nic")
SIGNALS = ("increase", "below", "above", "degraded", "still", "share", "kernel")
SEVERITIES = ("warning", "error", "critical")
ACTIONS = ("alert", "drain", "restart", "rma")


class RuleError(ValueError):
    """A rule file that cannot be used; the message lists each row and problem."""


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
    pattern: str = ""
    window_s: float = 0.0
    latch: bool = False
    needs_job: bool = False

    def say(self, entity: str, node: str, value: float, baseline: float, held_s: float) -> str:
        """The sentence of a fault; raises KeyError, ValueError or IndexError if it asks for more than there is."""
        kind, number = entity[:3], entity[3:]
        return self.sentence.format(
            entity=f"{kind.upper()} {number}",
            node=node,
            value=value,
            baseline=baseline,
            held=held_s,
            errors="error" if round(value) == 1 else "errors",
        )


def _problems(row: dict[str, Any]) -> list[str]:
    known = {field.name for field in fields(Rule)}
    needed = {"id", "title", "scope", "signal", "severity", "action", "sentence", "source", "threshold", "clear_s"}
    found = [f"{name} is not known" for name in sorted(set(row) - known)]
    found += [f"{name} is needed" for name in sorted(needed - set(row))]
    if found:
        return found
    return [*_value_problems(row), *_signal_problems(row)] or _sentence_problems(row)


def _value_problems(row: dict[str, Any]) -> list[str]:
    allowed = {"signal": SIGNALS, "severity": SEVERITIES, "action": ACTIONS, "scope": SCOPES}
    found = [
        f"{name} must be one of {', '.join(values)}" for name, values in allowed.items() if row[name] not in values
    ]
    for name in ("threshold", "clear_s", "window_s"):
        value = row.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            found.append(f"{name} must be a number ≥ 0")
    texts = ("id", "title", "sentence", "source", "pattern")
    found += [f"{name} must be text" for name in texts if not isinstance(row.get(name, ""), str)]
    switches = ("latch", "needs_job")
    return found + [f"{name} must be true or false" for name in switches if not isinstance(row.get(name, False), bool)]


def _signal_problems(row: dict[str, Any]) -> list[str]:
    signal, metrics = row["signal"], row.get("metrics", [])
    index = GPU_INDEX if row["scope"] == "gpu" else NIC_INDEX
    if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
        return ["metrics must be a list of names"]
    found = [f"{name} is not a metric of a {row['scope']}" for name in metrics if name not in index]
    if signal in ("kernel", "share") and row["scope"] != "gpu":
        found.append(f"a {signal} signal is read of a gpu only")
    if row.get("latch") and signal != "increase":
        found.append("latch is for a counter's increase")
    if signal == "share" and not row.get("window_s"):
        found.append("window_s is needed for a share")
    if signal != "kernel":
        return found if metrics else [*found, "metrics are needed"]
    if not row.get("pattern"):
        return [*found, "pattern is needed for a kernel signal"]
    try:
        re.compile(row["pattern"])
    except (re.error, TypeError) as error:
        found.append(f"pattern: {error}")
    return found


def _sentence_problems(row: dict[str, Any]) -> list[str]:
    """A sentence that cannot be said would only be noticed by the first fault."""
    try:
        _rule(row).say("gpu0", "node", 1.0, 1.0, 1.0)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        return [f"sentence cannot be said: {error}"]
    return []


def _rule(row: dict[str, Any]) -> Rule:
    return Rule(**{**row, "metrics": tuple(row.get("metrics", ()))})


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
    ids = [row.get("id") for row in rows]
    problems += [f"rule {name}: given twice" for name in sorted({str(i) for i in ids if ids.count(i) > 1})]
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

"""The pages on faults agree with each other and with the rules: rows, severities, actions; and metrics with metrics."""

from __future__ import annotations

import re
from pathlib import Path

from agents.drills import DRILLS
from agents.rules.load import load_rules
from controlplane.rules import book

PEER_RULES = ("power-cap", "straggler", "drift")
"""Rules of the fault table that run in the server, since they compare."""
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_rule_on_nodes_was_seen_to_fire_and_to_clear_as_it_is_documented() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\w+), (\w+) \|.*\| (\d+) s \| (\d+) s \|$", (DOCS / "scenarios.md").read_text(), re.M
    )
    seen = {rule: (severity, action) for rule, severity, action, _, _ in rows}
    of_peers = {rule: book.load()[rule].plain for rule in PEER_RULES}
    wanted = {rule.id: (rule.severity, rule.action) for rule in load_rules()}
    wanted |= {rule: (level.severity, level.action) for rule, level in of_peers.items()}
    assert seen == wanted
    documented = dict(
        re.findall(
            r"^## ([\w-]+)\n\n.*Runs in the (?:agent|server); (\w+, \w+)\.$", (DOCS / "faults.md").read_text(), re.M
        )
    )
    assert {rule: words for rule, words in documented.items() if rule in wanted} == {
        rule: ", ".join(words) for rule, words in seen.items()
    }


def test_every_drill_is_of_a_rule_that_is_in_force() -> None:
    rules = book.load()
    known = {*rules.rules, *rules.node_rules}
    assert {of.rule for of in DRILLS.values() if of.rule} <= known


def test_every_root_and_every_corrupting_rule_is_in_force() -> None:
    rules = book.load()
    known = {*rules.rules, *rules.node_rules}
    assert {*rules.roots, *rules.roots.values(), *rules.corrupting} <= known


def test_the_page_on_others_metrics_names_only_ours_that_are_there() -> None:
    ours = set(re.findall(r"`(trimtab_\w+)`", (DOCS / "metrics.md").read_text()))
    named = set(re.findall(r"`(trimtab_\w+)`", (DOCS / "metrics-elsewhere.md").read_text()))
    assert len(named) > 30 and named <= ours

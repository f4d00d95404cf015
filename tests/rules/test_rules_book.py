"""The rule file is read whole or not at all; the listing has every rule, the agents' too."""

from __future__ import annotations

from pathlib import Path

import pytest

import controlplane.rules
from agents.rules import load as agent_rules
from controlplane.rules import book as rule_book
from controlplane.rules.book import RuleError

SHIPPED = Path(controlplane.rules.__path__[0]) / "rules.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_read() -> None:
    book = rule_book.load()
    assert book["no-telemetry"].thresholds["blind_s"] == 15
    assert book["no-telemetry"].worse is not None and book["no-telemetry"].worse.action == "restart"
    assert book.hold_s("hbm-uncorrectable") == 120
    assert book.root("thermal-severe") == "thermal" and book.root("thermal") == "thermal"
    assert book.corrupts("hbm-uncorrectable") and not book.corrupts("gpu-lost")
    assert book.is_own("hang") and not book.is_own("gpu-lost")
    assert book.title("gpu-lost") == "GPU lost" and book.title("unheard-of") == "unheard-of"


def test_what_the_file_says_of_the_agents_rules_exists_there() -> None:
    book, known = rule_book.load(), {rule.id for rule in agent_rules.load_rules()}
    assert book.corrupting <= known
    assert book.roots.keys() <= known | book.rules.keys() and set(book.roots.values()) <= known | book.rules.keys()


def test_expert_rules_alert_and_never_restart() -> None:
    for rule in rule_book.load().rules.values():
        if rule.id.startswith("expert-"):
            assert {level.action for level in (rule.plain, rule.worse) if level} == {"alert"}


def test_the_listing_has_every_rule_once() -> None:
    book = rule_book.load()
    listed = rule_book.listed(book)
    assert sorted(rule["id"] for rule in listed) == sorted([*book.rules, *book.node_rules])
    assert all(rule["sentence"] and rule["title"] and rule["source"] for rule in listed)
    assert {rule["runs_in"] for rule in listed} == {"agent", "server"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'severity = "critical"\naction = "restart"\nhold_s',
            'severity = "bad"\naction = "restart"\nhold_s',
            "severity",
        ),
        ('action = "restart"\nhold_s', 'action = "explode"\nhold_s', "action must be one of"),
        ("blind_s = 15", "blind = 15", "no-telemetry: thresholds must be blind_s"),
        ("blind_s = 15", 'blind_s = "x"', "thresholds must be numbers"),
        ("{node} has sent nothing", "{gpu} has sent nothing", "sentence speaks of gpu"),
        ("{node} has sent nothing", "{node has sent nothing", "no-telemetry: sentence"),
        ('id = "hang"', 'id = "hung"', "hung: no code computes it; hang: is missing"),
        ('id = "expert-dead"', 'id = "hang"', "hang: stands twice"),
        ('window = "1 step"\n', "", "loss-not-finite: lacks window"),
        ('window = "1 step"', 'window = "1 step"\ncolour = "red"', "loss-not-finite: knows no colour"),
        ("hold_s = 30", "hold_s = -1", "hold_s must be a number of seconds"),
        ("[roots]", "[rooots]", "rooots is not known"),
        ("[[rule]]", "[[rule", "cannot be read"),
    ],
)
def test_a_slip_in_the_file_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = SHIPPED.read_text()
    assert old in text
    with pytest.raises(RuleError) as refused:
        rule_book.load(write(tmp_path, text.replace(old, new, 1)))
    assert problem in str(refused.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = SHIPPED.read_text().replace("hold_s = 30", "hold_s = -1").replace('window = "1 step"\n', "")
    with pytest.raises(RuleError, match=r"no-telemetry-fleet: hold_s.*loss-not-finite: lacks window"):
        rule_book.load(write(tmp_path, text))


def test_a_broken_agents_file_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="version"):
        rule_book.load(node_path=write(tmp_path, "version = 99"))


def test_a_worse_level_is_where_the_code_knows_one(tmp_path: Path) -> None:
    text = SHIPPED.read_text() + '[rule.worse]\nseverity = "error"\naction = "alert"\nsentence = "{run}"\n'
    with pytest.raises(RuleError, match="drift: a worse level is not known"):
        rule_book.load(write(tmp_path, text))

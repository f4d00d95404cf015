"""The main job, whole: `trimtab demo --exit` from a directory with a space in its name, read as a customer reads it.

Real processes throughout: server, dashboard, four agents, two ranks under torchrun, a webhook receiver. One run proves
the path; a second one, with the rule taken out of the fault file, proves that the first could have failed: it ends when
the faulty node has told enough, not when the run has trained to its end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.rules import load

ROOT = Path(__file__).resolve().parents[2]


def demo(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo to its end in `folder`; its own deadlines end it, the timeout here only guards the suite."""
    command = [sys.executable, "-m", "controlplane.cli.main", "demo", "--exit", "--data", str(folder), *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=420, check=False
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON object on the demo's last line."""
    done = demo(tmp_path_factory.mktemp("the demo") / "a folder with spaces")
    assert done.returncode == 0, done.stderr[-8000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.timeout(480)
def test_the_run_succeeds_in_two_attempts(outcome: dict[str, Any]) -> None:
    assert outcome["run"]["status"] == "succeeded"
    assert [(attempt["no"], attempt["end"]) for attempt in outcome["attempts"]] == [(1, "superseded"), (2, "succeeded")]


def test_attempt_two_resumes_at_exactly_the_manifest_step(outcome: dict[str, Any]) -> None:
    assert outcome["resume"]["step"] == outcome["resume"]["manifest_step"] > 0
    assert outcome["attempts"][1]["first_step"] == outcome["resume"]["manifest_step"] + 1
    assert outcome["attempts"][0]["last_step"] >= outcome["resume"]["manifest_step"]


def test_what_was_saved_while_the_memory_failed_is_tainted_and_left_behind(outcome: dict[str, Any]) -> None:
    assert outcome["checkpoints"]["tainted"]
    assert outcome["resume"]["step"] < min(outcome["checkpoints"]["tainted"])


def test_the_faulty_node_is_left_out(outcome: dict[str, Any]) -> None:
    faulty = outcome["incident"]["node"]
    assert faulty in outcome["attempts"][0]["nodes"]
    assert faulty not in outcome["attempts"][1]["nodes"]
    assert outcome["decision"]["excluded_nodes"] == [faulty]
    assert outcome["decision"]["action"] == "restart_exclude"
    assert faulty in outcome["decision"]["reason"]
    assert outcome["incident"]["rule"] == "hbm-uncorrectable"


def test_the_model_learns_and_balances(outcome: dict[str, Any]) -> None:
    assert outcome["loss"]["last_window"] < 0.8 * outcome["loss"]["first_window"]
    assert outcome["maxvio"]["last_window"] < 0.7 * outcome["maxvio"]["first_window"]


def test_records_are_stored_and_every_duration_is_known(outcome: dict[str, Any]) -> None:
    assert outcome["stored"]["expert_records"] >= outcome["attempts"][1]["last_step"]
    assert outcome["stored"]["gpu_samples"] > 0
    expected = {
        "setup",
        "to_ready",
        "to_first_step",
        "fault_to_incident",
        "fault_to_message",
        "fault_to_decision",
        "fault_to_first_step_of_attempt_2",
        "total",
    }
    assert expected <= outcome["seconds"].keys()
    assert all(isinstance(outcome["seconds"][name], int | float) for name in expected - {"setup"})


@pytest.mark.timeout(480)
def test_without_the_rule_the_demo_fails(tmp_path: Path) -> None:
    text = load.DEFAULT_PATH.read_text()
    tables = re.split(r"(?m)^(?=\[\[)", text)
    kept = [table for table in tables if 'id = "hbm-uncorrectable"' not in table]
    assert len(kept) == len(tables) - 1
    rules = tmp_path / "faults.toml"
    rules.write_text("".join(kept))
    done = demo(tmp_path / "data", TRIMTAB_FAULT_RULES=str(rules))
    assert done.returncode != 0
    assert json.loads(done.stdout.splitlines()[-1])["failed"].endswith(
        "samples after the drill, and there is no incident"
    )

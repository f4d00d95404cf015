"""The lifecycle demo's checks: each can fail, and a plan cut to some stages is asked about those alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.cli.demo_drills import POISON, TOO_MUCH, planted
from controlplane.cli.demo_lifecycle_report import CHECKS, failures
from jobs.lifecycle import load_lifecycle

Json = dict[str, Any]


def stage(name: str, at: int, **more: Any) -> Json:
    plain = {"stage": name, "state": "passed", "metric": "loss", "first": 4.0, "last": 2.0, "held_out": None}
    vio = {"max_vio": {"first": 6.0, "last": 1.0}, "resume_step": None, "manifest_step": None}
    hashes = {"checkpoint_hash": f"h{at}", "init_hash": f"h{at - 1}" if at else None}
    return {**plain, **vio, **hashes, "first_step_after_restart": None, **more}


def whole() -> Json:
    held = {"pass@1": 0.2, "constant_baseline": 0.02}
    resumed = {"resume_step": 30, "manifest_step": 30, "first_step_after_restart": 31}
    stages = [
        stage("pretrain", 0, **resumed),
        stage("midtrain", 1, first=2.5, last=2.5),
        stage("sft", 2, held_out=held),
        stage("rl-1", 3, metric="sampled_accuracy", held_out={**held, "pass@1": 0.3}),
        stage("evaluate", 4, metric="rsa", checkpoint_hash="h3"),
        stage("release", 5, metric="loads", checkpoint_hash="h3", init_hash="h3"),
    ]
    stages[4]["init_hash"] = "h3"
    drills = [
        {"kind": "loss spike", "decision": "restart_rollback", "recovered": True},
        {"kind": "node fault", "decision": "restart_exclude", "recovered": True},
    ]
    rsa = {"rsa": 0.1, "tokens_per_problem": 40.0, "plain_tokens_per_problem": 42.0}
    release = {"loads": True, "checkpoint_hash": "h3"}
    return {"lifecycle": {"status": "succeeded"}, "stages": stages, "drills": drills, "rsa": rsa, "release": release}


def test_what_happened_as_it_should_fails_no_check() -> None:
    assert failures(whole()) == []


BREAKS: dict[str, Callable[[Json], object]] = {
    "the lifecycle succeeded": lambda o: o["lifecycle"].update(status="failed"),
    "every stage passed": lambda o: o["stages"][3].update(state="held"),
    "each stage started from the checkpoint with which the one before passed": lambda o: o["stages"][2].update(
        init_hash="h0"
    ),
    "every restarted attempt went on at its manifest's step + 1": lambda o: o["stages"][0].update(
        first_step_after_restart=1
    ),
    "the loss fell in pretraining and fine-tuning": lambda o: o["stages"][2].update(last=4.0),
    "midtraining left the bad shard behind": lambda o: o["stages"][1].update(last=7.0),
    "MaxVio fell in pretraining: the experts were balanced": lambda o: o["stages"][0].update(
        max_vio={"first": 6.0, "last": 5.0}
    ),
    "held-out accuracy rose in reinforcement learning, above the best constant answer": lambda o: o["stages"][3].update(
        held_out={"pass@1": 0.21, "constant_baseline": 0.02}
    ),
    "every drill was got over": lambda o: o["drills"][0].update(recovered=False),
    "a node fault excluded its node": lambda o: o["drills"][1].update(decision="restart"),
    "a loss spike rolled back and skipped its data": lambda o: o["drills"][0].update(decision="restart"),
    "methods were compared at equal generated tokens": lambda o: o["rsa"].update(plain_tokens_per_problem=80.0),
    "the released model loads in transformers in a fresh process": lambda o: o["release"].update(loads=False),
    "the release is of the checkpoint that was evaluated": lambda o: o["release"].update(checkpoint_hash="h2"),
}


@pytest.mark.parametrize("sentence", [sentence for sentence, _, _ in CHECKS])
def test_each_check_fails_when_its_claim_does_not_hold(sentence: str) -> None:
    outcome = copy.deepcopy(whole())
    BREAKS[sentence](outcome)
    assert sentence in failures(outcome)


def test_a_plan_cut_to_some_stages_is_asked_about_those_alone() -> None:
    outcome = whole()
    outcome["stages"] = [outcome["stages"][0]]
    assert failures(outcome) == []


def test_the_drills_are_planted_in_the_plan_that_ships() -> None:
    plan = planted(load_lifecycle("toy-lifecycle").to_dict(), spike="midtrain", gate="sft")
    stages = {one["name"]: one for one in plan["spec"]["stages"]}
    assert stages["midtrain"]["job"]["data"]["poison"] == f"{POISON[0]}-{POISON[1]}"
    assert TOO_MUCH in stages["sft"]["gate"]["require"] and len(stages["sft"]["gate"]["require"]) == 2
    assert "poison" not in stages["pretrain"]["job"]["data"]

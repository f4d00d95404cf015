"""The lifecycle demo's checks: each can fail, and a plan cut to some stages is asked about those alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.cli.demo_drills import POISON, TOO_MUCH, planted
from controlplane.cli.demo_lifecycle_learning import compared, held_out, line_of, rose
from controlplane.cli.demo_lifecycle_report import CHECKS, TAUGHT, failures
from jobs.lifecycle import load_lifecycle

Json = dict[str, Any]


def stage(name: str, at: int, **more: Any) -> Json:
    plain = {"stage": name, "state": "passed", "metric": "loss", "first": 4.0, "last": 2.0, "learning": None}
    vio = {"max_vio": {"first": 6.0, "last": 1.0}, "resume_step": None, "manifest_step": None}
    hashes = {"checkpoint_hash": f"h{at}", "init_hash": f"h{at - 1}" if at else None}
    return {**plain, **vio, **hashes, "first_step_after_restart": None, **more}


def whole() -> Json:
    learning = {"fine_tuned": 0.2, "untaught": 0.2, "before": 0.2, "after": 0.3, "se": 0.02, "constant_baseline": 0.05}
    resumed = {"resume_step": 30, "manifest_step": 30, "first_step_after_restart": 31}
    stages = [
        stage("pretrain", 0, **resumed),
        stage("midtrain", 1, first=2.5, last=2.5),
        stage("sft", 2),
        *(stage(name, 3 + at, metric="held_out_pass@1", learning=learning) for at, name in enumerate(TAUGHT)),
        stage("evaluate", 6, metric="rsa", checkpoint_hash="h5"),
        stage("release", 7, metric="loads", checkpoint_hash="h5", init_hash="h5"),
    ]
    drills = [
        {"kind": "loss spike", "decision": "restart_rollback", "recovered": True},
        {"kind": "node fault", "decision": "restart_exclude", "recovered": True},
    ]
    rsa = {"rsa": 0.1, "tokens_per_problem": 40.0, "plain_tokens_per_problem": 42.0}
    release = {"loads": True, "checkpoint_hash": "h5"}
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
    "every drill was got over": lambda o: o["drills"][0].update(recovered=False),
    "a node fault excluded its node": lambda o: o["drills"][1].update(decision="restart"),
    "a loss spike rolled back and skipped its data": lambda o: o["drills"][0].update(decision="restart"),
    "methods were compared at equal generated tokens": lambda o: o["rsa"].update(plain_tokens_per_problem=80.0),
    "the released model loads in transformers in a fresh process": lambda o: o["release"].update(loads=False),
    "the release is of the checkpoint that was evaluated": lambda o: o["release"].update(checkpoint_hash="h2"),
}


def raised(name: str) -> str:
    """The sentence of the check that a stage has raised accuracy."""
    return next(sentence for sentence, _, _ in CHECKS if sentence.startswith(f"{name} ended"))


for at, name in enumerate(TAUGHT, 3):
    BREAKS[raised(name)] = lambda o, at=at: o["stages"][at]["learning"].update(after=0.23)  # type: ignore[misc]  # mypy cannot type a lambda with a default


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


def told(name: str, init: str, candidate: str, **accuracies: float) -> Json:
    """A stage as the API tells it, with an evaluation of its checkpoint on these environments."""
    metrics = {f"micro/{one}/pass@1": value for one, value in accuracies.items()}
    metrics |= {f"micro/{one}/pass@1_se": 0.03 for one in accuracies}
    metrics |= {f"micro/{one}/constant_baseline": 0.1 for one in accuracies}
    runs = [{"role": "train", "metrics": {}}, {"role": "evaluate", "metrics": metrics | {"pass@1": 0.5}}]
    hashes = {"init": {"hash": init}, "candidate": {"hash": candidate}}
    return {"name": name, "role": "train", "runs": runs if accuracies else runs[:1], **hashes}


def test_a_stage_is_compared_with_its_start_and_the_fine_tuned_model_on_its_own_environments() -> None:
    stages = [
        told("sft", "b", "c", sort=0.2, add=0.4, copy=0.9),
        told("rl-1", "c", "d", sort=0.3),
        told("rl-2", "d", "e", sort=0.4, add=0.3),
        told("rl-3", "e", "f", add=0.6, copy=0.9),
        told("rl-4", "f", "g"),
    ]
    learned_from = ["", "micro/sort@2-3", "micro/sort@2-8", "micro/add@2, micro/copy", "micro/first"]
    plan = [
        {"name": stage["name"], "job": {"data": {"environments": named}}}
        for stage, named in zip(stages, learned_from, strict=True)
    ]
    lifecycle = {"stages": stages, "spec": {"spec": {"stages": plan}}}
    assert compared(lifecycle, stages[0]) is None and compared(lifecycle, stages[4]) is None
    one, two, three = (compared(lifecycle, stage) for stage in stages[1:4])
    assert one is not None and two is not None and three is not None
    assert (one["fine_tuned"], one["untaught"], one["before"], one["after"]) == (0.2, 0.2, 0.2, 0.3)
    assert (two["environments"], two["before"], two["after"]) == (["micro/sort"], 0.3, 0.4), (
        "not what it was asked more"
    )
    assert two["untaught"] == 0.2, "rl-1 has begun to teach sorting"
    assert (three["before"], three["fine_tuned"]) == (None, pytest.approx(0.65)), "rl-2 was not asked micro/copy"
    assert three["untaught"] == pytest.approx(0.65)
    stages[2]["runs"][1]["metrics"].update(told("", "", "", add=0.3, copy=0.5)["runs"][1]["metrics"])
    three = compared(lifecycle, stages[3])
    assert three is not None and three["untaught"] == three["before"] == pytest.approx(0.4), "its own start"
    assert three["after"] == pytest.approx(0.75) and three["constant_baseline"] == pytest.approx(0.1)
    assert one["se"] == pytest.approx(0.03 * 2**0.5) and three["se"] == pytest.approx(0.03)
    found = held_out(stages[1])
    assert found is not None and found["pass@1"] == 0.5 and list(found["environments"]) == ["micro/sort"]


@pytest.mark.parametrize(
    ("after", "untaught", "baseline", "right"),
    [(0.31, 0.2, 0.05, True), (0.29, 0.2, 0.05, False), (0.31, 0.2, 0.25, False), (0.19, 0.2, 0.05, False)],
)
def test_a_rise_is_two_standard_errors_above_the_better_of_both(
    after: float, untaught: float, baseline: float, right: bool
) -> None:
    learning = {"after": after, "untaught": untaught, "fine_tuned": 0.9, "constant_baseline": baseline, "se": 0.05}
    assert rose(learning) is right
    row = {"stage": "rl-2", "learning": learning | {"before": 0.1}, "difficulty": {"first": 2.0, "last": 3.5}}
    assert "2.0 → 3.5" in line_of(row) and f"→ {after:.3f}" in line_of(row)


def test_stages_that_are_compared_are_asked_the_same_problems() -> None:
    """Of the plan that ships: each environment has one span in all gates, and all evaluations draw alike."""
    plan = load_lifecycle("toy-lifecycle")
    spans: dict[str, set[str]] = {}
    numbers = set()
    for name in ("sft", *TAUGHT):
        gate = plan.stage(name).gate
        assert gate is not None and gate.evaluation is not None
        job = plan.job(name, "evaluate").to_dict()["spec"]
        for part in job["data"]["environments"].split(", "):
            spans.setdefault(part.partition("@")[0], set()).add(part)
        words = ("problems", "rollouts", "candidates", "rounds", "limit")
        numbers.add((job["train"]["seed"], *(job["data"][word] for word in words)))
    assert len(numbers) == 1 and all(len(found) == 1 for found in spans.values())

"""Every job of the toy lifecycle runs, three steps of each, one behind the other, told what a controller tells.

The plan is the one that ships, cut in length and in the model's depth; the commands, maps and environments are its own.
What is learned in three steps is nothing: that is the demo's to show (make demo DEMO=lifecycle).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Result, checkpoint_hash, list_checkpoints, read_result
from jobs.lifecycle import Lifecycle, Stage, load_lifecycle
from jobs.spec import JobBody
from tests import forked

pytestmark = pytest.mark.timeout(600)
STEPS = 3
SMALL = {"layers": 2, "hidden": 32, "experts": 4, "expertHidden": 16, "routerHidden": 16}
SHORT: dict[str, Any] = {"prompts": 4, "samples": 4, "problems": 8, "rollouts": 2, "windows": 1, "newTokens": 4}


def cut(body: JobBody) -> dict[str, Any]:
    """The job as it stands, but short and small; numbers that say how much is done are lowered, none is added."""
    job = body.model_dump(by_alias=True, mode="json")
    train, data = job["train"], job["data"]
    train["steps"] = min(train["steps"], STEPS)
    train["checkpointEvery"] = STEPS
    train["sequences"] = min(train["sequences"], 4)
    if "phases" in train:
        train["phases"] = [{**one, "steps": steps} for one, steps in zip(train["phases"], (2, 1), strict=True)]
    for found in (train, data):
        for word, value in SHORT.items():
            if isinstance(found.get(word), int):
                found[word] = min(found[word], value)
    return {**job, "router": {**job["router"], **SMALL}}


class Chain:
    """What the stages before left: the checkpoint of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passed: dict[str, Path] = {}

    def run(self, stage: Stage, role: str, item: str, body: JobBody, init: Path | None) -> Path:
        """Runs a job in an attempt's directory of its own; returns that."""
        job = cut(body)
        home = self.folder / f"{stage.name}-{role}-{item}".rstrip("-")
        attempt, prepared = home / "attempt-0001", self.folder / stage.name / "prepared"
        for each in (attempt, prepared, home / "beats"):
            each.mkdir(parents=True, exist_ok=True)
        command = [sys.executable if word == "{python}" else word for word in job["command"]]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "PET_", "RAY_"))}
        env |= {f"TRIMTAB_{name.upper()}_JSON": json.dumps(job[name]) for name in ("train", "router", "data")}
        env |= {"TRIMTAB_RUN_ID": home.name, "TRIMTAB_RUN_DIR": str(home), "TRIMTAB_CHECKPOINT_DIR": str(attempt)}
        env |= {"TRIMTAB_HEARTBEAT_DIR": str(home / "beats"), "TRIMTAB_PREPARED_DIR": str(prepared)}
        env |= {"TRIMTAB_STAGE": stage.name, "TRIMTAB_ROLE": role, "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"}
        env |= {"PET_NPROC_PER_NODE": "1"}
        if init is not None:
            env |= {"TRIMTAB_INIT_FROM": str(init), "TRIMTAB_INIT_HASH": checkpoint_hash(init)}
        code = forked.run(command, env, home / "output")
        assert code == 0, f"{home.name}: {(home / 'output').read_text()[-3000:]}"
        return attempt

    def stage(self, stage: Stage) -> Iterator[tuple[str, Path, Result | None]]:
        """Runs all jobs of a stage in order: (role, attempt's directory, what it found out)."""
        source = self.passed[stage.source] if stage.source else None
        made = source
        for role, item, body in stage.works():
            judges = role == "evaluate" and stage.role == "train"
            attempt = self.run(stage, role, item, body, made if judges else source)
            if role == "train":
                made = list_checkpoints(attempt.parent)[-1]
            yield role, attempt, read_result(attempt)
        assert made is not None
        self.passed[stage.name] = made


def test_each_stage_of_the_toy_lifecycle_runs_and_hands_its_checkpoint_on(tmp_path: Path) -> None:
    plan: Lifecycle = load_lifecycle("toy-lifecycle")
    chain = Chain(tmp_path)
    for stage in plan.spec.stages:
        for role, attempt, result in chain.stage(stage):
            assert result is not None or role == "train", (stage.name, role)
            if role == "evaluate":
                judged = {word for text in stage.requirements for word in text.split()[:1]}
                assert result is not None and judged <= set(result.metrics), (stage.name, sorted(result.metrics))
            if role == "release":
                assert result is not None and result.metrics["loads"] == 1.0
                assert (attempt.parent / "release" / "model.safetensors").is_file()
    assert list(chain.passed) == list(plan.stages)
    names = ("pretrain", "midtrain", "sft", "rl-1", "rl-2", "rl-3", "rl-4")
    assert len({checkpoint_hash(chain.passed[name]) for name in names}) == len(names), "each made one of its own"
    assert chain.passed["release"] == chain.passed["evaluate"] == chain.passed["rl-4"]

"""The maps of a reinforcement-learning stage: what they mean, and what is refused before a job is submitted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from jobs.contract import ContractError
from jobs.spec import SpecError, parse_job
from jobs.zaya.rl.config import problems, read_config

DATA = {"environments": "micro/reverse@2-3, micro/sort"}


def test_the_maps_become_one_value_and_the_trainers_words_are_handed_on() -> None:
    env = {
        "TRIMTAB_TRAIN_JSON": json.dumps({"steps": 7, "learningRate": 2e-4, "syncEvery": 1}),
        "TRIMTAB_ROUTER_JSON": json.dumps({"freeze": False, "experts": 4, "balancing": "sign"}),
        "TRIMTAB_DATA_JSON": json.dumps(DATA),
    }
    config, words = read_config(env)
    assert (config.steps, config.learning_rate, config.sync_every, config.freeze) == (7, 2e-4, 1, False)
    assert (config.replay, config.environments) == (True, DATA["environments"])
    assert words == {"experts": 4, "balancing": "sign"}


@pytest.mark.parametrize(
    ("maps", "path", "said"),
    [
        ({"train": {"stepz": 3}}, "train.stepz", "is not known"),
        ({"train": {"steps": 0}}, "train.steps", "must be ≥ 1"),
        ({"train": {"prompts": 1.5}}, "train.prompts", "whole number"),
        ({"train": {"learningRate": float("inf")}}, "train.learningRate", "finite"),
        ({"train": {"samples": 1}}, "train.samples", "≥ 2"),
        ({"train": {"advantage": "mean"}}, "train.advantage", "one of group, dr"),
        ({"train": {"limit": 256}}, "train.limit", "room for a prompt"),
        ({"train": {"aggregate": 1.5}}, "train.aggregate", "share"),
        (
            {"train": {"aggregate": 0.1, "length": 92}},
            "train.aggregate",
            "no room for a question",
        ),
        (
            {"data": {**DATA, "problems": "prepared", "curriculum": "rlve"}},
            "data.curriculum",
            "must be fixed, not rlve",
        ),
        ({"train": {"syncEvery": 2, "ahead": 2}}, "train.staleness", "3 steps behind"),
        ({"router": {"freeze": 1}}, "router.freeze", "true or false"),
        ({"router": {"expertz": 1}}, "router.expertz", "is not known"),
        ({"data": {"environments": ""}}, "data.environments", "is needed"),
        ({"data": {"environments": "micro/sort@4-2"}}, "data.environments", "easier"),
        ({"data": {**DATA, "curriculum": "hard"}}, "data.curriculum", "rlve"),
    ],
)
def test_what_cannot_be_is_refused_with_its_path(maps: dict[str, dict[str, Any]], path: str, said: str) -> None:
    found = problems({"data": DATA, **maps})
    assert [one for one in found if one[0] == path and said in one[1]], found
    assert len(found) == 1


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {"train": {"steps": 0, "samples": 1}, "router": {"replay": "no"}, "data": {}}
    assert [path for path, _ in problems(wrong)] == [
        "train.steps",
        "router.replay",
        "train.samples",
        "data.environments",
    ]
    env = {f"TRIMTAB_{name.upper()}_JSON": json.dumps(value) for name, value in wrong.items()}
    with pytest.raises(ContractError, match=r"train\.steps .*; router\.replay"):
        read_config(env)


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_map_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="TRIMTAB_DATA_JSON"):
        read_config({"TRIMTAB_DATA_JSON": text})


def test_a_spec_is_held_to_what_the_stage_takes() -> None:
    spec = {
        "apiVersion": "trimtab/v1",
        "kind": "Job",
        "metadata": {"name": "rl"},
        "spec": {
            "stage": "rl-1",
            "command": ["{python}", "-m", "jobs.zaya.rl"],
            "resources": {"nodes": 1},
            "train": {"steps": 3, "prompts": 0},
            "data": DATA,
        },
    }
    with pytest.raises(SpecError) as caught:
        parse_job(spec)
    assert [problem.path for problem in caught.value.problems] == ["train.prompts"]


def test_reading_a_spec_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['ray'] = None\n"
        "from jobs.zaya.rl.config import read_config"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

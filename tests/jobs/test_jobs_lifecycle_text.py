"""What a person wrote of a lifecycle: its defaults are judged where they stand, a requirement is read into parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jobs.lifecycle import Requirement
from jobs.spec import SpecError
from tests.jobs.test_jobs_lifecycle import GOOD, JOB, Json, problems

HALF = r"has the name '\ud800' with a NUL or half of a character, which cannot be written down"
ALONE: Json = {"stages": [{"name": "a", "job": {**JOB, "resources": {"nodes": 1}}}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**ALONE, "defaults": None}, ["defaults: must be a mapping"]),
        ({**ALONE, "defaults": 3}, ["defaults: must be a mapping"]),
        ({"defaults": {"faults": {"restarts": 3}}}, ["stages: is needed"]),
        ({"defaults": 3}, ["stages: is needed", "defaults: must be a mapping"]),
        ({**ALONE, "defaults": {"data": {"y": float("nan")}}}, ["defaults.data.y: must be a finite number"]),
        ({**ALONE, "defaults": {"data": {"\ud800": 1}}}, [f"defaults.data: {HALF}"]),
    ],
)
def test_what_is_wrong_with_the_defaults_is_no_problem_of_the_jobs_below_them(body: Json, said: list[str]) -> None:
    assert problems({**GOOD, "spec": body}) == said


def test_a_problem_of_the_defaults_is_told_once_and_there() -> None:
    wrong = copy.deepcopy(GOOD)
    wrong["spec"]["defaults"]["resources"]["nodes"] = 0
    assert problems(wrong) == ["defaults.resources.nodes: must be ≥ 1"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("loss < 2.6", ("loss", "<", 2.6)),
        ("pass@1>constant_baseline", ("pass@1", ">", "constant_baseline")),
        (" maj >= 1e-3 ", ("maj", ">=", 0.001)),
        ("loads == 1", ("loads", "==", 1.0)),
        ("micro/sort/pass@1 <= gold", ("micro/sort/pass@1", "<=", "gold")),
    ],
)
def test_a_requirement_is_read_into_its_parts(text: str, parts: tuple[Any, ...]) -> None:
    found = Requirement.parse(text)
    assert (found.metric, found.op, found.bound) == parts
    assert Requirement.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "loss", "loss <", "< 3", "loss = 3", "loss < 3 4", "a b < 3", "loss << 3", "1 < loss < 3"]
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="must be `<metric> <op>"):
        Requirement.parse(text)

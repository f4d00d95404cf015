"""What a stage of the reference workload needs of its plan: a checkpoint to begin with, what its preparing jobs leave,
a model of its shape; and which metrics its jobs can give to a gate. What would be refused on the nodes after the stages
before have trained is refused here.

Works on the plan as plain data, also where it is malformed. Nothing is known of a command that is not ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.parsing import Problem
from jobs.workloads import EVALUATE, PREPARE, RELEASE, RL, TRAIN, module_of
from jobs.zaya.config import shape_of
from jobs.zaya.evaluation_config import EvaluationConfig

Map = Mapping[str, Any]
_OF_TEXT = ("loss", "code_loss", "max_vio")
_OF_PROBLEMS = (
    *("pass@1", "pass@1_se", "maj", "rsa", "ended", "constant_baseline"),
    *("tokens_per_problem", "plain_tokens_per_problem", "problems"),
)
_OF_A_RELEASE = ("loads", "logit_difference", "greedy_equal", "tokens_equal", "parameters")


def metrics_of(job: object) -> frozenset[str] | None:
    """The metrics that a job can give, by what it is asked to measure; None where nobody knows."""
    module = module_of(job)
    if module == RELEASE:
        return frozenset(_OF_A_RELEASE)
    if module != EVALUATE:
        return None
    data = _map(job, "data")
    found = list(_OF_TEXT) if data.get("windows", EvaluationConfig.windows) else []
    if data.get("environments") or data.get("sets"):
        judge = data.get("judge")
        found += [*_OF_PROBLEMS, *(["gold"] * (judge in ("gold", "proxy"))), *(["proxy"] * (judge == "proxy"))]
    return frozenset(found)


def beginnings(stages: Sequence[tuple[int, Map]]) -> Iterator[Problem]:
    """What each stage's training would not find when it begins."""
    by_name = {str(stage.get("name")): stage for _, stage in stages}
    for at, stage in stages:
        job, path = stage.get("job"), f"stages.{at}"
        module = module_of(job)
        if module == RL and stage.get("from") == "":
            yield Problem(f"{path}.from", "reinforcement learning begins with the checkpoint of a stage: name one")
        for word, kind in _needed(module, job):
            if kind not in _kinds(stage):
                yield Problem(
                    f"{path}.prepare", f"{word} reads what a preparing job of the kind {kind} leaves: add one"
                )
        if module == TRAIN:
            yield from _shapes(path, stage, by_name)


def _needed(module: str, job: object) -> Iterator[tuple[str, str]]:
    """(what asks for it, kind of the preparing job)."""
    train, data = _map(job, "train"), _map(job, "data")
    if module == TRAIN and train.get("objective") == "sft":
        yield "train.objective sft", "sft"
    if module in (RL, EVALUATE) and data.get("judge") == "proxy":
        yield "data.judge proxy", "preferences"
    if module == RL and data.get("problems") == "prepared":
        yield "data.problems prepared", "filter"


def _kinds(stage: Map) -> set[str]:
    """The kinds that a stage prepares; every kind where a preparing job is not ours."""
    found: set[str] = set()
    prepare = stage.get("prepare")
    for one in prepare if isinstance(prepare, list) else []:
        job = one.get("job") if isinstance(one, dict) else None
        if module_of(job) != PREPARE:
            return {"sft", "preferences", "filter"}
        kind = _map(job, "data").get("kind", "sft")
        found |= {"sft"} if kind == "pack" else {str(kind)}
    return found


def _shapes(path: str, stage: Map, by_name: Mapping[str, Map]) -> Iterator[Problem]:
    """A training goes on with its source's weights, so its model has their shapes."""
    source = by_name.get(str(stage.get("from")))
    passed: set[str] = set()
    while source is not None and module_of(source.get("job")) != TRAIN and str(source.get("name")) not in passed:
        passed.add(str(source.get("name")))
        source = by_name.get(str(source.get("from")))
    if source is None or source is stage or module_of(source.get("job")) != TRAIN:
        return
    own, its = shape_of(_map(stage.get("job"), "router")), shape_of(_map(source.get("job"), "router"))
    for word, value in own.items():
        if value != its[word]:
            words = f"is {value} here and {its[word]} in {source.get('name')}, whose checkpoint this stage begins with"
            yield Problem(f"{path}.job.router.{word}", words)


def _map(job: object, name: str) -> Map:
    found = job.get(name) if isinstance(job, dict) else None
    return found if isinstance(found, dict) else {}

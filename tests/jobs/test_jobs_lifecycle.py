"""Lifecycles: what is left out is filled in, defaults lie under every job, and all that is wrong is said at once."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.lifecycle import (
    Lifecycle,
    lifecycle_templates,
    load_lifecycle,
    parse_lifecycle,
    run_name,
)
from jobs.spec import SpecError, parse_job, templates

Json = dict[str, Any]
JOB: dict[str, Any] = {"command": ["python", "train.py"], "train": {"steps": 10}}
EVALUATION: dict[str, Any] = {
    "command": ["python", "-m", "jobs.zaya.evaluate"],
    "resources": {"nodes": 1},
    "train": {"steps": 1},
    "data": {"environments": "micro/reverse@2-4"},
}
GOOD: dict[str, Any] = {
    "apiVersion": "trimtab/v1",
    "kind": "Lifecycle",
    "metadata": {"name": "zaya"},
    "spec": {
        "defaults": {"resources": {"nodes": 2, "gpusPerNode": 4}, "faults": {"restarts": 3}},
        "stages": [
            {
                "name": "pretrain",
                "job": JOB,
                "budget": {"retries": 2, "gpuHours": 4},
                "gate": {"evaluation": EVALUATION, "require": ["loss < 2.6", "pass@1 > constant_baseline"]},
                "promote": "base",
            },
            {"name": "sft", "prepare": [{"name": "text", "job": JOB}], "job": {**JOB, "resources": {"nodes": 1}}},
            {"name": "side", "after": ["pretrain"], "job": JOB, "gate": {"approval": True}},
            {"name": "release", "after": ["sft", "side"], "from": "sft", "role": "release", "job": JOB},
        ],
    },
}


def plan(**changes: Any) -> dict[str, Any]:
    """GOOD with stages changed by name; a change of None takes the key away."""
    found = copy.deepcopy(GOOD)
    for name, change in changes.items():
        stage = next(one for one in found["spec"]["stages"] if one["name"] == name)
        stage.update(change)
        for key in [key for key, value in change.items() if value is None]:
            del stage[key]
    return found


def problems(source: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_lifecycle(source)
    return [str(problem) for problem in caught.value.problems]


def accepted_or_explained(source: Any) -> bool:
    """What is accepted can be kept, sent and read again; what is refused is so in words that can be sent."""
    try:
        found = parse_lifecycle(source)
    except SpecError as error:
        return bool(error.problems) and bool(str(error).encode())
    kept = json.dumps(found.to_dict(), allow_nan=False, ensure_ascii=False).encode()
    return parse_lifecycle(json.loads(kept)) == found


def test_what_a_plan_leaves_out_is_filled_in() -> None:
    found = parse_lifecycle(json.dumps(GOOD))
    pretrain, sft, side, release = found.spec.stages
    assert [one.after for one in found.spec.stages] == [[], ["pretrain"], ["pretrain"], ["sft", "side"]]
    assert [one.source for one in found.spec.stages] == ["", "pretrain", "pretrain", "sft"]
    assert [one.role for one in found.spec.stages] == ["train", "train", "train", "release"]
    assert (pretrain.budget.retries, pretrain.budget.gpu_hours, sft.budget.retries) == (2, 4.0, 1)
    assert (side.wants_approval, pretrain.wants_approval, release.requirements) == (True, False, ())
    assert found.upstream("release") == {"pretrain", "sft", "side"}
    assert found.downstream("pretrain") == {"sft", "side", "release"}


def test_defaults_lie_under_every_job_key_by_key() -> None:
    found = parse_lifecycle(GOOD)
    pretrain, sft, *_ = found.spec.stages
    assert pretrain.gate is not None and pretrain.gate.evaluation is not None
    for job in (pretrain.job, sft.prepare[0].job):
        assert (job.resources.nodes, job.resources.gpus_per_node, job.faults.restarts) == (2, 4, 3)
    for job in (sft.job, pretrain.gate.evaluation):
        assert (job.resources.nodes, job.resources.gpus_per_node, job.faults.restarts) == (1, 4, 3)
    assert {job.stage for _, _, job in sft.works()} == {"sft"}


def test_a_plan_survives_its_own_data_and_yaml() -> None:
    found = parse_lifecycle(GOOD)
    assert parse_lifecycle(found.to_dict()) == found
    again = parse_lifecycle(found.to_yaml())
    assert again == found and again.hash() == found.hash()
    assert parse_lifecycle(plan(sft={"promote": "base"})).hash() != found.hash()


def test_a_stages_jobs_have_names_of_their_own() -> None:
    found = parse_lifecycle(GOOD)
    asked = [
        ("pretrain", "train", ""),
        ("pretrain", "evaluate", ""),
        ("sft", "prepare", "text"),
        ("release", "release", ""),
    ]
    assert [found.job(*one).name for one in asked] == [
        "zaya-pretrain",
        "zaya-pretrain-evaluate",
        "zaya-sft-text",
        "zaya-release",
    ]
    with pytest.raises(LookupError, match="stage sft of zaya has no job of the role evaluate"):
        found.job("sft", "evaluate")


@given(st.text("abc-", min_size=1, max_size=40), st.text("abc-", min_size=1, max_size=40), st.sampled_from([35, 40]))
def test_a_runs_name_is_always_one_that_names_allow(lifecycle: str, stage: str, longest: int) -> None:
    name = run_name(lifecycle.strip("-") or "a", stage.strip("-") or "b", "evaluate", longest=longest)
    assert len(name) <= longest
    assert parse_job({**copy.deepcopy(_small()), "metadata": {"name": name}}).name == name


def test_names_that_are_cut_alike_stay_apart() -> None:
    long = "a" * 39
    assert run_name(long, "one") != run_name(long, "two")


def _small() -> dict[str, Any]:
    return {"kind": "Job", "spec": {**JOB, "stage": "x", "resources": {"nodes": 1}}}


def test_a_job_by_itself_is_a_lifecycle_of_one_stage() -> None:
    job = parse_job({**_small(), "metadata": {"name": "small"}})
    made = Lifecycle.of_job(job)
    assert (made.name, made.stages, parse_lifecycle(made.to_dict())) == ("small", ("x",), made)
    assert made.spec.stages[0].job == job.spec


def test_everything_that_is_wrong_is_told_at_once_with_its_path() -> None:
    wrong = plan(
        pretrain={"gate": {"evaluation": EVALUATION, "require": ["loss 2.6", "los < 1"]}, "nam": 1},
        sft={"after": ["pretrian"], "job": {**JOB, "train": {"steps": 0}}},
        side={"budget": {"retries": -1, "gpuHours": 0}, "promote": "Best One"},
    )
    wrong["metadata"]["name"] = "Zaya"
    wrong["spec"]["defaults"]["resources"]["gpuPerNode"] = 1
    assert sorted(problem.split(":")[0] for problem in problems(wrong)) == [
        "defaults.resources.gpuPerNode",
        "metadata.name",
        "stages.0.gate.require.0",
        "stages.0.gate.require.1",
        "stages.0.nam",
        "stages.1.after",
        "stages.1.from",
        "stages.1.job.train.steps",
        "stages.2.budget.gpuHours",
        "stages.2.budget.retries",
        "stages.2.promote",
    ]


ZAYA = {**JOB, "command": ["python", "-m", "jobs.zaya.train"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"after": ["pretrian"]}}, "stages.1.after: there is no stage pretrian; did you mean pretrain?"),
        ({"pretrain": {"after": ["sft"]}}, "stages.0.after: no stage of a circle can begin: pretrain → sft → pretrain"),
        ({"sft": {"after": ["sft"]}}, "stages.1.after: no stage of a circle can begin: sft → sft"),
        ({"sft": {"after": ["pretrain", "pretrain"], "from": ""}}, "stages.1.after: pretrain is named twice"),
        ({"release": {"from": None}}, 'stages.3.from: say whose checkpoint it starts from: sft, side or "" for none'),
        ({"side": {"from": "sft"}}, "stages.2.from: sft need not have passed by then"),
        ({"side": {"from": "stf"}}, "stages.2.from: there is no stage stf; did you mean sft?"),
        ({"release": {"from": ""}}, "stages.3.from: a stage of the role release needs the checkpoint of a stage"),
        ({"sft": {"name": "pretrain"}}, "stages.1.name: pretrain is the name of an earlier stage as well"),
        ({"sft": {"gate": {}}}, "stages.1.gate: judges nothing: give require, approval or both"),
        ({"sft": {"gate": {"require": ["loss < 1"]}}}, "stages.1.gate.evaluation: is needed: require judges"),
        ({"sft": {"gate": {"approval": "yes"}}}, "stages.1.gate.approval: must be true or false, not 'yes'"),
        ({"sft": {"gate": {"aproval": True}}}, "stages.1.gate.aproval: is not known here; did you mean approval?"),
        (
            {"release": {"gate": {"evaluation": EVALUATION, "approval": True}}},
            "stages.3.gate.evaluation: a stage of the role release is judged by its own job's result",
        ),
        (
            {"pretrain": {"gate": {"evaluation": EVALUATION, "require": ["pas@1 > 0.5"]}}},
            "stages.0.gate.require.0: the evaluation gives no metric pas@1; did you mean pass@1?",
        ),
        (
            {"pretrain": {"gate": {"evaluation": EVALUATION, "require": ["pass@1 > baseline"]}}},
            "stages.0.gate.require.0: the evaluation gives no metric baseline",
        ),
        (
            {"pretrain": {"gate": {"evaluation": EVALUATION, "require": ["loss < inf"]}}},
            "stages.0.gate.require.0: must compare with a finite number, not inf",
        ),
        (
            {"pretrain": {"gate": {"evaluation": EVALUATION, "require": ["loss ~ 2"]}}},
            "stages.0.gate.require.0: must be `<metric> <op> <number or metric>`",
        ),
        ({"sft": {"job": {**ZAYA, "router": {"expertz": 1}}}}, "stages.1.job.router.expertz: is not known to this"),
        ({"sft": {"job": {**JOB, "stage": "rl"}}}, "stages.1.job.stage: is the stage's own name, sft, and need not"),
        ({"sft": {"prepare": [{"name": "train", "job": JOB}]}}, "stages.1.prepare.0.name: train is a role's name"),
        (
            {"sft": {"prepare": [{"name": "a", "job": JOB}, {"name": "a", "job": JOB}]}},
            "stages.1.prepare.1.name: a is the name of an earlier one as well",
        ),
        ({"sft": {"role": "sleep"}}, "stages.1.role: must be one of 'train', 'evaluate' or 'release', not 'sleep'"),
        ({"sft": {"job": None}}, "stages.1.job: is needed"),
        ({"sft": {"budget": {"retrys": 1}}}, "stages.1.budget.retrys: is not known here; did you mean retries?"),
    ],
)
def test_what_a_plan_may_not_say_is_named_by_its_path(changes: dict[str, Any], said: str) -> None:
    assert any(problem.startswith(said) for problem in problems(plan(**changes))), problems(plan(**changes))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "Job"}, "kind: this is a Job, not a Lifecycle: trimtab job submit"),
        ({"spec": {"stages": []}}, "stages: must not be empty"),
        ({"spec": {"stages": 3}}, "stages: must be a list"),
        ({"spec": 3}, "spec: must be a mapping"),
        ({"spec": {"stages": [3]}}, "stages.0: must be a mapping"),
        ({"spec": {**GOOD["spec"], "default": {}}}, "default: is not known here; did you mean stages?"),
    ],
)
def test_a_lifecycle_that_is_none_is_refused_in_plain_words(source: dict[str, Any], said: str) -> None:
    assert any(
        problem.startswith(said[: said.index(";")] if ";" in said else said) for problem in problems({**GOOD, **source})
    )


@pytest.mark.parametrize("text", ["just words", "spec: [", ""])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    assert problems(text)


def test_on_ray_the_plans_name_begins_with_a_letter() -> None:
    named = plan(sft={"job": {**JOB, "kubernetes": {"ray": True}}})
    named["metadata"]["name"] = "8b"
    assert problems(named) == ["metadata.name: must begin with a letter: a job of it runs on Ray"]
    named["metadata"]["name"] = "b" * 40
    assert len(parse_lifecycle(named).job("sft", "train").name) == 35


def test_a_role_follows_from_the_command_where_none_is_given() -> None:
    job = {**EVALUATION, "command": ["python", "-m", "jobs.zaya.release"], "data": {}}
    release = {"role": None, "job": job}
    assert parse_lifecycle(plan(release=release)).stage("release").role == "release"
    evaluate = {"job": EVALUATION, "gate": {"require": ["rsa > maj"]}}
    assert parse_lifecycle(plan(side=evaluate)).stage("side").role == "evaluate"


TEXTS = st.text(st.characters(exclude_categories=[]))
"""halves of characters included"""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
        lambda c: st.lists(c) | st.dictionaries(TEXTS, c),
    ),
    st.sampled_from(["after", "from", "prepare", "job", "budget", "gate", "name", "role", "promote"]),
)
def test_no_mapping_breaks_the_parser(value: Any, key: str) -> None:
    loose = {**JOB, "train": {"steps": 1, "free": value}}
    sources = (
        plan(sft={key: value}),
        plan(sft={"job": loose}),
        {**GOOD, "spec": value},
        {**GOOD, "spec": {"stages": value}},
    )
    for source in sources:
        assert accepted_or_explained(source)


def test_every_lifecycle_that_ships_is_valid_and_no_job() -> None:
    for name in lifecycle_templates():
        assert load_lifecycle(name).stages
        assert name not in templates()


def test_an_unknown_lifecycle_says_which_exist() -> None:
    with pytest.raises(SpecError, match="there are "):
        load_lifecycle("../toy")


RL = {"command": ["python", "-m", "jobs.zaya.rl"], "resources": {"nodes": 1}, "train": {"steps": 2}}
DRAWN: dict[str, Any] = {"environments": "micro/reverse@2-4"}


def gate(data: dict[str, Any], required: str) -> dict[str, Any]:
    return {"evaluation": EVALUATION | {"data": data}, "require": [required]}


def prepared(kind: str) -> dict[str, Any]:
    data = {"kind": kind, **DRAWN} if kind != "pack" else {"kind": kind}
    job = {"command": ["python", "-m", "jobs.zaya.prepare"], "resources": {"nodes": 1}, "train": {"steps": 1}}
    return {"name": "data", "job": {**job, "data": data}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"job": RL | {"data": DRAWN}, "from": ""}, "stages.1.from: reinforcement learning begins with the checkpoint"),
        ({"job": RL | {"data": {"environments": "micro/revers"}}}, "there is no environment 'micro/revers'; near are"),
        ({"job": RL | {"data": {"environments": "rlve/Sort"}}}, "there is no environment rlve/Sort; near are"),
        (
            {"job": RL | {"data": {"environments": "micro/sort@1-999"}}},
            "micro/sort has difficulties 2 to 12, 1 is",
        ),
        ({"job": RL | {"data": {"environments": "rlve/Sorting@0-9"}}}, "has difficulties 0 to 8, 9 is none of them"),
        ({"job": RL | {"data": {"environments": "math/set"}}}, "math/set"),
        ({"job": RL | {"data": DRAWN | {"judge": "proxy"}}}, "a preparing job of the kind preferences leaves: add one"),
        ({"job": RL | {"data": DRAWN | {"problems": "prepared"}}}, "a preparing job of the kind filter leaves"),
        ({"job": RL | {"data": DRAWN}, "prepare": [prepared("sft")], "name": "rl"}, ""),
        (
            {"job": ZAYA | {"train": {"steps": 2, "objective": "sft"}}, "prepare": [prepared("preferences")]},
            "train.objective sft reads what a preparing job of the kind sft leaves: add one",
        ),
        ({"job": ZAYA | {"train": {"steps": 2, "objective": "sft"}}, "prepare": [prepared("sft")]}, ""),
        ({"job": RL | {"resources": {}, "data": DRAWN}}, "jobs.zaya.rl is one process: must be 1 in its job, not 2"),
        ({"job": RL | {"resources": {}, "data": DRAWN, "kubernetes": {"ray": True}}}, ""),
        ({"gate": gate({"windows": 4}, "pass@1 > 0")}, "the evaluation gives no metric pass@1"),
        ({"gate": gate(DRAWN | {"windows": 0}, "loss < 2")}, "the evaluation gives no metric loss"),
        ({"gate": gate(DRAWN, "gold > 0.5")}, "the evaluation gives no metric gold"),
        ({"gate": gate({"sets": "micr"}, "maj > 0")}, "there is no set micr: there are code, math, micro, or give"),
    ],
)
def test_what_the_nodes_would_refuse_is_refused_before_anything_trains(changes: dict[str, Any], said: str) -> None:
    """`said` is empty where the plan is right."""
    changed = plan(sft={"prepare": None, **changes})
    changed["spec"]["stages"] = changed["spec"]["stages"][:2]
    if said:
        assert [one for one in problems(changed) if said in one], problems(changed)
    else:
        assert parse_lifecycle(changed).stages[0] == "pretrain"


def test_a_training_goes_on_with_the_shape_of_the_weights_it_begins_with() -> None:
    def of(experts: int, **more: Any) -> dict[str, Any]:
        return ZAYA | {"router": {"experts": experts, **more}}

    begun = {"job": of(8), "gate": None, "budget": None}
    changed = plan(pretrain=begun, sft={"job": of(16, skipBias=-2.0), "prepare": None}, side={"job": of(8)})
    said = "stages.1.job.router.experts: is 16 here and 8 in pretrain, whose checkpoint this stage begins with"
    assert problems(changed) == [said]
    assert parse_lifecycle(plan(pretrain=begun, sft={"job": of(8), "prepare": None}, side={"job": of(8)}))


def test_a_release_is_judged_by_what_it_can_say() -> None:
    release = {"job": {**JOB, "command": ["python", "-m", "jobs.zaya.release"], "resources": {"nodes": 1}}}
    release["job"]["train"] = {"steps": 1}
    assert parse_lifecycle(plan(release={**release, "gate": {"require": ["loads > 0", "logit_difference < 1e-5"]}}))
    wrong = plan(release={**release, "gate": {"require": ["load > 0"]}})
    assert any("no metric load; did you mean loads?" in one for one in problems(wrong))

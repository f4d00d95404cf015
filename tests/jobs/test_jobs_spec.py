"""Specs: what is right is kept as it was given, what is wrong is said all at once, each with its path."""

from __future__ import annotations

import copy
import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import JobSpec, SpecError, load_template, parse_job, templates

GOOD: dict[str, Any] = {
    "apiVersion": "trimtab/v1",
    "kind": "Job",
    "metadata": {"name": "small"},
    "spec": {
        "stage": "pretrain",
        "command": ["python", "train.py"],
        "resources": {"nodes": 2},
        "train": {"steps": 10, "flavour": "free"},
        "router": {"experts": 16, "skipBias": -1.0},
    },
}


def changed(path: str, value: Any, job: dict[str, Any] = GOOD) -> dict[str, Any]:
    found = copy.deepcopy(job)
    *parents, last = path.split(".")
    place = found
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return found


def problems(source: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_job(source)
    return [str(problem) for problem in caught.value.problems]


def accepted_or_explained(source: Any) -> bool:
    """What is accepted can be kept, sent and read again; what is refused is so in words that can be sent."""
    try:
        found = parse_job(source)
    except SpecError as error:
        return bool(error.problems) and bool(str(error).encode())
    kept = json.dumps(found.to_dict(), allow_nan=False, ensure_ascii=False).encode()
    return parse_job(json.loads(kept)) == found == parse_job(found.to_yaml())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a" * 35, ""),
        ("a" * 36, "must have at most 35 characters on Ray, not 36"),
        ("8b-run", "must begin with a letter"),
    ],
)
def test_a_name_that_kuberay_would_refuse_is_told_only_to_who_asks_for_ray(name: str, said: str) -> None:
    named = changed("metadata.name", name)
    assert parse_job(named).spec.kubernetes.ray is False
    on_ray = changed("spec.kubernetes.ray", True, named)
    if not said:
        assert parse_job(on_ray).spec.kubernetes.ray is True
        return
    (problem,) = problems(on_ray)
    assert problem.startswith("metadata.name: ") and said in problem


def test_a_good_spec_keeps_what_it_was_given_and_names_its_defaults() -> None:
    spec = parse_job(GOOD)
    assert (spec.name, spec.gpus, spec.spec.train.steps) == ("small", 16, 10)
    found = spec.to_dict()["spec"]
    assert found["train"]["flavour"] == "free"
    assert found["faults"]["mode"] == "act"
    assert found["resources"] == {"nodes": 2, "gpusPerNode": 8, "ranksPerNode": 1}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.resources.nodes", 0, "resources.nodes: must be ≥ 1"),
        ("spec.resources.nodes", "2", "resources.nodes: must be a whole number, not '2'"),
        ("spec.resources.nodes", 1.5, "resources.nodes: must be a whole number, not 1.5"),
        ("spec.resources.nodes", True, "resources.nodes: must be a whole number, not True"),
        ("spec.resources.gpusPerNode", 9, "resources.gpusPerNode: must be ≤ 8"),
        ("spec.resources.gpuPerNode", 8, "resources.gpuPerNode: is not known here; did you mean gpusPerNode?"),
        ("spec.train.checkpointEvery", 0, "train.checkpointEvery: must be ≥ 1"),
        ("spec.faults.mode", "panic", "faults.mode: must be one of 'observe', 'advise' or 'act', not 'panic'"),
        ("spec.faults.graceSeconds", float("nan"), "faults.graceSeconds"),
        ("spec.router.experts", [16], "router.experts: must be text, a number, true or false"),
        ("spec.command", [], "command: must not be empty"),
        ("spec.command", "python train.py", "command: must be a list"),
        ("spec.stages", 1, "stages: is not known here; did you mean stage?"),
        ("metadata.name", "Not A Name", "metadata.name: must be 1 to 40 lower-case letters"),
        ("metadata.labels", {"a": 1}, "metadata.labels.a: must be text, not 1"),
        ("kind", "Lifecycle", "kind: this is a Lifecycle, not a Job: trimtab lifecycle submit"),
        ("kind", "Jobb", "kind: must be one of 'Job', not 'Jobb'"),
        ("apiVersion", "trimtab/v9", "apiVersion: must be one of 'trimtab/v1', not 'trimtab/v9'"),
        ("metdata", {}, "metdata: is not known here; did you mean metadata?"),
        ("spec.resources", 7, "resources: must be a mapping"),
        ("spec", None, "spec: must be a mapping"),
        ("spec.data", {"y": "\ud800"}, "data.y: holds a NUL or half of a character, which cannot be written down"),
        ("spec.data", {"\0": "y"}, r"data: has the name '\x00' with a NUL or half of a character"),
        ("spec.router", {"y": float("nan")}, "router.y: must be a finite number"),
        ("spec.train.rate", float("-inf"), "train.rate: must be a finite number"),
        ("spec.train.rate", 2**63, "train.rate: must be a whole number of 64 bits"),
        (
            "spec.train.when",
            date(2026, 1, 1),
            "train.when: must be text, a number, true or false, not the date 2026-01",
        ),
        ("spec.train.deep", json.loads("[" * 70 + "]" * 70), "train.deep: lies deeper than 64 mappings and lists"),
        ("spec.train.rates", {1: 2}, "train.rates: its names must be text, not 1: put it in quotes"),
        ("spec.command", ["python", "\ud800"], "command.1: holds a NUL"),
        ("spec.trainer", {"environment": {"A": "\udfff"}}, "trainer.environment.A: holds a NUL"),
        ("metadata.labels", {"a": "\0"}, "metadata.labels.a: holds a NUL"),
        ("metadata.labels", {1: "a"}, "metadata.labels: its names must be text, not 1: put it in quotes"),
    ],
)
def test_a_wrong_value_is_named_by_its_path_in_plain_words(path: str, value: Any, said: str) -> None:
    found = problems(changed(path, value))
    assert len(found) == 1
    assert found[0].startswith(said)


TOY = load_template("toy").to_dict()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.router.experts", 0, "router.experts: must be ≥ 1"),
        ("spec.router.skipBias", "abc", "router.skipBias: must be a number, not 'abc'"),
        ("spec.router.skipBias", None, "router.skipBias: must be a number, not None"),
        ("spec.router.balancing", "nonsense", "router.balancing: must be one of adamw, sign, centred-sign, pi, pid"),
        ("spec.router.balancingKp", 0.1, "router.balancingKp: is a gain of pi and pid, not of the balancing adamw"),
        ("spec.router.balancingRate", 0, "router.balancingRate: must be > 0"),
        ("spec.router.expertz", 4, "router.expertz: is not known to this trainer; it knows balancing, "),
        ("spec.router.experts", [1], "router.experts: must be text, a number, true or false"),
        ("spec.data.source", "nowhere", "data.source: must be one of python-docs, python-code, mix, not 'nowhere'"),
        ("spec.data.path", "/tmp", "data.path: is not known to this trainer"),
        ("spec.train.optimizer", "sgd", "train.optimizer: must be one of muon, adamw, not 'sgd'"),
        ("spec.train.learningRate", float("inf"), "train.learningRate: must be a finite number"),
        ("spec.train.flavour", "free", "train.flavour: is not known to this trainer"),
        ("spec.train.steps", 0, "train.steps: must be ≥ 1"),
    ],
)
def test_the_reference_workload_is_held_to_what_its_trainer_takes(path: str, value: Any, said: str) -> None:
    (found,) = problems(changed(path, value, TOY))
    assert found.startswith(said)


def test_what_a_command_that_is_not_ours_takes_is_its_own_business() -> None:
    job = changed("spec.router", {"experts": 0, "flavour": "free"})
    assert parse_job(job).spec.router == {"experts": 0, "flavour": "free"}


def test_problems_of_the_spec_and_of_its_workload_are_told_together() -> None:
    wrong = changed("spec.resources.nodes", 0, TOY)
    wrong["spec"]["router"].update({"experts": 0, "balancing": "nonsense"})
    wrong["spec"]["data"]["source"] = "nowhere"
    assert [problem.split(":")[0] for problem in problems(wrong)] == [
        "resources.nodes",
        "router.experts",
        "router.balancing",
        "data.source",
    ]


def test_all_problems_are_told_at_once() -> None:
    wrong = changed("spec.resources.nodes", 0)
    wrong["spec"]["faults"] = {"mode": "panic", "restart": 3}
    del wrong["spec"]["stage"]
    del wrong["metadata"]["name"]
    assert sorted(problem.split(":")[0] for problem in problems(wrong)) == [
        "faults.mode",
        "faults.restart",
        "metadata.name",
        "resources.nodes",
        "stage",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spec: {train: {steps: 1}, train: {steps: 2}}", "line 1, column 27: the key 'train' is given twice"),
        ("spec: [", "line 1"),
        ("just words", "a job is a mapping"),
        ("", "a job is a mapping"),
        ("a: &a [1]\nb: *a", "line 2, column 4: aliases are not read here"),
        ("!!python/object/apply:os.system [echo]", "line 1, column 1: could not determine a constructor"),
        ("x" * 300_000, "the text has 300000 characters"),
        ("[" * 10_000, "line 1, column 66: lies deeper than 64 mappings and lists"),
        ("\x00", ""),
    ],
)
def test_text_that_is_no_spec_is_refused_with_its_place(text: str, said: str) -> None:
    assert said in problems(text)[0]


TEXTS = st.text(st.characters(exclude_categories=[]))
"""halves of characters included"""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda c: st.lists(c) | st.dictionaries(TEXTS, c),
)


@given(VALUES)
def test_no_mapping_breaks_the_parser(value: Any) -> None:
    for source in ({**GOOD, "spec": value}, {**GOOD, "metadata": value}, changed("spec.train", value)):
        assert accepted_or_explained(source)
    for part in ("train", "router", "data", "command"):
        assert accepted_or_explained(changed(f"spec.{part}", value, TOY))


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(SpecError):
        parse_job(text)


def test_a_spec_survives_yaml_and_its_hash_with_it() -> None:
    spec = parse_job(GOOD)
    again = parse_job(spec.to_yaml())
    assert again == spec
    assert again.hash() == spec.hash()
    assert parse_job(changed("spec.train.seed", 1)).hash() != spec.hash()


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    turned = {key: GOOD[key] for key in reversed(GOOD)}
    assert parse_job(turned).hash() == parse_job(GOOD).hash()


@pytest.mark.parametrize("name", templates())
def test_every_job_that_ships_is_valid(name: str) -> None:
    assert isinstance(load_template(name), JobSpec)


def test_the_toy_ships_and_an_unknown_name_says_which_exist() -> None:
    assert "toy" in templates()
    with pytest.raises(SpecError, match=r"there are .*toy"):
        load_template("../toy")

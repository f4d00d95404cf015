"""The draft of a job: paths, YAML, differences, and text that must not reach a shell."""

import subprocess
from typing import Any

import pytest

from dashboards import draft

JOB: dict[str, Any] = {
    "apiVersion": "trimtab/v1",
    "kind": "Job",
    "metadata": {"name": "zaya-toy"},
    "spec": {"stage": "pretrain", "resources": {"nodes": 2}, "train": {"steps": 160}},
}


def test_paths_are_the_servers_paths() -> None:
    assert draft.get(JOB, "resources.nodes") == 2
    assert draft.get(JOB, "metadata.name") == "zaya-toy"
    assert draft.get(JOB, "router.experts", 16) == 16
    assert draft.get(JOB, "stage.deeper", "none") == "none"


def test_a_changed_value_leaves_the_original_alone() -> None:
    changed = draft.with_value(JOB, "resources.nodes", 4)
    assert draft.get(changed, "resources.nodes") == 4
    assert draft.get(JOB, "resources.nodes") == 2
    assert draft.get(draft.with_value(JOB, "faults.restarts", 3), "faults.restarts") == 3


def test_yaml_there_and_back_keeps_values_and_order() -> None:
    text = draft.to_yaml(JOB)
    assert draft.from_yaml(text) == JOB
    assert text.index("apiVersion") < text.index("metadata") < text.index("spec")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1,", "line 1"),
        ("just words", "this is str"),
        ("", "this is empty"),
        ("- a\n- b", "this is list"),
        ("spec: 3", "must be mappings"),
        ("a: !!python/object/apply:os.system ['true']", "line 1"),
    ],
)
def test_text_that_is_no_job_is_refused_with_its_place(text: str, part: str) -> None:
    with pytest.raises(draft.DraftError, match=part):
        draft.from_yaml(text)


def test_a_difference_keeps_the_whole_text_and_pairs_replaced_lines() -> None:
    new = draft.to_yaml(draft.with_value(draft.with_value(JOB, "resources.nodes", 4), "metadata.name", "other"))
    lines = draft.diff(draft.to_yaml(JOB), new)
    assert [line for line in lines if line[0] != " "] == [
        ("-", "  name: zaya-toy"),
        ("+", "  name: other"),
        ("-", "    nodes: 2"),
        ("+", "    nodes: 4"),
    ]
    assert "\n".join(text for sign, text in lines if sign != "-") == new.rstrip("\n")
    assert draft.changed_values(lines) == 2
    assert draft.changed_values(draft.diff(new, new)) == 0


def test_an_added_block_counts_its_lines() -> None:
    new = draft.to_yaml(draft.with_value(JOB, "faults.restarts", 3))
    lines = draft.diff(draft.to_yaml(JOB), new)
    assert [line for line in lines if line[0] != " "] == [("+", "  faults:"), ("+", "    restarts: 3")]


def test_problems_stand_at_their_field() -> None:
    problems = [
        {"path": "resources.nodes", "message": "must be ≥ 1"},
        {"path": "metadata.name", "message": "must be lower case"},
        {"path": "spec.train.steps", "message": "must be ≥ 1"},
    ]
    assert draft.problems_at(problems, "resources.nodes") == ["must be ≥ 1"]
    assert draft.problems_at(problems, "resources") == ["must be ≥ 1"]
    assert draft.problems_at(problems, "train.steps") == ["must be ≥ 1"]
    assert draft.problems_at(problems, "metadata", "train") == ["must be lower case", "must be ≥ 1"]
    assert draft.problems_at(problems, "faults") == []


@pytest.mark.parametrize(
    "name", ["zaya-toy", "x'; touch pwned #", "$(touch pwned)", "TRIMTAB", "a\nTRIMTAB\ntouch pwned"]
)
def test_the_command_hands_any_text_to_the_program_and_none_to_the_shell(name: str, tmp_path: Any) -> None:
    job = draft.with_value(JOB, "metadata.name", name)
    fake = tmp_path / "trimtab"
    fake.write_text('#!/bin/sh\n[ "$1 $2 $3" = "job submit -" ] && cat\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", draft.as_command(job)],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert draft.from_yaml(done.stdout) == job
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trimtab"]

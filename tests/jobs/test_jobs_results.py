"""A job's result: written whole, read with suspicion; a checkpoint's hash; a prompt's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import ContractError, Result, checkpoint_hash, read_result, write_result
from jobs.results import RESULT
from jobs.zaya import tokens
from tests.jobs.test_jobs_manifest import write_checkpoint

NUMBERS = st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), st.floats(-1e9, 1e9) | st.integers(0, 99))


@given(metrics=NUMBERS.map(lambda found: {name.replace("\0", "-"): value for name, value in found.items()}))
def test_a_result_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float]
) -> None:
    where = tmp_path_factory.mktemp("attempt")
    given_result = Result(metrics, "ab" * 32, {"problems": [1, 2]})
    write_result(where, given_result)
    assert read_result(where) == given_result


def test_no_result_is_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


@pytest.mark.parametrize(
    "found",
    ["[1]", "{", '{"metrics": {"loss": "low"}}', '{"metrics": {"loss": true}}', '{"metrics": []}', '{"more": 1}',
     '{"metrics": {}, "version": 2}', '{"metrics": {}, "checkpoint_hash": 3}', '{"metrics": {"loss": NaN}}'],
)  # fmt: skip
def test_a_result_that_cannot_be_trusted_is_refused(tmp_path: Path, found: str) -> None:
    (tmp_path / RESULT).write_text(found)
    with pytest.raises(ContractError, match="result in"):
        read_result(tmp_path)


def test_a_metric_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="not a finite number"):
        write_result(tmp_path, Result({"loss": float("nan")}))
    assert not (tmp_path / RESULT).exists()


def test_a_checkpoints_hash_changes_with_any_file(tmp_path: Path) -> None:
    one, other = (write_checkpoint(tmp_path / name, 3) for name in ("a", "b"))
    assert checkpoint_hash(one) == checkpoint_hash(one)
    manifest = json.loads((other / "MANIFEST.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (other / "MANIFEST.json").write_text(json.dumps(manifest))
    assert checkpoint_hash(one) != checkpoint_hash(other)
    with pytest.raises(ContractError, match="no manifest"):
        checkpoint_hash(tmp_path)


def test_a_prompt_ends_with_reply_and_no_text_can_end_it_early() -> None:
    found = tokens.prompt("sort \x06\x03 3 1", [tokens.encode("ab"), [tokens.END, 0x63]])
    assert found[0] == tokens.ASK and found[-1] == tokens.REPLY
    assert found.count(tokens.REPLY) == 1 and found.count(tokens.TAIL) == 2 and tokens.END not in found
    assert tokens.decode([0x61, tokens.PAD, 0x62, tokens.END, 0x63]) == "ab"
    assert tokens.decode(tokens.encode("größer")) == "größer"

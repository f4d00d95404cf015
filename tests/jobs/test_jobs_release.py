"""A release is loaded by transformers in a fresh process before it stands under its name, or there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.contract import ContractError, Environment, Exit, HeartbeatWriter
from jobs.zaya import release
from jobs.zaya.attempt import TooLateError
from jobs.zaya.checkpoints.state import model_of
from jobs.zaya.evaluation_config import ReleaseConfig, release_problems
from jobs.zaya.release import Release, attempt, compared, lineage, loaded
from jobs.zaya.releasing.files import byte_names, tokenizer_files
from tests.jobs.zaya_checkpoint import Attempts, Wishes, saved

STAGES = [
    {"stage": "pretrain", "step": 9, "checkpoint_hash": "ab" * 32, "parent_hash": "", "metrics": {"loss": 2.5}},
    {
        "stage": "sft",
        "tainted": True,
        "step": 2,
        "checkpoint_hash": "cd" * 32,
        "parent_hash": "ab" * 32,
        "metrics": {"pass@1": 0.5, "micro/sort/pass@1": 0.4},
    },
]


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


def test_transformers_loads_a_release_and_says_what_ours_says(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": STAGES}))
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "old").write_text("of an earlier attempt")
    one = Attempts(tmp_path, init, monkeypatch)
    heard: list[dict[str, Any]] = []

    def listening(directory: Path, asked: Mapping[str, Any], waiting: Callable[[], None]) -> dict[str, Any]:
        heard.append(loaded(directory, asked, waiting))
        return heard[-1]

    monkeypatch.setattr(release, "loaded", listening)
    monkeypatch.setattr(release, "_SLICE_S", 0.1)
    assert one.run(attempt, {"newTokens": 6}, TRIMTAB_LINEAGE_JSON=str(tmp_path / "lineage.json")) == Exit.DONE
    metrics = one.result().metrics
    assert metrics["loads"] == metrics["greedy_equal"] == metrics["tokens_equal"] == 1
    assert metrics["logit_difference"] <= 1e-5
    assert one.result().checkpoint_hash == one.hash
    assert one.beat().last_step == 1
    assert one.alive > 1, "while transformers loads"
    names = {path.name for path in (tmp_path / "release").iterdir()}
    assert (
        names
        == set(one.result().details["files"])
        == {
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
    )
    card = (tmp_path / "release" / "README.md").read_text()
    assert one.hash in card
    assert "| pretrain | 9 | `abababababab` |  | loss 2.5 |" in card
    assert "| sft (tainted) | 2 | `cdcdcdcdcdcd` | `abababababab` | pass@1 0.5 |" in card
    _another_model_is_refused(init, heard[0], monkeypatch)


def _another_model_is_refused(init: Path, heard: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of ours is moved: what transformers said a moment ago is then not this model's."""
    model = model_of(init)[1]
    with torch.no_grad():
        model.model.norm.weight += 0.01
    monkeypatch.setattr(release, "loaded", lambda *_: heard)
    metrics = compared(model, init, ReleaseConfig(new_tokens=6))
    assert metrics["logit_difference"] > 1e-5
    with pytest.raises(ContractError, match="logits differ from ours by"):
        release._refuse(metrics, 1e-5)
    with pytest.raises(ContractError, match="another text"):
        release._refuse(metrics | {"logit_difference": 0.0, "greedy_equal": 0.5}, 1e-5)
    with pytest.raises(ContractError, match="logits differ"):
        release._refuse(metrics | {"logit_difference": float("nan")}, 1e-5)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise OSError('no config.json')", "cannot load the release: .*no config.json"),
        ("while True: pass", "within 0 s"),
    ],
)
def test_what_the_fresh_process_cannot_load_is_no_release(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loading.py").write_text(script)
    monkeypatch.setattr(release, "LOADING", tmp_path / "loading.py")
    monkeypatch.setattr(release, "SECONDS", 20.0 if "raise" in script else 0.05)
    with pytest.raises(ContractError, match=f"(?s){words}"):
        loaded(tmp_path, {"prompts": [], "texts": [], "new_tokens": 1})


def test_a_stop_is_seen_while_the_fresh_process_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loading.py").write_text("while True: pass")
    monkeypatch.setattr(release, "LOADING", tmp_path / "loading.py")
    monkeypatch.setattr(release, "_SLICE_S", 0.01)
    one = Release(Environment.read({}), HeartbeatWriter(Environment.read({}), 0, 1), Wishes(stop=True))
    with pytest.raises(TooLateError):
        loaded(tmp_path, {"prompts": ["x" * 1_000_000]}, one._look)


def test_a_release_that_was_stopped_or_is_of_another_checkpoint_leaves_nothing(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Attempts(tmp_path, init, monkeypatch)
    assert one.run(attempt, {}, TRIMTAB_INIT_HASH="00" * 32) == Exit.CONFIG
    assert "not the one that was asked for" in one.record().error_message
    assert one.run(attempt, {}, TRIMTAB_INIT_FROM="") == Exit.CONFIG
    assert "nothing to release" in one.record().error_message
    monkeypatch.setattr(release, "compared", lambda *_: {"logit_difference": 0, "greedy_equal": 1, "tokens_equal": 1})
    assert one.run(attempt, {}, flag=Wishes(stop=True)) == Exit.UNSAVED
    assert not list(tmp_path.rglob("*release*"))


def test_a_late_attempt_does_not_take_its_successors_place(tmp_path: Path) -> None:
    def left(no: int, epoch: int) -> None:
        place = tmp_path / f"attempt-{no:04d}" / "release"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_text(f"{no}")
        told = {"TRIMTAB_RUN_DIR": str(tmp_path), "TRIMTAB_ATTEMPT": str(no), "TRIMTAB_EPOCH": str(epoch)}
        release.publish(place, Environment.read(told))

    weights = tmp_path / "release" / "model.safetensors"
    for no, epoch in ((1, 1), (3, 4)):
        left(no, epoch)
        assert weights.read_text() == f"{no}"
    with pytest.raises(TooLateError, match=r"of epoch 4: this attempt, of 2, was superseded"):
        left(2, 2)
    assert weights.read_text() == "3" and (tmp_path / "attempt-0001" / "release" / "model.safetensors").is_file()
    assert (tmp_path / "release").readlink() == Path("attempt-0003/release"), "the run's folder may be moved"


def test_every_byte_has_its_own_name_and_marks_are_special() -> None:
    names = byte_names()
    assert len(set(names)) == 256
    assert (names[0x41], names[0x20], names[3]) == ("A", "\u0120", "\x03")
    special = [one["id"] for one in tokenizer_files(64)["tokenizer.json"]["added_tokens"]]
    assert special == [0, 3, 5, 6, 29]


def test_a_lineage_that_is_none_is_refused(tmp_path: Path) -> None:
    assert lineage({}) == []
    path = tmp_path / "lineage.json"
    for text in ("no", '{"stages": 3}', '{"stages": [3]}', "{}"):
        path.write_text(text)
        with pytest.raises(ContractError, match="lineage"):
            lineage({"TRIMTAB_LINEAGE_JSON": str(path)})
    with pytest.raises(ContractError, match="cannot be read"):
        lineage({"TRIMTAB_LINEAGE_JSON": str(tmp_path / "none")})


def test_the_words_of_a_release() -> None:
    assert release_problems({"train": {"steps": 1}, "data": {"newTokens": 3}, "router": {"experts": 4}}) == []
    assert release_problems({"train": {"steps": 2}}) == [("train.steps", "a release is one step")]
    assert [path for path, _ in release_problems({"data": {"tolerance": 0, "new_tokens": 1}})] == [
        "data.tolerance",
        "data.new_tokens",
    ]


def test_prompts_are_questions_and_then_any_bytes() -> None:
    asked = release.prompts(6)
    assert len(asked) == 6 and all(0 <= token < 256 for one in asked for token in one)
    assert torch.tensor(asked[5]).unique().numel() > 30
    usual = release.prompts(ReleaseConfig().prompts)
    assert sum(max(one) > 0x7F for one in usual) == 4, "a text alone would ask for bytes of ASCII only"

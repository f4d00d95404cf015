"""Checkpoints: complete ones verify, and every way of being incomplete, damaged or poisoned is seen for what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import contract
from jobs.contract import ContractError, Manifest, ManifestFile

CONTENT = b"weights and moments"
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def write_checkpoint(directory: Path, step: int, content: bytes = CONTENT) -> Path:
    """A small, complete checkpoint."""
    target = contract.step_directory(directory, step)
    target.mkdir(parents=True)
    (target / "state.pt").write_bytes(content)
    contract.write_manifest(target, manifest_of(target, step))
    return target


def manifest_of(target: Path, step: int) -> Manifest:
    path = target / "state.pt"
    files = (ManifestFile("state.pt", path.stat().st_size, contract.sha256_of(path)),)
    return Manifest(
        run_id="run-1",
        attempt_no=2,
        epoch=3,
        stage="pretrain",
        step=step,
        world_size=2,
        files=files,
        data_position=step + 1,
        bias_checksum="ab",
        state_at_s=10.0,
        written_at_s=11.0,
    )


def edit(target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = target / "MANIFEST.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_complete_checkpoint_verifies_and_reads_back(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path, 120)
    assert target.name == "step-00000120"
    assert contract.verify(target).ok
    assert contract.read_manifest(target) == manifest_of(target, 120)


@given(
    st.builds(
        Manifest,
        run_id=TEXT,
        attempt_no=st.integers(0, 10**6),
        epoch=st.integers(0, 10**6),
        stage=TEXT,
        step=st.integers(0, 10**9),
        world_size=st.integers(0, 4096),
        files=st.just(()),
        data_position=st.integers(0, 10**9),
        bias_checksum=TEXT,
        state_at_s=st.floats(0, 1e11),
        written_at_s=st.floats(0, 1e11),
        parent=st.none() | TEXT,
        parallel=st.dictionaries(st.text(), st.integers()),
        extra=st.dictionaries(st.text(), st.integers() | st.text()),
    )
)
def test_a_manifest_survives_the_file(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
    directory = tmp_path_factory.mktemp("m")
    contract.write_manifest(directory, manifest)
    assert contract.read_manifest(directory) == manifest


def _no_manifest(target: Path) -> None:
    (target / "MANIFEST.json").unlink()


def _half_a_manifest(target: Path) -> None:
    path = target / "MANIFEST.json"
    path.write_bytes(path.read_bytes()[:60])


def _deep_manifest(target: Path) -> None:
    (target / "MANIFEST.json").write_text("[" * 100_000)


def _truncated_file(target: Path) -> None:
    os.truncate(target / "state.pt", 5)


def _flipped_bit(target: Path) -> None:
    content = bytearray(CONTENT)
    content[3] ^= 1
    (target / "state.pt").write_bytes(content)


def _missing_file(target: Path) -> None:
    (target / "state.pt").unlink()


def _directory_for_a_file(target: Path) -> None:
    (target / "state.pt").unlink()
    (target / "state.pt").mkdir()


def _lists_nothing(target: Path) -> None:
    edit(target, lambda found: found.update(files=[]))


def _leaves_the_directory(target: Path) -> None:
    (target.parent / "outside").write_bytes(CONTENT)
    edit(target, lambda found: found["files"][0].update(name="../outside"))


def _endless_name(target: Path) -> None:
    edit(target, lambda found: found["files"][0].update(name="x" * 5000))


def _twice_the_same(target: Path) -> None:
    edit(target, lambda found: found.update(files=found["files"] * 2))


def _other_version(target: Path) -> None:
    edit(target, lambda found: found.update(version=99))


def _unknown_key(target: Path) -> None:
    edit(target, lambda found: found.update(surprise=1))


def _step_as_text(target: Path) -> None:
    edit(target, lambda found: found.update(step="120"))


def _negative_step(target: Path) -> None:
    edit(target, lambda found: found.update(step=-1))


def _another_steps_manifest(target: Path) -> None:
    edit(target, lambda found: found.update(step=480))


def _holds(**values: Any) -> Callable[[Path], None]:
    """A manifest with these values in place of its own."""
    return lambda target: edit(target, lambda found: found.update(values))


def _file_holds(**values: Any) -> Callable[[Path], None]:
    return lambda target: edit(target, lambda found: found["files"][0].update(values))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_manifest, "never completed"),
        (_half_a_manifest, "cannot be read"),
        (_deep_manifest, "cannot be read"),
        (_truncated_file, "has 5 bytes"),
        (_flipped_bit, "hash"),
        (_missing_file, "missing"),
        (_directory_for_a_file, "missing"),
        (_lists_nothing, "lists no file"),
        (_leaves_the_directory, "outside its directory"),
        (_endless_name, "cannot be read"),
        (_twice_the_same, "twice"),
        (_other_version, "version 99"),
        (_unknown_key, "cannot be read"),
        (_step_as_text, "lacks its step"),
        (_negative_step, "lacks its step"),
        (_another_steps_manifest, "that of step 480"),
        (_holds(state_at_s=None), "lacks its times"),
        (_holds(state_at_s=float("nan")), "lacks its times"),
        (_holds(written_at_s=float("inf")), "lacks its times"),
        (_holds(written_at_s=10**400), "lacks its times"),
        (_holds(state_at_s="1"), "lacks its times"),
        (_holds(run_id=7), "as text"),
        (_holds(stage=None), "as text"),
        (_holds(bias_checksum=["ab"]), "as text"),
        (_holds(bias_checksum="\0"), "as text"),
        (_holds(run_id="\ud800"), "as text"),
        (_holds(parent=[]), "as text"),
        (_holds(epoch=2**31), "epoch"),
        (_holds(data_position=None), "data position"),
        (_holds(extra=[]), "extras"),
        (_file_holds(bytes=1e400), "size or hash"),
        (_file_holds(bytes=-1), "size or hash"),
        (_file_holds(name=["state.pt"]), "size or hash"),
        (_file_holds(sha256=None), "size or hash"),
        (lambda target: edit(target, lambda found: found.update(files=["state.pt"])), "cannot be read"),
        (lambda target: (target / "MANIFEST.json").write_text("[1]"), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_beside_a_good_one(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    good, bad = write_checkpoint(tmp_path, 110), write_checkpoint(tmp_path, 120)
    damage(bad)
    found = contract.verify(bad)
    assert not found.ok
    assert words in found.reason
    assert contract.verify(good).ok


def test_every_step_directory_is_listed_whatever_it_holds(tmp_path: Path) -> None:
    second = write_checkpoint(tmp_path / "attempt-0002", 120)
    first = write_checkpoint(tmp_path / "attempt-0001", 130)
    half = tmp_path / "attempt-0002" / "step-00000130"
    half.mkdir()
    (tmp_path / "attempt-0002" / "notes.txt").write_text("not a checkpoint")
    for other in ("step-00000140.tmp", "step-", "step-\udcff"):
        (tmp_path / "attempt-0002" / other).mkdir()
    assert contract.list_checkpoints(tmp_path) == [first, second, half]
    assert contract.list_checkpoints(tmp_path / "nowhere") == []


def test_a_file_named_by_the_manifest_must_exist_before_the_manifest_does(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path, 120)
    manifest = manifest_of(target, 120)
    _missing_file(target)
    _no_manifest(target)
    with pytest.raises(FileNotFoundError):
        contract.write_manifest(target, manifest)
    assert list(target.iterdir()) == []


def test_a_value_that_is_no_json_leaves_neither_file_nor_remains(tmp_path: Path) -> None:
    contract.write_json(tmp_path / "a.json", {"kept": 1}, durable=False)
    with pytest.raises(TypeError):
        contract.write_json(tmp_path / "a.json", {"lost": object()}, durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"kept": 1}


def test_a_manifest_that_cannot_be_read_is_a_contract_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="never completed"):
        contract.read_manifest(tmp_path)

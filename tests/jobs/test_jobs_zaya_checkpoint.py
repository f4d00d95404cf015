"""Checkpoints of the reference trainer: a model comes back from one alone, and only from the one that was named."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import contract
from jobs.contract import ContractError, Environment
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.checkpoints.saving import Saver
from jobs.zaya.training.learner import Learner
from tests.jobs.zaya_small import MODEL, learner, train

TOKENS = torch.arange(64).view(2, 32)


def saved(directory: Path, one: Learner, step: int) -> Path:
    """Where the checkpoint of a learner lies, as an attempt would have left it."""
    environment = Environment.read({"TRIMTAB_RUN_DIR": str(directory)})
    where, _ = checkpoint.save(
        environment,
        one.state(),
        step=step,
        world=1,
        data_position=step + 1,
        biases=one.balancer.biases,
        state_at_s=time.time(),
        extra={"model": asdict(MODEL), "curriculum": {"bound": 3}},
    )
    return where


def test_a_model_comes_back_from_its_checkpoint_alone(tmp_path: Path) -> None:
    one = learner()
    train(one, 1, 3)
    where = saved(tmp_path, one, 3)
    manifest, model = checkpoint.model_of(where, contract.checkpoint_hash(where))
    assert (manifest.step, manifest.extra["curriculum"]) == (3, {"bound": 3})
    assert not model.training
    assert torch.equal(model(TOKENS), one.model.eval()(TOKENS))
    biases = torch.stack([router.balancing_biases for router in model.routers()])
    assert torch.equal(biases, one.balancer.biases)


def test_another_checkpoint_than_the_one_named_is_refused(tmp_path: Path) -> None:
    where = saved(tmp_path, learner(), 1)
    with pytest.raises(ContractError, match="not the one that was asked for"):
        checkpoint.model_of(where, "00" * 32)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "does not say what model"),
        ({"hidden": 3}, "another kind of model"),
        (asdict(replace(MODEL, num_hidden_layers=2)), "do not fit the model"),
    ],
)
def test_a_manifest_whose_model_means_nothing_is_refused(tmp_path: Path, model: object, said: str) -> None:
    where = saved(tmp_path, learner(), 1)
    manifest = contract.read_manifest(where)
    contract.write_manifest(where, replace(manifest, extra={"model": model}))
    with pytest.raises(ContractError, match=said):
        checkpoint.model_of(where)


class Gate:
    """Holds the writing of files until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.real = checkpoint.write_whole
        monkeypatch.setattr(checkpoint, "write_whole", self.write)

    def write(self, state: dict[str, Any], directory: Path) -> list[str]:
        assert self.opened.wait(60)
        return self.real(state, directory)


def facts(one: Learner, step: int) -> checkpoint.Facts:
    checksum = checkpoint.bias_checksum(one.balancer.biases)
    return checkpoint.Facts(step, 1, step + 1, checksum, 0.0, {"data": 1}, {"model": asdict(MODEL)})


def test_training_goes_on_while_a_checkpoint_is_written_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    saver = Saver(Environment.read({"TRIMTAB_RUN_DIR": str(tmp_path)}), 0, 1)
    one, other = learner(), learner()
    train(one, 1, 2)
    train(other, 1, 2)
    saver.begin(one.state(), facts(one, 2))
    train(one, 3, 4)
    where = contract.step_directory(tmp_path / "attempt-0001", 2)
    assert not contract.verify(where).ok
    gate.opened.set()
    saver.finish()
    assert contract.verify(where).ok
    _, state = checkpoint.load(where)
    kept, now = (one_state["model"]["lm_head.weight"] for one_state in (state, one.state()))
    assert torch.equal(kept, other.model.lm_head.weight)
    assert not torch.equal(kept, now)
    assert saver.seconds > 0
    saver.close()


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> list[str]:
        raise OSError("no space left on the device")

    monkeypatch.setattr(checkpoint, "write_whole", full)
    saver = Saver(Environment.read({"TRIMTAB_RUN_DIR": str(tmp_path)}), 0, 1)
    one = learner()
    saver.begin(one.state(), facts(one, 1))
    with pytest.raises(OSError, match="no space left"):
        saver.begin(one.state(), facts(one, 2))
    saver.begin(one.state(), facts(one, 3))
    saver.close()
    assert "a checkpoint was not completed: no space left" in capsys.readouterr().err
    assert [contract.verify(path).ok for path in contract.list_checkpoints(tmp_path)] == [False, False]

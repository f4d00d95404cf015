"""Checkpoints of the reference trainer: a model comes back from one alone, and only from the one that was named."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from jobs import contract
from jobs.contract import ContractError, Environment
from jobs.zaya import checkpoint
from jobs.zaya.learner import Learner
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

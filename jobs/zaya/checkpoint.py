"""Saves and loads the whole training state with a manifest, as the contract's level 2 asks.

The state is replicated over ranks, so rank 0 alone writes it.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from jobs.contract import (
    ContractError,
    Environment,
    Manifest,
    ManifestFile,
    checkpoint_hash,
    read_manifest,
    sha256_of,
    step_directory,
    verify,
    write_manifest,
)
from jobs.manifest import MANIFEST
from jobs.zaya.config import ModelConfig
from jobs.zaya.model import ZayaForCausalLM

STATE = "state.pt"


def bias_checksum(biases: torch.Tensor) -> str:
    """SHA-256 of the balancing biases as float32 bytes: a resume that lost them is seen by its checksum."""
    return hashlib.sha256(biases.detach().float().contiguous().numpy().tobytes()).hexdigest()


def save(
    environment: Environment,
    state: dict[str, Any],
    *,
    step: int,
    world: int,
    data_position: int,
    biases: torch.Tensor,
    state_at_s: float,
    extra: dict[str, Any],
) -> tuple[Path, Manifest]:
    """Writes a step's checkpoint, files first and manifest last; returns where it lies and what it says.

    `data_position` is the data index that the next step reads; `state_at_s` is when step `step` ended.
    """
    directory = step_directory(environment.checkpoint_dir, step)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    path = directory / STATE
    torch.save(state, path)
    manifest = Manifest(
        run_id=environment.run_id,
        attempt_no=environment.attempt_no,
        epoch=environment.epoch,
        stage=environment.stage,
        step=step,
        world_size=world,
        files=(ManifestFile(STATE, path.stat().st_size, sha256_of(path)),),
        data_position=data_position,
        bias_checksum=bias_checksum(biases),
        state_at_s=state_at_s,
        written_at_s=time.time(),
        parent=str(environment.resume_from) if environment.resume_from else None,
        parallel={"data": world},
        extra=extra,
    )
    write_manifest(directory, manifest)
    return directory, manifest


def load(directory: Path, expected_hash: str = "") -> tuple[Manifest, dict[str, Any]]:
    """The state of a verified checkpoint; raises ContractError (the job then exits 78, it never starts afresh).

    `expected_hash`: its `checkpoint_hash`; a checkpoint that has another is refused. "" expects none.
    """
    found = verify(directory)
    if not found.ok:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {found.reason}")
    if expected_hash and checkpoint_hash(directory) != expected_hash:
        raise ContractError(
            f"the checkpoint {directory} has the hash {checkpoint_hash(directory)}, not {expected_hash}: "
            "it is not the one that was asked for"
        )
    try:
        state = torch.load(directory / STATE, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {error}") from error
    if not isinstance(state, dict):
        raise ContractError(f"the checkpoint {directory} does not hold a training state")
    return read_manifest(directory), state


def config_of(manifest: Manifest) -> ModelConfig:
    """The shapes of the model that a checkpoint holds, from its manifest's extras; raises ContractError without."""
    found = manifest.extra.get("model")
    if not isinstance(found, dict):
        raise ContractError(f"the manifest of step {manifest.step} does not say what model its weights are of")
    try:
        return ModelConfig(**found)
    except TypeError as error:
        raise ContractError(f"the manifest of step {manifest.step} describes another kind of model: {error}") from error


def model_of(directory: Path, expected_hash: str = "") -> tuple[Manifest, ZayaForCausalLM]:
    """A verified checkpoint's model with its weights and balancing biases, in eval mode, from the checkpoint alone.

    Raises ContractError for a checkpoint that cannot be loaded, or that has another hash than the expected one.
    """
    manifest, state = load(directory, expected_hash)
    model = ZayaForCausalLM(config_of(manifest))
    try:
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ContractError(f"the weights of {directory} do not fit the model that it names: {error}") from error
    return manifest, model.eval()

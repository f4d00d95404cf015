"""Saves and loads the whole training state with a manifest, as the contract's level 2 asks.

Two kinds of files: `whole`, one file that rank 0 writes of a state that all ranks hold alike, and `dcp`, where each
rank writes its part (shards.py). Either is read on any number of ranks. Writing while training goes on is saving.py's.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from jobs.zaya.model.network import ZayaForCausalLM

STATE = "state.pt"


def bias_checksum(biases: torch.Tensor) -> str:
    """SHA-256 of the balancing biases as float32 bytes: a resume that lost them is seen by its checksum."""
    return hashlib.sha256(biases.detach().float().contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Facts:
    """What a manifest says of the state beside its files.

    `data_position` is the data index that the next step reads; `state_at_s` is when step `step` ended.
    """

    step: int
    world: int
    data_position: int
    bias_checksum: str
    state_at_s: float
    parallel: dict[str, int]
    extra: dict[str, Any]


def begun(environment: Environment, step: int) -> Path:
    """The directory of a step's checkpoint, which counts for nothing until it is completed."""
    directory = step_directory(environment.checkpoint_dir, step)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    return directory


def completed(environment: Environment, directory: Path, names: Sequence[str], facts: Facts) -> Manifest:
    """Writes the manifest over files that are all written."""
    paths = [directory / name for name in names]
    manifest = Manifest(
        run_id=environment.run_id,
        attempt_no=environment.attempt_no,
        epoch=environment.epoch,
        stage=environment.stage,
        step=facts.step,
        world_size=facts.world,
        files=tuple(ManifestFile(path.name, path.stat().st_size, sha256_of(path)) for path in paths),
        data_position=facts.data_position,
        bias_checksum=facts.bias_checksum,
        state_at_s=facts.state_at_s,
        written_at_s=time.time(),
        parent=str(environment.resume_from) if environment.resume_from else None,
        parallel=facts.parallel,
        extra=facts.extra,
    )
    write_manifest(directory, manifest)
    return manifest


def write_whole(state: dict[str, Any], directory: Path) -> list[str]:
    """Writes a state as one file; returns its name."""
    torch.save(state, directory / STATE)
    return [STATE]


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
    """Writes a step's checkpoint in one file and waits for it; returns where it lies and what it says.

    For a state that one process holds whole; the arguments are those of Facts.
    """
    facts = Facts(step, world, data_position, bias_checksum(biases), state_at_s, {"data": world}, extra)
    directory = begun(environment, step)
    return directory, completed(environment, directory, write_whole(state, directory), facts)


def load(
    directory: Path, expected_hash: str = "", like: dict[str, Any] | None = None
) -> tuple[Manifest, dict[str, Any]]:
    """The state of a verified checkpoint; raises ContractError (the job then exits 78, it never starts afresh).

    `expected_hash`: its `checkpoint_hash`; a checkpoint that has another is refused. "" expects none.
    `like`: a state of one's own; what is sharded there is read as this rank's part alone, if the files are `dcp`.
    """
    found = verify(directory)
    if not found.ok:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {found.reason}")
    if expected_hash and checkpoint_hash(directory) != expected_hash:
        raise ContractError(
            f"the checkpoint {directory} has the hash {checkpoint_hash(directory)}, not {expected_hash}: "
            "it is not the one that was asked for"
        )
    manifest = read_manifest(directory)
    if STATE not in {file.name for file in manifest.files}:
        from jobs.zaya.checkpoints import shards  # late: what it imports takes two seconds of CPU time

        return manifest, shards.read(directory, like)
    try:
        state = torch.load(directory / STATE, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {error}") from error
    if not isinstance(state, dict):
        raise ContractError(f"the checkpoint {directory} does not hold a training state")
    return manifest, state


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

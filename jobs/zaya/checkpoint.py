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
    read_manifest,
    sha256_of,
    step_directory,
    verify,
    write_manifest,
)
from jobs.manifest import MANIFEST

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


def load(directory: Path) -> tuple[Manifest, dict[str, Any]]:
    """The state of a verified checkpoint; raises ContractError (the job then exits 78, it never starts afresh)."""
    found = verify(directory)
    if not found.ok:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {found.reason}")
    try:
        state = torch.load(directory / STATE, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {error}") from error
    if not isinstance(state, dict):
        raise ContractError(f"the checkpoint {directory} does not hold a training state")
    return read_manifest(directory), state

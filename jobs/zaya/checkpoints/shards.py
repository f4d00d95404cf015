"""A checkpoint's files as torch.distributed.checkpoint (DCP) writes them: each rank its part, read back on any number.

Every rank calls `write` with a process group of its own for the checkpoint: on the training's group the background
thread's messages and the training's would meet, and the process aborts. Importing this file costs more than two seconds
of CPU time, so it is imported where such a checkpoint is written or read and nowhere else. DCP keeps its table of
contents as a pickle: a checkpoint is trusted as the code of the job is.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from jobs.contract import ContractError

CONTENTS = ".metadata"


def group() -> dist.ProcessGroup:
    """A gloo process group of all ranks for checkpoints alone; every rank calls it once."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo"))


def flattened(state: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A state's leaves by their path, whole numbers as tensors."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found |= flattened(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def nested(leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The state that `flattened` made leaves of."""
    found: dict[str, Any] = {}
    for path, value in leaves.items():
        *parts, last = path.split("/")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def write(state: dict[str, Any], directory: Path, own: dist.ProcessGroup | None) -> Future[list[str]]:
    """Copies a state and writes it in the background; what comes is the names of all ranks' files.

    Every rank calls it; `own` is the group of `group()`, None for a lone process.
    """
    writer = FileSystemWriter(directory, single_file_per_rank=True, sync_files=True, thread_count=1)
    writing = cast("Future[Metadata]", async_save(flattened(state), storage_writer=writer, process_group=own))
    names: Future[list[str]] = Future()

    def named(done: Future[Metadata]) -> None:
        error = done.exception()
        if error is not None:
            names.set_exception(error)
        else:
            storage = done.result().storage_data
            names.set_result([CONTENTS, *sorted({info.relative_path for info in storage.values()})])

    writing.add_done_callback(named)
    return names


def read(directory: Path, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state of a checkpoint; leaves that are sharded in `like` come as this rank's parts, all others whole.

    No message is sent: each rank reads what it needs. Raises ContractError for files that hold no state.
    """
    reader = FileSystemReader(directory)
    own = flattened(like or {})
    try:
        contents = reader.read_metadata().state_dict_metadata
        leaves = {path: _empty(path, one, own.get(path)) for path, one in contents.items()}
        load(leaves, storage_reader=reader, no_dist=True)
    except ContractError:
        raise
    except Exception as error:
        # a pickle that is none can raise anything, and DCP wraps what its threads raise
        raise ContractError(f"the checkpoint {directory} cannot be loaded: {error}") from error
    return nested(leaves)


def _empty(path: str, stored: object, own: Tensor | None) -> Tensor:
    """Where a leaf is to be read to."""
    if not isinstance(stored, TensorStorageMetadata):
        raise ContractError(f"the checkpoint's {path} is no tensor")
    if isinstance(own, DTensor):
        if own.shape != stored.size:
            raise ContractError(f"the checkpoint's {path} has the shape {tuple(stored.size)}, not {tuple(own.shape)}")
        return torch.empty_like(own)
    return torch.empty(stored.size, dtype=stored.properties.dtype)

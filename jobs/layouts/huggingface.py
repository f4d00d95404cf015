"""transformers' Trainer: `checkpoint-100/` with `trainer_state.json`, which rank 0 writes last.

It comes after rank 0's weights, optimizer and random state. Other ranks write `rng_state_N.pth`, and with DeepSpeed or
FSDP their shards, in their own time, so those of every rank of the job must be there; a lone `rng_state.pth` is that of
a world of one. No file may be empty. A sentinel, `checkpoint-is-incomplete.txt`, stands while a save that SIGTERM asked
for goes on. With `save_only_model` there is nothing to resume from. A script resumes if it hands
`resume_from_checkpoint` to `Trainer.train`, as transformers' own examples do with the flag of that name; one that calls
`train()` bare cannot be made to. Source: transformers/trainer.py (_save_checkpoint) and trainer_jit_checkpoint.py of
5.24.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.layouts import distcp
from jobs.layouts.base import Layout, first, missing

_RANDOM = re.compile(r"rng_state(?:_(\d+))?\.pth", re.ASCII)
_ZERO = re.compile(r"(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt", re.ASCII)
_ZERO_FOLDER = re.compile(r"global_step\d+", re.ASCII)
_FSDP_FOLDER = re.compile(r"(?:pytorch_model_fsdp|optimizer)_\d+", re.ASCII)
_SENTINEL, _STATE = "checkpoint-is-incomplete.txt", "trainer_state.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_CONTENT = (".bin", ".distcp", ".json", ".pt", ".pth", ".safetensors")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class HuggingFace(Layout):
    """The Trainer's steps; the number is that of completed optimizer steps. `ranks`: of the job, 0 where not known."""

    name = "huggingface"
    pattern = re.compile(r"checkpoint-(\d+)", re.ASCII)

    def __init__(self, ranks: int = 0) -> None:
        self.ranks = ranks

    def of_world(self, ranks: int) -> HuggingFace:
        return HuggingFace(ranks)

    def unfinished(self, directory: Path, number: int) -> str:
        if (directory / _SENTINEL).exists():
            return f"{_SENTINEL} says that it is being written"
        state = _mapping(directory / _STATE)
        if state is None:
            return f"its {_STATE}, which is written last, is not there or not whole"
        if state.get("global_step") != number:
            return f"its {_STATE} is that of step {state.get('global_step')}"
        names = sorted(path.name for path in directory.iterdir())
        return (
            _weights(directory, names)
            or _states(names, self.ranks)
            or _shards(directory, names, self.ranks)
            or _empty(directory)
        )

    def resume(self, directory: Path) -> tuple[str, ...]:
        return "--resume_from_checkpoint", str(directory)


def _mapping(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _sharded(names: Sequence[str]) -> bool:
    """Whether DeepSpeed or FSDP wrote shards, whose ranks each write their own."""
    return any(re.fullmatch(r"global_step\d+|pytorch_model_fsdp_\d+|pytorch_model_fsdp\.bin", name) for name in names)


def _weights(directory: Path, names: Sequence[str]) -> str:
    for index in (name for name in _INDEXES if name in names):
        found = (_mapping(directory / index) or {}).get("weight_map")
        if not isinstance(found, dict):
            return f"its {index} cannot be read"
        lacking = missing(directory, sorted({str(name) for name in found.values()}))
        return f"its {index} names {first(lacking)}, which is not there" if lacking else ""
    if _sharded(names):
        return ""
    return "" if len(missing(directory, _WEIGHTS)) < len(_WEIGHTS) else "its weights are not there"


def _states(names: Sequence[str], world: int) -> str:
    """What it lacks of the rest that a resume needs."""
    if not _sharded(names) and not {"optimizer.pt", "optimizer.bin"} & set(names):
        return "it holds weights alone (save_only_model): there is no optimizer to go on with"
    ranks = {int(match[1]) for name in names if (match := _RANDOM.fullmatch(name)) and match[1] is not None}
    gaps = _gaps(ranks, world) if ranks else []
    if gaps:
        return f"rng_state_{gaps[0]}.pth is not there"
    return "" if ranks or "rng_state.pth" in names else "its random state is not there"


def _gaps(ranks: set[int], world: int) -> list[int]:
    """The ranks that are missing up to the last one seen, or up to the job's last where that is known."""
    return sorted(set(range(max(world, max(ranks) + 1))) - ranks)


def _shards(directory: Path, names: Sequence[str], world: int) -> str:
    """What it lacks of the ranks' own parts: DeepSpeed's `global_step10/`, FSDP's `…_0/`, a DCP each."""
    for name in names:
        if _FSDP_FOLDER.fullmatch(name) and (why := distcp.unfinished(directory / name)):
            return f"its {name} is not whole: {why}"
        if _ZERO_FOLDER.fullmatch(name) and (why := _zero(directory / name, world)):
            return f"its {name} is not whole: {why}"
    return ""


def _zero(directory: Path, world: int) -> str:
    """What DeepSpeed's ZeRO lacks: an optimizer file each rank, data-parallel × model-parallel ranks are the world."""
    names = [path.name for path in directory.iterdir()]
    found = {(int(match[1]), int(match[2])) for name in names if (match := _ZERO.fullmatch(name))}
    if not found:  # without ZeRO rank 0 writes all of it
        return "" if any(name.endswith("_states.pt") for name in names) else "it holds no states"
    models = {model for _, model in found}
    gaps = _gaps({data for data, _ in found}, world // len(models))
    if gaps:
        return f"the optimizer states of data-parallel rank {gaps[0]} are not there"
    return "" if len(found) == len({data for data, _ in found}) * len(models) else "a rank's states are not there"


def _empty(directory: Path) -> str:
    """A file without content is one that was opened and never written."""
    for path in sorted(directory.rglob("*")):
        if path.suffix in _CONTENT and path.is_file() and not path.stat().st_size:
            return f"its {path.relative_to(directory).as_posix()} is empty"
    return ""

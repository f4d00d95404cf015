"""Megatron-LM: `iter_0000100/` beside `latest_checkpointed_iteration.txt`; slime, whose actor is Megatron, beside it.

Formats: torch_dist (`metadata.json`, `common.pt`, `.metadata`, `__0_0.distcp`), torch_dcp and fsdp_dtensor (DCP alone),
torch (`mp_rank_00[_000[_000]]/model_optim_rng.pt`). The tracker is written after the barrier that follows the save (in
its finalizer when the save is asynchronous), so a directory beyond it is unfinished; one that it names may be gone,
because `--save-retain-interval` deletes. `--load DIR --ckpt-step N` loads that step and does not ask the tracker.
Without a checkpoint `--exit-on-missing-checkpoint` ends with code 0, so it is of no use here; a directory that is
missing is an error anyway. Source: megatron/training/checkpointing.py (save_checkpoint, _load_base_checkpoint).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from jobs.layouts import distcp
from jobs.layouts.base import Layout, first, missing, tracked

ITERATION = re.compile(r"iter_(\d{7,})", re.ASCII)
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?", re.ASCII)
_LEGACY = "model_optim_rng.pt"


class Megatron(Layout):
    """Megatron-LM's own checkpoints; the number of a directory is the number of completed iterations."""

    name = "megatron"
    pattern = ITERATION

    def unfinished(self, directory: Path, number: int) -> str:
        return behind(directory, number) or lacking(directory)

    def resume(self, directory: Path) -> tuple[str, ...]:
        return "--load", str(directory.parent), "--ckpt-step", str(int(directory.name.removeprefix("iter_")))


class Slime(Megatron):
    """slime: `iter_` numbers rollouts from 0, so `iter_0000009` holds ten of them; the data's position lies beside it.

    After the model slime writes `rollout/global_dataset_state_dict_N.pt`; without it the prompts would begin anew, in
    silence. A critic saves to `critic/` in the preset. It resumes with rollout N + 1.
    Source: slime/backends/megatron_utils/actor.py, slime/rollout/data_source.py, train.py.
    """

    name = "slime"
    counts_from = 0
    nested = False

    def unfinished(self, directory: Path, number: int) -> str:
        why = super().unfinished(directory, number) or self._critic(directory)
        data = self._data(directory, number)
        if not why and missing(data.parent, [data.name]):
            return f"the data's position, {data.parent.name}/{data.name}, is not there"
        return why

    def beside(self, directory: Path, number: int) -> Iterable[Path]:
        critic = directory.parent / "critic" / directory.name
        return [self._data(directory, number), *(path for path in critic.rglob("*") if path.is_file())]

    @staticmethod
    def _data(directory: Path, number: int) -> Path:
        return directory.parent / "rollout" / f"global_dataset_state_dict_{number}.pt"

    @staticmethod
    def _critic(directory: Path) -> str:
        home = directory.parent / "critic"
        if not home.is_dir():
            return ""
        why = lacking(home / directory.name) if (home / directory.name).is_dir() else "it is not there"
        return f"its critic is not finished: {why}" if why else ""

    def resume(self, directory: Path) -> tuple[str, ...]:
        critic = directory.parent / "critic"
        return (*super().resume(directory), *(("--critic-load", str(critic)) if critic.is_dir() else ()))


def behind(directory: Path, number: int) -> str:
    """Why the tracker beside a directory says that it is not finished; empty when it says that it is."""
    newest = tracked(directory.parent)
    if newest is None:
        return "no tracker file names it yet"
    return f"the tracker file names {newest}, which is before it" if newest < number else ""


def lacking(directory: Path) -> str:
    """What a directory lacks of its format, as a clause."""
    if (directory / "metadata.json").exists():
        return _torch_dist(directory)
    ranks = sorted(path.name for path in directory.iterdir() if _RANK.fullmatch(path.name))
    return _legacy(directory, ranks) if ranks else distcp.unfinished(directory)


def _torch_dist(directory: Path) -> str:
    try:
        backend = json.loads((directory / "metadata.json").read_bytes()).get("sharded_backend")
    except (OSError, ValueError, AttributeError, RecursionError):
        return "its metadata.json cannot be read"
    if missing(directory, ["common.pt"]):
        return "it has no common.pt"
    return distcp.unfinished(directory) if backend == "torch_dist" else f"its format {backend} is not known here"


def _legacy(directory: Path, ranks: Sequence[str]) -> str:
    """Every tensor rank times every pipeline rank must be there; of expert ranks at least one each."""
    absent = missing(directory, [f"{rank}/{_LEGACY}" for rank in ranks])
    if absent:
        return f"{first(absent)} is not there"
    parts = [match for rank in ranks if (match := _RANK.fullmatch(rank))]
    there = {(int(match[1]), int(match[2] or 0)) for match in parts}
    tensor, pipeline = (1 + max(one[axis] for one in there) for axis in (0, 1))
    gone = [one for one in product(range(tensor), range(pipeline)) if one not in there]
    return f"model-parallel rank {gone[0][0]}, {gone[0][1]} is not there" if gone else ""

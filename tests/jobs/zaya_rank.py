"""What runs in one rank of tests/jobs/zaya_ranks.py: an attempt, or a comparison of checkpoints. Not a test itself."""

from __future__ import annotations

import importlib
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from jobs.contract import StopFlag
from jobs.zaya.checkpoints import shards
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.train import attempt

for late in ("jobs.zaya.training.sharding", "torch._dynamo"):  # FSDP2 loads dynamo at its first step
    importlib.import_module(late)


def attempted(output: Path, values: dict[str, str]) -> None:
    """One rank's part of an attempt; ends the process with its exit code."""
    torch.set_num_threads(1)
    os.environ.update(values)
    rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
    with output.with_suffix(f".{rank}").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = attempt(StopFlag(), rank, world)
    raise SystemExit(code)


def compared(pairs: dict[str, tuple[Path, Path]], path: Path) -> None:
    """Writes the largest difference between the states of two checkpoints for each pair."""
    found = {name: _difference(*(checkpoint.load(one)[1] for one in pair)) for name, pair in pairs.items()}
    path.write_text(json.dumps(found))


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    leaves, others = shards.flattened(one), shards.flattened(other)
    assert leaves.keys() == others.keys(), leaves.keys() ^ others.keys()
    return max(float((leaf.double() - others[name].double()).nan_to_num().abs().max()) for name, leaf in leaves.items())

"""Two ranks under torchrun, in DistributedDataParallel: each reports its own tokens; together they are the batch's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.records import Records, attempt_folder

ROOT = Path(__file__).resolve().parents[2]

TRAINER = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from agents.probe.attach import attach


class TopKRouter(nn.Module):
    num_experts, top_k = 4, 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(16.0).reshape(4, 4).sin())
        self.register_buffer("expert_bias", torch.zeros(4))

    def forward(self, x):
        scores = (x @ self.weight.T).softmax(-1)
        chosen = (scores + self.expert_bias).topk(2).indices
        return scores.gather(-1, chosen), chosen


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"gate": TopKRouter(), "up": nn.Linear(4, 4)}) for _ in range(11))

    def forward(self, x):
        total = x.sum() * 0
        for layer in self.layers:
            total = total + (layer["up"](x) * layer["gate"](x)[0].sum(-1, keepdim=True)).sum()
        return total


dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))[rank * 5 : rank * 3 + 5]  # 5 tokens and 3
model = DistributedDataParallel(Model())
probe = attach(model)
model(x).backward()
probe.step(1)
probe.close()
dist.barrier()
os._exit(0)  # the record is written; gloo's threads may abort a process that takes itself down in order
"""


def test_the_counts_of_two_ranks_add_up_to_the_batch(tmp_path: Path) -> None:
    folder, script = attempt_folder(tmp_path), tmp_path / "trainer.py"
    script.write_text(TRAINER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(script)]
    environment = {**os.environ, "TRIMTAB_HEARTBEAT_DIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weight = torch.arange(16.0).reshape(4, 4).sin()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    whole = np.bincount((x @ weight.T).topk(2).indices.reshape(-1).numpy(), minlength=4)
    found = Records(folder)
    counts = [found.counts(found.last(rank), rank) for rank in (0, 1)]
    assert [int(one[0].sum()) for one in counts] == [10, 6]
    assert (counts[0] + counts[1]).tolist() == [whole.tolist()] * 11
    assert [found.reader(rank).meta.rank for rank in (0, 1)] == [0, 1]

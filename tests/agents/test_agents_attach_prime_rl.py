"""prime-rl, by a faithful double: its package installs on a GPU machine only, so its names stand here instead.

The double has the module path, the class, the buffers and the function of prime-rl's trainer, which calls
`get_load_balance_stats` after each micro batch; it shares no code with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from agents.probe.attach import AttachError, attach
from tests.records import Page, Records, records

__all__ = ["records"]


class Router(nn.Module):
    top_k = 2

    def forward(self, logits: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        chosen = (logits.sigmoid() + (0 if bias is None else bias)).topk(self.top_k).indices
        return chosen, torch.bincount(chosen.reshape(-1), minlength=4).float()


class MoE(nn.Module):
    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.router = Router()
        self.weight = nn.Parameter(torch.eye(4))
        self.register_buffer("expert_bias", torch.full((4,), 0.25) if biased else None)
        self.register_buffer("tokens_per_expert", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        _, counts = self.router((x @ self.weight).detach(), self.expert_bias)
        with torch.no_grad():
            self.tokens_per_expert.add_(counts)  # type: ignore[operator]  # a buffer
        return x @ self.weight


class Model(nn.Module):
    def __init__(self, biased: bool = True) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.ModuleDict({"mlp": MoE(biased)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.model.layers:  # type: ignore[union-attr]  # a ModuleList
            x = layer["mlp"](x)
        return x


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of prime-rl that hold the function: where it is defined, and the trainer that imported it."""

    def get_load_balance_stats(model: Any, reset_stats: bool = True) -> dict[str, float]:
        counts = [layer["mlp"].tokens_per_expert for layer in model.model.layers]
        worst = max(float(one.max()) for one in counts)
        for one in counts:
            one.zero_()
        return {"max_vio": worst}

    for cls in (Router, MoE):
        monkeypatch.setattr(cls, "__module__", "prime_rl.trainer.models.layers.moe.moe")
    names = ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.model", "prime_rl.trainer.rl.train")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("prime_rl.trainer.model", "prime_rl.trainer.rl.train"):
        modules[name].get_load_balance_stats = get_load_balance_stats  # type: ignore[attr-defined]  # a made-up module
    return modules["prime_rl.trainer.rl.train"]


def x(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def expected(*seeds: int) -> list[int]:
    chosen = torch.cat([x(seed).sigmoid().topk(2).indices for seed in seeds])
    return torch.bincount(chosen.reshape(-1), minlength=4).tolist()


@pytest.mark.parametrize("biased", [True, False])
def test_the_counts_of_every_micro_batch_are_taken_before_each_reset(
    trainer: Any, biased: bool, records: Records
) -> None:
    model, original = Model(biased), trainer.get_load_balance_stats
    page = Page("prime-rl", model=model)
    probe = page.attach()
    assert probe.framework == "prime_rl"
    for seed in (1, 2):
        model(x(seed))
        assert trainer.get_load_balance_stats(model)["max_vio"] > 0
    page.step(1)
    record = records.last()
    assert records.counts(record).tolist() == [expected(1, 2)] * 2
    assert records.bias(record).tolist() == [[0.25 if biased else 0.0] * 4] * 2
    assert record.routed == 12
    probe.close()
    assert trainer.get_load_balance_stats is original


def test_a_block_that_is_checkpointed_whole_is_halved(trainer: Any, records: Records) -> None:
    model = Model()
    layers: Any = model.model.layers
    for layer in layers:
        layer["mlp"] = checkpoint_wrapper(layer["mlp"])
    probe = attach(model)
    model(x(1)).sum().backward()
    held = [next(iter(layer["mlp"].children())) for layer in layers]
    assert held[0].tokens_per_expert.sum() == 24
    counts = [one.tokens_per_expert for one in held]
    probe._reader.moment()  # what the trainer's call does before it resets
    probe.step(1)
    assert counts[0].tolist() == [2 * count for count in expected(1)]
    assert records.counts(records.last()).tolist() == [expected(1)] * 2
    probe.close()


def test_a_version_without_the_function_is_named(trainer: Any, records: Records) -> None:
    del sys.modules["prime_rl.trainer.model"].get_load_balance_stats
    with pytest.raises(AttachError, match="get_load_balance_stats"):
        attach(Model())


def test_a_counter_that_is_gone_costs_the_step_and_not_the_frameworks_call(trainer: Any, records: Records) -> None:
    model = Model()
    probe = attach(model)
    mixture: Any = model.model.layers[0]["mlp"]
    mixture.tokens_per_expert = torch.zeros(3)
    assert trainer.get_load_balance_stats(model) == {"max_vio": 0.0}
    probe.step(1)
    assert (probe.dropped, records.rows()) == (1, [])
    mixture.tokens_per_expert = torch.zeros(4)
    model(x(1))
    trainer.get_load_balance_stats(model)
    probe.step(2)
    assert records.counts(records.last()).tolist() == [expected(1)] * 2
    probe.close()

"""NeMo Automodel's own gates, with `update_bias` at the end of a step and its own way of checkpointing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nemo_automodel.components.moe.config import MoEConfig
from nemo_automodel.components.moe.layers import Gate
from nemo_automodel.components.moe.parallelizer import _preserve_gate_load_during_recompute
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.probe.attach import attach
from tests.records import Page, Records


def gate(update: float) -> Any:
    config = MoEConfig(
        n_routed_experts=8,
        n_shared_experts=0,
        n_activated_experts=2,
        n_expert_groups=1,
        n_limited_groups=1,
        train_gate=True,
        gate_bias_update_factor=update,
        aux_loss_coeff=0.0,
        score_func="sigmoid",
        route_scale=1.0,
        dim=16,
        inter_dim=16,
        moe_inter_dim=16,
        norm_topk_prob=True,
        force_e_score_correction_bias=True,
        dtype=torch.float32,
    )
    made: Any = Gate(config)
    made.weight.data.normal_(0, 0.5)
    made.e_score_correction_bias.normal_(0, 0.1)
    return made


class Mixture(nn.Module):
    """A block's mixture with its gate, as Automodel's models hold it."""

    def __init__(self, update: float) -> None:
        super().__init__()
        self.gate = gate(update)


class Model(nn.Module):
    def __init__(self, update: float = 0.001) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({str(number): nn.ModuleDict({"mlp": Mixture(update)}) for number in (9, 10, 11)})
        self.expected = np.zeros((3, 8), np.int64)

    @property
    def gates(self) -> list[Any]:
        return [layer["mlp"].gate for layer in self.layers.values()]  # type: ignore[index]  # a ModuleDict

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        total = x.sum()
        for row, one in enumerate(self.gates):
            if self.training:
                self.expected[row] += choices(one, x, mask)
            total = total + one(x, mask, None)[0].sum()
        return total

    def update_bias(self) -> None:
        for one in self.gates:
            one.update_bias()


def choices(one: Any, x: Tensor, mask: Tensor) -> NDArray[np.int64]:
    """Recomputed from the gate's weights."""
    logits = torch.nn.functional.linear(x, one.weight.detach())
    chosen = (logits.sigmoid() + one.e_score_correction_bias).topk(2).indices[mask]
    counts: NDArray[np.int64] = torch.bincount(chosen.reshape(-1), minlength=8).numpy()
    return counts


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(12) < 10  # the last two tokens are padding


@pytest.mark.parametrize("update", [0.001, 0.0])
def test_counts_of_all_micro_batches_without_padding(update: float, records: Records) -> None:
    model = Model(update).train()
    page = Page("NeMo Automodel", model=model)
    probe = page.attach()
    assert probe.framework == "automodel"
    for step in (1, 2):
        model.expected[:] = 0
        for seed in (step, step + 10):
            model(*batch(seed)).backward()
        if update:
            model.update_bias()
        model.eval()
        model(*batch(99))
        model.train()
        page.step(step)
        record = records.last()
        assert records.counts(record).tolist() == model.expected.tolist()
        assert record.routed == 20
        assert records.bias(record) == pytest.approx(
            torch.stack([g.e_score_correction_bias for g in model.gates]).numpy()
        )
    probe.close()
    assert {type(one) for one in model.gates} == {Gate}


@pytest.mark.parametrize("update", [0.001, 0.0])
def test_recomputation_is_counted_once(update: float, records: Records) -> None:
    model = Model(update).train()
    probe = attach(model)
    x, mask = batch(1)
    expected = [choices(one, x, mask).tolist() for one in model.gates]
    for layer in model.layers.values():
        context: Any = _preserve_gate_load_during_recompute(layer)
        wanted = {"use_reentrant": False, **({"context_fn": context} if context else {})}
        mixture: Any = layer["mlp"]  # type: ignore[index]  # a ModuleDict
        checkpoint(lambda given, one=mixture.gate: one(given, mask, None)[0], x, **wanted).sum().backward()
    if update:
        model.update_bias()
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected
    probe.close()

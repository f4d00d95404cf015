"""DeepSpeed's own MoE layer, and a transformers model as AutoEP changes it, on DeepSpeed's CPU back end."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "cpu"

from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.probe.attach import attach
from tests.records import Page, Records


class Model(nn.Module):
    def __init__(self, top_k: int, drop: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            MoE(16, nn.Linear(16, 16), num_experts=4, k=top_k, drop_tokens=drop, min_capacity=0, capacity_factor=0.5)
            for _ in range(3)
        )
        for layer in self.layers:
            layer.deepspeed_moe.gate.top2_2nd_expert_sampling = False

    def forward(self, x: Tensor, used: Tensor | None = None) -> Tensor:
        return sum(layer(x, used)[0].sum() for layer in self.layers)  # type: ignore[return-value]  # three tensors


def expected(model: Any, x: Tensor, used: Tensor | None = None) -> list[list[int]]:
    """Choices recomputed from the gates' weights."""
    rows = []
    for layer in model.layers:
        logits = x.reshape(-1, 16) @ layer.deepspeed_moe.gate.wg.weight.detach().T
        chosen = logits.topk(layer.deepspeed_moe.gate.k).indices
        kept = chosen if used is None else chosen[used.reshape(-1).bool()]
        rows.append(torch.bincount(kept.reshape(-1), minlength=4).tolist())
    return rows


def x(seed: int) -> Tensor:
    return torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("drop", [True, False])
def test_each_forward_of_a_step_is_counted_before_capacity_drops(top_k: int, drop: bool, records: Records) -> None:
    model = Model(top_k, drop).train()
    page = Page("DeepSpeed", engine=model)
    probe = page.attach()
    assert probe.framework == "deepspeed"
    wanted = np.array(expected(model, x(1))) + np.array(expected(model, x(2)))
    model(x(1)).backward()
    model(x(2)).backward()
    model.eval()(x(3))
    page.step(1)
    record = records.last()
    assert records.counts(record).tolist() == wanted.tolist()
    assert record.routed == 24
    assert records.reader().meta.top_k == top_k
    probe.close()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_dropped_share_is_what_the_capacity_left_out(top_k: int, records: Records) -> None:
    """Against the gate's own map of dispatched tokens. The share is of all micro batches together."""
    model = Model(top_k, drop=True).train()
    batches = [x(1), x(2)[:1]]
    kept = np.zeros(3)
    for one in batches:
        for row, layer in enumerate(model.layers):
            kept[row] += float(layer.deepspeed_moe.gate(one.reshape(-1, 16))[2].sum())
    probe = attach(model, facts_every=1)
    for one in batches:
        model(one)
    probe.step(1)
    told = records.facts(records.last())
    np.testing.assert_allclose(told[2], 1 - kept / (18 * top_k), rtol=1e-6)
    assert told[2].max() > 0 and np.isnan(told[:2]).all()
    probe.close()


def test_unused_tokens_are_not_counted(records: Records) -> None:
    model = Model(1, drop=True).train()
    probe = attach(model)
    used = torch.ones(12)
    used[9:] = 0
    model(x(1), used)
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, x(1), used)
    probe.close()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_counted_once(reentrant: bool, records: Records) -> None:
    model = Model(2).train()
    probe = attach(model)
    checkpoint(model, x(1).requires_grad_(), use_reentrant=reentrant).backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, x(1))
    probe.close()


def test_autoep_is_read_at_its_routers_and_not_from_a_counter_that_never_resets(records: Records) -> None:
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_presets.base import AutoEPConfig
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model: Any = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_hidden_layers=2, num_local_experts=4, **small))
    autoep = AutoEP(model, AutoEPConfig(enabled=True, use_grouped_mm=False))
    # layer by layer: what follows there does not know how transformers 5.23 keeps its recorders
    for spec in autoep.ep_parser():
        autoep._replace_moe_layer_without_retarget(spec, ep_size=1, ep_rank=0)
    layers = [layer.mlp for layer in model.model.layers]
    logits: list[Tensor] = []
    for layer in layers:
        layer.router.gate.register_forward_hook(lambda _module, _inputs, output: logits.append(output.detach()))
    probe = attach(model.train())
    assert probe.framework == "deepspeed"
    ids = torch.randint(0, 64, (2, 8))
    for step in (1, 2):
        logits.clear()
        loss = model(ids, labels=ids, use_cache=False).loss
        chosen = [one.reshape(-1, 4).topk(2).indices.reshape(-1) for one in logits]
        loss.backward()
        model.eval()(ids)
        model.train()
        probe.step(step)
        record = records.last()
        assert records.counts(record).tolist() == [torch.bincount(one, minlength=4).tolist() for one in chosen]
        assert record.routed == 16
    assert layers[0].tokens_per_expert.sum() == 4 * 32  # evaluation and both steps together
    probe.close()

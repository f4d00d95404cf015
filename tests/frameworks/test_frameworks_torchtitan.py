"""torchtitan's own mixtures, optimizers, checkpoint wrapper and balancing hook, at tiny size."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchtitan.components.optimizer import OptimizersContainer, register_moe_load_balancing_hook
from torchtitan.components.optimizer.optimizer import ParamGroupConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.config_utils import make_moe_config, make_routed_experts_config, make_router_config

from agents.probe.attach import attach
from tests.records import Page, Records

pytestmark = pytest.mark.usefixtures("group_of_one")


def moe(balanced: bool) -> Any:
    init = {"weight": nn.init.normal_}
    experts = {name: partial(nn.init.normal_, std=0.1) for name in ("w1_EFD", "w2_EDF", "w3_EFD")}
    config: Any = make_moe_config(
        num_experts=8,
        router=make_router_config(dim=32, num_experts=8, gate_param_init=init, top_k=3, score_func="softmax"),
        routed_experts=make_routed_experts_config(
            dim=32, hidden_dim=16, num_experts=8, top_k=3, param_init=experts, comm_backend="standard"
        ),
        load_balance_coeff=1e-3 if balanced else None,
    )
    return config.build()


class Block(nn.Module):
    """A block as the balancing hook knows it; without attention, which torchtitan has for accelerators only."""

    def __init__(self, sparse: bool, balanced: bool) -> None:
        super().__init__()
        self.moe_enabled = sparse
        self.moe = moe(balanced) if sparse else None
        self.dense = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) if self.moe is None else x + self.moe(x)


class Model(nn.Module):
    def __init__(self, balanced: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): Block(number > 0, balanced) for number in range(4)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers.values():
            x = block(x)
        return x


def small_model(balanced: bool = True) -> Any:
    torch.manual_seed(0)
    model = Model(balanced)
    for block in model.layers.values():
        if block.moe is not None:
            block.moe.init_states()
    return model.train()


def optimizers(model: Any) -> Any:
    """torchtitan's container with its balancing hook, as its trainer builds them."""
    groups = [ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 1e-3})]
    made = OptimizersContainer.Config(param_groups=groups, implementation="for-loop").build(model_parts=[model])
    dims = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, world_size=1)
    register_moe_load_balancing_hook(made, [model], dims)
    return made


class Choices:
    """Independent of the counters: the chosen experts recomputed from the gate's logits by a hook on its linear."""

    def __init__(self, model: Any) -> None:
        self.counts: dict[str, Tensor] = {}
        self.blocks = {name: block for name, block in model.layers.items() if block.moe is not None}
        for name, block in self.blocks.items():
            self.counts[name] = torch.zeros(8, dtype=torch.int64)
            block.moe.router.gate.register_forward_hook(self._hook(name, block.moe))

    def _hook(self, name: str, moe: Any) -> Any:
        def hook(_module: Any, _inputs: Any, logits: Tensor) -> None:
            if torch._C._current_graph_task_id() == -1:
                bias = 0 if moe.expert_bias_E is None else moe.expert_bias_E
                chosen = (logits.detach().float().softmax(-1) + bias).topk(3).indices
                self.counts[name] += torch.bincount(chosen.reshape(-1), minlength=8)

        return hook

    def take(self) -> NDArray[np.int64]:
        taken = np.stack([counts.numpy().copy() for counts in self.counts.values()])
        for counts in self.counts.values():
            counts.zero_()
        return taken


def train(model: Any, optimizer: Any, micro_batches: int = 2) -> None:
    for seed in range(micro_batches):
        x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(seed))
        model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("attached_first", [True, False])
def test_counts_of_all_micro_batches_are_taken_before_they_are_reset(attached_first: bool, records: Records) -> None:
    model = small_model()
    page = Page("torchtitan", model_parts=[model])
    probe = page.attach() if attached_first else None
    optimizer = optimizers(model)
    probe = probe or page.attach()
    assert probe.framework == "torchtitan"
    choices = Choices(model)
    for step in (1, 2):
        train(model, optimizer)
        page.step(step)
        expected, record = choices.take(), records.last()
        assert records.counts(record).tolist() == expected.tolist()
        assert record.routed == 64
        now = torch.stack([block.moe.expert_bias_E for block in choices.blocks.values()])
        assert records.bias(record) == pytest.approx(now.numpy())
        assert now.abs().max() > 0
    probe.close()


def test_recomputation_is_counted_once(records: Records) -> None:
    model = small_model()
    for name, block in list(model.layers.items()):
        model.layers.register_module(name, checkpoint_wrapper(block, preserve_rng_state=False))
    optimizer, probe, choices = optimizers(model), attach(model), Choices(model)
    train(model, optimizer)
    probe.step(1)
    assert records.counts(records.last()).tolist() == choices.take().tolist()
    probe.close()


def test_without_balancing_the_counters_are_reset_once_they_are_taken(records: Records) -> None:
    """torchtitan resets them with balancing only; at 2^24 tokens a float32 counter would stand still."""
    model = small_model(balanced=False)
    for block in list(model.layers.values())[1:]:
        block.moe.tokens_per_expert_E += 2.0**24
    optimizer, probe, choices = optimizers(model), attach(model), Choices(model)
    for step in (1, 2):
        train(model, optimizer)
        assert not any(block.moe.tokens_per_expert_E.any() for block in choices.blocks.values())
        probe.step(step)
        record = records.last()
        assert records.counts(record).tolist() == choices.take().tolist()
        assert not records.bias(record).any()
    probe.close()


def test_a_pipeline_stage_fills_the_rows_of_its_layers(records: Records) -> None:
    model = small_model()
    for name in ("0", "1"):
        del model.layers[name]
    probe = attach(model, layers=[1, 2, 3], pipeline_parallel=2)
    optimizer = optimizers(model)
    for block in model.layers.values():
        block.moe.tokens_per_expert_E += 5
        block.moe.expert_bias_E += 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    probe.step(1)
    record = records.last()
    assert records.counts(record).sum(1).tolist() == [0, 40, 40]
    assert np.isnan(records.bias(record)[0]).all()
    assert not np.isnan(records.bias(record)[1:]).any()
    assert record.routed == 13
    probe.close()

"""megatron-core's own routers and its update of expert biases, in a process group of one.

Two shims: where Megatron asks for the current CUDA device it is told the CPU, and Transformer Engine's kernel is said
to be absent, which it is. Megatron's fused functions run uncompiled: compiling them is not what is tested.
"""
# ruff: noqa: E402  # the shim and the switch come before what reads them

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]  # the shim

import megatron.core.distributed  # noqa: F401  # as a trainer does; it brings finalize_model_grads
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.probe.attach import AttachError, attach
from agents.probe.frameworks.megatron import group_sizes, outermost
from controlplane.rules.expert_ranks import home
from tests.records import Page, Records

moe_utils.te_general_gemm = None
FINALIZE: Any = sys.modules["megatron.core.distributed.finalize_model_grads"]  # the package has a function of this name


@pytest.fixture(autouse=True)
def parallel(group_of_one: None) -> Iterator[None]:
    parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()


def config(**more: Any) -> Any:
    wanted: dict[str, Any] = {
        "num_layers": 6,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_moe_experts": 8,
        "moe_router_topk": 2,
        "moe_layer_freq": [0, 1, 0, 1, 1, 1],
        "moe_router_load_balancing_type": "none",
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 0.01,
        "use_cpu_initialization": True,
    }
    return TransformerConfig(**{**wanted, **more})


class Stage(nn.Module):
    """Some layers of a model: each a router, numbered from 1 over all stages as Megatron does."""

    def __init__(self, shape: Any, layers: list[int]) -> None:
        super().__init__()
        torch.manual_seed(layers[0])
        groups = ProcessGroupCollection.use_mpu_process_groups()
        self.config = shape
        self.layers = nn.ModuleList(TopKRouter(shape, groups) for _ in layers)
        for router, number in zip(self.layers, layers, strict=True):
            router.set_layer_number(number)
            router.expert_bias is not None and router.expert_bias.normal_(0, 0.1)

    def forward(self, x: Tensor, **more: Any) -> list[tuple[Tensor, Tensor]]:
        return [router(x, **more) for router in self.layers]


def expected(stage: Any, x: Tensor) -> list[list[int]]:
    """Choices recomputed from the routers' logits."""
    rows = []
    for router in stage.layers:
        logits = router.gating(x).detach().reshape(-1, 8)
        scores = logits.sigmoid() + router.expert_bias if router.enable_expert_bias else logits
        rows.append(torch.bincount(scores.topk(2).indices.reshape(-1), minlength=8).tolist())
    return rows


def optimizer_step(stages: list[Any], shape: Any) -> None:
    """What finalize_model_grads does with the routers."""
    if shape.moe_router_enable_expert_bias:
        FINALIZE._update_router_expert_bias(stages, shape)
    FINALIZE.reset_model_temporary_tensors(shape, stages)


def x(seed: int = 0) -> Tensor:
    return torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(seed))


def test_the_counts_of_a_step_are_those_that_move_the_bias(records: Records) -> None:
    shape = config()
    stage = Stage(shape, [2, 4, 5, 6])
    page = Page("Megatron-LM", model=[stage])
    probe = page.attach()
    assert probe.framework == "megatron"
    for step in (1, 2):
        wanted = np.array(expected(stage, x(step))) + np.array(expected(stage, x(step + 10)))
        before = stage.layers[0].expert_bias.clone()
        stage(x(step))
        stage(x(step + 10))
        with torch.no_grad():
            stage(x(99))  # an evaluation, which Megatron does not count either
        optimizer_step([stage], shape)
        page.step(step)
        record = records.last()
        assert records.counts(record).tolist() == wanted.tolist()
        assert records.bias(record) == pytest.approx(torch.stack([r.expert_bias for r in stage.layers]).numpy())
        assert not torch.equal(before, stage.layers[0].expert_bias)
        assert record.routed == 24
    meta = records.reader().meta
    assert (meta.layers, meta.experts, meta.top_k) == (4, 8, 2)
    original = FINALIZE.get_updated_expert_bias
    probe.close()
    assert FINALIZE.get_updated_expert_bias is not original
    assert FINALIZE.get_updated_expert_bias is moe_utils.get_updated_expert_bias


def test_interleaved_pipeline_chunks_fill_their_own_rows(records: Records) -> None:
    shape = config()
    chunks = [Stage(shape, [5]), Stage(shape, [2])]  # virtual stages: of layers 2, 4, 5 and 6 two are elsewhere
    probe = attach(chunks)
    late, early = expected(chunks[0], x()), expected(chunks[1], x())
    for chunk in chunks:
        chunk(x())
    optimizer_step(chunks, shape)
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == [early[0], [0] * 8, late[0], [0] * 8]
    assert np.isnan(records.bias(record)).all(axis=1).tolist() == [False, True, False, True]
    assert record.routed == 12
    probe.close()


def test_without_a_bias_the_maps_are_counted_without_padding(records: Records) -> None:
    shape = config(moe_router_enable_expert_bias=False, moe_router_score_function="softmax", moe_layer_freq=1)
    stage = Stage(shape, [1, 2, 3, 4, 5, 6])
    probe = attach(stage)
    padding = torch.zeros(6, 2, dtype=torch.bool)
    padding[4:, 1] = True
    wanted = np.array(expected(stage, x()))
    stage(x())
    for router in stage.layers:
        _, chosen = router(x(1), padding_mask=padding)
        wanted[router.layer_number - 1] += chosen[~padding.reshape(-1)].sum(0).numpy()
    optimizer_step([stage], shape)
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == wanted.tolist()
    assert record.routed == 22
    assert not records.bias(record).any()
    probe.close()


def test_recomputation_is_counted_once(records: Records) -> None:
    shape = config(moe_router_enable_expert_bias=False, moe_router_score_function="softmax", moe_layer_freq=1)
    stage = Stage(shape, [1])
    probe = attach(stage, layers=[0])
    given = x().requires_grad_()
    for reentrant in (True, False):
        scores, _ = checkpoint(stage.layers[0], given, use_reentrant=reentrant)
        scores.sum().backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == (2 * np.array(expected(stage, x()))).tolist()
    probe.close()


def test_a_layer_that_is_not_among_the_numbers_is_an_error(records: Records) -> None:
    with pytest.raises(AttachError, match="not among"):
        attach(Stage(config(), [1, 2]))


def test_experts_lie_on_ranks_as_the_control_plane_reads_the_sizes_told() -> None:
    """Against Megatron's own generator of expert ranks, whose tensor parallelism is the experts' own."""
    shape = config(
        num_attention_heads=4,
        add_bias_linear=False,
        tensor_model_parallel_size=4,
        expert_tensor_parallel_size=2,
        expert_model_parallel_size=4,
        pipeline_model_parallel_size=2,
        pipeline_dtype=torch.float32,
        moe_layer_freq=[0, 1, 1, 0, 1, 1],
        sequence_parallel=True,
    )
    told = group_sizes(shape)
    assert told == {"expert_parallel": 4, "tensor_parallel": 2, "pipeline_parallel": 2}
    ranks = parallel_state.RankGenerator(tp=2, ep=4, dp=2, pp=2, cp=1, order="tp-cp-ep-dp-pp")
    for group in ranks.get_ranks("ep"):
        homes = [home(rank, 32, 8, 4, (4, 2, 2)) for rank in group]
        assert [one and one.experts for one in homes] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    for group in ranks.get_ranks("pp"):
        assert [one and one.layers for one in (home(rank, 32, 8, 4, (4, 2, 2)) for rank in group)] == [(0, 1), (2, 3)]
        assert outermost(group, 32)
    other = parallel_state.RankGenerator(tp=2, ep=4, dp=2, pp=2, cp=1, order="tp-cp-ep-pp-dp")
    assert not any(outermost(group, 32) for group in other.get_ranks("pp"))


@pytest.mark.parametrize(
    "uneven",
    [
        {"virtual_pipeline_model_parallel_size": 3},
        {"num_layers_in_first_pipeline_stage": 2, "moe_layer_freq": 1},
        {"moe_layer_freq": [0, 1, 1, 1, 1, 1]},
    ],
)
def test_no_sizes_are_told_where_a_stage_is_no_even_share(uneven: dict[str, Any]) -> None:
    staged = {"pipeline_model_parallel_size": 2, "pipeline_dtype": torch.float32, "moe_layer_freq": 1}
    assert group_sizes(config(**staged))["pipeline_parallel"] == 2
    assert group_sizes(config(**(staged | uneven))) == {}

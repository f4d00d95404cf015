"""OLMo-core's own mixture-of-experts transformer at tiny size, with its `post_batch` at the end of a batch.

One shim: the experts themselves, which are Triton kernels for a GPU, pass each token on with its weights' sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from olmo_core.nn.moe import MoERouterConfig
from olmo_core.nn.transformer import TransformerConfig
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

from agents.probe.attach import attach
from tests.records import Page, Records


def small_model(gamma: float | None = 0.01) -> Any:
    torch.manual_seed(0)
    config: Any = TransformerConfig.smallmoe(vocab_size=64, d_model=64, n_layers=3, n_heads=4)
    config.block.feed_forward_moe.num_experts = 8
    config.block.feed_forward_moe.router = MoERouterConfig(top_k=2, bias_gamma=gamma)
    model = config.build(init_device="cpu")
    model.init_weights(max_seq_len=16, device=torch.device("cpu"))
    for block in model.blocks.values():
        block.feed_forward_moe.experts.forward = lambda x, weights, _indices, _counts: x * weights.sum(-1, keepdim=True)
    return model.train()


def routers(model: Any) -> list[Any]:
    return [block.feed_forward_moe.router for block in model.blocks.values()]


class Choices:
    """Independent of the counters: choices recomputed from the logits, while not inside a backward pass."""

    def __init__(self, model: Any) -> None:
        self.counts = torch.zeros(3, 8, dtype=torch.int64)
        for row, router in enumerate(routers(model)):
            router.get_expert_logits = self._watched(row, router, router.get_expert_logits)

    def _watched(self, row: int, router: Any, original: Any) -> Any:
        def watched(x: Tensor) -> Tensor:
            logits: Tensor = original(x)
            if torch._C._current_graph_task_id() == -1 and router.training:
                bias = 0 if router.score_bias is None else router.score_bias
                chosen = (logits.detach().float().softmax(-1) + bias).topk(2).indices
                self.counts[row] += torch.bincount(chosen.reshape(-1), minlength=8)
            return logits

        return watched

    def take(self) -> NDArray[np.int64]:
        taken = self.counts.numpy().copy()
        self.counts.zero_()
        return taken


def train_batch(model: Any, micro_batches: int = 2, dry_run: bool = False) -> None:
    """What OLMo-core's train module does around the model."""
    for seed in range(micro_batches):
        ids = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(seed))
        model(ids).square().mean().backward()
    model.post_batch(dry_run=dry_run)
    model.reset_auxiliary_metrics() if dry_run else model.compute_auxiliary_metrics(reset=True)


@pytest.mark.parametrize("gamma", [0.01, None])
def test_counts_of_a_batch_are_taken_before_the_reset(gamma: float | None, records: Records) -> None:
    model = small_model(gamma)
    page = Page("OLMo-core", model=model)
    probe, choices = page.attach(), Choices(model)
    assert probe.framework == "olmo_core"
    train_batch(model, dry_run=True)
    choices.take()
    for step in (1, 2):
        train_batch(model)
        page.step(step)
        record = records.last()
        assert records.counts(record).tolist() == choices.take().tolist()
        assert record.routed == 32
        known = [router.score_bias for router in routers(model)]
        bias = np.zeros((3, 8)) if gamma is None else torch.stack(known).numpy()
        assert records.bias(record) == pytest.approx(bias)
        assert gamma is None or bias.any()
    probe.close()
    assert not [router for router in routers(model) if hasattr(router, "_trimtab")]


@pytest.mark.parametrize("implementation", [CheckpointImpl.NO_REENTRANT, CheckpointImpl.REENTRANT])
def test_recomputation_is_counted_once(implementation: CheckpointImpl, records: Records) -> None:
    model = small_model()
    for name, block in list(model.blocks.items()):
        block.feed_forward_moe = checkpoint_wrapper(block.feed_forward_moe, checkpoint_impl=implementation)
        model.blocks[name] = block
    probe, choices = attach(model), Choices(model)
    train_batch(model)
    probe.step(1)
    assert records.counts(records.last()).tolist() == choices.take().tolist()
    probe.close()


def test_evaluation_is_not_counted(records: Records) -> None:
    model = small_model()
    probe, choices = attach(model), Choices(model)
    model.eval()
    with torch.no_grad():
        model(torch.randint(0, 64, (2, 8)))
    model.train()
    train_batch(model)
    probe.step(1)
    assert records.counts(records.last()).tolist() == choices.take().tolist()
    probe.close()

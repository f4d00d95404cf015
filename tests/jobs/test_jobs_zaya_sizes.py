"""ZAYA1-8B counts what its report says; the memory's terms are held against real tensors of small models."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.model.weights import to_transformers
from jobs.zaya.sizes import GPU_BYTES, ZAYA1_8B, Layout, activation_bytes, find, main, memory, parameters
from jobs.zaya.training.optim import FlatOptimizer
from tests.jobs.zaya_small import MODEL

WIDE = replace(MODEL, hidden_size=96, head_dim=16, moe_intermediate_size=80, router_hidden_size=40)


def test_zaya1_8b_counts_what_its_report_says() -> None:
    """arXiv 2605.05365: 8.3 billion without embeddings, some 0.75 of them active."""
    counts = parameters(ZAYA1_8B)
    assert round(counts.without_embeddings / 1e9, 2) == 8.30
    assert round(counts.active / 1e6) == 754


def test_counts_are_those_of_a_model_that_exists() -> None:
    model = ZayaForCausalLM(MODEL)
    counts = parameters(MODEL)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.embeddings == 256 * 32
    assert counts.active == counts.without_embeddings - 3 * 3 * 3 * 32 * 16  # layers × experts left out × matrices
    assert (
        counts.matrices
        == FlatOptimizer(model, "muon", 0.0).mean.numel() - FlatOptimizer(model, "muon", 0.0).square.numel()
    )


def saved_bytes(config: ModelConfig) -> int:
    """What autograd keeps of 2 × 64 tokens in bfloat16, parameters left out."""
    torch.manual_seed(0)
    model = ZayaForCausalLM(config).to(torch.bfloat16)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.randint(1, config.vocab_size, (2, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    return sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in own)


@pytest.mark.parametrize("config", [replace(MODEL, head_dim=32), WIDE])
def test_activations_of_a_layer_are_what_autograd_saves(config: ModelConfig) -> None:
    few, many = (saved_bytes(replace(config, num_hidden_layers=layers)) for layers in (1, 4))
    assert activation_bytes(config) * 128 * 3 == pytest.approx(many - few, rel=0.05)


def test_memory_is_of_a_whole_model_and_a_share_of_the_optimizer() -> None:
    counts = parameters(MODEL)
    alone, shared = memory(MODEL, Layout(1, 64)), memory(MODEL, Layout(8, 64))
    assert (alone.weights, alone.gradients) == (2 * counts.total, 4 * counts.total)
    assert alone.optimizer == 12 * counts.total - 4 * counts.matrices
    assert shared.optimizer == -(-alone.optimizer // 8)
    assert replace(shared, optimizer=alone.optimizer) == alone
    assert memory(MODEL, Layout(1, 64, optimizer="adamw")).optimizer == 12 * counts.total
    half = memory(MODEL, Layout(8, 64, context_parallel=2))
    assert (half.activations * 2, half.logits * 2) == (shared.activations, shared.logits)
    assert memory(MODEL, Layout(1, 64, recompute=True)).activations < alone.activations
    assert alone.total == sum(asdict(alone).values())


def test_zaya1_8b_trains_on_mi300x_in_the_layouts_of_its_report_and_not_without_context_parallelism() -> None:
    for length, context_parallel in ((4096, 1), (32768, 2), (131072, 8)):
        assert memory(ZAYA1_8B, Layout(1024, length, context_parallel)).total < GPU_BYTES
    assert memory(ZAYA1_8B, Layout(1024, 131072)).total > GPU_BYTES


@pytest.mark.parametrize(("gpus", "length", "parallel"), [(0, 64, 1), (6, 64, 4), (8, 65, 2)])
def test_layouts_that_cannot_be_are_refused(gpus: int, length: int, parallel: int) -> None:
    with pytest.raises(ContractError, match="context_parallel"):
        Layout(gpus, length, parallel)


def test_the_table_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zaya1-8b", "--gpus", "1024"]) == 0
    table = capsys.readouterr().out
    assert "8.303  billion" in table and "GB of 192" in table
    (tmp_path / "config.json").write_text(json.dumps(to_transformers(ZAYA1_8B)))
    assert main([str(tmp_path / "config.json"), "--gpus", "1024", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["without_embeddings"] == parameters(ZAYA1_8B).without_embeddings
    assert found["bytes_per_gpu"]["total"] == memory(ZAYA1_8B, Layout(1024, 4096)).total


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zaya2"]) == 78
    assert "one of toy, zaya1-8b" in capsys.readouterr().err
    assert find("toy") == ModelConfig()

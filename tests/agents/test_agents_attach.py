"""What goes wrong when one counts expert loads in a training process, each a test: on torch alone, no framework."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing  # the counter of graphs; torch brings it only when asked
from torch import Tensor, nn
from torch.distributed.fsdp.fully_sharded_data_parallel import FullyShardedDataParallel  # noqa: F401  # its names only
from torch.utils.checkpoint import checkpoint

from agents.probe.attach import AttachError, attach
from tests.records import Page, Records, records

__all__ = ["records"]


class TopKRouter(nn.Module):
    """Hands out logits, weights and the chosen experts, as most routers do."""

    def __init__(self, experts: int, top_k: int, bias: bool = True) -> None:
        super().__init__()
        self.num_experts, self.top_k = experts, top_k
        self.weight = nn.Parameter(torch.randn(experts, 8))
        if bias:
            self.register_buffer("e_score_correction_bias", torch.randn(experts) / 10)
        else:
            self.e_score_correction_bias = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(x.reshape(-1, 8), self.weight)
        scores = logits.float().softmax(-1)
        chosen = (scores + self.e_score_correction_bias).topk(self.top_k).indices
        return logits, scores.gather(-1, chosen), chosen


class Block(nn.Module):
    def __init__(self, experts: int, top_k: int, bias: bool) -> None:
        super().__init__()
        self.gate = TopKRouter(experts, top_k, bias)
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        _, weights, _ = self.gate(x)
        out: Tensor = x + self.up(x) * weights.sum(-1).reshape(*x.shape[:-1], 1).to(x.dtype)
        return out


class Model(nn.Module):
    """`recompute` None, or checkpointing that is reentrant (True) or not (False)."""

    def __init__(self, layers: int = 3, experts: int = 6, top_k: int = 2, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(experts, top_k, bias) for _ in range(layers))
        self.recompute: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if self.recompute is None else checkpoint(layer, x, use_reentrant=self.recompute)
        return x


def expected(model: Any, *batches: Tensor, kept: Tensor | None = None) -> list[list[int]]:
    """Counts from a forward of an untouched copy."""
    twin = copy.deepcopy(model)
    twin.recompute = None
    slots = twin.layers[0].gate.num_experts
    rows = np.zeros((len(twin.layers), slots), np.int64)
    for x in batches:
        for row, layer in enumerate(twin.layers):
            chosen = layer.gate(x)[2]
            x = layer(x)
            chosen = chosen if kept is None else chosen[kept.reshape(-1)]
            rows[row] += torch.bincount(chosen.reshape(-1), minlength=slots).numpy()
    return rows.tolist()


def batch(seed: int = 0, tokens: int = 10) -> Tensor:
    return torch.randn(2, tokens // 2, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_a_step_is_all_its_micro_batches_and_not_the_last(records: Records) -> None:
    model = Model()
    page = Page("Anything else", model=model)
    probe = page.attach()
    assert probe.framework == "outputs"
    for step in (1, 2):
        for seed in (step, step + 10, step + 20):
            model(batch(seed)).sum().backward()
        page.step(step, loss=0.5)
        record = records.last()
        assert records.counts(record).tolist() == expected(model, *(batch(step + more) for more in (0, 10, 20)))
        assert (record.step, record.routed, record.loss) == (step, 30, 0.5)
    bias = torch.stack([layer.gate.e_score_correction_bias for layer in model.layers])
    assert records.bias(record).tolist() == bias.tolist()
    probe.close()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_both_kinds_counts_once(reentrant: bool, records: Records) -> None:
    """Reentrant checkpointing runs its first forward without gradients, the other kind with them; both run it again
    inside the backward pass."""
    model = Model()
    probe = attach(model)
    model.recompute = reentrant
    model(batch(1)).sum().backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, batch(1))
    probe.close()


def test_a_forward_without_gradients_is_counted_and_evaluation_and_pauses_are_not(records: Records) -> None:
    model = Model()
    probe = attach(model)
    with torch.no_grad():
        model(batch(1))
    model.eval()(batch(2))
    model.train()
    with probe.paused():
        model(batch(3))
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, batch(1))
    probe.close()


def test_a_compiled_model_has_no_graph_break_and_counts_as_before(records: Records) -> None:
    model = Model()
    probe = attach(model)
    explained = torch._dynamo.explain(model)(batch(0))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    probe.step(0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for seed in (1, 2):
        compiled(batch(seed)).sum().backward()
    model(batch(3))  # and one that is not compiled, in the same step
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, batch(1), batch(2), batch(3))
    probe.close()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler asks each block's input for one
@pytest.mark.parametrize("reentrant", [True, False])
def test_compiled_blocks_inside_checkpointing_count_once_and_compile_once(reentrant: bool, records: Records) -> None:
    """Twelve blocks share a compiled graph: a tap that told layers apart would pass the limit of recompilations."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = Model(layers=12)
    probe = attach(model)
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model.recompute = reentrant
    model(batch(1)).sum().backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(Model(layers=12), batch(1))
    assert counter.frame_count <= 3  # with gradients, without them, and for an input that needs none
    probe.close()
    torch._dynamo.reset()


def test_checkpointing_inside_a_compiled_graph_counts_once(records: Records) -> None:
    torch._dynamo.reset()
    model = Model()
    probe = attach(model)
    model.recompute = False
    torch.compile(model, backend="aot_eager", fullgraph=True)(batch(1)).sum().backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == expected(model, batch(1))
    probe.close()


def test_padding_that_the_caller_tells_is_not_counted(records: Records) -> None:
    model, kept = Model(), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    probe = attach(model)
    probe.padding(kept)
    model(batch(1))
    probe.padding(None)
    model(batch(2))
    probe.step(1)
    one, two = expected(model, batch(1), kept=kept.bool()), expected(model, batch(2))
    record = records.last()
    assert records.counts(record).tolist() == (np.array(one) + np.array(two)).tolist()
    assert record.routed == 17
    probe.close()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler asks each block's input for one
@pytest.mark.parametrize(("blocks", "recompute"), [(False, False), (True, None)])
def test_in_a_compiled_model_a_mask_is_of_one_forward_only(
    blocks: bool, recompute: bool | None, records: Records
) -> None:
    """No side effect is traced for it: checkpointing inside of a graph would refuse one."""
    torch._dynamo.reset()
    model, kept = Model(layers=2), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    probe = attach(model)
    model.recompute = recompute
    run = model if blocks else torch.compile(model, backend="aot_eager", fullgraph=True)
    for layer in model.layers if blocks else ():
        layer.compile(backend="aot_eager", fullgraph=True)
    one, two = expected(Model(layers=2), batch(1), kept=kept.bool()), expected(Model(layers=2), batch(2))
    for step in (1, 2):
        probe.padding(kept)
        run(batch(1)).sum().backward()
        run(batch(2)).sum().backward()
        probe.step(step)
        assert records.counts(records.last()).tolist() == (np.array(one) + np.array(two)).tolist()
    probe.close()
    torch._dynamo.reset()


def test_more_experts_than_eight_bits_hold(records: Records) -> None:
    model = Model(layers=2, experts=300, top_k=8)
    with torch.no_grad():
        model.layers[0].gate.e_score_correction_bias[290:298] += 10
    probe = attach(model)
    model(batch(1))
    probe.step(1)
    counts = records.counts(records.last())
    assert counts.tolist() == expected(model, batch(1))
    assert counts[0, 290:298].tolist() == [10] * 8
    probe.close()


def test_bf16_weights_are_fine(records: Records) -> None:
    model = Model(bias=False).to(torch.bfloat16)
    probe = attach(model)
    model(batch(1).bfloat16())
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == expected(model, batch(1).bfloat16())
    assert not records.bias(record).any()
    probe.close()


class Switch(nn.Module):
    """A router that tells nothing of itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.topk(2).indices


def test_a_router_that_tells_nothing_is_named(records: Records) -> None:
    model = nn.ModuleList(nn.ModuleDict({"switch": Switch()}) for _ in range(2))
    page = Page("Anything else", 1, model=model)
    probe = page.attach()
    for layer in model:
        layer["switch"](torch.eye(64)[:3])
    page.step(1)
    assert (records.reader().meta.slots, records.last().routed) == (64, 3)
    probe.close()


class Maps(nn.Module):
    """A gate that hands out a map of tokens to experts, and one of another shape of output: indices alone."""

    n_experts, topk = 4, 2

    def __init__(self, only: bool) -> None:
        super().__init__()
        self.only = only

    def forward(self, x: Tensor) -> Any:
        chosen = x.topk(2).indices
        made = torch.zeros_like(x, dtype=torch.bool).scatter(-1, chosen, True)
        return chosen.int() if self.only else (x, made)


@pytest.mark.parametrize("only", [True, False])
def test_a_map_of_tokens_and_32_bit_indices_are_counted(only: bool, records: Records) -> None:
    model = nn.ModuleDict({"router_a": Maps(only), "router_b": Maps(only)})
    x = torch.randn(2, 7, 4)
    probe = attach(model, routers="^router")
    for gate in model.values():
        gate(x)
    model["router_b"](x)
    probe.step(1)
    one = torch.bincount(x.topk(2).indices.reshape(-1), minlength=4)
    assert records.counts(records.last()).tolist() == [one.tolist(), (2 * one).tolist()]
    probe.close()


def test_copies_and_pickles_of_an_attached_model_are_plain(records: Records) -> None:
    model = Model()
    probe = attach(model)
    assert type(model.layers[0].gate) is not TopKRouter
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert type(twin.layers[0].gate) is TopKRouter
    twin(batch(1))
    with pytest.raises(AttachError, match="attached"):
        attach(model)
    probe.step(1)
    assert records.counts(records.last()).sum() == 0
    probe.close()
    assert type(model.layers[0].gate) is TopKRouter
    attach(model).close()


def test_a_pipeline_stage_and_a_duplicate_rank(records: Records) -> None:
    model = Model(layers=2)
    probe = attach(model, layers=5, first_layer=2, pipeline_parallel=2)
    model(batch(1))
    probe.step(1)
    record = records.last()
    counts, bias = records.counts(record), records.bias(record)
    assert counts[2:4].tolist() == expected(model, batch(1))
    assert counts.sum(1).tolist() == [0, 0, 20, 20, 0]
    assert np.isnan(bias).all(1).tolist() == [True, True, False, False, True]
    assert records.reader().meta.start_bias == 0
    probe.close()


def test_a_rank_whose_tokens_another_reports_writes_no_counts(records: Records) -> None:
    model = Model()
    probe = attach(model, duplicate=True, tensor_parallel=2)
    model(batch(1))
    probe.step(1)
    record = records.last()
    assert (records.counts(record).sum(), record.routed) == (0, 0)
    assert records.bias(record).any()
    assert records.reader().meta.tensor_parallel == 2
    probe.close()


def test_the_biases_that_a_run_begins_with_are_known_by_their_checksum(records: Records) -> None:
    import hashlib

    model = Model()
    probe = attach(model)
    bias = torch.stack([layer.gate.e_score_correction_bias for layer in model.layers])
    digest = hashlib.sha256(bias.numpy().tobytes()).hexdigest()
    assert records.reader().meta.start_bias == int(digest[:15], 16)
    probe.close()


@pytest.mark.parametrize("every", [0, -1])
def test_copies_are_made_every_step_at_least(every: int, records: Records) -> None:
    with pytest.raises(ValueError, match=f"every is {every}"):
        attach(Model(layers=1), every=every)


def test_what_cannot_be_attached_is_said(records: Records) -> None:
    with pytest.raises(AttachError, match=r"tokens_per_expert.*router, gate or gating"):
        attach(nn.Linear(2, 2))
    with pytest.raises(AttachError, match="megatron"):
        attach(Model(), framework="jax")
    with pytest.raises(AttachError, match="do not fit"):
        attach(Model(), layers=2)
    replaced = Model()
    replaced.layers[1].gate.forward = replaced.layers[1].gate.forward
    with pytest.raises(AttachError, match=r"forward of layers\.1\.gate was replaced"):
        attach(replaced)
    mixed = nn.ModuleList([TopKRouter(4, 1), TopKRouter(5, 1)])
    with pytest.raises(AttachError, match="different numbers"):
        attach(mixed)


def test_without_an_agent_the_model_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_HEARTBEAT_DIR", raising=False)
    model = Model()
    probe = attach(model)
    assert type(model.layers[0].gate) is TopKRouter
    with probe.paused():
        probe.padding(None)
        probe.step(1)
    probe.close()

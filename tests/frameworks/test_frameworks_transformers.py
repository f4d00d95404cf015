"""transformers' own model classes at tiny size: counts against choices recomputed from the router logits.

The reference of a model is the score function of its paper applied to the logits that transformers itself hands out, so
it shares nothing with the tap. Biases are drawn at random, so that selection with and without them differs.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from agents.probe.attach import AttachedProbe, attach
from tests.records import Page, Records

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "first_k_dense_replace": 1,
}
EIGHT_OF = {"num_experts": 8, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# type -> (configuration, score function, mixture layers)
MODELS: dict[str, tuple[dict[str, Any], str, int]] = {
    "zaya": ({"num_experts": 4, "router_hidden_size": 16, "layer_types": ["hybrid"] * 3}, "softmax", 3),
    "deepseek_v3": ({**ROUTED, **LATENT, "head_dim": 4}, "sigmoid", 2),
    "qwen3_moe": ({**LOCAL, "num_experts": 8, "decoder_sparse_step": 1}, "softmax", 3),
    "mixtral": (LOCAL, "softmax", 3),
    "gpt_oss": ({**LOCAL, **TWO_KINDS}, "logits", 3),
    "olmoe": (EIGHT_OF, "softmax", 3),
    "glm4_moe": ({**ROUTED, "first_k_dense_replace": 1}, "sigmoid", 2),
    "granitemoe": (LOCAL, "logits", 3),
    "minimax": ({**LOCAL, "layer_types": ["full_attention"] * 3}, "softmax", 3),
    "ernie4_5_moe": (
        {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 2},
        "softmax",
        2,
    ),
    "qwen3_5_moe_text": ({**EIGHT_OF, **LINEAR, "layer_types": ["full_attention"] * 3}, "softmax", 3),
    "afmoe": ({**EIGHT_OF, **TWO_KINDS, "num_dense_layers": 1}, "sigmoid", 2),
    "dots1": ({**ROUTED, "first_k_dense_replace": 1, "layer_types": ["full_attention"] * 3}, "sigmoid", 2),
    "hunyuan_v1_moe": ({"num_experts": 8, "moe_topk": 2}, "softmax", 3),
    "flex_olmo": (EIGHT_OF, "softmax", 3),
    "llama4_text": ({**LOCAL, "moe_layers": [0, 1, 2], "intermediate_size_mlp": 32}, "logits", 3),
}
BIASES = ("balancing_biases", "e_score_correction_bias", "expert_bias")


def small_model(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    wanted = {**SMALL, **MODELS[kind][0], **more}
    config = AutoConfig.for_model(kind, **wanted)
    model = AutoModelForCausalLM.from_config(config)
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.rpartition(".")[2] in BIASES:
            tensor.data.normal_(0, 0.1)
        elif "gate" in name or "router" in name:
            tensor.data.normal_(0, 0.5)
    return model.train()


def biases(model: nn.Module) -> list[Tensor]:
    named = [*model.named_buffers(), *model.named_parameters()]
    found = sorted((name, tensor) for name, tensor in named if name.rpartition(".")[2] in BIASES)
    return [tensor.detach().reshape(-1) for _, tensor in found]


def reference(model: Any, logits: tuple[Tensor, ...], score: str, mask: Tensor | None = None) -> NDArray[np.int64]:
    """Counts [layers, S] from the logits alone."""
    score_of = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "logits": lambda x: x}[score]
    config, bias = model.config, biases(model)
    top_k = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_topk", None)
    rows = []
    for layer, layer_logits in enumerate(logits):
        scores = score_of(layer_logits.detach().float().reshape(-1, layer_logits.shape[-1]))
        chosen = (scores + bias[layer] if bias else scores).topk(top_k, dim=-1).indices
        kept = chosen if mask is None else chosen[mask.reshape(-1).bool()]
        rows.append(torch.bincount(kept.reshape(-1), minlength=scores.shape[-1]).numpy())
    return np.stack(rows)


def tokens(seed: int = 1, batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def forward(model: Any, ids: Tensor, **more: Any) -> tuple[Tensor, ...]:
    return tuple(model(ids, output_router_logits=True, use_cache=False, **more).router_logits)


@pytest.mark.parametrize("kind", MODELS)
def test_counts_are_those_of_the_logits(kind: str, records: Records) -> None:
    model, score, layers = small_model(kind), MODELS[kind][1], MODELS[kind][2]
    page = Page("transformers", model=model)
    probe = page.attach()
    expected = sum(reference(model, forward(model, tokens(seed)), score) for seed in (1, 2))  # two micro batches
    page.step(1)
    assert probe.framework == "transformers"
    record = records.last()
    counts = records.counts(record)
    assert counts.shape[0] == layers
    assert counts.tolist() == expected.tolist()
    assert record.routed == 48
    known = biases(model)
    assert records.bias(record) == pytest.approx(torch.stack(known).numpy() if known else np.zeros(counts.shape))
    probe.close()
    assert not [module for module in model.modules() if hasattr(module, "_trimtab")]


def expected_facts(model: Any, micro: list[tuple[Tensor, ...]], score: str, masks: list[Tensor]) -> NDArray[np.float64]:
    """[2, layers] from the logits of all micro batches: mean (ln Σ exp)² and mean gap of the sorted scores."""
    found, known = [], biases(model)
    for layer, of_layer in enumerate(zip(*micro, strict=True)):
        kept = [one.detach().double()[mask.reshape(-1).bool()] for one, mask in zip(of_layer, masks, strict=True)]
        powers = np.exp(logits := torch.cat(kept).numpy())
        scores = 1 / (1 + np.exp(-logits)) if score == "sigmoid" else powers / powers.sum(-1, keepdims=True)
        ordered = np.sort(scores + known[layer].double().numpy() if known else scores, axis=-1)[:, ::-1]
        found.append([(np.log(powers.sum(-1)) ** 2).mean(), (ordered[:, 1] - ordered[:, 2]).mean()])
    return np.array(found).T


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_router_facts_are_those_of_the_logits_and_scores_of_the_model(kind: str, records: Records) -> None:
    """Two micro batches of unequal size, one padded, recomputed in the backward pass; then a step without facts."""
    model, score = small_model(kind), MODELS[kind][1]
    inputs, masks = [tokens(1), tokens(2, batch=3)], [torch.ones(2, 12), torch.ones(3, 12)]
    masks[1][0, 7:] = 0
    plain = [forward(model, ids, attention_mask=mask) for ids, mask in zip(inputs, masks, strict=True)]
    model.activation_checkpointing_enable({"use_reentrant": False})
    probe = attach(model, facts_every=2)
    for _ in range(2):
        for ids, mask in zip(inputs, masks, strict=True):
            model(ids, labels=ids, attention_mask=mask, use_cache=False).loss.backward()
        probe.step(1)
    first, second = records.rows()
    told = records.facts(first)
    np.testing.assert_allclose(told[:2], expected_facts(model, plain, score, masks), rtol=1e-4)
    assert np.isnan(told[2]).all()
    assert (first.routed, second.routed, second.facts) == (55, 55, b"")
    probe.close()


def test_zayas_skipped_tokens_are_in_the_skip_slot_and_not_in_expert_0(records: Records) -> None:
    model = small_model("zaya")
    for name, buffer in model.named_buffers():
        if name.endswith("balancing_biases"):
            buffer.zero_()
            buffer[-1] = 0.15
    probe = attach(model)
    expected = reference(model, forward(model, tokens()), "softmax")
    probe.step(1)
    counts = records.counts(records.last())
    assert counts.shape == (3, 5)
    assert (records.reader().meta.experts, records.reader().meta.slots) == (4, 5)
    assert counts[:, 4].min() > 0
    assert counts.tolist() == expected.tolist()
    probe.close()


def test_padding_is_what_the_attention_mask_says(records: Records) -> None:
    model, ids = small_model("qwen3_moe"), tokens()
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    probe = attach(model)
    expected = reference(model, forward(model, ids, attention_mask=mask), "softmax", mask)
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == expected.tolist()
    assert record.routed == 19
    forward(model, ids, attention_mask=None)
    probe.step(2)
    assert records.last().routed == 24
    probe.close()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_each_token_once(reentrant: bool, records: Records) -> None:
    model = small_model("olmoe")
    plain = reference(model, forward(model, tokens()), "softmax")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    probe = attach(model)
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    probe.step(1)
    assert records.counts(records.last()).tolist() == plain.tolist()
    probe.close()


def test_evaluation_is_not_counted_and_a_paused_policy_is_not_either(records: Records) -> None:
    model = small_model("mixtral")
    probe = attach(model)
    model.eval()
    forward(model, tokens())
    model.train()
    with probe.paused():
        forward(model, tokens())
    probe.step(1)
    assert records.counts(records.last()).sum() == 0
    probe.close()


def test_a_compiled_model_is_one_graph_and_counts_as_before(records: Records) -> None:
    model = small_model("qwen3_moe", experts_implementation="batched_mm")
    ids = tokens()
    expected = reference(model, forward(model, ids), "softmax")
    probe = attach(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        compiled(ids, use_cache=False)
    probe.step(1)
    assert records.counts(records.last()).tolist() == (2 * expected).tolist()
    probe.close()


def test_a_copy_of_an_attached_model_is_plain(records: Records) -> None:
    model = small_model("mixtral")
    probe = attach(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    forward(twin, tokens())
    probe.step(1)
    assert records.counts(records.last()).sum() == 0
    assert {type(module) for module in twin.modules()} == {type(module) for module in small_model("mixtral").modules()}
    probe.close()


def test_each_part_of_a_composite_model_is_recorded_by_its_own_rules(records: Records) -> None:
    """Qwen 3.5 MoE with eyes: its language model lies inside a model that records nothing by that name."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = {**SMALL, **MODELS["qwen3_5_moe_text"][0]}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    torch.manual_seed(0)
    model: Any = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=vision)).train()
    probe: AttachedProbe = attach(model)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    logits = model(input_ids=ids, attention_mask=mask, output_router_logits=True, use_cache=False).router_logits
    probe.step(1)
    model.config.num_experts_per_tok = 2
    assert records.counts(records.last()).tolist() == reference(model, tuple(logits), "softmax", mask).tolist()
    probe.close()


@pytest.mark.parametrize("first", ["attach", "shard"])
def test_a_model_that_fsdp_shards_before_or_after(first: str, records: Records, group_of_one: None) -> None:
    """FSDP2 changes the class of what it shards, as a tap does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = small_model("glm4_moe"), init_device_mesh("cpu", (1,))
    expected = reference(model, forward(model, tokens()), "sigmoid")
    probe = attach(model) if first == "attach" else None
    for layer in model.model.layers[1:]:
        fully_shard(layer.mlp.gate, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    probe = probe or attach(model)
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == expected.tolist()
    assert records.bias(record) == pytest.approx(torch.stack(biases(model)).numpy())
    probe.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_tensor_parallel_ranks_the_first_reports(rank: int, tmp_path: Path, records: Records) -> None:
    """Cut by transformers itself; the other rank is not there, so nothing is run."""
    small_model("qwen3_moe").save_pretrained(tmp_path / "model")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        wanted = DistributedConfig(tp_size=2)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", distributed_config=wanted)
        probe = attach(model)
        assert probe._reader.duplicate == (rank == 1)
        probe.close()
    finally:
        dist.destroy_process_group()

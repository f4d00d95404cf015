"""The reference model: what its layers promise, checked on real tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig, problems
from jobs.zaya.model.attention import rotary, rotate
from jobs.zaya.model.network import Router, ZayaForCausalLM
from tests.jobs.zaya_small import MODEL


@pytest.fixture
def model() -> ZayaForCausalLM:
    torch.manual_seed(0)
    return ZayaForCausalLM(MODEL)


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(1))


def test_logits_have_a_row_for_every_byte(model: ZayaForCausalLM) -> None:
    assert model(tokens()).shape == (2, 24, 256)


def test_a_future_token_never_changes_a_past_logit(model: ZayaForCausalLM) -> None:
    model.eval()
    one = tokens()
    other = one.clone()
    other[:, 15] = (other[:, 15] + 1) % 256
    with torch.no_grad():
        before, after = model(one), model(other)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15], after[:, 15])
    assert not torch.allclose(before[:, 16], after[:, 16])


def test_half_of_each_value_is_one_token_late(model: ZayaForCausalLM) -> None:
    projection = model.model.layers[0].self_attn.qkv_proj
    x = torch.randn(1, 5, MODEL.hidden_size)
    value = projection(x)[2].flatten(2)
    half = value.shape[-1] // 2
    assert torch.allclose(value[..., :half], projection.v_proj_current(x))
    assert torch.equal(value[:, 0, half:], torch.zeros(1, half))
    assert torch.allclose(value[:, 1:, half:], projection.v_proj_delayed(x)[:, :-1])


def test_the_convolutions_see_two_tokens_back_and_none_ahead(model: ZayaForCausalLM) -> None:
    projection = model.model.layers[0].self_attn.qkv_proj
    x = torch.randn(1, 8, MODEL.hidden_size)
    moved = x.clone()
    moved[:, 4] += 1
    changed = (projection(x)[0] - projection(moved)[0]).abs().amax(dim=(0, 2, 3)) > 1e-7
    assert changed.tolist() == [False] * 4 + [True] * 3 + [False]


def test_queries_and_keys_lie_on_a_sphere_and_keys_have_a_temperature(model: ZayaForCausalLM) -> None:
    norm = model.model.layers[0].self_attn.qk_norm
    norm.temp.data.copy_(torch.tensor([0.5, 2.0]))
    q, k = norm(torch.randn(1, 3, 4, 8), torch.randn(1, 3, 2, 8))
    assert torch.allclose(q.norm(dim=-1), torch.full((1, 3, 4), 8**0.5))
    assert torch.allclose(k.norm(dim=-1), torch.tensor([0.5, 2.0]) * 8**0.5)


def test_rotation_depends_on_distance_alone_and_leaves_the_other_channels() -> None:
    cos, sin = rotary(torch.arange(10), MODEL)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = rotate(q.expand(1, 1, 10, 8), cos, sin)[0, 0], rotate(k.expand(1, 1, 10, 8), cos, sin)[0, 0]
    assert torch.allclose(turned_q[2] @ turned_k[5], turned_q[6] @ turned_k[9], atol=1e-5)
    assert not torch.allclose(turned_q[2] @ turned_k[5], turned_q[2] @ turned_k[9], atol=1e-5)
    assert torch.equal(turned_q[:, 4:], q[4:].expand(10, 4))


def test_router_states_are_averaged_over_depth() -> None:
    """r_l = W x + γ ⊙ r_{l-1}; the first layer has no γ and no layer before it."""
    first, second = Router(MODEL, 0), Router(MODEL, 1)
    assert "router_states_scale" not in dict(first.named_parameters())
    second.router_states_scale.data.normal_()
    x = torch.randn(7, MODEL.hidden_size)
    before = first(x, None)[2]
    assert torch.allclose(before, first.down_proj(x))
    assert torch.allclose(second(x, before)[2], second.down_proj(x) + second.router_states_scale * before)


def test_the_bias_selects_and_never_weighs() -> None:
    router = Router(MODEL, 0)
    x = torch.randn(50, MODEL.hidden_size)
    scores = router.router_mlp(router.down_proj(x)).softmax(dim=-1)
    router.balancing_biases.zero_()
    router.balancing_biases[2] = 10.0
    chosen, weight, _ = router(x, None)
    assert chosen.tolist() == [2] * 50
    assert torch.allclose(weight, scores[:, 2])


def test_counts_are_of_training_alone() -> None:
    router = Router(MODEL, 0)
    x = torch.randn(50, MODEL.hidden_size)
    router.eval()
    router(x, None)
    router.train()
    with torch.no_grad():
        router(x, None)
    assert router.tokens_per_expert.sum() == 0
    chosen, _, _ = router(x, None)
    assert torch.equal(router.tokens_per_expert, torch.bincount(chosen, minlength=5))


def test_each_token_gets_its_own_experts_output_in_its_own_place(model: ZayaForCausalLM) -> None:
    experts = model.model.layers[0].mlp.experts
    x, weight = torch.randn(20, MODEL.hidden_size), torch.rand(20)
    chosen = torch.arange(20) % 5
    got = experts(x, chosen, weight)
    for token in range(20):
        expert = int(chosen[token])
        if expert == MODEL.num_experts:
            assert torch.equal(got[token], torch.zeros(MODEL.hidden_size))
            continue
        gate, up = (experts.gate_up_proj[expert] @ x[token]).chunk(2)
        wanted = experts.down_proj[expert] @ (F.silu(gate) * up) * weight[token]
        assert torch.allclose(got[token], wanted, atol=1e-6)


def test_a_token_that_skips_passes_the_layer_by_and_is_counted_in_its_own_slot(model: ZayaForCausalLM) -> None:
    block = model.model.layers[0].mlp
    block.gate.balancing_biases[-1] = 10.0
    out, _ = block(torch.randn(2, 6, MODEL.hidden_size), None)
    assert torch.equal(out, torch.zeros_like(out))
    assert block.gate.tokens_per_expert.tolist() == [0, 0, 0, 0, 12]


def test_the_skip_slot_starts_out_of_reach(model: ZayaForCausalLM) -> None:
    for router in model.routers():
        assert router.balancing_biases.tolist() == [0, 0, 0, 0, -1]
        assert (router.num_experts, router.top_k) == (4, 1)
    model(tokens())
    assert sum(int(router.tokens_per_expert[-1]) for router in model.routers()) == 0


def test_at_the_start_no_expert_takes_nearly_everything() -> None:
    """Before centring and scaling of the initial weights one expert of a layer took more than half of the bytes."""
    torch.manual_seed(0)
    model = ZayaForCausalLM(ModelConfig())
    model(tokens(4, 128))
    counts = torch.stack([router.tokens_per_expert for router in model.routers()])
    assert (counts.max(dim=1).values / counts.sum(dim=1)).max() < 0.5


def test_names_are_those_of_transformers_zaya(model: ZayaForCausalLM) -> None:
    names = set(model.state_dict())
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.input_hidden_states_scale",
        "model.layers.0.self_attn.qkv_proj.conv_qk_depthwise.weight",
        "model.layers.0.self_attn.qkv_proj.v_proj_delayed.weight",
        "model.layers.0.self_attn.qk_norm.temp",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_residual_scale.residual_bias",
        "model.layers.1.mlp.gate.router_states_scale",
        "model.layers.1.mlp.gate.router_mlp.out_proj.weight",
        "model.layers.1.mlp.gate.balancing_biases",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.norm.weight",
    } <= names
    assert "model.layers.0.mlp.gate.router_states_scale" not in names
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_toy_has_about_two_million_parameters() -> None:
    assert 1.5e6 < sum(p.numel() for p in ZayaForCausalLM(ModelConfig()).parameters()) < 2.5e6


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ContractError, match="multiple"):
        replace(MODEL, num_attention_heads=3)
    with pytest.raises(ContractError, match="even"):
        replace(MODEL, head_dim=7, num_key_value_heads=1)
    with pytest.raises(ContractError, match="byte"):
        replace(MODEL, vocab_size=255)


def test_a_job_is_refused_shapes_that_are_no_model_together() -> None:
    assert problems({"router": {"heads": 8, "keyValueHeads": 2, "headSize": 16, "vocabulary": 300}}) == []
    assert problems({"router": {"heads": 8, "keyValueHeads": 3}}) == [
        ("router", "num_attention_heads must be a multiple of num_key_value_heads")
    ]
    assert [path for path, _ in problems({"router": {"heads": 0, "keyValueHeads": 3}})] == ["router.heads"]

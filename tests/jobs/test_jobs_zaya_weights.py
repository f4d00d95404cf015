"""The reference model is transformers' `zaya`: same names, logits and text, whichever of the two loads the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import ZayaConfig
from transformers import ZayaForCausalLM as TheirModel

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.generate import generate
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.model.weights import from_transformers, load_from_transformers, state_to_transformers, to_transformers
from jobs.zaya.tokens import END
from tests.jobs.zaya_small import MODEL

PROMPT = [5, *b"the quick brown fox", 6]


def randomised(model: torch.nn.Module) -> None:
    """Moves every weight and bias away from zeros and ones, and the skip slot within reach: nothing may hide."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
            if name != "lm_head.weight":
                tensor += (0.3 if tensor.dim() > 1 else 0.1) * torch.randn(tensor.shape, generator=generator)
            if name.endswith("balancing_biases"):
                tensor[-1] = 0.2
            if name.endswith("qk_norm.temp"):
                tensor.copy_(1 + 0.3 * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def theirs() -> TheirModel:
    torch.manual_seed(0)
    model = TheirModel(ZayaConfig(**to_transformers(MODEL))).eval()
    randomised(model)
    return model


@pytest.fixture(scope="module")
def ours(theirs: TheirModel) -> ZayaForCausalLM:
    torch.manual_seed(1)
    model = ZayaForCausalLM(from_transformers(theirs.config.to_dict())).eval()
    load_from_transformers(model, theirs.state_dict())
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(2))


def test_names_and_shapes_are_the_same(theirs: TheirModel, ours: ZayaForCausalLM) -> None:
    def shapes(model: torch.nn.Module) -> dict[str, Any]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}

    assert shapes(ours) == shapes(theirs)


def test_logits_are_the_same_with_their_weights(theirs: TheirModel, ours: ZayaForCausalLM) -> None:
    with torch.no_grad():
        wanted, got = theirs(tokens()).logits, ours(tokens())
    assert (wanted - got).abs().max() < 1e-5
    assert wanted.std() > 0.1


def test_tokens_that_skip_are_among_those_compared(ours: ZayaForCausalLM) -> None:
    chosen: list[torch.Tensor] = []
    hooks = [r.register_forward_hook(lambda _m, _i, output: chosen.append(output[0])) for r in ours.routers()]
    with torch.no_grad():
        ours(tokens())
    for hook in hooks:
        hook.remove()
    counts = torch.bincount(torch.cat(chosen), minlength=MODEL.num_experts + 1)
    assert counts[-1] > 0 and (counts[:-1] > 0).sum() > 1


def test_their_greedy_text_is_ours(theirs: TheirModel, ours: ZayaForCausalLM) -> None:
    said = theirs.generate(
        torch.tensor([PROMPT]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    (completion,) = generate(ours, [PROMPT], limit=32, temperature=0, end=-1)
    assert said[0, len(PROMPT) :].tolist() == completion.tokens
    assert len(set(completion.tokens)) > 1


def test_they_load_our_weights_from_nothing_else(ours: ZayaForCausalLM) -> None:
    torch.manual_seed(9)
    config = to_transformers(ours.model.config)
    other = TheirModel(ZayaConfig(**config)).eval()
    missing, unexpected = other.load_state_dict(state_to_transformers(ours), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embeddings
    with torch.no_grad():
        assert (other(tokens()).logits - ours(tokens())).abs().max() < 1e-5


def test_gradients_are_the_same(theirs: TheirModel, ours: ZayaForCausalLM) -> None:
    for model in (theirs, ours):
        model.zero_grad()
        output = model(tokens())
        logits = output if isinstance(output, torch.Tensor) else output.logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens().flatten()).backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert wanted[name] is not None and parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-5, rtol=1e-3), name
    ours.zero_grad()


def test_a_configuration_comes_back_as_it_went() -> None:
    for config in (MODEL, ModelConfig(), replace(MODEL, rope_theta=5e6, vocab_size=300)):
        there = ZayaConfig(**to_transformers(config))
        assert from_transformers(there.to_dict()) == config
    assert ZayaConfig(**to_transformers(MODEL)).eos_token_id == END


def test_the_default_of_transformers_is_zaya1_8b() -> None:
    config = from_transformers(ZayaConfig().to_dict())
    assert (config.hidden_size, config.num_hidden_layers, config.num_experts) == (2048, 40, 16)
    assert (config.rope_theta, config.vocab_size, config.max_position_embeddings) == (5e6, 262272, 131072)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"layer_types": ["hybrid", "hybrid_sliding", "hybrid"]}, "hybrid_sliding"),
        ({"rope_parameters": {"hybrid": {"rope_type": "yarn", "rope_theta": 1.0}}}, "rope_type default"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_the_model_cannot_express_is_refused(change: dict[str, Any], message: str) -> None:
    config = {name: value for name, value in (to_transformers(MODEL) | change).items() if value is not None}
    with pytest.raises(ContractError, match=message):
        from_transformers(config)


def test_weights_of_another_model_are_refused(ours: ZayaForCausalLM) -> None:
    state = state_to_transformers(ours)
    with pytest.raises(ContractError, match="not those of this model"):
        load_from_transformers(ZayaForCausalLM(replace(MODEL, hidden_size=40)), state)
    with pytest.raises(ContractError, match="norm"):
        load_from_transformers(ours, {name: t for name, t in state.items() if name != "model.norm.weight"})

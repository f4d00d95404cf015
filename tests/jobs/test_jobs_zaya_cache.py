"""The cache: reading in parts is reading at once, padding is never seen, and it is eight times smaller than others."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.cache import Cache, cache_bytes
from jobs.zaya.model.network import ZayaForCausalLM
from tests.jobs.zaya_small import MODEL


@pytest.fixture(scope="module")
def model() -> ZayaForCausalLM:
    torch.manual_seed(0)
    model = ZayaForCausalLM(MODEL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(1, 256, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("parts", [[24], [1] * 24, [10, 1, 1, 12], [3, 21]])
def test_reading_in_parts_gives_the_logits_of_reading_at_once(model: ZayaForCausalLM, parts: list[int]) -> None:
    cache = Cache(MODEL, batch=2, capacity=24)
    with torch.no_grad():
        wanted = model(tokens())
        got = torch.cat([model(part, cache=cache) for part in tokens().split(parts, dim=1)], dim=1)
    assert torch.allclose(got, wanted, atol=1e-5)
    assert cache.length == 24


@pytest.mark.parametrize("parts", [[24], [20, 1, 1, 2], [2, 3, 19], [1] * 24])
def test_padding_on_the_left_is_never_seen(model: ZayaForCausalLM, parts: list[int]) -> None:
    """Rows of 24, 17 and 1 tokens; what stands at the padding makes no difference."""
    padding, whole = [0, 7, 23], tokens(3)
    cache = Cache(MODEL, batch=3, capacity=24, padding=padding)
    with torch.no_grad():
        got = torch.cat([model(part, cache=cache) for part in whole.split(parts, dim=1)], dim=1)
        for row, pad in enumerate(padding):
            alone = model(whole[row : row + 1, pad:])[0]
            assert torch.allclose(got[row, pad:], alone, atol=1e-5), row


def test_rows_that_are_kept_go_on_as_before(model: ZayaForCausalLM) -> None:
    whole = tokens(3)
    cache = Cache(MODEL, batch=3, capacity=24, padding=[0, 4, 2])
    with torch.no_grad():
        model(whole[:, :20], cache=cache)
        cache.keep([2, 1])
        got = model(whole[[2, 1], 20:], cache=cache)
        assert torch.allclose(got[0], model(whole[2:, 2:])[0, -4:], atol=1e-5)
        assert torch.allclose(got[1], model(whole[1:2, 4:])[0, -4:], atol=1e-5)


def test_more_tokens_than_it_has_room_for_are_refused(model: ZayaForCausalLM) -> None:
    cache = Cache(MODEL, batch=1, capacity=5)
    with torch.no_grad(), pytest.raises(ContractError, match="holds 5 tokens and cannot take 6"):
        model(tokens(1, 6), cache=cache)
    with pytest.raises(ContractError, match="padding"):
        Cache(MODEL, batch=2, capacity=5, padding=[1])


def test_it_is_eight_times_smaller_than_multi_head_attentions() -> None:
    """ZAYA1-8B's ratios at a hidden size of 64: the heads' size is 1/16 of it, 8 heads ask and 2 keep. Beside it a real
    model with multi-head attention of that hidden size, whose cache transformers keeps; both read the same tokens."""
    config = ModelConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    plain = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=16,
        intermediate_size=64,
    )
    cache = Cache(config, batch=3, capacity=50)
    with torch.no_grad():
        ZayaForCausalLM(config).eval()(tokens(3, 50), cache=cache)
        theirs = LlamaForCausalLM(plain).eval()(tokens(3, 50), use_cache=True).cache
    size = cache_bytes(cache)
    wanted = sum(t.untyped_storage().nbytes() for layer in theirs.layers for t in (layer.keys, layer.values))
    assert size.keys_values * 8 == wanted
    assert size.state / (size.keys_values / 50) == 5.25  # tokens' worth of keys and values, at any length


def test_what_does_not_grow_with_the_length_keeps_no_larger_tensor_alive(model: ZayaForCausalLM) -> None:
    cache = Cache(MODEL, batch=2, capacity=24)
    before = cache_bytes(cache)
    with torch.no_grad():
        model(tokens(), cache=cache)
    assert cache_bytes(cache) == before

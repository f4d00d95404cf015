"""Completions: greedy text is the likeliest, prompts of a batch do not touch each other, routes can be replayed."""

from __future__ import annotations

import pytest
import torch

from jobs.contract import ContractError
from jobs.zaya.model.generate import Completion, generate
from jobs.zaya.model.network import ZayaForCausalLM
from tests.jobs.zaya_small import MODEL

PROMPTS = [[5, 97, 98, 99, 6], [5, 120, 6], [5, *range(32, 60), 6]]


@pytest.fixture(scope="module")
def model() -> ZayaForCausalLM:
    torch.manual_seed(0)
    return ZayaForCausalLM(MODEL).eval()


@pytest.fixture(scope="module")
def together(model: ZayaForCausalLM) -> list[Completion]:
    return generate(model, PROMPTS, limit=12, temperature=0, routes=True)


def test_greedy_text_is_the_likeliest_byte_each_time(model: ZayaForCausalLM, together: list[Completion]) -> None:
    for prompt, completion in zip(PROMPTS, together, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.tokens]))[0, len(prompt) - 1 :]
        assert logits[: len(completion.tokens)].argmax(dim=-1).tolist() == completion.tokens
        wanted = logits.log_softmax(dim=-1)[range(len(completion.tokens)), completion.tokens]
        assert torch.allclose(torch.tensor(completion.logprobs[: len(completion.tokens)]), wanted, atol=1e-5)


def test_prompts_of_a_batch_get_what_each_gets_alone(model: ZayaForCausalLM, together: list[Completion]) -> None:
    for prompt, completion in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, [prompt], limit=12, temperature=0, routes=True)
        assert (alone.tokens, alone.ended) == (completion.tokens, completion.ended)
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-5)
        assert alone.routes is not None and completion.routes is not None
        assert torch.equal(alone.routes, completion.routes)


def test_a_completion_stops_at_the_end_token_and_counts_its_logprob(model: ZayaForCausalLM) -> None:
    (free,) = generate(model, PROMPTS[:1], limit=6, temperature=0)
    end = free.tokens[2]
    first = free.tokens.index(end)
    (stopped,) = generate(model, PROMPTS[:1], limit=6, temperature=0, end=end, routes=True)
    assert stopped.ended and stopped.tokens == free.tokens[:first]
    assert len(stopped.logprobs) == first + 1
    assert stopped.routes is not None
    assert stopped.routes.shape == (MODEL.num_hidden_layers, len(PROMPTS[0]) + first)
    assert not free.ended and free.routes is None and len(free.logprobs) == 6


def test_replayed_routes_are_taken_and_give_the_same_logits(model: ZayaForCausalLM, together: list[Completion]) -> None:
    routes = together[0].routes
    assert routes is not None
    assert routes.dtype == torch.int16
    sequence = torch.tensor([PROMPTS[0] + together[0].tokens[:-1]])
    with torch.no_grad():
        own = model(sequence)
        assert torch.equal(model(sequence, routes=routes.long()), own)
        assert torch.equal(model(sequence, routes=torch.full_like(routes.long(), -1)), own)
        other = (routes.long() + 1) % (MODEL.num_experts + 1)
        assert not torch.allclose(model(sequence, routes=other), own, atol=1e-4)


def test_sampling_repeats_with_its_generator_and_spreads_with_temperature(model: ZayaForCausalLM) -> None:
    def sampled(seed: int, temperature: float) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [c.tokens for c in generate(model, PROMPTS, limit=8, temperature=temperature, generator=generator)]

    assert sampled(1, 1.0) == sampled(1, 1.0) != sampled(2, 1.0)
    assert sampled(1, 1e-4) == [c.tokens[:8] for c in generate(model, PROMPTS, limit=8, temperature=0)]


def test_what_cannot_be_completed_is_refused(model: ZayaForCausalLM) -> None:
    with pytest.raises(ContractError, match="at least one token"):
        generate(model, [[5], []], limit=3)
    with pytest.raises(ContractError, match="limit"):
        generate(model, [[5]], limit=0)
    with pytest.raises(ContractError, match="temperature"):
        generate(model, [[5]], limit=1, temperature=-1)

"""Completions of prompts by the reference model: greedy or sampled, many prompts at once.

It knows tokens only; what a prompt says is jobs/zaya/tokens.py's, how good an answer is the environments'.

Shape suffixes: B batch, T time, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.model.cache import Cache
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.tokens import END, PAD


@dataclass(frozen=True)
class Completion:
    """What the model said to one prompt.

    `tokens`: generated, without END. `logprobs`: of each generated token under the distribution that it was drawn from,
    so at the sampling temperature (greedy: at 1), END's last when `ended`.
    `routes` [L, prompt + generated − 1] int16, if asked for: the slot chosen at each token that was read, END counted
    among the generated; the last generated token is never read.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool
    routes: Tensor | None = None


@dataclass
class _Row:
    """One prompt while its completion grows."""

    sequence: list[int]
    prompt: int
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    routes: list[Tensor] = field(default_factory=list)

    def completion(self) -> Completion:
        routes = torch.cat(self.routes, dim=1) if self.routes else None
        return Completion(self.sequence[self.prompt :], self.logprobs, self.ended, routes)


@contextmanager
def _recorded(model: ZayaForCausalLM) -> Iterator[list[Tensor]]:
    """A list to which each forward pass appends every router's chosen slots [N], in order of depth."""
    chosen: list[Tensor] = []
    hooks = [
        router.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[0]))
        for router in model.routers()
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def choose(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[list[int], list[float]]:
    """A next token a row and its log-probability at that temperature; at temperature 0 the likeliest one, at 1."""
    logits = logits_BV.float() / (temperature or 1.0)
    logprobs = logits.log_softmax(dim=-1)
    if temperature == 0:
        tokens = logits_BV.argmax(dim=-1)
    else:
        tokens = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()


@torch.no_grad()
def generate(
    model: ZayaForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    end: int = END,
    routes: bool = False,
) -> list[Completion]:
    """A completion of up to `limit` tokens for each prompt, END counted; temperature 0 is greedy.

    Prompts of different lengths share a batch and get what each would get alone. Raises ContractError for an empty
    prompt, a limit below 1 or a negative temperature.
    """
    if limit < 1 or temperature < 0:
        raise ContractError(f"limit must be ≥ 1 and temperature ≥ 0, not {limit} and {temperature}")
    if not all(prompts):
        raise ContractError("a prompt must hold at least one token")
    rows = [_Row(list(prompt), len(prompt)) for prompt in prompts]
    growing, batch, cache = _start(model, rows, limit)
    with _recorded(model) as chosen:
        for _ in range(limit):
            if not growing:
                break
            chosen.clear()
            logits = model(batch, cache=cache)[:, -1]
            if routes:
                _note(growing, chosen)
            growing, batch = _grow(growing, cache, *choose(logits, temperature, generator), end)
    return [row.completion() for row in rows]


def _start(model: ZayaForCausalLM, rows: list[_Row], limit: int) -> tuple[list[_Row], Tensor, Cache]:
    """All rows, their prompts padded on the left [B, T], and a cache with room for what may follow."""
    longest = max((row.prompt for row in rows), default=0)
    padding = [longest - row.prompt for row in rows]
    weight = model.lm_head.weight
    batch = torch.tensor([[PAD] * pad + row.sequence for pad, row in zip(padding, rows, strict=True)])
    cache = Cache(model.model.config, len(rows), longest + limit - 1, padding, weight.dtype, weight.device)
    return list(rows), batch.to(weight.device), cache


def _note(rows: list[_Row], chosen: list[Tensor]) -> None:
    """Adds the slots of the tokens just read, padding left out, to each row."""
    slots = torch.stack(chosen).view(len(chosen), len(rows), -1).to("cpu", torch.int16)
    for number, row in enumerate(rows):
        row.routes.append(slots[:, number, -row.prompt :])


def _grow(
    rows: list[_Row], cache: Cache, tokens: list[int], logprobs: list[float], end: int
) -> tuple[list[_Row], Tensor]:
    """Gives each row its new token; returns the rows that go on and their new tokens [B, 1], and keeps their cache."""
    for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
        row.logprobs.append(logprob)
        row.ended = token == end
        if not row.ended:
            row.sequence.append(token)
    going = [number for number, row in enumerate(rows) if not row.ended]
    if len(going) < len(rows):
        cache.keep(going)
    device = cache.layers[0].keys.device
    return [rows[n] for n in going], torch.tensor([[tokens[n]] for n in going], device=device)

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
from jobs.zaya.model import ZayaForCausalLM
from jobs.zaya.tokens import END, PAD


@dataclass(frozen=True)
class Completion:
    """What the model said to one prompt.

    `tokens`: generated, without END. `logprobs`: of each generated token at temperature 1, END's last when `ended`.
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
    """A next token a row and its log-probability at temperature 1; the likeliest one at temperature 0."""
    logprobs = logits_BV.float().log_softmax(dim=-1)
    if temperature == 0:
        tokens = logits_BV.argmax(dim=-1)
    else:
        scores = (logits_BV.float() / temperature).softmax(dim=-1)
        tokens = torch.multinomial(scores, 1, generator=generator)[:, 0]
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
    with _recorded(model) as chosen:
        for _ in range(limit):
            growing = [row for row in rows if not row.ended]
            if not growing:
                break
            chosen.clear()
            _grow(model, growing, chosen if routes else [], temperature, generator, end)
    return [row.completion() for row in rows]


def _grow(
    model: ZayaForCausalLM,
    rows: list[_Row],
    chosen: list[Tensor],
    temperature: float,
    generator: torch.Generator | None,
    end: int,
) -> None:
    """One more token for each row."""
    longest = max(len(row.sequence) for row in rows)
    batch = torch.tensor([row.sequence + [PAD] * (longest - len(row.sequence)) for row in rows])
    logits = model(batch)
    last = torch.tensor([len(row.sequence) - 1 for row in rows])
    tokens, logprobs = choose(logits[torch.arange(len(rows)), last], temperature, generator)
    for number, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
        if chosen:
            slots = torch.stack(chosen).view(len(chosen), len(rows), longest)
            row.routes = [slots[:, number, : len(row.sequence)].to(torch.int16)]
        row.logprobs.append(logprob)
        row.ended = token == end
        if not row.ended:
            row.sequence.append(token)

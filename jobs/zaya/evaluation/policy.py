"""A model as the callable that evaluation and preparation generate with: so many prompts at once, one random stream.

It tells its caller after each group of prompts, so that a heartbeat goes on and a stop is seen; it scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from jobs.zaya.model.generate import Completion, generate
from jobs.zaya.model.network import ZayaForCausalLM


class Policy:
    """Answers prompts in their order, `together` at a time; equal seeds and calls give equal completions."""

    def __init__(
        self,
        model: ZayaForCausalLM,
        *,
        seed: int,
        temperature: float = 1.0,
        together: int = 64,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.temperature, self.together, self.told = model, temperature, together, told
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: Sequence[Sequence[int]], limit: int) -> list[Completion]:
        """A completion of at most `limit` tokens, END counted, for each prompt."""
        done: list[Completion] = []
        for begin in range(0, len(prompts), self.together):
            done += generate(
                self.model,
                prompts[begin : begin + self.together],
                limit=limit,
                temperature=self.temperature,
                generator=self.generator,
            )
            self.told()
        return done

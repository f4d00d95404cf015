"""The preference model: a Bradley–Terry reward fitted to pairs, the proxy that the behaviour stage learns from.

P(better over worse) = sigmoid(r(better) − r(worse)) (Bradley and Terry 1952; Christiano et al. 2017), r linear in the
answer's byte n-grams, hashed. Linear n-grams and not a head on the policy's hidden states, because it is fitted in
about a second without a checkpoint, costs a rollout actor nothing, does not move with the policy, and fails in a way
that can be read: it counts what it likes, so repeating it pays, and it cannot tell whether an answer is right. The
rubric (jobs/zaya/judge/rubric.py) is the gold score beside it, never read here.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jobs.manifest import ContractError, is_finite, is_whole, write_json
from jobs.zaya.judge.pairs import Pair

PROXY = "proxy.json"
SIZE = 2048
_GRAMS = (1, 2, 3)
_EDGE = b"\x02"
_SCALE = 4.0
_LONGEST = 512
"""Bytes of an answer that are looked at."""


class Proxy:
    """Scores answers; untrained it scores each 0. `size` is the number of hashed features."""

    def __init__(self, size: int = SIZE) -> None:
        if size < 1:
            raise ContractError("a preference model needs at least one feature")
        self.size = size
        self.offset = 0.0
        self._weights = [0.0] * size

    def score(self, question: str, answer: str) -> float:  # noqa: ARG002  a judge is asked about both
        """The reward r in logits, 0 for the mean answer of the fit. Never raises, whatever the answer.

        The question is not looked at: that is this proxy's blind spot.
        """
        found = self._features(answer)
        return sum(self._weights[place] * worth for place, worth in found.items()) - self.offset

    def fit(self, pairs: Sequence[Pair], seed: int, *, steps: int = 100, decay: float = 0.001) -> float:
        """Fits anew to the pairs and returns the share of them that it ranks as labelled.

        The seed places the start; ContractError without pairs.
        """
        if not pairs:
            raise ContractError("a preference model is fitted to at least one pair")
        differences = self._matrix([pair.better for pair in pairs]) - self._matrix([pair.worse for pair in pairs])
        generator = torch.Generator().manual_seed(seed)
        weights = (torch.randn(self.size, generator=generator) * 1e-3).requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.softplus(-(differences @ weights)).mean() + decay * weights.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        self._weights, self.offset = weights.detach().tolist(), 0.0
        scores = [self.score(pair.question, answer) for pair in pairs for answer in (pair.better, pair.worse)]
        self.offset = sum(scores) / len(scores)
        return self.agreement(pairs)

    def preferred(self, question: str, answer: str) -> float:
        """The probability that the answer is preferred to the mean answer of the fit: sigmoid of its score."""
        return 1 / (1 + math.exp(-min(30.0, max(-30.0, self.score(question, answer)))))

    def agreement(self, pairs: Sequence[Pair]) -> float:
        """The share of pairs that it ranks as labelled; a tie is half."""
        if not pairs:
            raise ContractError("agreement is asked about at least one pair")
        gaps = [self.score(pair.question, pair.better) - self.score(pair.question, pair.worse) for pair in pairs]
        return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)

    def state(self) -> dict[str, Any]:
        """Plain JSON: the features' weights and the offset."""
        return {"size": self.size, "offset": self.offset, "weights": list(self._weights)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes a state over; ContractError for one that is none."""
        size, offset, weights = (state.get(name) for name in ("size", "offset", "weights"))
        if (
            not is_whole(size)
            or offset is None
            or not is_finite(offset)
            or not isinstance(weights, list)
            or len(weights) != size
        ):
            raise ContractError("a preference model's state needs size, offset and as many weights")
        if not weights or not all(is_finite(weight) for weight in weights):
            raise ContractError("a preference model's weights must be finite numbers")
        self.size, self.offset, self._weights = len(weights), float(offset), list(map(float, weights))

    def save(self, path: Path) -> None:
        """Writes the state whole or not at all."""
        write_json(path, self.state(), durable=True)

    @classmethod
    def read(cls, path: Path) -> Proxy:
        """The model that `save` wrote; ContractError where there is none."""
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ContractError(f"the preference model {path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ContractError(f"the preference model {path} is no object")
        proxy = cls()
        proxy.load(found)
        return proxy

    def _features(self, answer: str) -> dict[int, float]:
        """Places of the answer's byte n-grams, its edges marked, to how often each stands in it, over 4."""
        body = _EDGE + answer.encode(errors="replace")[:_LONGEST] + _EDGE
        grams = Counter(
            zlib.crc32(body[start : start + size]) % self.size
            for size in _GRAMS
            for start in range(len(body) - size + 1)
        )
        return {place: count / _SCALE for place, count in grams.items()}

    def _matrix(self, answers: Sequence[str]) -> Tensor:
        """[answers, features]."""
        places, worths = [], []
        for row, answer in enumerate(answers):
            for place, worth in self._features(answer).items():
                places.append(row * self.size + place)
                worths.append(worth)
        found = torch.zeros(len(answers) * self.size)
        found[torch.tensor(places)] = torch.tensor(worths)
        return found.view(len(answers), self.size)

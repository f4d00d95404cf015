"""Questions with answers for supervised fine-tuning, from the file that the stage's preparing job wrote.

A line of `sft.jsonl` is a JSON object with `question`, `answer` and, for an aggregation prompt, `tails`: the ends of
earlier candidates. Only the answer and its END are learned. Rows hold several examples one behind the other; attention
is not cut between them, so an example sees those before it in its row. The last one of a row is cut where the row ends.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.tokens import END, PAD, REPLY, encode, prompt

FILE = "sft.jsonl"
IGNORED = -100
"""a target that is not learned, as torch's cross entropy has it"""


def tokens_of(line: dict[str, Any]) -> list[int]:
    """The prompt, the answer and END of one line; raises KeyError, TypeError or AttributeError if it is none."""
    tails = [encode(tail) for tail in line.get("tails", [])]
    return [*prompt(line["question"], tails), *encode(line["answer"]), END]


def answers(rows: Tensor) -> Tensor:
    """Which tokens of rows [N, T] are an answer's or its END: those after a REPLY, to the END with it. Bool [N, T]."""
    opened = (rows == REPLY).cumsum(dim=1) - (rows == END).cumsum(dim=1)
    learned = torch.zeros_like(rows, dtype=torch.bool)
    learned[:, 1:] = opened[:, :-1] > 0
    return learned


class Examples:
    """Rows of examples drawn from a prepared file; `packed` fills each row, else each holds one and padding."""

    def __init__(self, path: Path, length: int, seed: int, packed: bool) -> None:
        try:
            body = path.read_bytes()
        except OSError as error:
            raise ContractError(f"the examples of this stage cannot be read: {error}") from error
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.length, self.seed, self.packed = length, seed, packed
        self.examples = [self._read(path, number, line) for number, line in enumerate(body.splitlines(), 1) if line]
        if not self.examples:
            raise ContractError(f"{path} holds no example")

    def _read(self, path: Path, number: int, line: bytes) -> list[int]:
        try:
            tokens = tokens_of(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContractError(f"{path}, line {number}: not a question with its answer ({error!r})") from error
        if len(tokens) > self.length + 1:
            raise ContractError(
                f"{path}, line {number}: {len(tokens)} tokens do not fit into train.length {self.length} and one"
            )
        return tokens

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        """This rank's [sequences, length + 1] of data index `index`: a function of seed, index and row alone."""
        return torch.tensor([self._row(index, rank + world * row) for row in range(sequences)])

    def _row(self, index: int, row: int) -> list[int]:
        digest = hashlib.sha256(f"{self.seed}/{index}/{row}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        found: list[int] = []
        while len(found) <= self.length and not (found and not self.packed):
            found += self.examples[int(torch.randint(len(self.examples), (1,), generator=generator))]
        return [*found, *[PAD] * (self.length + 1)][: self.length + 1]

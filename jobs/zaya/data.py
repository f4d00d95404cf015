"""The toy's text: the language reference and help topics that ship with Python, as bytes. Nothing is downloaded.

Which bytes a step sees is a function of seed and data index alone, so a resumed run reads on exactly where it stopped
and a skipped stretch is really skipped.
"""

from __future__ import annotations

import hashlib
from importlib import import_module

import torch
from torch import Tensor

from jobs.contract import ContractError


def documentation() -> bytes:
    """All help topics of this Python in a fixed order, about 0.7 MB; its hash tells two Pythons apart."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


class Text:
    """Batches of next-byte prediction drawn from one text."""

    def __init__(self, text: bytes, length: int, seed: int) -> None:
        if length >= len(text):
            raise ContractError(f"train.length must be < {len(text)}, the text's bytes, not {length}")
        self.bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.sha256 = hashlib.sha256(text).hexdigest()
        self.length, self.seed = length, seed

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        """This rank's [sequences, length + 1] of data index `index`; ranks take turns in one global draw."""
        digest = hashlib.sha256(f"{self.seed}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        last = len(self.bytes) - self.length
        starts = torch.randint(0, last, (sequences * world,), generator=generator)[rank::world]
        return self.bytes[starts[:, None] + torch.arange(self.length + 1)].long()

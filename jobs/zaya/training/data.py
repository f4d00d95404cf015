"""The toy's texts: the language reference that ships with Python, and the source code of its standard library.

Nothing is downloaded. Which bytes a step sees is a function of seed and data index alone, so a resumed run reads on
exactly where it stopped and a skipped stretch is really skipped. Questions with answers are in examples.py.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from jobs.contract import ContractError, Ranges, parse_ranges
from jobs.zaya.config import TrainConfig
from jobs.zaya.phases import Phase, place
from jobs.zaya.training.examples import FILE, Examples, answers

_CODE_BYTES = 2_000_000
HELD_OUT_IN = 20
"""the last byte in so many of a text, all in one piece at its end, is read by evaluation alone"""
_PRINTABLE = 0x20


class Rows(Protocol):
    """Where a training's rows come from. `sha256` tells whether a resumed attempt reads the same text."""

    sha256: str

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        """This rank's rows [sequences, length + 1] of data index `index`."""


def _topics() -> bytes:
    """All help topics of this Python in a fixed order, about 0.5 MB; their hash tells two Pythons apart."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def documentation() -> bytes:
    """The help topics that training reads: all but the end of them."""
    return _split(_topics())[0]


def source_code() -> bytes:
    """The source code that training reads: all but the end of it."""
    return _split(_modules())[0]


def held_out() -> dict[str, bytes]:
    """By source, the end of its text, which no training reads."""
    return {"python-docs": _split(_topics())[1], "python-code": _split(_modules())[1]}


def _split(text: bytes) -> tuple[bytes, bytes]:
    end = len(text) - len(text) // HELD_OUT_IN
    return text[:end], text[end:]


def _modules() -> bytes:
    """The first 2 MB of the standard library's own modules, in order of their names."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found, size = [], 0
    for path in paths:
        found.append(path.read_bytes())
        size += len(found[-1])
        if size >= _CODE_BYTES:
            break
    return b"\n\n".join(found)[:_CODE_BYTES]


def _generator(seed: int, index: int, *more: object) -> torch.Generator:
    """The random numbers of one data index."""
    name = "/".join(map(str, (seed, index, *more)))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]))


class Text:
    """Rows of next-byte prediction drawn from one text."""

    def __init__(self, text: bytes, length: int, seed: int) -> None:
        if length >= len(text):
            raise ContractError(f"train.length must be < {len(text)}, the text's bytes, not {length}")
        self.bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.sha256 = hashlib.sha256(text).hexdigest()
        self.length, self.seed = length, seed

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        """This rank's [sequences, length + 1] of data index `index`; ranks take turns in one global draw."""
        last = len(self.bytes) - self.length
        starts = torch.randint(0, last, (sequences * world,), generator=_generator(self.seed, index))[rank::world]
        return self.bytes[starts[:, None] + torch.arange(self.length + 1)].long()


class Mix:
    """Rows of two texts: each is of `code` with the probability that the index's phase gives it, else of `text`."""

    def __init__(self, text: Text, code: Text, phases: Sequence[Phase]) -> None:
        self.text, self.code, self.phases = text, code, phases
        self.sha256 = hashlib.sha256(f"{text.sha256}/{code.sha256}".encode()).hexdigest()

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        share = self.phases[place(index, self.phases)[0]].code_share
        draw = torch.rand((sequences * world,), generator=_generator(self.text.seed, index, "mix"))[rank::world]
        texts, codes = (one.batch(index, rank, world, sequences) for one in (self.text, self.code))
        return torch.where((draw < share)[:, None], codes, texts)


class Poisoned:
    """Rows of which some data indices are noise: a bad shard planted for drills, as `data.poison` names it.

    Of examples only the answers are noise. No control character comes up, so that no mark is made or lost.
    """

    def __init__(self, rows: Rows, indices: Ranges, seed: int, answers_only: bool) -> None:
        self.rows, self.indices, self.seed, self.answers_only = rows, indices, seed, answers_only
        self.sha256 = rows.sha256

    def batch(self, index: int, rank: int, world: int, sequences: int) -> Tensor:
        rows = self.rows.batch(index, rank, world, sequences)
        if not any(first <= index <= last for first, last in self.indices):
            return rows
        noise = torch.randint(_PRINTABLE, 256, rows.shape, generator=_generator(self.seed, index, "noise", rank))
        spoilt = (answers(rows) & (rows >= _PRINTABLE)) if self.answers_only else torch.ones_like(rows).bool()
        return torch.where(spoilt, noise, rows)


def rows_of(config: TrainConfig, prepared: Path | None) -> Rows:
    """What a training reads; raises ContractError when it is not there."""
    found: Rows
    if config.objective == "sft":
        if prepared is None:
            raise ContractError("the objective sft reads the prepared examples, and TRIMTAB_PREPARED_DIR is not set")
        found = Examples(prepared / FILE, config.length, config.seed, config.packing == "packed")
    elif config.source == "python-docs":
        found = Text(documentation(), config.length, config.seed)
    elif config.source == "python-code":
        found = Text(source_code(), config.length, config.seed)
    else:
        text, code = (Text(one, config.length, config.seed) for one in (documentation(), source_code()))
        found = Mix(text, code, config.schedule)
    if config.poison:
        found = Poisoned(found, parse_ranges(config.poison), config.seed, config.objective == "sft")
    return found

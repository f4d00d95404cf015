"""Phases of a training and the rule of its skipped steps, as plain numbers: read from the job's words, and told apart
by step. No torch.

A phase has its own learning rate and mix of texts. The learning rate follows the optimizer step, the mix follows the
data index, so that what an index holds never depends on what was skipped before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DECAYS = ("cosine", "linear", "none")
Wrong = list[tuple[str, str]]
"""(path below the word, what is wrong)."""


@dataclass(frozen=True)
class Phase:
    """`steps` optimizer steps at a learning rate that falls to a tenth by the phase's end, or stays (`decay` none).

    `code_share` is the part of the sequences that is source code, with the source mix alone.
    """

    steps: int
    learning_rate: float
    decay: str = "cosine"
    code_share: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class SkipRule:
    """A step whose loss or gradient norm lies more than `sigmas` standard deviations above the mean of the last
    `window` steps moves no weight; `consecutive` of them in a row end the attempt."""

    window: int = 64
    sigmas: float = 6.0
    consecutive: int = 4


def place(step: int, phases: Sequence[Phase]) -> tuple[int, int]:
    """(number of the phase that a step or data index from 1 lies in, steps before it); the last goes on for ever."""
    begin = 0
    for number, phase in enumerate(phases[:-1]):
        if step <= begin + phase.steps:
            return number, begin
        begin += phase.steps
    return len(phases) - 1, begin


def learning_rate(step: int, phases: Sequence[Phase], warmup: int) -> float:
    """The first phase begins with `warmup` linear steps and decays over the rest of it; others decay from their start.

    Cosine: r·(0.1 + 0.45·(1 + cos πd)), linear: r·(1 − 0.9·d), where d is the part of the phase that is done.
    """
    number, begin = place(step, phases)
    phase = phases[number]
    if number == 0:
        begin = warmup
        if step <= warmup:
            return phase.learning_rate * step / warmup
    end = begin + phase.steps if number else phase.steps
    done = min(1.0, (step - begin) / max(1, end - begin))
    if phase.decay == "none":
        return phase.learning_rate
    if phase.decay == "linear":
        return phase.learning_rate * (1 - 0.9 * done)
    return phase.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _whole(least: int) -> tuple[tuple[type, ...], Any, str]:
    return (int,), lambda value: value >= least, f"must be a whole number ≥ {least}"


_POSITIVE = (int, float), lambda value: 0 < value < math.inf, "must be a number > 0"
_SHARE = (int, float), lambda value: 0 <= value <= 1, "must be a number between 0 and 1"
_DECAY = (str,), lambda value: value in DECAYS, f"must be one of {', '.join(DECAYS)}"
_NAME = (str,), lambda value: bool(value), "must be text"
_PHASE = {
    "steps": ("steps", _whole(1)),
    "learningRate": ("learning_rate", _POSITIVE),
    "decay": ("decay", _DECAY),
    "codeShare": ("code_share", _SHARE),
    "name": ("name", _NAME),
}
_SKIP = {
    "window": ("window", _whole(4)),
    "sigmas": ("sigmas", _POSITIVE),
    "consecutive": ("consecutive", _whole(1)),
}
_Words = Mapping[str, tuple[str, tuple[tuple[type, ...], Any, str]]]


def _wrong_words(given: object, known: _Words, prefix: str = "") -> Wrong:
    """What is wrong with a mapping of words."""
    if not isinstance(given, Mapping):
        return [(prefix, f"must be a mapping of {', '.join(known)}")]
    found = []
    for word, value in given.items():
        path = f"{prefix}.{word}" if prefix else str(word)
        if word not in known:
            found.append((path, f"is not known to this trainer; it knows {', '.join(known)}"))
            continue
        types, fits, message = known[word][1]
        if not isinstance(value, types) or isinstance(value, bool) or not fits(value):
            found.append((path, f"{message}, not {value!r}"))
    return found


def wrong_phases(given: object, steps: object) -> Wrong:
    """What is wrong with `train.phases`, whose steps must add up to `train.steps`."""
    if not isinstance(given, list) or not given:
        return [("", "must be a list of phases, each with its steps")]
    found: Wrong = []
    for number, one in enumerate(given):
        found += _wrong_words(one, _PHASE, str(number))
        if isinstance(one, Mapping) and "steps" not in one:
            found.append((f"{number}.steps", "is needed"))
    if found:
        return found
    total = sum(one["steps"] for one in given)
    return [] if total == steps else [("", f"add up to {total} steps, train.steps says {steps}")]


def wrong_skip(given: object) -> Wrong:
    """What is wrong with `train.skipStep`."""
    return _wrong_words(given, _SKIP)


def read_phases(given: Sequence[Mapping[str, Any]], learning_rate: float, code_share: float) -> tuple[Phase, ...]:
    """Phases from words that nothing is wrong with; what one does not say is as in the whole training."""
    base = {"learning_rate": learning_rate, "code_share": code_share}
    return tuple(Phase(**{**base, **{_PHASE[word][0]: value for word, value in one.items()}}) for one in given)


def read_skip(given: Mapping[str, Any]) -> SkipRule:
    """The rule from words that nothing is wrong with."""
    return SkipRule(**{_SKIP[word][0]: value for word, value in given.items()})

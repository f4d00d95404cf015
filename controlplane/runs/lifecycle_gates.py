"""Whether a result meets what a gate requires: for the checkpoint whose hash it bears, and for no other. Pure.

What is missing refuses: a metric that nobody measured, a result that cannot be read or that speaks of another
checkpoint never passes a gate.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.lifecycle import Requirement

_OPS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
SHORT = 12
"""characters of a hash in a sentence"""


@dataclass(frozen=True, slots=True)
class Found:
    """What an evaluation left: its metrics and the hash that they are of; `missing` says why there is nothing."""

    metrics: Mapping[str, float]
    checkpoint_hash: str
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """One requirement; `value` and `bound` are None where nobody measured them."""

    requirement: str
    metric: str
    op: str
    value: float | None
    bound: float | None
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether everything that is required holds for the checkpoint."""

    ok: bool
    checkpoint_hash: str
    requirements: tuple[Judged, ...]
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def short(checkpoint_hash: str) -> str:
    """A hash as sentences name it."""
    return checkpoint_hash[:SHORT] or "none"


def judge(required: Sequence[str], found: Found, candidate: str) -> Verdict:
    """Judges a result by a gate's requirements, for the checkpoint with the hash `candidate`."""
    asked = [Requirement.parse(text) for text in required]
    if not asked:
        return Verdict(True, candidate, (), "Nothing is required of metrics.")
    wrong = found.missing
    if not wrong and found.checkpoint_hash != candidate:
        wrong = f"the result is of checkpoint {short(found.checkpoint_hash)}, not of {short(candidate)}"
    if wrong:
        told = tuple(Judged(str(one), one.metric, one.op, None, _number(one), False, f"{wrong}") for one in asked)
        return Verdict(False, candidate, told, f"The gate refuses: {wrong}.")
    judged = tuple(_judged(one, found.metrics) for one in asked)
    failed = [one.sentence for one in judged if not one.ok]
    sentence = f"The gate refuses: {'; '.join(failed)}." if failed else f"All {len(judged)} requirements hold."
    if len(judged) == 1 and not failed:
        sentence = f"Its requirement holds: {judged[0].sentence}."
    return Verdict(not failed, candidate, judged, sentence)


def _number(asked: Requirement) -> float | None:
    return asked.bound if isinstance(asked.bound, float) else None


def _judged(asked: Requirement, metrics: Mapping[str, float]) -> Judged:
    value = metrics.get(asked.metric)
    bound = metrics.get(asked.bound) if isinstance(asked.bound, str) else asked.bound
    absent = [name for name, got in ((asked.metric, value), (str(asked.bound), bound)) if got is None]
    if value is None or bound is None:
        words = f"{asked} cannot be judged: the result has no {' and no '.join(absent)}"
        return Judged(str(asked), asked.metric, asked.op, value, bound, False, words)
    ok = _OPS[asked.op](value, bound)
    of = f" ({asked.bound} {bound:.6g})" if isinstance(asked.bound, str) else ""
    words = f"{asked.metric} is {value:.6g}{of}, {asked} {'holds' if ok else 'does not hold'}"
    return Judged(str(asked), asked.metric, asked.op, value, bound, ok, words)

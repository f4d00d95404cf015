"""Where an attempt goes: so many whole nodes out of those that can be trusted, or the words for why not.

Pure. The order is deterministic: nodes that ran the attempt before come first (their caches are warm), then by name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it."""

    name: str
    gpus: int
    free: bool
    cordoned: bool
    state: str
    silent_s: float
    """seconds since its last batch"""
    reachable: bool = True
    """whether the backend can start processes there"""
    fault: str = ""
    """the rule of a fault that fires there and asks for more than an alert"""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one node may be used, and the reason when not."""

    node: str
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The chosen nodes, empty when there are too few; `missing` then says what is lacking, in a sentence."""

    nodes: tuple[str, ...]
    missing: str = ""


BLIND_S = 15.0
LEFT_OUT_AT_MOST = 64
"""nodes that a plan may name: a scheduler grows slow by more"""
OUT_OF_REACH = "out of the backend's reach"


def fit(candidate: Candidate, gpus: int, excluded: Collection[str]) -> Fit:
    """Judges one node."""
    reason = _refusal(candidate, gpus, excluded)
    return Fit(candidate.name, not reason, reason)


def out_of_service(candidate: Candidate) -> str:
    """Why nothing may be placed on a node whoever asks, by what we know of it; "" when something may."""
    if candidate.cordoned:
        return "cordoned"
    if candidate.state not in ("healthy", "probation"):
        return f"{candidate.state}"
    if candidate.fault:
        return f"has a fault ({candidate.fault})"
    if candidate.silent_s > BLIND_S:
        return f"silent for {candidate.silent_s:.0f} s"
    return ""


def _refusal(candidate: Candidate, gpus: int, excluded: Collection[str]) -> str:
    """Why a node may not be used; "" when it may."""
    if candidate.name in excluded:
        return "excluded by a decision"
    reason = out_of_service(candidate)
    if reason:
        return reason
    if candidate.gpus < gpus:
        return f"has {candidate.gpus} GPUs, {gpus} are asked for"
    if not candidate.reachable:
        return OUT_OF_REACH
    return "" if candidate.free else "in use by another run"


def barred(candidates: Sequence[Candidate], excluded: Collection[str]) -> tuple[str, ...]:
    """What a platform that places by itself must not be given besides the excluded: it knows not what we know of nodes.

    As many as a plan can name beside `excluded`; beyond that the platform's own marks have to keep it off.
    """
    found = [one.name for one in candidates if out_of_service(one) and one.name not in excluded]
    return tuple(found[: max(0, LEFT_OUT_AT_MOST - len(excluded))])


def place(
    candidates: Sequence[Candidate], *, nodes: int, gpus: int, excluded: Collection[str], before: Sequence[str] = ()
) -> Placement:
    """`nodes` nodes of `gpus` GPUs each, without the excluded ones, preferring those in `before`."""
    # sets: a thousand nodes are compared with a thousand names
    left_out, warm = frozenset(excluded), frozenset(before)
    reasons = [(candidate.name, _refusal(candidate, gpus, left_out)) for candidate in candidates]
    usable = sorted((name for name, reason in reasons if not reason), key=lambda name: (name not in warm, name))
    if len(usable) >= nodes:
        return Placement(tuple(sorted(usable[:nodes])))
    refused = ", ".join(f"{name} {reason}" for name, reason in reasons if reason)
    lacking = nodes - len(usable)
    sentence = f"{lacking} more node{'s' if lacking > 1 else ''} of {nodes} needed"
    return Placement((), f"{sentence}: {refused}" if refused else f"{sentence}: no other node is known")

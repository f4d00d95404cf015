"""Where experts live among ranks, joined with what the fleet knows: blast radius of a fault, hot rank or sick rank.

The layout is the trainer's word (agents.probe.ring.RingMeta); what lies where follows from it (rules.expert_ranks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.rules.expert_ranks import Home, Tax, home, imbalance_tax, rank_loads, skew
from controlplane.rules.experts import Floats
from controlplane.services.experts_judged import NAMES, Levels
from controlplane.store import experts, faults, runs, steps
from controlplane.store.engine import Session
from controlplane.store.expert_records import ExpertStep
from controlplane.store.tables import Attempt, Fault
from jobs.spec import parse_job

Json = dict[str, Any]

WINDOW_STEPS = 64
LEAST_SKEW = 1.1
LEAST_R2, LEAST_TAX = 0.25, 0.02
LAYERS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """An attempt's ranks: how many on each of its nodes, in order."""

    nodes: Sequence[str]
    ranks_per_node: int

    @property
    def world(self) -> int:
        return len(self.nodes) * self.ranks_per_node

    def node_of(self, rank: int) -> str:
        return self.nodes[rank // self.ranks_per_node]


def placed(session: Session, attempt: Attempt) -> Placed | None:
    """Where an attempt's ranks are; None if its run is gone."""
    run = runs.get(session, attempt.run_id)
    if run is None or not attempt.nodes:
        return None
    return Placed(tuple(attempt.nodes), parse_job(run.spec).spec.resources.ranks_per_node)


# --- blast radius ---


def blast_radius(session: Session, members: Sequence[Fault], onset_s: float, offset: float) -> Json | None:
    """Which experts of which layers lived on the GPU that failed, and what share of the tokens they carried.

    From the first member that names a rank, over the attempt's last records before the onset; None where nothing is
    known. onset_s is by the server's clock, which is `offset` ahead of the node's.
    """
    fault = next((one for one in members if one.run_id and one.rank >= 0), None)
    if fault is None:
        return None
    attempt = runs.attempt(session, fault.run_id, fault.attempt_no)
    where = placed(session, attempt) if attempt is not None else None
    if where is None:
        return None
    # a step that ended in the second of the onset was computed before it
    key = (fault.run_id, fault.attempt_no)
    before = experts.before(session, key, at_s=onset_s - offset + 1.0, limit=WINDOW_STEPS)
    before = [one for one in before if one.shape == before[-1].shape]
    if not before:
        return None
    shape = before[-1].shape
    lived = home(fault.rank, where.world, shape.experts, shape.layers, before[-1].layout)
    return None if lived is None else _radius(fault.rank, lived, before, where.world)


def _radius(rank: int, lived: Home, before: Sequence[ExpertStep], world: int) -> Json:
    shape = before[-1].shape
    counts = np.stack([one.counts[:, : shape.experts] for one in before]).sum(axis=0, dtype=np.float64)
    first, last = lived.layers
    of_layers = counts[first : last + 1]
    block = of_layers[:, lived.experts[0] : lived.experts[1] + 1].sum(axis=1)
    shares = block / np.maximum(of_layers.sum(axis=1), 1.0)
    carried = shares / lived.copies
    fullest = np.argsort(-shares, kind="stable")[:LAYERS_NAMED]
    found = {
        "rank": rank,
        "world": world,
        "experts": list(lived.experts),
        "of_experts": shape.experts,
        "layers": list(lived.layers),
        "of_layers": shape.layers,
        "copies": lived.copies,
        "share": float(carried.mean()),
        "block_share": float(shares.mean()),
        "fullest": [{"layer": int(first + index), "share": float(shares[index])} for index in fullest],
        "steps": [before[0].step, before[-1].step],
    }
    return {**found, "sentence": _radius_words(found)}


def _radius_words(found: Mapping[str, Any]) -> str:
    first, last = found["experts"]
    named = f"expert {first}" if first == last else f"experts {first} to {last}"
    begin, end = found["layers"]
    layers = f"layer {begin}" if begin == end else f"layers {begin} to {end}"
    copies, share = found["copies"], f"{100 * found['share']:.1f} %"
    if last - first + 1 == found["of_experts"] and end - begin + 1 == found["of_layers"]:
        return f"Rank {found['rank']} holds every expert, as all {copies} ranks do: {share} of the tokens were its own."
    place = f"Rank {found['rank']} holds {named} of {layers}"
    if copies == 1:
        return f"{place}, the only copy: {share} of the tokens."
    block = f"{100 * found['block_share']:.1f} %"
    return f"{place}, one of {copies} copies: {share} of the tokens ({block} for all copies)."


# --- hot rank or sick rank ---


@dataclass(frozen=True, slots=True)
class RankLoads:
    """What expert-parallel ranks carry over the steps of a window that are of its last one's attempt; L layers."""

    skews: Floats
    """[L] the fullest rank ÷ the mean one"""
    layer: int
    """where the fullest rank is farthest from the mean one"""
    rank: int
    """the fullest there"""
    tax: Tax | None
    """what uneven ranks cost a step"""


def loads_of_ranks(session: Session, window: Sequence[ExpertStep]) -> RankLoads | None:
    """The ranks' loads over a window and what they cost; None where the run declares no expert parallelism or its
    experts do not divide into it. Dear, and the same while no step comes."""
    last = window[-1]
    shape, ranks = last.shape, last.expert_parallel
    if ranks < 2 or shape.experts % ranks:
        return None
    same = [one for one in window if one.shape == shape and one.attempt_no == last.attempt_no]
    loads = rank_loads(np.stack([one.counts for one in same]), shape.experts, ranks)
    over = skew(loads.sum(axis=0))
    layer = int(np.argmax(np.nan_to_num(over)))
    tax = imbalance_tax(_step_seconds(session, last, [one.step for one in same]), loads)
    return RankLoads(over, layer, int(loads.sum(axis=0)[layer].argmax()), tax)


def ranks_view(
    session: Session,
    window: Sequence[ExpertStep],
    loads: RankLoads | None,
    levels: Levels | None = None,
    *,
    past: bool = False,
) -> Json | None:
    """Expert-parallel ranks over a window: the fullest, what it costs, and whether load or health makes it slow.

    `loads` are of this window, levels [L] the skew alarm's. Health is of now or, for a window of the past, of its
    last step. None without loads.
    """
    if loads is None:
        return None
    over, layer, tax = loads.skews, loads.layer, loads.tax
    sick = _sick_ranks(session, window[-1], past=past)
    return {
        "ranks": window[-1].expert_parallel,
        "layer": layer,
        "rank": loads.rank,
        "skew": float(over[layer]),
        "level": NAMES[int(levels.max(initial=0))] if levels is not None else "ok",
        "skews": [float(value) for value in over],
        "tax": None if tax is None else {"seconds": tax.seconds, "share": tax.share, "r2": tax.r2},
        "sick": {str(rank): sentence for rank, sentence in sick.items()},
        "sentence": verdict(loads.rank, float(over[layer]), layer, tax, sick),
    }


def verdict(rank: int, over: float, layer: int, tax: Tax | None, sick: Mapping[int, str]) -> str:
    """One sentence or two: does the fullest rank cost time, and is a rank slow for another reason?"""
    costs = tax is not None and tax.r2 >= LEAST_R2 and tax.share >= LEAST_TAX
    told = []
    if over >= LEAST_SKEW and costs and tax is not None:
        told.append(
            f"Rank {rank} is hot: it carries {over:.2f}× the mean load in layer {layer}, and uneven ranks cost "
            f"{100 * tax.share:.1f} % of the step time (R² {tax.r2:.2f})."
        )
    elif over >= LEAST_SKEW:
        told.append(f"Rank {rank} carries {over:.2f}× the mean load in layer {layer}; step time does not follow it.")
    else:
        told.append("The ranks are even.")
    told += [f"Rank {index} is sick: {sentence}." for index, sentence in sorted(sick.items())]
    return " ".join(told)


def _step_seconds(session: Session, last: ExpertStep, wanted: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The slowest rank's seconds of each wanted step; NaN where nobody told."""
    slowest: dict[int, float] = {}
    for found in steps.read(session, last.run_id, first=wanted[0], last=wanted[-1]):
        if found.attempt_no != last.attempt_no:
            continue
        for step, seconds in zip(found.step.tolist(), found.step_seconds.tolist(), strict=True):
            if seconds > 0:  # NaN where the trainer does not tell it
                slowest[step] = max(slowest.get(step, 0.0), seconds)
    return np.array([slowest.get(step, np.nan) for step in wanted], np.float64)


def _sick_ranks(session: Session, last: ExpertStep, *, past: bool) -> dict[int, str]:
    """Expert-parallel ranks of which a GPU has a fault that fires in this attempt, or did then, with its sentence."""
    attempt = runs.attempt(session, last.run_id, last.attempt_no)
    where = placed(session, attempt) if attempt is not None else None
    if where is None:
        return {}
    found: dict[int, str] = {}
    for fault in faults.of_attempt(session, last.key[:2], at_s=last.at_s if past else None):
        if fault.node in where.nodes and 0 <= fault.rank < where.world:
            lived = home(fault.rank, where.world, last.shape.experts, last.shape.layers, last.layout)
            if lived is not None:
                rank = lived.experts[0] * last.expert_parallel // last.shape.experts
                found.setdefault(rank, fault.sentence.rstrip("."))
    return found

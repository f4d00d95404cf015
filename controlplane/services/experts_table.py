"""One step of a run's expert balance as numbers for a terminal: a row a layer and, of one layer, a row a slot.

The same step, words and thresholds as the page's: experts_frame and experts_words make both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.readings import LAYER_FACTS
from controlplane.rules.book import RuleBook
from controlplane.runs.states import RUN_ENDED
from controlplane.services import expert_windows, experts_figures, experts_frame, experts_words
from controlplane.services.experts_judged import NAMES
from controlplane.services.experts_words import Picture, number
from controlplane.services.fleet_state import BLIND_AFTER_S
from controlplane.services.live import HISTORY, Live
from controlplane.store import experts, runs
from controlplane.store.engine import Session
from controlplane.store.expert_records import ExpertStep

GAP_STEPS = 8
Json = dict[str, Any]


def unbroken(window: Sequence[ExpertStep]) -> list[ExpertStep]:
    """The end of a window from its last long gap on: across one, steps are no neighbours (old ones were thinned)."""
    steps = np.array([one.step for one in window])
    gaps = np.flatnonzero(np.diff(steps) >= GAP_STEPS)
    return list(window[int(gaps[-1]) + 1 :] if len(gaps) else window)


def table(
    session: Session,
    live: Live,
    run_id: str,
    *,
    step: int | None = None,
    layer: int | None = None,
    now: float,
    book: RuleBook,
) -> Json | None:
    """The newest step, or a named one; None if it is not stored. API: runs/{run}/experts/table.

    A `layer` beyond the run's has no rows: `by_slot` is then None. Router facts (agents.readings.LAYER_FACTS) are those
    of `facts_step`, the newest step of the window that has any; None where unknown.
    """
    run = live.run(run_id)
    window = _window(session, live, run_id, step)
    if not window:
        return None
    seen = experts_frame.picture(window, book, lambda last: expert_windows.cv_before(session, last))
    last, shape = seen.last, seen.last.shape
    told = _with_facts(window)
    row = runs.get(session, run_id)
    received_s = run.received_s if run is not None and step is None else last.at_s
    age_s = max(0.0, now - received_s)
    ended = step is None and row is not None and row.status in RUN_ENDED
    return {
        "run": run_id,
        "attempt": last.attempt_no,
        "step": last.step,
        "at_s": last.at_s,
        "age_s": age_s,
        "stale": step is None and age_s > BLIND_AFTER_S,
        "layers": shape.layers,
        "experts": shape.experts,
        "slots": shape.slots,
        "top_k": shape.top_k,
        "tokens": last.tokens,
        "ranks": last.ranks,
        "floor_cv": number(seen.floor),
        "settling": seen.settling,
        "sentence": experts_words.sentence(seen, ended=ended),
        "tiles": experts_words.tiles(seen),
        "facts_step": told.step if told is not None else None,
        "by_layer": _layers(seen, told, experts_figures.of_layers(seen, window, told)),
        "layer": layer,
        "by_slot": None if layer is None or not 0 <= layer < shape.layers else _slots(seen, layer),
    }


def _window(session: Session, live: Live, run_id: str, step: int | None) -> list[ExpertStep]:
    if step is None:
        run = live.run(run_id)
        return list(run.window if run else experts.recent(session, run_id, limit=HISTORY))
    window = experts.window(session, run_id, last=step, limit=HISTORY)
    return unbroken(window) if window and window[-1].step == step else []


def _with_facts(window: Sequence[ExpertStep]) -> ExpertStep | None:
    """The newest step of the window whose router facts are known: a trainer may measure every n-th only."""
    shape = window[-1].shape
    alike = (one for one in reversed(window) if one.shape == shape)
    return next((one for one in alike if one.facts is not None and np.isfinite(one.facts).any()), None)


def _layers(seen: Picture, told: ExpertStep | None, figures: Sequence[dict[str, experts_figures.Figure]]) -> list[Json]:
    found, judged, experts_ = seen.found, seen.judged, seen.last.shape.experts
    facts = told.facts if told is not None else None
    return [
        {
            "layer": layer,
            "cv_floor": number(judged.floors[layer]),
            "level": NAMES[judged.levels[layer]],
            "maxvio": number(found.maxvio[layer]),
            "effective": number(found.effective[layer] * experts_),
            "dead": np.flatnonzero(judged.dead[layer]).tolist(),
            "skip_share": number(found.skip_share[layer]),
            "bias_spread": number(found.bias_spread[layer]),
            "lag1": number(judged.lag1[layer]),
            "swings": bool(judged.swinging[layer]),
            "figures": figures[layer],
            **{name: None if facts is None else number(facts[at, layer]) for at, name in enumerate(LAYER_FACTS)},
        }
        for layer in range(seen.last.shape.layers)
    ]


def _slots(seen: Picture, layer: int) -> list[Json]:
    shape, counts, bias = seen.last.shape, seen.last.counts[layer], seen.last.bias[layer]
    loads = seen.found.share[layer] * shape.experts
    return [
        {
            "slot": slot,
            "skip": slot >= shape.experts,
            "count": int(counts[slot]),
            "load": number(loads[slot]) if slot < shape.experts else None,
            "bias": number(bias[slot]),
            "dead": slot < shape.experts and bool(seen.judged.dead[layer, slot]),
        }
        for slot in range(shape.slots)
    ]

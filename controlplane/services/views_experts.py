"""What the Experts page shows of a run: a step in words, the newest or one of the past, and one layer over time.

Words are experts_words', what they call wrong is what the alarms name (experts_judged).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_marks import BEFORE_STEPS
from controlplane.runs.states import RUN_ENDED
from controlplane.services import (
    expert_places,
    expert_windows,
    experts_controller,
    experts_frame,
    experts_judged,
    experts_over_time,
    experts_words,
    frames,
)
from controlplane.services.experts_judged import shipped_book
from controlplane.services.experts_words import Picture, median, number
from controlplane.services.fleet_state import BLIND_AFTER_S
from controlplane.services.live import HISTORY, Live
from controlplane.store import expert_raster, experts, runs
from controlplane.store.engine import Session
from controlplane.store.expert_records import ExpertStep

MAXVIO_STEPS = 16
MAX_COLUMNS = 2048


def summary(
    session: Session, live: Live, run_id: str, *, now: float, step: int | None = None, book: RuleBook | None = None
) -> dict[str, Any] | None:
    """The tiles and the sentence of a run's newest record, or of a named step; None if there is none.

    Of a step that was thinned with age it is that of the nearest one that was not. API: runs/{run}/experts/summary.
    """
    run = live.run(run_id)
    if step is not None and run is not None and run.window and step == run.window[-1].step:
        step = None
    window = _window(session, live, run_id) if step is None else experts_over_time.past(session, run_id, step)[0]
    if not window:
        return None
    picture = _picture(session, window, book)
    last = picture.last
    row = runs.get(session, run_id)
    age_s = max(0.0, now - (run.received_s if run and step is None else last.at_s))
    ended = step is None and row is not None and row.status in RUN_ENDED
    place = "" if step is None else "-past"
    key = (last.key, last.ranks, len(window))
    return {
        "run": run_id,
        **_of_step(last),
        "age_s": age_s,
        "stale": step is None and age_s > BLIND_AFTER_S,
        "asked": step,
        "simulated": bool(run and run.simulated),
        "floor_cv": number(picture.floor),
        **_distances(picture),
        "sentence": experts_words.sentence(picture, ended=ended),
        "tiles": experts_words.tiles(picture),
        "controller": live.kept(
            run_id,
            f"controller{place}",
            key,
            lambda: experts_controller.of_layers(window, picture, book or shipped_book()),
        ),
        # health is asked each time: a sick GPU is often why no further step comes
        "parallel": expert_places.ranks_view(
            session,
            window,
            live.kept(run_id, f"ranks{place}", key, lambda: expert_places.loads_of_ranks(session, window)),
            picture.judged.skewed,
            past=step is not None,
        ),
        "maxvio": _maxvio(session, run_id),
        "records": experts.counted(session, run_id),
    }


def _of_step(last: ExpertStep) -> dict[str, Any]:
    """Which step it is, and its sizes."""
    return {
        "attempt": last.attempt_no,
        "step": last.step,
        "at_s": last.at_s,
        "layers": last.shape.layers,
        "experts": last.shape.experts,
        "slots": last.shape.slots,
        "top_k": last.shape.top_k,
        "tokens": last.tokens,
        "ranks": last.ranks,
    }


def newest_picture(session: Session, live: Live, run_id: str, book: RuleBook | None = None) -> Picture | None:
    """A run's newest record, judged; None while it has none."""
    window = _window(session, live, run_id)
    return _picture(session, window, book) if window else None


def _picture(session: Session, window: Sequence[ExpertStep], book: RuleBook | None) -> Picture:
    return experts_frame.picture(window, book, lambda last: expert_windows.cv_before(session, last))


def _distances(picture: Picture) -> dict[str, Any]:
    """How far from even the window is, and where."""
    judged, worst = picture.judged, picture.worst()
    layers = np.flatnonzero((judged.dead > 0).any(axis=1)).tolist()
    return {
        "worst_layer": {"layer": worst, "cv_floor": number(judged.floors[worst])},
        "median_layer": {"cv_floor": median(judged.floors)},
        "dead": {"count": int(np.count_nonzero(judged.dead)), "layers": layers},
        "settling": picture.settling,
        "judged": judged.is_judged,
    }


def _window(session: Session, live: Live, run_id: str) -> Sequence[ExpertStep]:
    run = live.run(run_id)
    return run.window if run else experts.recent(session, run_id, limit=HISTORY)


def _maxvio(session: Session, run_id: str) -> dict[str, Any]:
    """Mean MaxVio over layers in the first and in the last MAXVIO_STEPS steps of the current view."""
    bounds = experts.bounds(session, run_id)
    if bounds is None:
        return {"first_window": None, "last_window": None, "steps": MAXVIO_STEPS}
    first, last = bounds
    windows = {
        "first_window": (first, first + MAXVIO_STEPS - 1),
        "last_window": (last - MAXVIO_STEPS + 1, last),
    }
    found: dict[str, Any] = {"steps": MAXVIO_STEPS}
    for name, (begin, end) in windows.items():
        values = experts.read_statistics(session, run_id, ("maxvio",), first=begin, last=end).values["maxvio"]
        found[name] = number(np.nanmean(values)) if np.isfinite(values).any() else None
    return found


# --- frames from the store -------------------------------------------------------------------------------------------


def frame_at(
    session: Session, live: Live, run_id: str, step: int, book: RuleBook | None = None
) -> tuple[str, bytes] | None:
    """The experts frame of one step of the past as (ETag, frame); None if it is not stored.

    Of a step that was thinned with age it is that of the nearest step that was not, and the head says which.
    """
    window, series = experts_over_time.past(session, run_id, step)
    if not window:
        return None
    run = live.run(run_id)
    meta, arrays = experts_frame.of_window(
        window, book=book, earlier=lambda last: expert_windows.cv_before(session, last)
    )
    history = arrays["history"]
    if len(series.step) and len(series.values["cv_floor"]) == len(history):
        told = series.values["cv_floor"][:, -experts_frame.HISTORY :]
        history[:, history.shape[1] - told.shape[1] :] = told
    meta |= {"simulated": bool(run and run.simulated), "stale": False, "asked": step}
    content = frames.payload(arrays)
    return frames.tag(content, meta), frames.pack("experts", meta, content)


def newest_frame(
    session: Session, live: Live, run_id: str, *, now: float, book: RuleBook | None = None
) -> tuple[str, bytes] | None:
    """The experts frame of a run's newest stored step as (ETag, frame): of a run that `live` does not hold (any more).

    It says what Live.experts_frame would; None if nothing is stored.
    """
    window = experts.recent(session, run_id, limit=HISTORY)
    if not window:
        return None
    last = window[-1]

    def made() -> tuple[dict[str, Any], frames.Payload]:
        meta, arrays = experts_frame.of_window(
            window, book=book, earlier=lambda of: expert_windows.cv_before(session, of)
        )
        return meta, frames.payload(arrays)

    told, content = live.kept(run_id, "frame", (last.key, last.ranks, len(window)), made)
    age_s = max(0.0, now - last.at_s)
    meta = {**told, "simulated": False, "stale": age_s > BLIND_AFTER_S}
    return frames.tag(content, meta), frames.pack("experts", {**meta, "age_s": round(age_s, 3)}, content)


def raster_frame(
    session: Session,
    run_id: str,
    layer: int,
    *,
    first: int | None = None,
    last: int | None = None,
    steps: int | None = None,
    columns: int = 256,
    book: RuleBook | None = None,
) -> tuple[str, bytes] | None:
    """One layer over time as (ETag, frame); None if nothing is stored there. E experts, C columns.

    The steps are those from `first` to `last`, or the last so many `steps` up to there. Arrays: share f4 [E, C] (1/E is
    fair), cv f4 [C] in multiples of the sampling floor, bias f4 [E, C], skip_share f4 [C], steps f8 [C], at_s f8 [C].
    The head's marks name the columns at which a later attempt goes on and the data mix changed.
    """
    asked = experts_over_time.span(session, run_id, first, last, steps)
    if asked is None:
        return None
    width = min(max(columns, 1), MAX_COLUMNS)
    found = expert_raster.read_raster(
        session, run_id, layer, first=asked[0], last=asked[1], columns=width, before=BEFORE_STEPS
    )
    if found is None:
        return None
    meta = {
        "run": run_id,
        "layer": layer,
        "experts": found.share.shape[0],
        "step": int(found.step[-1]),
        "at_s": float(found.at_s[-1]),
        "floor_cv": number(found.floor_cv),
        "rules": experts_judged.thresholds(book),
        "marks": experts_over_time.marks(
            session, run_id, found.step, found.attempt_no, series=(found.before, found.mean_maxvio)
        ),
    }
    content = frames.payload(
        {
            "share": found.share,
            "cv": found.cv_floor,
            "bias": found.bias,
            "skip_share": found.skip_share,
            "steps": found.step.astype(np.float64),
            "at_s": found.at_s,
        }
    )
    return frames.tag(content, meta), frames.pack("raster", meta, content)

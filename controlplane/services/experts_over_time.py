"""All layers of a run over time, and how their loads swing, as frames: the parts of the Experts page with a time axis.

What one layer's experts do is views_experts.raster_frame; the newest step is experts_frame. Marks are the same in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.rules.book import RuleBook
from controlplane.rules.expert_marks import BEFORE_STEPS, data_mix_shifts
from controlplane.rules.expert_swings import autocorrelations
from controlplane.rules.experts import bucket_means, mean_of_known, period_steps
from controlplane.runs.states import RUN_ENDED
from controlplane.services import experts_frame, experts_judged, experts_together, frames
from controlplane.services.live import HISTORY, Live
from controlplane.store import experts, runs
from controlplane.store.engine import Session
from controlplane.store.expert_records import ExpertStep
from controlplane.store.expert_stretches import nearest_kept

MAX_COLUMNS = 2048
LAGS = 32
Columns = NDArray[np.int64]


def span(
    session: Session, run_id: str, first: int | None, last: int | None, steps: int | None
) -> tuple[int, int] | None:
    """The steps (first, last) that are asked for: given bounds, or the last so many `steps`; None if none is stored."""
    bounds = experts.bounds(session, run_id)
    if bounds is None:
        return None
    end = bounds[1] if last is None else last
    if first is not None:
        return first, end
    return (bounds[0] if steps is None else end - max(steps, 1) + 1), end


def past(session: Session, run_id: str, step: int) -> tuple[Sequence[ExpertStep], experts.Statistics]:
    """The 64 steps up to one of the past, as far as they are neighbours, and their CV in floors; none if not stored.

    Of a step that was thinned with age those up to the nearest one that was not. The window reaches back only as far as
    no step was thinned out of it: what swings from step to step is not seen across a gap. Statistics are of every step.
    """
    window = experts.window(session, run_id, last=step, limit=HISTORY)
    if not window or window[-1].step != step:
        near = nearest_kept(session, run_id, step)
        window = [] if near is None else experts.window(session, run_id, last=near, limit=HISTORY)
    last = window[-1].step if window else -1
    series = experts.read_statistics(session, run_id, ("cv_floor",), first=last - HISTORY + 1, last=last)
    return _unbroken(window, series.step), series


def _unbroken(window: Sequence[ExpertStep], every: Columns) -> Sequence[ExpertStep]:
    """The end of a window in which each step has the one before it; `every` are the steps that there were."""
    before = dict(zip(every[1:].tolist(), every[:-1].tolist(), strict=True))
    for index in range(len(window) - 1, 0, -1):
        if before.get(window[index].step, window[index - 1].step) != window[index - 1].step:
            return window[index:]
    return window


def marks(
    session: Session,
    run_id: str,
    steps: Columns,
    attempts: Columns,
    series: tuple[Columns, NDArray[np.floating[Any]]],
) -> list[dict[str, Any]]:
    """What happened at the columns that end with these steps [C] of these attempts: restarts and changes of the data.

    Each is {kind: restart or data, column, step, label}. `series` are the numbers of the same steps, one by one, and
    of those before them, and the mean MaxVio of each.
    """
    found = [
        {"kind": "restart", "column": int(column), "step": int(steps[column]), "label": f"attempt {attempts[column]}"}
        for column in np.flatnonzero(np.diff(attempts)) + 1
    ]
    every, maxvio = series
    shifted = every[data_mix_shifts(maxvio)]
    for step in shifted[(shifted >= steps[0]) & (shifted <= steps[-1])]:
        column = int(np.searchsorted(steps, step))
        found.append({"kind": "data", "column": column, "step": int(step), "label": "data mix changed"})
    return found + _phases(session, run_id, steps)


def _phases(session: Session, run_id: str, steps: Columns) -> list[dict[str, Any]]:
    """Where the job's own plan (`train.phases`) begins a phase with other data or another learning rate.

    Steps are the plan's; data that a roll-back left out lets the data of a phase come that much earlier.
    """
    run = runs.get(session, run_id)
    body = run.spec.get("spec") if run is not None else None
    train = body.get("train") if isinstance(body, dict) else None
    phases = train.get("phases") if isinstance(train, dict) else None
    found, step = [], 1
    for number, phase in enumerate(phases if isinstance(phases, list) else [], start=1):
        length = phase.get("steps") if isinstance(phase, dict) else None
        if not isinstance(phase, dict) or not isinstance(length, int):
            break  # another trainer's word: nothing is known of where its next phase begins
        if number > 1 and steps[0] <= step <= steps[-1]:
            column = int(np.searchsorted(steps, step))
            label = f"phase {phase.get('name') or number}"
            found.append({"kind": "data", "column": column, "step": step, "label": label})
        step += length
    return found


def over_time_frame(
    session: Session,
    live: Live,
    run_id: str,
    *,
    first: int | None = None,
    last: int | None = None,
    steps: int | None = None,
    columns: int = 256,
    book: RuleBook | None = None,
) -> tuple[str, bytes] | None:
    """layers_frame of these steps; of the kept course where they are all that the run has. None if none is stored."""
    bounds = experts.bounds(session, run_id)
    if bounds is None:
        return None
    reaches = last is None or last >= bounds[1]
    begin = first if first is not None else bounds[0] if steps is None else (last or bounds[1]) - max(steps, 1) + 1
    if reaches and begin <= bounds[0]:
        return course_frame(session, live, run_id, columns, book)
    return layers_frame(session, run_id, first=first, last=last, steps=steps, columns=columns, book=book)


def course_frame(
    session: Session, live: Live, run_id: str, columns: int, book: RuleBook | None = None
) -> tuple[str, bytes] | None:
    """layers_frame of the whole run, made anew only when another column of it is full: a long run is dear to read.

    Once the run has ended its last steps are in it, whether they fill a column or not.
    """
    bounds = experts.bounds(session, run_id)
    if bounds is None:
        return None
    run = live.run(run_id)
    width = min(max(columns, 1), MAX_COLUMNS)
    full = bounds[1] // max(1, (bounds[1] - bounds[0] + 1) // width)
    row = runs.get(session, run_id)
    end = bounds[1] if row is None or row.status in RUN_ENDED else None
    key = (width, bounds[0], full, end, run.window[-1].attempt_no if run and run.window else None)
    return live.kept(run_id, f"course-{width}", key, lambda: layers_frame(session, run_id, columns=width, book=book))


def layers_frame(
    session: Session,
    run_id: str,
    *,
    first: int | None = None,
    last: int | None = None,
    steps: int | None = None,
    columns: int = 256,
    book: RuleBook | None = None,
) -> tuple[str, bytes] | None:
    """Every layer over time as (ETag, frame); None if nothing is stored there. L layers, C columns.

    Arrays: cv_floor f4 [L, C] and skip_share f4 [L, C], means over a column's steps; worst f4 [C], the largest cv_floor
    of any layer and step of it, and middle f4 [C], the median layer's mean; steps f8 [C] and at_s f8 [C] of its last
    step. The head's marks name columns.
    """
    asked = span(session, run_id, first, last, steps)
    if asked is None:
        return None
    begin, end = asked
    names = ("cv_floor", "skip_share", "maxvio")
    series = experts.read_statistics(session, run_id, names, first=begin - BEFORE_STEPS, last=end)
    keep = np.flatnonzero(series.step >= begin)
    if not len(keep):
        return None
    maxvio = (series.step, mean_of_known(series.values["maxvio"], axis=0))
    width = min(max(columns, 1), MAX_COLUMNS)
    starts = np.unique(np.arange(len(keep)) * width // len(keep), return_index=True)[1]
    ends = keep[np.append(starts[1:], len(keep)) - 1]
    meta = {
        "run": run_id,
        "layers": len(series.values["cv_floor"]),
        "step": int(series.step[ends[-1]]),
        "at_s": float(series.at_s[ends[-1]]),
        "first_step": int(series.step[keep[0]]),
        "rules": experts_judged.thresholds(book),
        "marks": marks(session, run_id, series.step[ends], series.attempt_no[ends], maxvio),
    }
    content = frames.payload(
        _columns({name: series.values[name][:, keep] for name in ("cv_floor", "skip_share")}, starts)
        | {"steps": series.step[ends].astype(np.float64), "at_s": series.at_s[ends]}
    )
    return frames.tag(content, meta), frames.pack("layers", meta, content)


def _columns(values: Mapping[str, NDArray[np.float32]], starts: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Of values [L, N] the means a column, and of cv_floor the worst layer's and the median one's."""
    means = {name: bucket_means(of_layers, starts) for name, of_layers in values.items()}
    cv_floor = values["cv_floor"]
    worst = np.maximum.reduceat(np.where(np.isfinite(cv_floor), cv_floor, -np.inf).max(axis=0), starts)
    return {
        **means,
        "worst": np.where(np.isfinite(worst), worst, np.nan).astype(np.float32),
        "middle": _median_known(means["cv_floor"]),
    }


def _median_known(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Medians [C] over the layers of values [L, C] that are known; NaN where none is."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = np.isfinite(values).sum(axis=0)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, len(values) - 1)
    columns = np.arange(values.shape[1])
    return np.where(count > 0, (ordered[low, columns] + ordered[high, columns]) / 2, np.nan).astype(np.float32)


def swings_frame(
    session: Session, live: Live, run_id: str, step: int | None = None, book: RuleBook | None = None
) -> tuple[str, bytes] | None:
    """How the loads of each layer repeat over the 64 steps up to a step, as (ETag, frame); None if there are none.

    Of those steps that the alarms judge together, so that a restart begins anew. Arrays of L layers and K lags:
    autocorrelation f4 [L, K] at the lags 1 … K, NaN where nothing moved; period f4 [L], the strongest one in steps;
    swinging u1 [L], what the oscillation alarm names (0 ok, 1 warn, 2 fault). The head says how many `steps` there
    were, and whether they are enough to be `judged`.
    """
    run = live.run(run_id)
    if step is not None:
        found = past(session, run_id, step)[0]
    else:
        found = run.window if run else experts.recent(session, run_id, limit=HISTORY)
    if not found:
        return None
    place = "" if step is None else "-past"
    key = (found[-1].key, found[-1].ranks, len(found))
    return live.kept(run_id, f"swings{place}", key, lambda: _swings_of(found, book))


def _swings_of(found: Sequence[ExpertStep], book: RuleBook | None) -> tuple[str, bytes]:
    judged = experts_frame.picture(found, book).judged
    window = experts_together.own(found)
    last = window[-1]
    counts = np.stack([one.counts[:, : last.shape.experts] for one in window]).astype(np.float32)
    with np.errstate(invalid="ignore"):  # a step without tokens is not known
        shares = counts / counts.sum(axis=-1, keepdims=True)
    meta = {
        "run": last.run_id,
        "step": last.step,
        "at_s": last.at_s,
        "layers": last.shape.layers,
        "experts": last.shape.experts,
        "steps": len(window),
        "judged": judged.is_judged,
    }
    content = frames.payload(
        {
            "autocorrelation": autocorrelations(shares, LAGS).astype(np.float32),
            "period": period_steps(shares).astype(np.float32),
            "swinging": judged.swinging,
        }
    )
    return frames.tag(content, meta), frames.pack("swings", meta, content)

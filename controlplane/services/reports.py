"""Progress of jobs that are not ours, told by other ways than heartbeats and the probe: written where those are read.

The ways are the Kubeflow status route, RUN_DIR/steps.jsonl and the meters. A step becomes a step record of rank 0, or
of the rank that it names; the whole becomes what stands in the place of a heartbeat. It serves levels 0 and 1: a job of
level 2 speaks for itself, and what it says is held to its manifests. It reads no file and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from agents.readings import StepRecord
from controlplane.store import heartbeats, runs, steps
from controlplane.store.engine import Session
from controlplane.store.steps import UNKNOWN
from controlplane.store.tables import Attempt, Heartbeat
from jobs.contract import Heartbeat as Beat
from jobs.steps import StepScalars

OWN_LEVEL = 2
MOST_METRICS, PACES = 64, 32


@dataclass(frozen=True, slots=True)
class Report:
    """What one look or one message brought. `progress` in percent and `remaining_s` are the trainer's own words."""

    by: str
    steps: Sequence[StepScalars] = ()
    progress: float | None = None
    remaining_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def take(session: Session, run_id: str, attempt_no: int, report: Report, *, now: float) -> int:
    """Writes a report of a living epoch; returns how many steps of it were new. Nothing of an attempt of level 2."""
    attempt = runs.attempt(session, run_id, attempt_no)
    if attempt is None or int(attempt.spec["spec"].get("contractLevel", OWN_LEVEL)) >= OWN_LEVEL:
        return 0
    beats = heartbeats.of_attempt(session, run_id, attempt_no)
    before = next((told for beat in beats if (told := heartbeats.told(beat)) is not None), {})
    timed = placed(report.steps, before, now)
    steps.add(session, [_record(attempt, step) for step in timed])
    if not beats or heartbeats.told(beats[0]) is not None:
        heartbeats.put_told(session, *_beat(attempt, beats[0] if beats else None, before, report, timed, now), now=now)
    return len(timed)


def placed(found: Sequence[StepScalars], before: Mapping[str, Any], now: float) -> list[StepScalars]:
    """Steps in order, each with its time and its seconds a step as far as they can be known.

    A step without a time was done when it was seen, and those before it in the same look earlier, by what they say
    that a step takes. Seconds a step that were not told are the time since the step before it, by the steps between.
    """
    ordered = sorted(found, key=lambda step: (step.step, step.rank))
    at_s, later = now, None
    backwards = []
    for step in reversed(ordered):
        if later is not None:
            at_s -= (later.step_seconds or 0.0) * max(0, later.step - step.step)
        at_s = step.at_s if step.at_s is not None else at_s
        backwards.append(_with(step, at_s=at_s))
        later = step
    return _paced(backwards[::-1], before)


def _paced(ordered: Sequence[StepScalars], before: Mapping[str, Any]) -> list[StepScalars]:
    last_step, last_s = before.get("step"), before.get("at_s")
    paced = []
    for step in ordered:
        at_s, seconds = step.at_s or 0.0, step.step_seconds
        if seconds is None and isinstance(last_step, int) and isinstance(last_s, float) and step.step > last_step:
            seconds = max(0.0, at_s - last_s) / (step.step - last_step)
        paced.append(_with(step, step_seconds=seconds))
        if last_step is None or step.step > last_step:
            last_step, last_s = step.step, at_s
    return paced


def _with(step: StepScalars, **values: Any) -> StepScalars:
    return step.completed_by(StepScalars(step.step, step.rank, **values))


def _record(attempt: Attempt, step: StepScalars) -> StepRecord:
    return StepRecord(
        run_id=attempt.run_id,
        attempt_no=attempt.no,
        epoch=attempt.epoch,
        rank=max(0, step.rank),
        step=step.step,
        at_s=step.at_s or 0.0,
        loss=_number(step.loss),
        grad_norm=_number(step.grad_norm),
        step_seconds=step.step_seconds or 0.0,
        tokens=step.tokens or 0,
        learning_rate=_number(step.learning_rate),
        data_position=step.data_position or 0,
    )


def _number(value: float | None) -> float:
    return UNKNOWN if value is None else value


def _beat(
    attempt: Attempt,
    row: Heartbeat | None,
    before: Mapping[str, Any],
    report: Report,
    timed: Sequence[StepScalars],
    now: float,
) -> tuple[Beat, dict[str, Any]]:
    """What stands in the place of rank 0's heartbeat, and what is told beside it."""
    numbers = [step.step for step in timed]
    first = min([*numbers, *([row.first_step] if row is not None and row.first_step is not None else [])], default=None)
    last = max([*numbers, *([row.last_step] if row is not None and row.last_step is not None else [])], default=None)
    newest = max(timed, key=lambda step: step.step, default=None)
    fresh = [step.step_seconds for step in timed if step.step_seconds and math.isfinite(step.step_seconds)]
    paces = [*before.get("paces", []), *fresh][-PACES:]
    node = attempt.nodes[0] if attempt.nodes else ""
    # JSON has no NaN: a loss that is none is in the step's record
    said = {name: value for name, value in report.metrics.items() if math.isfinite(value)}
    metrics = {**before.get("metrics", {}), **said}
    beat = Beat(
        run_id=attempt.run_id,
        attempt_no=attempt.no,
        epoch=attempt.epoch,
        rank=0,
        world=1,
        node=node,
        pid=0,
        phase="start" if last is None else "train",
        step=last,
        first_step=first,
        last_step=last,
        resumed_from=None,
        at_s=now,
        phase_since_s=now,
        step_seconds_median=median(paces) if paces else None,
    )
    told = {
        "by": report.by,
        "progress": report.progress if report.progress is not None else before.get("progress"),
        "remaining_s": report.remaining_s if report.progress is not None else before.get("remaining_s"),
        "metrics": dict(list(metrics.items())[:MOST_METRICS]),
        "step": newest.step if newest is not None else before.get("step"),
        "at_s": newest.at_s if newest is not None else before.get("at_s"),
        "paces": paces,
        "received_s": now,
    }
    return beat, told

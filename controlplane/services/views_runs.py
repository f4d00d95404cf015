"""What pages show of runs: rows of the list, one run whole, its steps. The story of restarts is views_why's.

Everything is read from the store; what is not known is None, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from controlplane.runs.goodput import Span, Spent, ledger
from controlplane.runs.states import ENDED
from controlplane.services import advising, views_incidents
from controlplane.store import heartbeats, incidents, lifecycles, nodes, runs, steps
from controlplane.store.engine import Session
from controlplane.store.steps import StepRecords
from controlplane.store.tables import Attempt, Checkpoint, Decision, Run
from jobs.lifecycle import parse_lifecycle
from jobs.spec import load_template, parse_job, templates

Json = dict[str, Any]
RECENT = 32
PHASES = tuple(
    f"attempt_{state}"
    for state in ("planned", "pending", "starting", "init", "training", "suspect", "draining", "stopping", *ENDED)
)


def rows(session: Session, *, statuses: Sequence[str] | None, limit: int, before: str | None, now: float) -> list[Json]:
    """RunRows, newest first. API: runs."""
    found = runs.listed(session, statuses, limit=limit, before=before)
    simulated = {node.name for node in nodes.listed(session) if node.simulated}
    newest = runs.newest_attempts(session, [run.id for run in found])
    return [row(session, run, newest.get(run.id), simulated, now) for run in found]


def row(session: Session, run: Run, attempt: Attempt | None, simulated: set[str], now: float) -> Json:
    """One RunRow. `step` is the last one done; `starts_from` is that step until an attempt has done one of its own."""
    spec = parse_job(run.spec)
    recent = _recent(session, run, attempt)
    step = recent["step"] if recent["step"] is not None else (attempt.last_step if attempt else None)
    start = attempt.resume_step if attempt is not None and step is None else None
    step = start if step is None else step
    total = spec.spec.train.steps
    placed = list(attempt.nodes) if attempt else []
    return {
        "id": run.id,
        "name": run.name,
        "stage": run.stage,
        "status": run.status,
        "desired": run.desired,
        "attempt": attempt.no if attempt else 0,
        "attempt_state": attempt.state if attempt else None,
        "nodes": placed,
        "gpus": spec.gpus,
        "step": step,
        "steps": total,
        "starts_from": start,
        "progress": step / total if step is not None else None,
        "eta": _eta(run, step, total, recent),
        "tokens_per_s": recent["tokens_per_s"],
        "loss": recent["loss"],
        "created_s": run.created_s,
        "ended_s": run.ended_s,
        "created_by": run.created_by,
        "reason": run.reason,
        "backend": run.backend,
        "simulated": bool(set(placed) & simulated) or (not placed and bool(simulated)),
        "age_s": now - recent["at_s"] if recent["at_s"] is not None else None,
    }


def _recent(session: Session, run: Run, attempt: Attempt | None) -> Json:
    """Loss, rate and seconds a step over the newest steps of the last attempt; None each while there are none."""
    empty: Json = dict.fromkeys(("step", "loss", "tokens_per_s", "seconds", "spread", "at_s"))
    last = steps.last_step(session, run.id, attempt.no) if attempt is not None else None
    if attempt is None or last is None:
        return empty
    read = [
        part for part in steps.read(session, run.id, first=last - RECENT, last=last) if part.attempt_no == attempt.no
    ]
    if not read:
        return empty
    series = per_step(read[0])
    gaps = np.diff(series["step"])  # a trainer that is not ours may tell of each tenth step alone
    seconds = np.diff(series["at_s"]) / gaps if len(gaps) else np.array(series["step_seconds"])
    typical = float(np.median(seconds)) if len(seconds) else None
    tokens = float(series["tokens"][-1])
    return {
        "step": int(series["step"][-1]),
        "loss": finite(series["loss"][-1]),
        "tokens_per_s": tokens / typical if typical and tokens else None,
        "seconds": typical,
        "spread": float(np.std(seconds)) if len(seconds) > 1 else None,
        "at_s": float(series["at_s"][-1]),
    }


def _eta(run: Run, step: int | None, total: int, recent: Json) -> Json | None:
    """Seconds left as a range: the typical step and its spread, five percent of doubt at least."""
    if run.status != "active" or step is None or not recent["seconds"]:
        return None
    left = (total - step) * recent["seconds"]
    doubt = max(0.05 * left, 1.645 * (recent["spread"] or 0.0) * max(0, total - step) ** 0.5)
    return {"low_s": max(0.0, left - doubt), "high_s": left * 1.1 + doubt}


def per_step(records: StepRecords) -> dict[str, Any]:
    """Ranks' records as one series a step: mean loss and norm, the slowest rank's seconds, the last arrival."""
    _, starts = np.unique(records.step, return_index=True)
    counts = np.diff(np.append(starts, len(records.step)))
    return {
        "step": records.step[starts],
        "at_s": np.maximum.reduceat(records.at_s, starts),
        "loss": np.add.reduceat(records.loss, starts) / counts,
        "grad_norm": np.add.reduceat(records.grad_norm, starts) / counts,
        "step_seconds": np.maximum.reduceat(records.step_seconds, starts),
        "tokens": np.maximum.reduceat(records.tokens, starts),
    }


def finite(value: float) -> float | None:
    """A number for JSON; None for what is none or was never told."""
    return float(value) if np.isfinite(value) and steps.is_known(value) else None


def step_series(session: Session, run_id: str, *, points: int = 800) -> Json:
    """Loss, rate and norm over the steps of each attempt, at most `points` each. API: runs/{run}/steps."""
    parts, tokens = [], None
    for records in steps.read(session, run_id):
        series = per_step(records)
        keep = np.unique(np.linspace(0, len(series["step"]) - 1, min(points, len(series["step"]))).astype(int))
        gaps = np.diff(series["at_s"], prepend=np.nan) / np.diff(series["step"], prepend=series["step"][0] - 1)
        known = (gaps > 0) & (series["tokens"] > 0)
        rate = np.divide(series["tokens"], gaps, out=np.full(len(gaps), np.nan), where=known)
        tokens = int(series["tokens"][-1]) or None
        parts.append(
            {
                "no": records.attempt_no,
                "step": series["step"][keep].tolist(),
                "at_s": series["at_s"][keep].tolist(),
                **{
                    name: [finite(value) for value in values[keep]]
                    for name, values in (
                        ("loss", series["loss"]),
                        ("grad_norm", series["grad_norm"]),
                        ("step_seconds", series["step_seconds"]),
                        ("tokens_per_s", rate),
                    )
                },
            }
        )
    return {"attempts": parts, "tokens_per_step": tokens}


def checkpoint(row: Checkpoint, now: float) -> Json:
    """One checkpoint. API: runs/{run}/checkpoints."""
    return {
        "id": row.id,
        "step": row.step,
        "attempt": row.attempt_no,
        "state": row.state,
        "state_at_s": row.state_at_s,
        "written_at_s": row.written_at_s,
        "bytes": row.bytes,
        "note": row.reason,
        "path": row.path,
        "age_s": now - row.written_at_s if row.written_at_s is not None else None,
    }


def checkpoints(session: Session, run_id: str, now: float) -> list[Json]:
    """A run's checkpoints, newest first."""
    return [checkpoint(row, now) for row in reversed(runs.checkpoints(session, run_id))]


def decision(row: Decision, attempts: Sequence[Attempt], numbers: dict[str, int]) -> Json:
    """One decision."""
    after = next((one for one in attempts if one.decision_id == row.id), None)
    return {
        "id": row.id,
        "action": row.action,
        "mode": row.mode,
        "state": row.state,
        "reason": row.reason,
        "rule": row.rule,
        "excluded_nodes": row.excluded_nodes,
        "checkpoint_id": row.checkpoint_id,
        "resume_step": after.resume_step if after else None,
        "evidence": row.evidence,
        "failure_class": row.failure_class,
        "fingerprint": row.fingerprint,
        "progress": row.progress,
        "budgets": {"before": row.budgets_before, "after": row.budgets_after},
        "created_s": row.created_s,
        "executed_s": row.executed_s,
        "verified_s": row.verified_s,
        "verification": row.verification,
        "incident": numbers.get(row.incident_id or ""),
        "attempt_no": row.attempt_no,
    }


def proposal(found: Sequence[Decision], attempts: Sequence[Attempt]) -> Decision | None:
    """The newest decision that nobody has carried out and that speaks of the attempt that is last; None otherwise.

    A run whose mode is not `act` is told what the system would do; a person does it, or not.
    """
    last = attempts[-1].no if attempts else None
    asked = [one for one in found if one.mode != "act" and one.state == "proposed" and one.attempt_no == last]
    return max(asked, key=lambda one: one.created_s, default=None)


def phases(session: Session, run_id: str, attempts: Sequence[Attempt]) -> dict[int, list[Json]]:
    """Each attempt's states over time, from its events; the open one has no end."""
    return phases_of(runs.events_of_kind(session, run_id, PHASES), attempts)


def phases_of(events: Sequence[Any], attempts: Sequence[Attempt]) -> dict[int, list[Json]]:
    """The same of the events of kinds PHASES, in order; each has attempt_no, kind and at_s."""
    found: dict[int, list[Json]] = {attempt.no: [] for attempt in attempts}
    for event in events:
        spans = found.get(event.attempt_no or 0)
        if spans is None:
            continue
        if spans and spans[-1]["to_s"] is None:
            spans[-1]["to_s"] = event.at_s
        state = event.kind.removeprefix("attempt_")
        if state not in ENDED:
            spans.append({"phase": state, "from_s": event.at_s, "to_s": None})
    return found


def _attempt(attempt: Attempt, spans: list[Json], told: int | None) -> Json:
    return {
        "no": attempt.no,
        "name": attempt.name,
        "state": attempt.state,
        "state_since_s": attempt.state_since_s,
        "nodes": attempt.nodes,
        "excluded_nodes": attempt.excluded_nodes,
        "resume_step": attempt.resume_step,
        "first_step": attempt.first_step,
        "last_step": told if told is not None else attempt.last_step,
        "created_s": attempt.created_s,
        "submitted_s": attempt.submitted_s,
        "running_s": attempt.running_s,
        "first_step_s": attempt.first_step_s,
        "ended_s": attempt.ended_s,
        "end": attempt.end,
        "end_class": attempt.end_class or None,
        "phases": spans,
        "epoch": attempt.epoch,
        "decision_id": attempt.decision_id,
    }


def view(session: Session, run: Run, now: float) -> Json:
    """A RunView. API: runs/{run}."""
    attempts = runs.attempts(session, run.id)
    simulated = {node.name for node in nodes.listed(session) if node.simulated}
    incident_rows = [views_incidents.row(one, now) for one in incidents.listed(session, run_id=run.id)]
    numbers = incident_numbers(session, runs.decisions(session, run.id))
    records = steps.read(session, run.id)
    told = {part.attempt_no: int(part.step[-1]) for part in records}
    spans = phases(session, run.id, attempts)
    saved = checkpoints(session, run.id, now)
    spec = parse_job(run.spec)
    newest = (records[-1].attempt_no, per_step(records[-1])) if records else None
    return {
        **row(session, run, attempts[-1] if attempts else None, simulated, now),
        **_lifecycle(session, run),
        "spec": run.spec,
        "yaml": spec.to_yaml(),
        "attempts": [_attempt(one, spans[one.no], told.get(one.no)) for one in attempts],
        "decisions": [decision(one, attempts, numbers) for one in runs.decisions(session, run.id)],
        "incidents": incident_rows,
        "checkpoints": saved,
        "goodput": goodput(attempts, spans, records, spec.gpus, now),
        "step_seconds": _step_seconds(records),
        "told": told_otherwise(session, attempts[-1]) if attempts else None,
        "last_checkpoint": next((one for one in saved if one["state"] == "validated"), None),
        "advice": advising.of_run(spec, attempts, saved, _step_seconds(records)["median"], newest),
        "parent": None,
        "diff": _diff(run),
    }


def told_otherwise(session: Session, attempt: Attempt) -> Json | None:
    """What the trainer of an attempt says of itself without heartbeats: the way, percent, seconds left, metrics."""
    beats = heartbeats.of_attempt(session, attempt.run_id, attempt.no)
    told = next((said for beat in beats if (said := heartbeats.told(beat)) is not None), None)
    names = ("by", "progress", "remaining_s", "metrics", "received_s")
    return None if told is None else {name: told.get(name) for name in names}


def _lifecycle(session: Session, run: Run) -> Json:
    """The plan that the run is a stage of, its stages, and what the run is for; a job by itself has no role."""
    kept, work = runs.lifecycle_of(session, run), lifecycles.work_of(session, run.id)
    if kept is None:
        return {"lifecycle": None, "stages": [run.stage], "role": None, "init_hash": None}
    plan = parse_lifecycle(kept.spec)
    return {
        "lifecycle": {"id": kept.id, "name": plan.name},
        "stages": list(plan.stages),
        "role": work.role if work is not None else None,
        "init_hash": work.init_hash or None if work is not None else None,
    }


def incident_numbers(session: Session, found: Sequence[Decision]) -> dict[str, int]:
    rows = [incidents.get(session, one.incident_id) for one in found if one.incident_id]
    return {row.id: row.number for row in rows if row is not None}


def spent(
    attempts: Sequence[Attempt],
    spans: dict[int, list[Json]],
    records: Sequence[StepRecords],
    now: float,
    *,
    since: float = 0.0,
) -> list[Spent]:
    """What each attempt's seconds after `since` went to, for the ledger."""
    series = {part.attempt_no: per_step(part) for part in records}
    found = []
    for index, attempt in enumerate(attempts):
        later = [one.resume_step for one in attempts[index + 1 :]]
        kept_to = min((step or 0 for step in later), default=2**62)
        own = series.get(attempt.no)
        # of the steps between two that were told, each took as long as the one that was
        weights = np.diff(own["step"], prepend=own["step"][0] - 1) if own else np.zeros(0)
        seconds = own["step_seconds"] * weights * (own["at_s"] > since) if own else np.zeros(0)
        kept = own["step"] <= kept_to if own else np.zeros(0, bool)
        parts = tuple(
            Span(one["phase"], max(one["from_s"], since), max(one["to_s"] or now, since))
            for one in spans[attempt.no]
            if (one["to_s"] or now) >= since
        )
        found.append(Spent(parts, float(seconds[kept].sum()), float(seconds[~kept].sum())))
    return found


def goodput(
    attempts: Sequence[Attempt], spans: dict[int, list[Json]], records: Sequence[StepRecords], gpus: int, now: float
) -> Json:
    """The GPU-hour ledger of a run."""
    found = ledger(spent(attempts, spans, records, now), now=now)
    hours = gpus / 3600.0
    return {
        "percent": found.percent,
        "productive_gpu_h": found.productive_s * hours,
        "wall_s": found.wall_s,
        "lost": [
            {"cause": loss.cause, "phase": loss.phase, "gpu_h": loss.seconds * hours, "seconds": loss.seconds}
            for loss in found.lost
        ],
        "unattributed_percent": found.unattributed_percent,
    }


def _step_seconds(records: Sequence[StepRecords]) -> Json:
    if not records:
        return {"median": None, "p95": None, "slowest_rank": None}
    last = records[-1]
    slowest = {int(rank): float(np.median(last.step_seconds[last.rank == rank])) for rank in np.unique(last.rank)}
    seconds = per_step(last)["step_seconds"]
    return {
        "median": float(np.median(seconds)),
        "p95": float(np.percentile(seconds, 95)),
        "slowest_rank": max(slowest, key=lambda rank: slowest[rank]) if len(slowest) > 1 else None,
    }


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted paths."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found.update(flattened(inner, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _diff(run: Run) -> list[Json]:
    """What differs from the template of the same command, as paths with both values."""
    for name in templates():
        template = load_template(name).to_dict()
        if template["spec"]["command"] == run.spec["spec"]["command"]:
            before, after = flattened(template), flattened(run.spec)
            paths = sorted(set(before) | set(after))
            return [
                {"path": path, "before": before.get(path), "after": after.get(path)}
                for path in paths
                if before.get(path) != after.get(path)
            ]
    return []

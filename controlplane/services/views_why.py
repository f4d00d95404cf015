"""Why a run restarted, told as one story: the cause, what was decided, from where it went on, and what it cost.

Every sentence is a template over rows, never a guess; what a figure rests on stands beside it as evidence.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np

from controlplane.rules import book as rule_book
from controlplane.rules.book import RuleBook
from controlplane.runs.choices import joined
from controlplane.runs.states import LEAVING, RUN_ENDED
from controlplane.services import views_incidents, views_runs
from controlplane.services.durations import duration
from controlplane.store import events, faults, incidents, nodes, runs, steps
from controlplane.store.engine import Session
from controlplane.store.steps import StepRecords
from controlplane.store.tables import Attempt, Decision, Fault, Run
from jobs.spec import parse_job

Json = dict[str, Any]
_WAITING = {"queued": "It is queued", "paused": "It is paused", "needs_human": "It waits for a person"}


def timeline(session: Session, run: Run) -> list[Json]:
    """Every line of a run and of the incidents that touched it, oldest first. API: runs/{run}/timeline."""
    lines = {event.id: event for event in events.listed(session, run_id=run.id, limit=2000)}
    for incident in incidents.listed(session, run_id=run.id):
        lines.update({event.id: event for event in events.listed(session, incident_id=incident.id)})
    return views_incidents.timeline_rows(lines.values(), runs.decisions(session, run.id))


def why(session: Session, run: Run, now: float) -> Json:
    """A Why: a card a restart, what a person is asked now, why the run waits, the timeline. API: runs/{run}/why."""
    attempts = runs.attempts(session, run.id)
    decisions = {one.id: one for one in runs.decisions(session, run.id)}
    numbers = views_runs.incident_numbers(session, list(decisions.values()))
    records = {part.attempt_no: part for part in steps.read(session, run.id)}
    spans = views_runs.phases(session, run.id, attempts)
    gpus = parse_job(run.spec).gpus
    restarts = []
    for before, after in itertools.pairwise(attempts):
        decision = decisions.get(after.decision_id or "")
        told = views_runs.decision(decision, attempts, numbers) if decision else None
        fault = _fault(session, decision)
        begun = _begun(session, fault) if fault is not None else _left(before, spans)
        card = _card(begun, before, after, decision, fault, records, spans, gpus, now)
        restarts.append({**card, "decision": told, "incident": told["incident"] if told else None})
    asked = views_runs.proposal(list(decisions.values()), attempts) if run.status not in RUN_ENDED else None
    proposals = [one for one in decisions.values() if one.mode != "act"]
    told = {one.id: _proposal(session, one, attempts, numbers) for one in proposals}
    return {
        "run": run.id,
        "restarts": restarts,
        "proposal": told[asked.id] if asked is not None else None,
        "proposed": list(told.values()),
        "waits": _waits(run),
        "timeline": timeline(session, run),
    }


def _waits(run: Run) -> str:
    """Why nothing of a run is under way, as a sentence; empty where something is, or the run has ended."""
    lead = _WAITING.get(run.status)
    if lead is None:
        return ""
    return f"{lead}: {run.reason.rstrip('.')}." if run.reason else f"{lead}."


def _proposal(session: Session, asked: Decision, attempts: list[Attempt], numbers: dict[str, int]) -> Json:
    """What the system would do, with the fault that it answers, for the person who may do it."""
    fault = _fault(session, asked)
    return {
        "sentence": views_incidents.proposed(asked.reason),
        "at_s": _begun(session, fault) if fault is not None else asked.created_s,
        "decision": views_runs.decision(asked, attempts, numbers),
        "fault": _fault_row(fault),
    }


def _fault(session: Session, decision: Decision | None) -> Fault | None:
    """The fault that the decision names first; those of an incident that opened again are not all its cause."""
    if decision is None or decision.incident_id is None:
        return None
    found = views_incidents.answered(decision, faults.of_incident(session, decision.incident_id))
    return min(found, key=lambda fault: (fault.rule != decision.rule, fault.onset_s), default=None)


@cache
def _book() -> RuleBook:
    return rule_book.load()


def _begun(session: Session, fault: Fault) -> float:
    """A fault's onset by the server's clock: an agent tells it by its node's."""
    node = nodes.get(session, fault.node) if not _book().is_own(fault.rule) else None
    return fault.onset_s + (node.clock_offset_s if node is not None else 0.0)


def _card(
    begun: float,
    before: Attempt,
    after: Attempt,
    decision: Decision | None,
    fault: Fault | None,
    records: dict[int, StepRecords],
    spans: dict[int, list[Json]],
    gpus: int,
    now: float,
) -> Json:
    last = _last_step(before, records)
    again = max(0, (last or 0) - (after.resume_step or 0))
    parts = _parts(begun, before, after, decision, spans, now)
    redone_s = _redone(records.get(after.no), after, last)
    if redone_s:
        parts.append({"name": f"{again} steps again", "seconds": redone_s, "color_role": "again"})
    back = after.first_step_s - begun if after.first_step_s is not None else None
    lost_s = (back if back is not None else now - begun) + redone_s
    sentence, bold = _sentence(begun, before, after, decision, fault, back, again, lost_s * gpus / 3600)
    return {
        "no": before.no,
        "at_s": begun,
        "sentence": sentence,
        "bold": bold,
        "phases": parts,
        "steps_again": again,
        "gpu_hours_lost": lost_s * gpus / 3600,
        "back_after_s": back,
        "evidence": _evidence(decision, fault, after),
        "fault": _fault_row(fault),
        "before": {"no": before.no, "last_step": last},
        "after": {"no": after.no, "first_step": after.first_step, "resume_step": after.resume_step},
    }


def _left(before: Attempt, spans: dict[int, list[Json]]) -> float:
    """When an attempt stopped doing its work, where no fault says it."""
    leaving = [span["from_s"] for span in spans[before.no] if span["phase"] in LEAVING]
    return float(min(leaving, default=before.ended_s if before.ended_s is not None else before.state_since_s))


def _last_step(attempt: Attempt, records: dict[int, StepRecords]) -> int | None:
    found = records.get(attempt.no)
    return int(found.step[-1]) if found is not None else attempt.last_step


def _redone(records: StepRecords | None, after: Attempt, last: int | None) -> float:
    """Seconds in which the new attempt repeated what the old one had done."""
    if records is None or last is None:
        return 0.0
    series = views_runs.per_step(records)
    redone = (series["step"] > (after.resume_step or 0)) & (series["step"] <= last)
    return float(np.sum(series["step_seconds"][redone]))


def _parts(
    begun: float, before: Attempt, after: Attempt, decision: Decision | None, spans: dict[int, list[Json]], now: float
) -> list[Json]:
    """The way back in phases, from the cause to the first step."""
    decided = decision.created_s if decision is not None else begun
    marks = [("detect, decide", "detect", decided), ("drain", "drain", before.ended_s)]
    starts = {span["phase"]: span["from_s"] for span in reversed(spans[after.no])}
    if starts.get("init") is None and after.first_step_s is not None:  # too quick to be seen loading
        marks += [("start, load, first step", "load", after.first_step_s)]
    else:
        marks += [
            ("place, start", "place", starts.get("init")),
            ("load checkpoint, first step", "load", after.first_step_s),
        ]
    parts, at = [], begun
    for name, role, end in marks:
        until = end if end is not None else now
        if until > at:
            parts.append({"name": name, "seconds": until - at, "color_role": role})
            at = until
        if end is None:
            break
    return parts


def _sentence(
    begun: float,
    before: Attempt,
    after: Attempt,
    decision: Decision | None,
    fault: Fault | None,
    back: float | None,
    again: int,
    lost_gpu_h: float,
) -> tuple[str, list[str]]:
    clock = datetime.fromtimestamp(begun, UTC).strftime("%H:%M:%S")
    new = sorted(set(after.nodes) - set(before.nodes))
    cause = fault.sentence if fault is not None else (decision.reason.rstrip(".") if decision else "It was resumed")
    where = f"on spare {joined(new)}" if new else "on the same nodes"
    source = f"checkpoint {after.resume_step}" if after.resume_step is not None else "step 0"
    did = f"attempt {before.no} was stopped and attempt {after.no} began {where} from {source}"
    first = f"{cause} at {clock} UTC, so {did}." if fault is not None else f"{cause}. At {clock} UTC {did}."
    if back is None:
        return f"{first} Training is not back yet.", [cause, *new, source]
    length = duration(back)
    repeated = f"{again} steps were run twice" if again != 1 else "1 step was run twice"
    cost = f"{lost_gpu_h:.2f} GPU-hours" if lost_gpu_h < 10 else f"{lost_gpu_h:,.0f} GPU-hours"
    return f"{first} Training was back in {length}; {repeated}; {cost} lost.", [cause, *new, source, length, cost]


def _evidence(decision: Decision | None, fault: Fault | None, after: Attempt) -> list[Json]:
    found: list[Json] = []
    if fault is not None:
        label = f"{fault.evidence.get('title') or fault.rule} {fault.entity}"
        found.append({"kind": "fault", "id": fault.id, "label": label, "sentence": fault.sentence})
    if decision is not None:
        found += [one for one in decision.evidence if one.get("kind") not in ("fault", "window")]
        found.append({"kind": "decision", "id": decision.id, "label": "decision", "sentence": decision.reason})
        if decision.verification:
            label = f"first step {after.first_step}, as planned" if decision.state == "verified" else "not verified"
            sentence = str(decision.verification.get("sentence", ""))
            found.append({"kind": "verification", "id": decision.id, "label": label, "sentence": sentence})
    return found


def _fault_row(fault: Fault | None) -> Json | None:
    if fault is None:
        return None
    return {
        "id": fault.id,
        "rule": fault.rule,
        "node": fault.node,
        "entity": fault.entity,
        "onset_s": fault.onset_s,
        "received_s": fault.received_s,
        "sentence": fault.sentence,
    }

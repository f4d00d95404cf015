"""Incidents as the API shows them: rows for lists, and one incident whole with its story. Reading only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from agents.readings import INDEX, METRICS, device_of
from controlplane.rules.book import RuleBook
from controlplane.services import expert_places, incident_story
from controlplane.services.incident_story import Cost, Story, cost_of, leading
from controlplane.services.transitions import label
from controlplane.store import deliveries, events, faults, incidents, nodes, runs, steps, telemetry
from controlplane.store.engine import Session, Store
from controlplane.store.tables import Attempt, Decision, Event, Fault, Incident
from jobs.spec import parse_job

Json = dict[str, Any]

KERNEL_AROUND_S = 30.0
SERIES_AROUND_S = 300.0
SERIES_POINTS = 240
AFTER_S = 60.0
"""How much of the run's own timeline is shown after it trains again."""


def rows(
    store: Store, now: float, *, states: Collection[str] | None = None, run_id: str | None = None, limit: int = 200
) -> list[Json]:
    """The newest incidents as rows; of some states or of one run."""
    with store.read() as session:
        return [row(incident, now) for incident in incidents.listed(session, states, run_id=run_id, limit=limit)]


def row(incident: Incident, now: float) -> Json:
    """One incident in a list."""
    quiet = incident.quiet_until_s
    return {
        "number": incident.number,
        "label": label(incident.number),
        "rule": incident.rule,
        "severity": incident.severity,
        "action": incident.action,
        "state": incident.state,
        "title": incident.title,
        "node": incident.node,
        "gpu": incident.gpu,
        "entity": incident.entity,
        "run": incident.run_id,
        "opened_s": incident.opened_s,
        "age_s": max(0.0, now - incident.opened_s),
        "owner": incident.owner,
        "acked_s": incident.acked_s,
        "resolved_s": incident.resolved_s,
        "reopened": incident.reopened,
        "silenced_until_s": quiet if quiet is not None and quiet > now else None,
    }


def view(store: Store, book: RuleBook, number: int, now: float) -> Json | None:
    """One incident whole; None if there is no such number."""
    with store.read() as session:
        incident = incidents.by_number(session, number)
        if incident is None:
            return None
        story = read_story(session, book, incident)
        parent = incidents.get(session, incident.parent_id) if incident.parent_id else None
        offset = story.node.clock_offset_s if story.node is not None else 0.0
        found = {
            **row(incident, now),
            "resolution": incident.resolution,
            "parent": parent.number if parent else None,
            "merged": [child.number for child in incidents.children(session, incident.id)],
            "sentence": incident_story.sentence(story),
            "tiles": incident_story.tiles(story),
            "timeline": timeline(session, story),
            "faults": [_fault(fault, book, offset) for fault in story.faults],
            "decisions": [_decision(session, one, number) for one in incidents.decisions(session, incident.id)],
            "deliveries": [
                {
                    "channel": one.channel,
                    "seq": one.seq,
                    "type": one.body.get("type", ""),
                    "state": one.state,
                    "told_s": one.told_s,
                    "tries": one.tries,
                    "last_error": one.last_error or None,
                }
                for one in deliveries.of_incident(session, incident.id)
            ],
            "kernel": _kernel(session, story, offset),
            "series": _series(session, story, offset),
            "blast_radius": expert_places.blast_radius(session, story.faults, story.onset_s, offset),
        }
    return {**found, "cli": incident_story.cli(story), "actions": incident_story.actions(story)}


def read_story(session: Session, book: RuleBook, incident: Incident) -> Story:
    """The facts of an incident, gathered."""
    members = faults.of_incident(session, incident.id)
    node = nodes.get(session, incident.node) if incident.node else None
    offset = node.clock_offset_s if node is not None else 0.0
    onsets = [fault.onset_s + (0.0 if book.is_own(fault.rule) else offset) for fault in members]
    onset_s = min([*onsets, incident.opened_s])
    made = incidents.decisions(session, incident.id)
    decision = made[0] if made else None
    run_id = incident.run_id or (decision.run_id if decision else None)
    run = runs.get(session, run_id) if run_id else None
    attempts = runs.attempts(session, run.id) if run else []
    before, after = _attempts_around(attempts, decision)
    cost: Cost | None = None
    if run is not None and before is not None and after is not None:
        resumed = runs.checkpoint(session, after.resume_checkpoint_id) if after.resume_checkpoint_id else None
        gpus = parse_job(run.spec).spec.resources.gpus_per_node * len(after.nodes)
        hit = {fault.id for fault in answered(decision, members)} if decision is not None else set()
        hit_s = min([at for fault, at in zip(members, onsets, strict=True) if fault.id in hit], default=onset_s)
        cost = cost_of(hit_s, before, after, resumed.state_at_s if resumed else None, gpus)
        last = steps.last_step(session, run.id, before.no)  # heartbeats are throttled, step records are not
        if last is not None and after.first_step is not None:
            cost = replace(cost, steps_again=max(0, last - after.first_step + 1))
    return Story(
        incident=incident,
        onset_s=onset_s,
        faults=members,
        decision=decision,
        before=before,
        after=after,
        node=node,
        run_name=run.name if run else "",
        cost=cost,
        earlier=_earlier(session, incident),
    )


def answered(decision: Decision, members: Sequence[Fault]) -> list[Fault]:
    """The faults that a decision's evidence names; all of the incident's where it names none of them."""
    named = {str(one.get("id")) for one in decision.evidence if one.get("kind") == "fault"}
    return [fault for fault in members if fault.id in named] or list(members)


def _attempts_around(attempts: list[Attempt], decision: Decision | None) -> tuple[Attempt | None, Attempt | None]:
    """The attempt that a decision ended and the one that it began."""
    if decision is None:
        return None, None
    before = next((one for one in attempts if one.no == decision.attempt_no), None)
    after = next((one for one in attempts if one.decision_id == decision.id and one is not before), None)
    return before, after


def _earlier(session: Session, incident: Incident) -> list[Incident]:
    if not incident.node:
        return []
    return incidents.of_place(session, incident.node, incident.entity, before_number=incident.number)


def timeline(session: Session, story: Story) -> list[Json]:
    """What happened in order, in three lanes: the incident's own lines and its run's around it, then what is left."""
    incident = story.incident
    lines = {event.id: event for event in events.listed(session, incident_id=incident.id)}
    run_id = incident.run_id or (story.decision.run_id if story.decision else None)
    if run_id:
        back = story.after.first_step_s if story.after else None
        until = (back or incident.resolved_s or float("inf")) + AFTER_S
        for event in events.listed(session, run_id=run_id, since_s=story.onset_s - 1.0):
            if event.at_s <= until and event.incident_id in (None, incident.id):
                lines[event.id] = event
    made = [*incidents.decisions(session, incident.id), *(runs.decisions(session, run_id) if run_id else ())]
    told = timeline_rows(lines.values(), made)
    rest = incident_story.left(story)
    if rest:
        told.append(
            {
                "at_s": None,
                "lane": "rule",
                "kind": "waits",
                "sentence": f"Waits for a person: {rest}",
                "detail": "",
                "level": "warn",
                "link": None,
            }
        )
    return told


def timeline_rows(lines: Iterable[Event], made: Iterable[Decision]) -> list[Json]:
    """What readers are told of these events, oldest first; of `made`, what was only proposed is said to be so."""
    proposals = {one.id for one in made if one.mode != "act"}
    ordered = sorted(lines, key=lambda event: (event.at_s, event.id))
    told = [event for event in ordered if event.sentence and not event.data.get("hidden")]
    return [_timeline_row(event, event.kind == "decided" and event.decision_id in proposals) for event in told]


def proposed(reason: str) -> str:
    """What was decided, said as what it is while only a person may do it."""
    return f"Proposed: {reason}"


def _timeline_row(event: Event, only_proposed: bool) -> Json:
    data = event.data
    return {
        "at_s": event.at_s,
        "lane": data.get("lane", "run"),
        "kind": event.kind,
        "sentence": proposed(event.sentence) if only_proposed else event.sentence,
        "detail": data.get("detail", ""),
        "level": data.get("level", "info"),
        "link": data.get("link"),
    }


def _fault(fault: Fault, book: RuleBook, offset: float) -> Json:
    skew = 0.0 if book.is_own(fault.rule) else offset
    return {
        "id": fault.id,
        "rule": fault.rule,
        "severity": fault.severity,
        "action": fault.action,
        "node": fault.node or None,
        "entity": fault.entity,
        "state": fault.state,
        "onset_s": fault.onset_s + skew,
        "last_clean_s": fault.last_clean_s + skew,
        "received_s": fault.received_s,
        "cleared_s": fault.cleared_s,
        "value": fault.value,
        "threshold": fault.threshold,
        "sentence": fault.sentence,
        "evidence": fault.evidence,
    }


def _decision(session: Session, decision: Decision, number: int) -> Json:
    resumed = runs.checkpoint(session, decision.checkpoint_id) if decision.checkpoint_id else None
    return {
        "id": decision.id,
        "action": decision.action,
        "mode": decision.mode,
        "state": decision.state,
        "reason": decision.reason,
        "rule": decision.rule,
        "excluded_nodes": decision.excluded_nodes,
        "checkpoint_id": decision.checkpoint_id,
        "resume_step": resumed.step if resumed else None,
        "evidence": decision.evidence,
        "failure_class": decision.failure_class,
        "fingerprint": decision.fingerprint,
        "created_s": decision.created_s,
        "executed_s": decision.executed_s,
        "verified_s": decision.verified_s,
        "verification": decision.verification,
        "incident": number,
        "run": decision.run_id,
        "attempt_no": decision.attempt_no,
    }


def _kernel(session: Session, story: Story, offset: float) -> list[Json]:
    """The node's kernel log around the onset, by the server's clock."""
    if story.node is None:
        return []
    at_s = story.onset_s - offset
    found = telemetry.kernel_lines(
        session, story.node.name, since_s=at_s - KERNEL_AROUND_S, until_s=at_s + KERNEL_AROUND_S
    )
    return [
        {"at_s": line.at_s + offset, "priority": line.priority, "text": line.text, "pci_address": line.pci_address}
        for line in found
    ]


def _series(session: Session, story: Story, offset: float) -> Json | None:
    """The measure that the leading fault's rule watches, ten minutes around the onset; None if it watches none."""
    cause = leading(story.faults, story.incident.rule)
    if cause is None or story.node is None:
        return None
    device = device_of(cause.entity)
    if device is None:
        return None
    kind, index = device
    watched = [name for name in cause.evidence.get("metrics") or () if name in INDEX[kind]]
    if not watched:
        return None
    metric = METRICS[kind][INDEX[kind][watched[0]]]
    at_s = story.onset_s - offset
    points = telemetry.read_points(
        session,
        story.node.name,
        kind,
        metric.name,
        index,
        since_s=at_s - SERIES_AROUND_S,
        until_s=at_s + SERIES_AROUND_S,
        points=SERIES_POINTS,
    )
    if not len(points.at_s):
        return None
    return {
        "t": [float(value) + offset for value in points.at_s],
        "v": [float(value) * metric.resolution for value in points.last],
        "unit": metric.unit,
        "metric": metric.name,
        "title": f"{kind.upper()} {index}, {metric.help}",
    }

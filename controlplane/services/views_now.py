"""The page Now: one sentence on what needs a person, then the few numbers that say how the fleet and the runs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from controlplane.rules.book import RuleBook
from controlplane.services import views_experts, views_fleet, views_incidents, views_lost, views_outages, views_runs
from controlplane.services.durations import duration
from controlplane.services.live import Live
from controlplane.services.views_lost import Day
from controlplane.store import incidents, lifecycles, nodes, runs
from controlplane.store.engine import Session
from controlplane.store.tables import Decision, Incident, Run

Json = dict[str, Any]
RECOVERIES = 10
INCIDENTS_READ, INCIDENTS_LISTED = 500, 20
_LEVEL = {"warning": "warn", "error": "fault", "critical": "fault"}
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def now_view(session: Session, live: Live, book: RuleBook, now: float) -> Json:
    """A Now view. API: now."""
    rows = views_fleet.node_rows(session, live, now=now)
    counts = Counter(gpu["state"] for node in rows for gpu in node["gpus"])
    gpus = sum(counts.values())
    simulated = {node["name"] for node in rows if node["simulated"]}
    found = runs.unfinished(session)
    newest = runs.newest_attempts(session, [run.id for run in found])
    running = [views_runs.row(session, run, newest.get(run.id), simulated, now) for run in found]
    opened = incidents.listed(session, ("open", "acked"), limit=INCIDENTS_READ)
    needs = _sorted([*_needs(session, found, opened, now), *_held(session, found, now)])
    days = views_lost.last_day(session, now)
    fleet, day_ago = nodes.listed(session), now - views_lost.DAY_S
    return {
        "sentence": {"lead": _lead(len(needs)), "rest": _rest(counts, gpus, running)},
        "needs": needs,
        "tiles": [
            _healthy(counts, gpus),
            _goodput(days),
            _imbalance(session, live, found, book),
            _recovery(session),
        ],
        "running": running,
        "incidents": [views_incidents.row(one, now) for one in opened[:INCIDENTS_LISTED]],
        "incidents_open": len(opened),
        "incidents_cleared": incidents.cleared(session, since_s=day_ago),
        "fleet": {"nodes": len(rows), "gpus": gpus, "counts": dict(counts)},
        "age_s": max((node["age_s"] for node in rows if node["age_s"] is not None), default=None),
        "simulated": bool(simulated),
        "lost": [*views_lost.rows(days, now), *views_outages.rows(session, fleet, since=day_ago, now=now)],
        "lost_of": views_outages.whole(fleet, since=day_ago, now=now),
    }


def _lead(count: int) -> str:
    if not count:
        return "Nothing needs a person."
    number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    return f"{number} thing{'s' if count != 1 else ''} need{'s' if count == 1 else ''} a person."


def _rest(counts: Counter[str], gpus: int, running: list[Json]) -> str:
    healthy = counts["training"] + counts["idle"]
    fleet = f"{healthy:,} of {gpus:,} GPUs are healthy" if gpus else "No node has reported yet"
    training = sum(one["attempt_state"] == "training" for one in running)
    jobs = (
        "no job trains"
        if not training
        else f"{training} job{'s' if training != 1 else ''} train{'s' if training == 1 else ''}"
    )
    return f"{fleet}; {jobs}."


def _needs(session: Session, found: Sequence[Run], opened: Sequence[Incident], now: float) -> list[Json]:
    """Every incident that is not over, every run that waits for a person, every restart that only a person may make."""
    needs = [_need(one, now) for one in opened]
    for run in found:
        asked = views_runs.proposal(runs.decisions(session, run.id), runs.attempts(session, run.id))
        if run.status == "needs_human":
            needs.append(_run_need(run, "fault", f"Decide on {run.name}.", run.reason))
        elif asked is not None and asked.mode == "advise":
            needs.append(
                _run_need(run, "warn", f"Decide on {run.name}.", views_incidents.proposed(asked.reason), asked, now)
            )
    return needs


def _sorted(needs: list[Json]) -> list[Json]:
    order = {"fault": 0, "warn": 1}
    return sorted(needs, key=lambda one: (order[one["level"]], one["owner"] is not None, -(one["since_s"] or 0.0)))


def _held(session: Session, running: Sequence[Run], now: float) -> list[Json]:
    """Every stage of a lifecycle that waits for a person, unless a run of it is there already."""
    told = {(run.lifecycle_id, run.stage) for run in running if run.status == "needs_human"}
    return [
        {
            "level": "fault" if stage.hold == "tainted" else "warn",
            "lead": f"Decide on stage {stage.name} of {name}.",
            "rest": stage.reason,
            "since_s": now - stage.state_since_s,
            "owner": None,
            "incident": None,
            "link": {"kind": "lifecycle", "id": stage.lifecycle_id, "stage": stage.name},
            "actions": [{"verb": "open", "label": f"Open {name}"}],
        }
        for stage, name in lifecycles.held(session)
        if stage.wish is None and (stage.lifecycle_id, stage.name) not in told
    ]


def _run_need(
    run: Run, level: str, lead: str, rest: str, decision: Decision | None = None, now: float | None = None
) -> Json:
    since = now - decision.created_s if decision is not None and now is not None else None
    return {
        "level": level,
        "lead": lead,
        "rest": rest,
        "since_s": since,
        "owner": None,
        "incident": None,
        "link": {"kind": "run", "id": run.id},
        "actions": [{"verb": "open", "label": f"Open {run.id}"}],
    }


def _need(incident: Incident, now: float) -> Json:
    verb = "Return or replace" if incident.node and incident.action in ("restart", "rma", "drain") else "Look at"
    what = incident.node or incident.run_id or incident.entity
    label = f"INC-{incident.number:04d}"
    return {
        "level": _LEVEL.get(incident.severity, "warn"),
        "lead": f"{verb} {what}.",
        "rest": incident.title,
        "since_s": now - incident.opened_s,
        "owner": incident.owner,
        "incident": incident.number,
        "link": {"kind": "incident", "id": incident.number},
        "actions": [{"verb": "open", "label": f"Open {label}"}, {"verb": "ack", "label": "Take it"}],
    }


def _tile(label: str, value: str, unit: str, context: str, level: str = "ok") -> Json:
    return {"label": label, "value": value, "unit": unit, "context": context, "level": level}


def _healthy(counts: Counter[str], gpus: int) -> Json:
    healthy = counts["training"] + counts["idle"]
    names = (("warning", "warn"), ("fault", "fault"), ("drained", "drained"), ("nodata", "silent"))
    rest = ", ".join(f"{counts[state]} {word}" for state, word in names if counts[state])
    return _tile("healthy GPUs", f"{healthy:,}" if gpus else "–", f"of {gpus:,}" if gpus else "", rest or "no finding")


def _goodput(days: Sequence[Day]) -> Json:
    percent = views_lost.percent(days)
    if percent is None:
        return _tile("goodput, 24 h", "–", "", "no run was placed in the last day")
    worst = ", ".join(f"{share:.1f} % {phase.rpartition(', ')[2]}" for phase, share in views_lost.shares(days)[:3])
    return _tile("goodput, 24 h", f"{percent:.1f}", "%", f"lost: {worst}" if worst else "nothing lost")


def _imbalance(session: Session, live: Live, found: Sequence[Run], book: RuleBook) -> Json:
    training = [run for run in found if run.status == "active"]
    seen = [(run, views_experts.newest_picture(session, live, run.id, book)) for run in training]
    known = [(float(told.judged.floors[told.worst()]), run, told) for run, told in seen if told is not None]
    if not known:
        return _tile("worst imbalance", "–", "", "no expert record yet" if training else "no run trains now")
    value, run, told = max(known, key=lambda one: one[0])
    state = ", still settling" if told.settling else ""
    return _tile("worst imbalance", f"{value:.1f}×", "floor", f"L{told.worst()} of {run.name}{state}")


def _recovery(session: Session) -> Json:
    """From the decision to the first step of the next attempt, over the newest restarts of any run."""
    found = []
    for run in runs.listed(session, limit=50):
        attempts = {one.decision_id: one for one in runs.attempts(session, run.id) if one.decision_id}
        for decision in runs.decisions(session, run.id):
            after = attempts.get(decision.id)
            if after is not None and after.first_step_s is not None:
                alone = decision.mode == "act" and decision.rule != "person"
                found.append((decision.created_s, after.first_step_s - decision.created_s, alone))
    newest = sorted(found)[-RECOVERIES:]
    if not newest:
        return _tile("recovery", "–", "", "no restart yet")
    lengths, by_itself = sorted(length for _, length, _ in newest), sum(alone for *_, alone in newest)
    context = f"{by_itself} without a person, slowest {duration(lengths[-1])}"
    label = f"recovery, last {len(newest)} restarts" if len(newest) > 1 else "recovery, the last restart"
    return _tile(label, duration(lengths[len(lengths) // 2]), "median", context)

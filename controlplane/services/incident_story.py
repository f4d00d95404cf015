"""An incident told to its reader: when it began, what was done, what it cost, what is left. Pure, over rows.

The same facts give the sentence, the tiles and the actions, so that they never contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.rules.incident_machine import FIRING
from controlplane.services.durations import duration
from controlplane.services.transitions import label
from controlplane.store.tables import Attempt, Decision, Fault, Incident, Node

DETECT_TARGET_S = 3.0
_RESTARTS = ("restart", "restart_exclude", "restart_rollback")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a restart cost; None is not known yet.

    back_s: from the fault to the first completed step of the next attempt. lost_gpu_h: GPUs × the time from the state
    that was resumed to that attempt's start of training, which is downtime and redone steps together.
    """

    back_s: float | None
    lost_gpu_h: float | None
    steps_again: int | None


@dataclass(frozen=True, slots=True)
class Story:
    """The facts of one incident. `onset_s`: the first fault's, by the server's clock."""

    incident: Incident
    onset_s: float
    faults: Sequence[Fault]
    decision: Decision | None
    before: Attempt | None
    after: Attempt | None
    node: Node | None
    run_name: str
    cost: Cost | None
    earlier: Sequence[Incident]

    @property
    def over(self) -> bool:
        return self.incident.state not in FIRING

    @property
    def firing(self) -> bool:
        return any(fault.state == "firing" for fault in self.faults)


def cost_of(onset_s: float, before: Attempt, after: Attempt, state_at_s: float | None, gpus: int) -> Cost:
    """The cost of going on from `before` with `after`; `state_at_s` is when the resumed state was computed."""
    began = after.first_step_s
    since = state_at_s if state_at_s is not None else before.first_step_s or before.running_s or before.created_s
    again = None
    if before.last_step is not None and after.first_step is not None:
        again = max(0, before.last_step - after.first_step + 1)
    return Cost(
        back_s=None if began is None else max(0.0, began - onset_s),
        lost_gpu_h=None if began is None else gpus * max(0.0, began - since) / 3600,
        steps_again=again,
    )


def sentence(story: Story) -> dict[str, str]:
    """The lead (what happened), the rest (what was done), and what is left for the reader."""
    return {"lead": _lead(story), "rest": _rest(story), "left": left(story)}


def _lead(story: Story) -> str:
    cause = leading(story.faults, story.incident.rule)
    told = cause.sentence if cause is not None else story.incident.title
    return f"{told[:1].upper()}{told[1:].rstrip('.')}, at {clock(story.onset_s)}."


def leading(faults: Sequence[Fault], rule: str) -> Fault | None:
    """The fault that the incident is named after: the first of its rule, or the first at all."""
    of_rule = [fault for fault in faults if fault.rule == rule]
    return next(iter(of_rule or faults), None)


def _rest(story: Story) -> str:
    decision = story.decision
    if decision is None:
        if story.incident.action == "alert":
            return "Nothing was changed: this rule tells a person."
        if not story.run_name:
            return "No run is affected."
        waits = "it was over before anything was decided" if story.over else "nothing is decided yet"
        return f"It touches {story.run_name}; {waits}."
    if asks_a_person(decision):
        return f"Proposed: {decision.reason}"
    if decision.mode != "act":
        return f"The system would have chosen: {decision.reason}"
    if decision.action not in _RESTARTS or story.after is None:
        return decision.reason
    new = [node for node in story.after.nodes if story.before is None or node not in story.before.nodes]
    where = f" on {', '.join(new)}" if new else ""
    start = "from its beginning" if story.after.resume_step is None else f"from checkpoint {story.after.resume_step}"
    moved = f"The system restarted {story.run_name}{where} {start}"
    if story.cost is None or story.cost.back_s is None:
        return f"{moved}; it does not train again yet."
    return f"{moved}; training was back in {duration(story.cost.back_s)}."


def asks_a_person(decision: Decision) -> bool:
    """True while a decision stands that only a person may carry out."""
    return decision.mode == "advise" and decision.state == "proposed"


def left(story: Story) -> str:
    """What only a person can do; "" when the incident is over."""
    if story.over:
        return ""
    incident = story.incident
    if story.decision is not None and asks_a_person(story.decision):
        without = f" without {', '.join(story.decision.excluded_nodes)}" if story.decision.excluded_nodes else ""
        return f"restart {story.run_name or 'the run'}{without}, or leave it as it is."
    if incident.action == "alert":
        return f"{_ADVICE.get(incident.rule, 'look at it')}, then resolve {label(incident.number)}."
    part = f"GPU {incident.gpu}" if incident.gpu is not None else "node"
    if story.node is not None and story.node.cordoned:
        return f"reset or replace the {part}, then return {story.node.name} to service."
    if story.node is not None:
        return f"decide whether {story.node.name} should stay in service."
    return f"{_ADVICE.get(incident.rule, 'find the cause')}, then resolve {label(incident.number)}."


_ADVICE = {
    "no-telemetry": "find out whether the node or only its agent is gone",
    "no-telemetry-fleet": "check the network between the nodes and this server",
    "quarantine-held": "look whether so many faults are real; cordon the nodes that must not train",
    "loss-not-finite": "choose a checkpoint from before that step and restart",
    "expert-imbalance": "look at the router's balancing",
    "expert-oscillation": "lower the gain of the balancing bias",
    "expert-dead": "look at the layer's router",
    "expert-runaway": "check the sign and the rate of the balancing, then restart from before it ran away",
    "expert-bias-frozen": "check that the balancing is still stepped and its rate is not zero",
    "expert-bias-lost": "save the biases with the checkpoint and restart from it; these steps trained on without them",
    "expert-skip": "look at the skip slot's bias",
    "expert-parallel-skew": "place the fullest experts apart, or look after the rank that is sick",
    "route-mismatch": "replay the rollout's routes in the trainer, or bring the two engines to one precision",
    "hang": "read the ranks' logs",
    "thermal": "check cooling and airflow",
    "nic-down": "check cable and switch port",
}


def tiles(story: Story) -> list[dict[str, Any]]:
    """Time to detect, time to train again, work lost, seen before."""
    return [_detect(story), _again(story), _lost(story), _seen(story)]


def _detect(story: Story) -> dict[str, Any]:
    seconds = max(0.0, story.incident.opened_s - story.onset_s)
    level = "ok" if seconds <= DETECT_TARGET_S else "warn"
    value, unit = _number(seconds)
    return _tile("time to detect", value, unit, f"target {DETECT_TARGET_S:g} s", level)


def _again(story: Story) -> dict[str, Any]:
    if story.decision is None or story.after is None:
        return _tile("time to train again", "–", "", "no restart", "info")
    if story.cost is None or story.cost.back_s is None:
        return _tile("time to train again", "not yet", "", f"attempt {story.after.no} is {story.after.state}", "warn")
    value, unit = _number(story.cost.back_s)
    return _tile("time to train again", value, unit, f"fault to first step of attempt {story.after.no}", "ok")


def _lost(story: Story) -> dict[str, Any]:
    if story.after is None:
        return _tile("work lost", "none", "", "no run was stopped", "ok")
    if story.cost is None or story.cost.lost_gpu_h is None:
        return _tile("work lost", "–", "", "not known before it trains again", "info")
    again = story.cost.steps_again
    steps = "" if again is None else f"{again} step{'' if again == 1 else 's'} again"
    return _tile("work lost", f"{story.cost.lost_gpu_h:.2g}", "GPU-hours", steps, "ok")


def _seen(story: Story) -> dict[str, Any]:
    times = len(story.earlier)
    value = {0: "never", 1: "once", 2: "twice"}.get(times, f"{times} times")
    incident = story.incident
    where = f"on GPU {incident.gpu}" if incident.gpu is not None else "here"
    if not times:
        return _tile("seen before", value, where, "", "ok")
    last = story.earlier[0]
    day = datetime.fromtimestamp(last.opened_s, UTC).strftime("%-d %b")
    resolution = f", {last.resolution}" if last.resolution else ""
    return _tile("seen before", value, where, f"{label(last.number)}, {day}{resolution}", "warn")


def _tile(name: str, value: str, unit: str, context: str, level: str) -> dict[str, Any]:
    return {"label": name, "value": value, "unit": unit, "context": context, "level": level}


def actions(story: Story) -> list[dict[str, Any]]:
    """What can be done to the incident's node, each with why it can or cannot."""
    node = story.node
    if node is None:
        return []
    cordon_why = "It is cordoned already." if node.cordoned else f"No new attempt will be placed on {node.name}."
    if not node.cordoned:
        return_why = "It is in service."
    elif story.firing:
        return_why = f"{label(story.incident.number)} still fires: to return {node.name} all the same needs a reason."
    else:
        return_why = f"{node.name} may take ranks again."
    return [
        {
            "verb": "uncordon",
            "label": f"Return {node.name} to service…",
            "enabled": node.cordoned,
            "why": return_why,
        },
        {"verb": "cordon", "label": f"Cordon {node.name}…", "enabled": not node.cordoned, "why": cordon_why},
    ]


def cli(story: Story) -> list[str]:
    """The same in a terminal."""
    incident = story.incident
    lines = [f"trimtab incident get {incident.number}"]
    if incident.run_id:
        lines.append(f"trimtab job why {incident.run_id}")
    if incident.state == "open":
        lines.append(f"trimtab incident ack {incident.number}")
    if story.node is not None:
        lines.append(f"trimtab node get {story.node.name}")
    return lines


def clock(at_s: float) -> str:
    """13:34:22, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S")


def _number(seconds: float) -> tuple[str, str]:
    """A length of time as a tile's figure and its unit; where it has two units they stay with their numbers."""
    told = duration(seconds)
    value, _, unit = told.partition(" ")
    return (told, "") if " " in unit else (value, unit)

"""What the control plane and an attempt's driver on a Ray cluster say to each other. Pure; it knows no Ray.

There is one way in each direction. In: the plan, as JSON in an environment variable of the Ray job. Out: lines of the
driver's output, which Ray keeps and serves over HTTP; each begins with a mark and holds one JSON object. Everything
else in that output (warnings of Ray's) is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from controlplane.backends.base import AttemptPlan
from jobs.contract import is_text, is_whole

Json = dict[str, Any]
PLAN = "TRIMTAB_RAY_PLAN"
KILL = "TRIMTAB_RAY_KILL"
RUNTIME = "TRIMTAB_RUNTIME_DIR"
"""in a raylet's environment: where this node's agent looks for heartbeats"""
NAMESPACE = "trimtab"
"""of placement groups and actors"""
NODE_LABEL = "trimtab.dev/node"
"""on a Ray node: the name by which its agent reports"""
MARK = "trimtab-ray "
ENDED = "trimtab-ended "
"""begins the last line of a member's output, written when no process of it is left"""
GROUP = "trimtab/"
"""begins the names of our placement groups"""
KILLER = ".kill"
"""ends the name of the Ray job that kills an attempt"""
STOP_MARGIN_S = 30
"""beyond a member's own grace, until Ray kills the driver of a stopped job"""


def log_name(attempt: str, index: int) -> str:
    """The file of a member's output, among its node's Ray logs."""
    return f"trimtab-{attempt}-{index}.log"


def plan_text(plan: AttemptPlan, runtime_path: str) -> str:
    """The plan for the driver."""
    return json.dumps({"plan": asdict(plan), "runtime_path": runtime_path})


def read_plan(text: str) -> tuple[AttemptPlan, str]:
    """The plan and the folder of heartbeats; ValueError for anything else."""
    found = json.loads(text)
    try:
        told = found["plan"]
        lists = {name: tuple(told[name]) for name in ("nodes", "command", "excluded")}
        return AttemptPlan(**{**told, **lists}), str(found["runtime_path"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"no plan: {error}") from error


def node_name(name: str, labels: Mapping[str, str]) -> str:
    """What we call a Ray node: its label, else Ray's name of it, which is its address unless it was given one."""
    return labels.get(NODE_LABEL) or name


def said(kind: str, **what: Any) -> str:
    """A line of the driver's."""
    return MARK + json.dumps({"kind": kind, **what})


def heard(output: str) -> Iterator[Json]:
    """What the lines of a driver's output say, in order; lines that are cut or not ours are skipped."""
    for line in output.splitlines():
        if not line.startswith(MARK):
            continue
        try:
            found = json.loads(line[len(MARK) :])
        except ValueError:
            continue
        if isinstance(found, dict) and is_text(found.get("kind")):
            yield found


def read_end(found: Any) -> Json | None:
    """How a member ended: {code, termination, reason}; None for anything else."""
    if not isinstance(found, dict) or not is_whole(found.get("code")) or not is_text(found.get("reason")):
        return None
    told = found.get("termination")
    return found if told is None or isinstance(told, dict) else None


def last_line(output: bytes) -> Json | None:
    """The end that a member's keeper wrote below its output; None while there is none."""
    lines = output.decode("utf-8", "replace").rstrip("\n").splitlines()
    if not lines or not lines[-1].startswith(ENDED):
        return None
    try:
        return read_end(json.loads(lines[-1][len(ENDED) :]))
    except ValueError:
        return None

"""The drills of the lifecycle demo: what each does, when, and how it is seen that the lifecycle got over it.

A drill acts as the world would: it kills a process by its id, changes a simulated device's registers, plants a bad
shard in the plan or asks too much of a gate. What follows is the controller's, and is read back through the public API.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.backends import processes
from controlplane.client import Client

Json = dict[str, Any]
DRILL_GPU = 3
POISON = (20, 22)
"""data indices of the midtraining that hold noise"""
TOO_MUCH = "pass@1 >= 0.99"
"""what the refused gate asks beside what the plan asks"""


@dataclass(frozen=True)
class Sight:
    """What a drill looks at: its stage and the stage's newest training run, as the API tells them."""

    client: Client
    lifecycle: str
    stage: Json
    run: Json


class Drill(ABC):
    """One drill on a stage. `run` is the run that it was done to, `injected_s` when, by this machine's clock."""

    kind: str
    stage: str

    def __init__(self) -> None:
        self.run = ""
        self.injected_s: float | None = None
        self.injected_step: int | None = None

    @property
    def done(self) -> bool:
        return self.injected_s is not None

    def note(self, run: str, step: int | None) -> str:
        """It has happened; returns what to say."""
        self.run, self.injected_s, self.injected_step = run, time.time(), step
        return f"drill {self.kind} on {run}" + (f" at step {step}" if step is not None else "")

    @abstractmethod
    def look(self, seen: Sight) -> str:
        """Acts if its moment has come; what it did in a sentence, or nothing."""

    def watch(self) -> None:
        """Looks for what follows, at each look once it was done; most drills are read back at the end."""
        return

    def told(self, client: Client) -> Json:
        """The drill's line of the report; `decision` is None where none was made, `detect_seconds` lead up to it."""
        line = {"kind": self.kind, "stage": self.stage, "injected_step": self.injected_step}
        if not self.done:
            return line | {"decision": None, "detect_seconds": None, "recovered": False}
        return line | self.outcome(client)

    def outcome(self, client: Client) -> Json:
        """decision, detect_seconds and recovered of a drill that an attempt did not survive."""
        run = client.run(self.run)
        since = self.injected_s or 0.0
        decision = next((one for one in run["decisions"] if one["created_s"] >= since - 1.0), None)
        after = [one for one in run["attempts"] if decision and one["no"] > decision["attempt_no"]]
        goes_on = any(one["first_step"] is not None for one in after)
        return {
            "decision": decision["action"] if decision else None,
            "detect_seconds": round(decision["created_s"] - since, 3) if decision else None,
            "recovered": goes_on and run["status"] == "succeeded",
        }


def _trained(run: Json, step: int) -> bool:
    """Whether the run's newest attempt is at a step and something verified lies behind it."""
    if not run["attempts"]:
        return False
    newest = run["attempts"][-1]
    saved = any(one["state"] == "validated" for one in run["checkpoints"])
    return saved and newest["first_step"] is not None and (run["step"] or 0) >= step


def _read(path: Path) -> Json:
    """A file that a job writes; empty while there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def killed(pid: object, attempt: str) -> bool:
    """SIGKILL to a process of an attempt; False if the id is nobody's any more, or another's."""
    process = processes.bearing(pid, attempt) if isinstance(pid, int) and pid > 0 else None
    if process is None:
        return False
    processes.tell(process, terminate=False)
    return True


class RankKilled(Drill):
    """SIGKILL to one rank's process; nothing else is told."""

    kind = "rank killed"

    def __init__(self, stage: str, nodes: Path, at_step: int) -> None:
        super().__init__()
        self.stage, self._nodes, self._at = stage, nodes, at_step

    def look(self, seen: Sight) -> str:
        run = seen.run
        if not _trained(run, self._at):
            return ""
        newest = run["attempts"][-1]
        for beat in self._nodes.glob(f"*/attempts/{newest['name']}/heartbeat-rank-1.json"):
            if killed(_read(beat).get("pid"), newest["name"]):
                return self.note(run["id"], run["step"])
        return ""


class NodeFault(Drill):
    """A simulated GPU of the run's last node reports an uncorrectable memory error."""

    kind = "node fault"

    def __init__(self, stage: str, at_step: int) -> None:
        super().__init__()
        self.stage, self._at = stage, at_step

    def look(self, seen: Sight) -> str:
        run = seen.run
        if not _trained(run, self._at):
            return ""
        seen.client.drill(run["attempts"][-1]["nodes"][-1], "hbm-uncorrectable", DRILL_GPU)
        return self.note(run["id"], run["step"])


class LossSpike(Drill):
    """A shard of noise, planted in the plan; it is met when the trainer reads it."""

    kind = "loss spike"

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def look(self, seen: Sight) -> str:
        run = seen.run
        for part in seen.client.get(f"runs/{run['id']}/steps", points=5000)["attempts"]:
            for step, at_s in zip(part["step"], part["at_s"], strict=True):
                if step >= POISON[0]:
                    said = self.note(run["id"], step)
                    self.injected_s = at_s
                    return said
        return ""


class ActorKilled(Drill):
    """SIGKILL to one rollout actor; the learner is to replace it without an end of the attempt.

    The learner writes its actors' process ids down anew at the end of the step in which it has replaced one: from the
    kill to there is what is told as the time that it took to be seen.
    """

    kind = "rollout actor killed"

    def __init__(self, stage: str, runs: Path, at_step: int) -> None:
        super().__init__()
        self.stage, self._runs, self._at = stage, runs, at_step
        self._file = runs
        self._pid = 0
        self._attempt = 0
        self._replaced_s: float | None = None

    def look(self, seen: Sight) -> str:
        run = seen.run
        if not run["attempts"] or (run["step"] or 0) < self._at:
            return ""
        newest = run["attempts"][-1]
        file = self._runs / run["id"] / f"attempt-{newest['no']:04d}" / "rollouts.json"
        for pid in _read(file).get("pids") or ():
            if killed(pid, newest["name"]):
                self._file, self._pid, self._attempt = file, pid, newest["no"]
                return self.note(run["id"], run["step"])
        return ""

    def watch(self) -> None:
        pids = _read(self._file).get("pids") if self._replaced_s is None else None
        if pids and self._pid not in pids:
            self._replaced_s = self._file.stat().st_mtime

    def outcome(self, client: Client) -> Json:
        self.watch()
        run = client.run(self.run)
        result = next((one for one in _runs(client, run) if one["id"] == self.run), None)
        replaced = (result or {}).get("metrics", {}).get("rollout_restarts", 0)
        took = round(self._replaced_s - (self.injected_s or 0.0), 3) if self._replaced_s is not None else None
        same = run["attempts"][-1]["no"] == self._attempt
        return {
            "decision": f"replaced by its learner, {replaced:.0f} time(s)" if replaced else None,
            "detect_seconds": took,
            "recovered": bool(replaced) and took is not None and same and run["status"] == "succeeded",
        }


def _runs(client: Client, run: Json) -> list[Json]:
    lifecycle = client.get(f"lifecycles/{run['lifecycle']['id']}")
    return [one for stage in lifecycle["stages"] for one in stage["runs"]]


class GateRefused(Drill):
    """A gate that asks too much: it refuses, and then a person approves the checkpoint against it."""

    kind = "gate refused, then approved"

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self._lifecycle = ""
        self._refused: Json = {}

    def look(self, seen: Sight) -> str:
        stage = seen.stage
        if stage["state"] != "held" or stage["hold"] != "refused":
            return ""
        self._refused, self._lifecycle = stage, seen.lifecycle
        body = {"hash": stage["candidate"]["hash"], "reason": "drill: the gate was made to ask too much"}
        seen.client.post(
            f"lifecycles/{self._lifecycle}/stages/{self.stage}/approve", body, key=f"approve-{self._lifecycle}"
        )
        said = self.note(stage["candidate"]["run"], stage["candidate"]["step"])
        return f"{said}: {stage['gate']['sentence']} Approved all the same."

    def outcome(self, client: Client) -> Json:
        told = client.get(f"lifecycles/{self._lifecycle}")
        stage = next(one for one in told["stages"] if one["name"] == self.stage)
        words = [one for one in told["approvals"] if one["stage"] == self.stage and one["verdict"] == "approved"]
        evaluated = [one["ended_s"] for one in stage["runs"] if one["role"] == "evaluate" and one["ended_s"]]
        took = round(self._refused["state_since_s"] - evaluated[-1], 3) if evaluated else None
        same = bool(words) and words[-1]["checkpoint_hash"] == self._refused["candidate"]["hash"]
        return {
            "decision": "refused, then approved by a person" if same else "refused",
            "detect_seconds": took,
            "recovered": stage["state"] == "passed" and same and words[-1]["used_s"] is not None,
        }


def planted(plan: Json, *, spike: str, gate: str) -> Json:
    """The plan with its planted drills: noise in the data of stage `spike`, more than can be at the gate of `gate`."""
    for stage in plan["spec"]["stages"]:
        if stage["name"] == spike:
            stage["job"].setdefault("data", {})["poison"] = f"{POISON[0]}-{POISON[1]}"
        if stage["name"] == gate:
            stage["gate"]["require"].append(TOO_MUCH)
    return plan

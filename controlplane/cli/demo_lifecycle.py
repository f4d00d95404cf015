"""The lifecycle demo: every stage of the toy lifecycle really trained, with one drill of each kind on the way.

It shows what a team does over months in some minutes: a plan is submitted, the controller takes it from pretraining to
a released model, and what goes wrong on the way is planted or done by demo_drills. Model and tasks are toys and say so.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from controlplane.cli import demo_lifecycle_report as report
from controlplane.cli.demo import Demo, forget_earlier, how_to_ask, interrupt, say
from controlplane.cli.demo_drills import (
    ActorKilled,
    Drill,
    GateRefused,
    LossSpike,
    NodeFault,
    RankKilled,
    Sight,
    planted,
)
from controlplane.cli.demo_processes import DemoError
from controlplane.cli.output import EXIT, hint
from controlplane.client import ApiError

Json = dict[str, Any]
TEMPLATE = "toy-lifecycle"
DEADLINE_S = 1500.0
LOOK_EVERY_S = 0.5
APPROVED_WITHIN_S = 30.0


class Showing:
    """The lifecycle of one demo, watched to its end; `watch` is told of each look, before any drill acts on it."""

    def __init__(self, show: Demo, watch: Callable[[Json], None] = lambda _told: None) -> None:
        self.show, self.client, self._watch = show, show.client, watch
        self.runs = show.stage.runs
        self.drills: list[Drill] = [
            RankKilled("pretrain", show.stage.nodes, at_step=30),
            LossSpike("midtrain"),
            NodeFault("sft", at_step=60),
            GateRefused("sft"),
            ActorKilled("rl-1", self.runs, at_step=2),
        ]
        self._said: dict[str, str] = {}
        self._progress_s = 0.0

    def submit(self, only: list[str]) -> Json:
        """The plan that ships, or these stages of it, with the bad shard and the gate that asks too much."""
        plan = planted(
            yaml.safe_load(self.client.get(f"lifecycle-templates/{TEMPLATE}")["yaml"]), spike="midtrain", gate="sft"
        )
        if only:
            plan["spec"]["stages"] = [one for one in plan["spec"]["stages"] if one["name"] in only]
            self.drills = [one for one in self.drills if one.stage in only]
        told: Json = self.client.post("lifecycles", {"spec": plan}, key=f"demo-{time.time_ns()}")
        say(f"submitted {told['name']}: {', '.join(one['name'] for one in told['stages'])}")
        return told

    def follow(self, lifecycle_id: str) -> Json:
        """Looks until the lifecycle ends; DemoError when it takes too long or waits for a person in vain."""
        while True:
            self.show.stage.still_alive()
            told: Json = self.client.get(f"lifecycles/{lifecycle_id}")
            self._tell(told)
            self._watch(told)
            for drill in self.drills:
                if drill.done:
                    drill.watch()
                else:
                    self._drill(drill, told)
            if told["status"] not in ("active", "paused"):
                return told
            awaited = {drill.stage for drill in self.drills if isinstance(drill, GateRefused) and not drill.done}
            held = next((one for one in told["stages"] if one["hold"] and one["name"] not in awaited), None)
            if held is not None and not self._just_approved(held):
                raise DemoError(held["reason"])
            if self.show.elapsed() > DEADLINE_S:
                raise DemoError(f"waited {DEADLINE_S:.0f} s in vain for the lifecycle's end; it is at {told['stage']}")
            time.sleep(LOOK_EVERY_S)

    def _just_approved(self, held: Json) -> bool:
        """Whether the stage is held no more than it takes to see the word that was just said."""
        drill = next((one for one in self.drills if isinstance(one, GateRefused) and one.stage == held["name"]), None)
        return drill is not None and drill.injected_s is not None and time.time() - drill.injected_s < APPROVED_WITHIN_S

    def _drill(self, drill: Drill, told: Json) -> None:
        stage = next(one for one in told["stages"] if one["name"] == drill.stage)
        live = [one for one in stage["runs"] if one["role"] == "train"]
        if stage["state"] in ("waiting", "passed") or not live:
            return
        run = self.client.run(live[-1]["id"])
        try:
            said = drill.look(Sight(self.client, told["id"], stage, run))
        except ApiError as error:  # what was looked at has moved on meanwhile: it is looked at again
            hint(f"demo:   the drill {drill.kind} has to wait: {error}")
            return
        if said:
            say(said)

    def _tell(self, told: Json) -> None:
        """A line where a stage's state changed, and one of progress each ten seconds."""
        for stage in told["stages"]:
            if self._said.get(stage["name"], "waiting") != stage["state"]:
                self._said[stage["name"]] = stage["state"]
                say(
                    f"{self.show.elapsed():5.0f} s  {stage['name']}: {stage['state']}. {stage['reason'] or ''}".rstrip()
                )
        now = self.show.elapsed()
        under_way = next((one for one in told["stages"] if one["progress"] and one["state"] in AT_WORK), None)
        if under_way is not None and now - self._progress_s >= 10:
            self._progress_s = now
            found = under_way["progress"]
            hint(f"demo:   {under_way['name']} {found['role']}, step {found['step'] or 0} of {found['steps']}")


AT_WORK = ("preparing", "training", "evaluating", "releasing")


def run(folder: Path, *, until_end: bool, backend: str = "local", stages: str = "") -> int:
    """The whole showing; it ends by itself with one JSON line last, or stays up until Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    forget_earlier(folder.resolve())
    show = Demo(folder.resolve() / time.strftime("%Y%m%d-%H%M%S"), time.monotonic(), backend)
    try:
        link = show.open()
        showing = Showing(show)
        told = showing.submit([name.strip() for name in stages.split(",") if name.strip()])
        say(f"open {link} and choose Lifecycles, or ask in another terminal:")
        for line in how_to_ask(show.client.url, show.stage.data, f"lifecycle show {told['name']}"):
            hint(f"  {line}")
        showing.follow(told["id"])
        seconds = {**show.seconds, "total": round(show.elapsed(), 3)}
        outcome = report.gather(show.client, told["id"], showing.drills, showing.runs, seconds)
        for sentence in report.learned(outcome):
            say(sentence)
        failed = report.failures(outcome)
        for sentence in failed:
            say(f"not so: {sentence}")
        say("all of it happened" if not failed else f"{len(failed)} of {len(report.CHECKS)} checks failed")
        if not until_end and os.isatty(2):
            say("all of it stays up until Ctrl-C")
            signal.pause()
        print(json.dumps(outcome), flush=True)
        return EXIT.OK if not failed else EXIT.ERROR
    except KeyboardInterrupt:
        return EXIT.OK
    except Exception as error:  # whatever it was: the last line is to say it
        return _failed(show, error)
    finally:
        show.stage.end()


def _failed(show: Demo, error: Exception) -> int:
    """The last line of a demo that came to nothing; what nobody foresaw is told whole before it."""
    if not isinstance(error, DemoError):
        traceback.print_exception(error)
    words = str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
    say(f"failed: {words}")
    say(f"logs are in {show.stage.folder}")
    print(json.dumps({"failed": words}), flush=True)
    return EXIT.ERROR

"""The main job, end to end: server, four simulated nodes, a real training run, a fault, the restart without the node.

Everything that the demo starts is a process of its own, told apart by its id and ended by it. What it reports is read
back through the public API, and each claim is a named check with a sentence: `--exit` succeeds only if all hold.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from controlplane.cli import demo_checks
from controlplane.cli.demo_moment import Sight, good, rest_s
from controlplane.cli.demo_processes import DemoError, Stage
from controlplane.cli.jobs import progress, story
from controlplane.cli.output import EXIT, hint
from controlplane.client import Client, Unreachable

Json = dict[str, Any]
NODES = tuple(f"node-{number:03d}" for number in range(4))
DRILL_KIND, DRILL_GPU = "hbm-uncorrectable", 3
DRILL_AFTER_STEP = 60
DEADLINE_S = 360.0
SAMPLED_EVERY_S = 10.0
LOOK_EVERY_S = 0.5
NOTICED_WITHIN = 10
"""samples, a second apart; the second one after the drill shows it"""


def say(sentence: str) -> None:
    hint(f"demo: {sentence}")


class Demo:
    """One showing. `began` is when it was asked for, by the monotonic clock."""

    def __init__(self, folder: Path, began: float, backend: str = "local") -> None:
        self.stage = _stage(folder, backend)
        self.began = began
        self.seconds: Json = {"setup": _setup_seconds()}
        self.client = Client("http://127.0.0.1:1")

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def open(self) -> str:
        """Cluster, server, receiver, agents; returns the dashboard's address."""
        self.stage.prepare(NODES)
        link, api = self.stage.start_server()
        self.seconds["to_ready"] = round(self.elapsed(), 3)
        say(f"ready after {self.elapsed():.1f} s: {link}")
        self.client = Client(api, self.stage.admin_token())
        self.stage.start_receiver(self.client)
        for node in NODES:
            self.stage.start_agent(node, self.client, api)
        self._until("four simulated nodes report", lambda: self._nodes() == len(NODES), 30)
        say("four simulated nodes report (8 MI300X and 8 NICs each; nothing here is real hardware)")
        return link

    def _nodes(self) -> int:
        return sum(bool(node["gpus"]) and node["age_s"] < 5 for node in self.client.nodes())

    def submit(self) -> str:
        """The toy job, on two of the four nodes."""
        text = self.client.get("templates/toy")["yaml"]
        run = self.client.submit(text, key=f"demo-{os.getpid()}-{time.time_ns()}")
        say(f"submitted {run['id']}: a real ZAYA-like model, {run['steps']} steps on two nodes")
        return str(run["id"])

    def train(self, run_id: str) -> Json:
        """Waits until attempt 1 has some verified checkpoints behind it."""
        run = self._until("attempt 1 trains", lambda: self._first_step(run_id), 90)
        begun = run["attempts"][0]["first_step_s"] - run["created_s"]
        self.seconds["to_first_step"] = round(begun, 3)
        say(f"attempt 1 trains on {', '.join(run['attempts'][0]['nodes'])}, first step after {begun:.1f} s")
        ripe: Json = self._until(f"step {DRILL_AFTER_STEP} and two checkpoints", lambda: self._ripe(run_id), 120)
        return ripe

    def _first_step(self, run_id: str) -> Json | None:
        run = self.client.run(run_id)
        return run if run["attempts"] and run["attempts"][0]["first_step"] is not None else None

    def _ripe(self, run_id: str) -> Json | None:
        run = self.client.run(run_id)
        verified = [one for one in run["checkpoints"] if one["state"] == "validated"]
        self._progress(run)
        return run if (run["step"] or 0) >= DRILL_AFTER_STEP and len(verified) >= 2 else None

    def _progress(self, run: Json) -> None:
        loss = f", loss {run['loss']:.2f}" if run["loss"] is not None else ""
        hint(f"demo:   attempt {run['attempt']}, {progress(run)}{loss}")

    def drill(self, run: Json) -> None:
        """One GPU of the run's second node reports an uncorrectable memory error, just after a checkpoint was computed:
        nobody can say then whether it holds good numbers.
        """
        node = run["attempts"][-1]["nodes"][-1]
        self._await_moment(run, node)
        self.client.drill(node, DRILL_KIND, DRILL_GPU)
        say(f"fault drill: GPU {DRILL_GPU} of {node} will report {DRILL_KIND}")

    def _await_moment(self, run: Json, node: str) -> None:
        """Returns when a checkpoint is about to be computed between two samples of the node, or it gets too late."""
        every = int(run["spec"]["spec"]["train"]["checkpointEvery"])
        saves = [one["written_at_s"] - one["state_at_s"] for one in run["checkpoints"] if one["state"] == "validated"]
        sampled_s = 0.0
        while self.elapsed() < DEADLINE_S:
            self.stage.still_alive()
            if time.time() - sampled_s > SAMPLED_EVERY_S:
                since = time.time() - SAMPLED_EVERY_S
                sampled_s = self.client.get(f"nodes/{node}/series", metric="power_w", since=since)["t"][-1]
            told = self.client.get(f"runs/{run['id']}/steps", points=5000)["attempts"][-1]
            sight = Sight(time.time(), told["step"], told["at_s"], sampled_s, median(saves[:5]))
            if good(sight, every):
                return
            time.sleep(rest_s(sight))
        raise DemoError(f"waited until {DEADLINE_S:.0f} s in vain: a moment to order the drill")

    def noticed(self, run: Json) -> None:
        """Waits for the drill's incident; DemoError at once when the node has told enough, and nothing came of it."""
        node, ordered_s = run["attempts"][-1]["nodes"][-1], time.time()

        def found() -> bool:
            if any(one["rule"] == DRILL_KIND for one in self.client.get("incidents")["incidents"]):
                return True
            told = self.client.get(f"nodes/{node}/series", metric="power_w", since=ordered_s)["t"]
            if len(told) >= NOTICED_WITHIN:
                raise DemoError(f"{node} told {len(told)} samples after the drill, and there is no incident")
            return False

        self._until(f"an incident of {node}", found, DEADLINE_S)

    def follow(self, run_id: str) -> Json:
        """Watches the run to its end."""
        seen = 1

        def ended() -> Json | None:
            nonlocal seen
            run = self.client.run(run_id)
            if len(run["attempts"]) > seen:
                seen = len(run["attempts"])
                nodes, reason = ", ".join(run["attempts"][-1]["nodes"]), run["decisions"][-1]["reason"]
                say(f"attempt {seen} on {nodes}, because: {reason}")
            self._progress(run)
            return run if run["status"] in ("succeeded", "failed", "cancelled", "needs_human") else None

        left = max(10.0, DEADLINE_S - self.elapsed())
        run: Json = self._until("the run ends", ended, left)
        say(f"the run has {run['status']}")
        return run

    def _until(self, what: str, look: Any, within_s: float) -> Any:
        """Looks until there is something; DemoError with the last state when it takes too long."""
        deadline = time.monotonic() + within_s
        while True:
            self.stage.still_alive()
            try:
                found = look()
            except Unreachable as error:
                raise DemoError(f"the server is gone while waiting: {what}: {error}") from error
            if found:
                return found
            if time.monotonic() > deadline:
                raise DemoError(f"waited {within_s:.0f} s in vain: {what}")
            time.sleep(LOOK_EVERY_S if within_s < 60 else 1.0)


def _stage(folder: Path, backend: str) -> Stage:
    if backend == "local":
        return Stage(folder)
    from controlplane.cli.demo_kube import KubeStage  # needs the Kubernetes programs and the official client

    return KubeStage(folder)


def how_to_ask(api: str, data: Path, question: str) -> list[str]:
    """What to type in another terminal: the server and its token, then the question to `trimtab`."""
    trimtab = Path(sys.executable).with_name("trimtab")
    return [
        f"export TRIMTAB_URL={shlex.quote(api)} TRIMTAB_DATA={shlex.quote(str(data))}",
        f"{shlex.quote(str(trimtab)) if trimtab.exists() else 'trimtab'} {question}",
    ]


def _setup_seconds() -> float:
    """How long `make setup` took in this call, as the Makefile tells; 0.0 without it."""
    began = os.environ.get("TRIMTAB_SETUP_BEGAN")
    return round(max(0.0, time.time() - float(began)), 3) if began else 0.0


def forget_earlier(folder: Path) -> None:
    """Removes what earlier demos left in the folder: each holds some 400 MB of checkpoints."""
    for earlier in folder.glob("[0-9]*-[0-9]*") if folder.is_dir() else ():
        if (earlier / "server").is_dir() and not (earlier / "server").is_symlink():
            shutil.rmtree(earlier, ignore_errors=True)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Either signal ends the showing through its `finally`, so that no process is left behind."""
    raise KeyboardInterrupt


def run(folder: Path, *, until_end: bool, backend: str = "local") -> int:
    """The whole showing; with `until_end` it ends by itself and prints one JSON line last."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    forget_earlier(folder.resolve())
    show = Demo(folder.resolve() / time.strftime("%Y%m%d-%H%M%S"), time.monotonic(), backend)
    try:
        link = show.open()
        run_id = show.submit()
        if not until_end:
            say(f"open {link} or ask in another terminal:")
            for line in how_to_ask(show.client.url, show.stage.data, f"job why {run_id}"):
                hint(f"  {line}")
        ripe = show.train(run_id)
        show.drill(ripe)
        show.noticed(ripe)
        ended = show.follow(run_id)
        if until_end:
            return _report(show, ended)
        print(story(show.client.why(run_id)), file=sys.stderr)
        say("all of it stays up until Ctrl-C; look at the pages, or ask in another terminal:")
        for line in how_to_ask(show.client.url, show.stage.data, f"job why {run_id}"):
            hint(f"  {line}")
        while True:
            show.stage.still_alive()
            time.sleep(1.0)
    except DemoError as error:
        say(f"failed: {error}")
        say(f"logs are in {show.stage.folder}")
        if until_end:
            print(json.dumps({"failed": str(error)}), flush=True)
        return EXIT.ERROR
    except KeyboardInterrupt:
        return EXIT.OK
    finally:
        show.stage.end()


def _report(show: Demo, ended: Json) -> int:
    """Reads everything back, checks every claim, prints the line."""
    outcome = demo_checks.gather(show.client, ended, show.seconds)
    outcome["seconds"]["total"] = round(show.elapsed(), 3)
    failed = demo_checks.failures(outcome)
    print(story(show.client.why(ended["id"])), file=sys.stderr)
    for sentence in failed:
        say(f"not so: {sentence}")
    say("all of it happened" if not failed else f"{len(failed)} of {len(demo_checks.CHECKS)} checks failed")
    print(json.dumps(outcome), flush=True)
    return EXIT.OK if not failed else EXIT.ERROR

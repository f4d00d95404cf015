"""The agent's time: a sample each second on a steady beat, rings when tapped, kernel lines when they come. No meaning.

What each of them does stands in agents/node/agent.py.
"""

from __future__ import annotations

import math
import queue
import select
import socket
import sys
import threading
import time
from pathlib import Path

from agents import drills
from agents.node.agent import Agent
from agents.probe import wake
from agents.readings import Fault
from agents.wire import Drill

PERIOD_S, SWEEP_S, GATHER_S = 1.0, 0.2, 0.05
TAPS = 64


def say(sentence: str) -> None:
    """One line of the agent's log."""
    print(f"trimtab-agent: {sentence}", file=sys.stderr, flush=True)


class Troubles:
    """Says a trouble when it begins and forgets it when it is over, so that a log is not filled with one sentence."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def note(self, topic: str, sentence: str) -> None:
        """`sentence` is the present trouble of the topic, or empty."""
        if sentence and self._said.get(topic) != sentence:
            say(sentence)
        self._said[topic] = sentence


class Loop:
    """Samples each second on a steady beat, sweeps the rings when tapped or each 200 ms, until told to stop."""

    def __init__(self, agent: Agent, runtime_dir: Path) -> None:
        self.agent = agent
        self.stopping = threading.Event()
        self.drills: queue.SimpleQueue[Drill] = queue.SimpleQueue()
        self._troubles = Troubles()
        runtime_dir.mkdir(parents=True, exist_ok=True)
        self._wake = wake.listen(runtime_dir)

    def run(self) -> None:
        """Until `stopping` is set."""
        due = time.monotonic()
        while not self.stopping.is_set():
            due = self.run_once(due)
            self._rest(due)
        self.close()

    def close(self) -> None:
        """Lets go of the wake-up socket."""
        self._wake.close()

    def run_once(self, due: float) -> float:
        """A sample if it is due, and a sweep; returns when the next sample is due. Missed beats are left out."""
        now, news = time.monotonic(), 0
        if now >= due:
            news = 1
            self._drill()
            self._tell(self.agent.sample_once(time.time(), now))
            due += PERIOD_S * math.ceil((now - due + 0.001) / PERIOD_S)
        self._tell(self.agent.lines_once(time.time(), time.monotonic()))
        news += self.agent.sweep_once(time.time(), time.monotonic())
        if news:
            self._save()
        return due

    @staticmethod
    def _tell(faults: list[Fault]) -> None:
        for fault in faults:
            say(f"{fault.state}: {fault.sentence} (rule {fault.rule})")

    def _save(self) -> None:
        memory = ""
        try:
            self.agent.save()
        except OSError as error:
            memory = f"baselines and cursors cannot be kept: {error}"
        self._troubles.note("memory", memory)
        self._troubles.note("spool", self.agent.outbox.trouble)
        self._troubles.note("batch", self.agent.trouble)
        self._troubles.note("rings", "; ".join(self.agent.runtime.broken.values()))

    def _rest(self, due: float) -> None:
        """Until the next sample, a kernel line, a tap or 200 ms; after a tap a moment more: ranks share a batch."""
        waits: list[socket.socket | int] = [self._wake, *self.agent.source.wakes()]
        ready, _, _ = select.select(waits, [], [], max(0.0, min(SWEEP_S, due - time.monotonic())))
        if self._wake in ready:
            time.sleep(GATHER_S)
            for _ in range(TAPS):
                if not select.select([self._wake], [], [], 0)[0]:
                    break
                self._wake.recv(16)

    def _drill(self) -> None:
        while not self.drills.empty():
            drill = self.drills.get()
            refused = self.agent.drill(drill)
            say(f"drill {drills.told(drill.kind, drill.gpu)}: {refused or 'registers changed'}")

"""`trimtab-agent`: options, the loop, signals. Everything it does each second stands in agents/node/agent.py."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import queue
import select
import signal
import socket
import ssl
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from agents.node import exporter
from agents.node.agent import Agent, Paths
from agents.node.outbox import Outbox, OutboxError
from agents.node.sender import Sender
from agents.node.sources.base import Source, SourceError
from agents.node.sources.simulated import SimulatedSource
from agents.probe import wake
from agents.readings import Fault
from agents.rules.load import RuleError, load_rules
from agents.wire import Drill

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PERIOD_S, SWEEP_S, GATHER_S = 1.0, 0.2, 0.05
TAPS = 64


def say(sentence: str) -> None:
    print(f"trimtab-agent: {sentence}", file=sys.stderr, flush=True)


def open_source(name: str, node: str) -> Source:
    """The source by name; raises SourceError with what is missing."""
    if name == "simulated":
        return SimulatedSource(node, time.time())
    found = "amdsmi is installed here" if importlib.util.find_spec("amdsmi") else "amdsmi is not installed here"
    raise SourceError(
        f"--source {name}: {found}, but this version reads no GPU yet: the amd source comes with a later one. "
        "Use --source simulated to see the whole path."
    )


def machine_boot() -> str:
    """The kernel's id of this boot."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown-boot"


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
        now = time.monotonic()
        if now >= due:
            self._drill()
            self._tell(self.agent.sample_once(time.time(), now))
            due += PERIOD_S * math.ceil((now - due + 0.001) / PERIOD_S)
        self._tell(self.agent.lines_once(time.time(), time.monotonic()))
        self.agent.sweep_once(time.time(), time.monotonic())
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
            say(f"drill {drill.kind} on GPU {drill.gpu}: {refused or 'registers changed'}")


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trimtab-agent", description="Reads a node and tells the Trimtab server.")
    parser.add_argument("--source", choices=["auto", "simulated"], default="auto")
    parser.add_argument("--node", default=os.uname().nodename, help="this node's name (default: the host's)")
    parser.add_argument("--server", required=True, help="the server's URL, such as http://127.0.0.1:8440")
    parser.add_argument("--ca-file", default="", help="PEM file of the authority that the server's certificate is of")
    parser.add_argument("--token-file", type=Path, required=True, help="holds this node's agent token")
    parser.add_argument(
        "--runtime-dir", type=Path, required=True, help="where trainers of this node put rings and heartbeats"
    )
    parser.add_argument("--spool-dir", type=Path, required=True, help="where unacknowledged batches wait")
    parser.add_argument("--spool-bytes", type=int, default=1 << 30, help="the most that may wait there")
    parser.add_argument("--metrics-port", type=int, help="serve /metrics on this port (0: a free one)")
    parser.add_argument("--metrics-host", default="127.0.0.1", help="where; beyond loopback only with TLS")
    parser.add_argument("--metrics-cert", default="", help="PEM file of the certificate of /metrics")
    parser.add_argument("--metrics-key", default="", help="PEM file of that certificate's key")
    parser.add_argument(
        "--rules", type=Path, default=os.environ.get("TRIMTAB_FAULT_RULES") or None, help="another fault rule file"
    )
    return parser.parse_args(arguments)


class StartError(Exception):
    """The agent cannot start; the message says what to do."""


def metrics_tls(given: argparse.Namespace) -> ssl.SSLContext | None:
    """What /metrics answers with; None on loopback without TLS. StartError."""
    if not (given.metrics_cert and given.metrics_key):
        if given.metrics_host not in LOOPBACK or given.metrics_cert or given.metrics_key:
            raise StartError(
                f"--metrics-host {given.metrics_host} needs --metrics-cert and --metrics-key: nothing is served beyond "
                "loopback without TLS"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(given.metrics_cert, given.metrics_key)
    except OSError as error:  # ssl.SSLError is one as well
        raise StartError(f"--metrics-cert {given.metrics_cert}, --metrics-key {given.metrics_key}: {error}") from error
    return context


def start(given: argparse.Namespace) -> tuple[Loop, Sender]:
    """Opens everything; raises StartError, with nothing left open."""
    try:
        given.token_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--token-file: {error}. An admin makes one: trimtab token create --kind agent") from error
    with ExitStack() as opened:
        try:
            rules = load_rules(Path(given.rules) if given.rules else None)
            source = open_source(given.source, given.node)
            outbox = Outbox(given.spool_dir, given.spool_bytes)
            opened.callback(outbox.close)
            paths = Paths(given.runtime_dir, given.spool_dir)
            agent = Agent(given.node, machine_boot(), source, rules, outbox, paths)
            loop = Loop(agent, given.runtime_dir)
            opened.callback(loop.close)
            sender = Sender(given.server, given.token_file, outbox, loop.drills.put, say, given.ca_file)
        except (SourceError, RuleError, OutboxError, OSError, ValueError) as error:
            raise StartError(str(error)) from error
        if given.metrics_port is not None:
            try:
                tls = metrics_tls(given)
                _, port = exporter.serve(given.metrics_port, lambda: agent.state(sender.state), given.metrics_host, tls)
            except (OSError, OverflowError) as error:
                raise StartError(f"--metrics-port {given.metrics_port}: {error}") from error
            say(f"metrics at http{'s' if tls else ''}://{given.metrics_host}:{port}/metrics")
        opened.pop_all()
    return loop, sender


def main(arguments: list[str] | None = None) -> int:
    """0 after a clean stop, 1 when it cannot start."""
    given = options(arguments)
    try:
        loop, sender = start(given)
    except StartError as error:
        say(str(error))
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stopping.set())
    say(f"{given.node}: source {loop.agent.source.name}, {len(loop.agent.evaluator.rules)} rules, to {given.server}")
    sender.start()
    loop.run()
    sender.stop(2.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

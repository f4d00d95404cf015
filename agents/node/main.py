"""`trimtab-agent`: its verbs and options; what `run` opens and ends. What it does each second stands in agent.py."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import sys
from contextlib import ExitStack
from pathlib import Path

from agents.node import exporter, look
from agents.node.agent import Agent, Memory, Paths
from agents.node.loop import Loop, say
from agents.node.opening import SOURCES, machine_boot, open_source
from agents.node.outbox import Outbox, OutboxError
from agents.node.sender import Sender
from agents.node.sources.base import SourceError
from agents.node.sources.files import Tree
from agents.rules.load import RuleError, load_rules

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The verb and its options; without a verb it is `run`, as units and manifests call it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        words = ["run", *words]
    parser = argparse.ArgumentParser(prog="trimtab-agent", description="Reads a node and tells the Trimtab server.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _run_options(verbs.add_parser("run", help="sample, judge and send, until told to stop (the default)"))
    for name, help_ in (("once", "one sample, as a table or JSON"), ("watch", "a live table, each second")):
        looking = verbs.add_parser(name, help=help_)
        _source_options(looking)
        looking.add_argument("-o", "--output", choices=["table", "json"], default="table")
    verbs.choices["watch"].add_argument("--seconds", type=float, help="end after so long (default: until Ctrl-C)")
    doctor = verbs.add_parser("doctor", help="what is missing on this node, and how to get it")
    doctor.add_argument("--host-root", type=Path, default=Path("/"), help="where the host's /sys, /proc and /dev are")
    doctor.add_argument("-o", "--output", choices=["table", "json"], default="table")
    capture = verbs.add_parser("capture", help="record the node to a file")
    capture.add_argument("file", type=Path)
    capture.add_argument("--seconds", type=float, help="end after so long (default: until Ctrl-C)")
    _source_options(capture)
    replay = verbs.add_parser("replay", help="run a recording through the rules and say what they find")
    replay.add_argument("file", type=Path)
    replay.add_argument("--speed", type=float, default=0.0, help="times as fast as it was (default: at once)")
    replay.add_argument("--rules", type=Path, default=os.environ.get("TRIMTAB_FAULT_RULES") or None)
    replay.add_argument("-o", "--output", choices=["table", "json"], default="table")
    return parser.parse_args(words)


def _source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", choices=SOURCES, default="auto", help="auto: the node that is there")
    parser.add_argument("--recording", type=Path, help="what --source replay plays")
    parser.add_argument("--node", default=os.uname().nodename, help="this node's name (default: the host's)")
    parser.add_argument("--host-root", type=Path, default=Path("/"), help="where the host's /sys, /proc and /dev are")
    parser.add_argument(
        *("--watch-space",),
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a file system that must have room, such as the checkpoints'; may be given more than once",
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    _source_options(parser)
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
        cure = f"trimtab token create --kind agent --node {given.node}"
        raise StartError(f"--token-file: {error}. An admin makes one: {cure}") from error
    with ExitStack() as opened:
        try:
            rules = load_rules(Path(given.rules) if given.rules else None)
            outbox = Outbox(given.spool_dir, given.spool_bytes)
            opened.callback(outbox.close)
            paths = Paths(given.runtime_dir, given.spool_dir)
            boot = machine_boot(Tree(given.host_root))
            source = open_source(
                given.source,
                given.node,
                root=given.host_root,
                watched=(given.spool_dir, *given.watch_space),
                marks=Memory.read(paths.memory).marks_of(boot),
                recording=given.recording,
            )
            opened.callback(source.close)
            agent = Agent(given.node, boot, source, rules, outbox, paths)
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
    """0 after a clean stop, 1 when it cannot start or a doctor finds something missing."""
    given = options(arguments)
    if given.verb != "run":
        return look.at(given)
    try:
        loop, sender = start(given)
    except StartError as error:
        say(str(error))
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stopping.set())
    say(f"{given.node}: source {loop.agent.source.name}, {len(loop.agent.evaluator.rules)} rules, to {given.server}")
    for part in loop.agent.source.facts().blind:
        say(f"blind: {part}")
    sender.start()
    loop.run()
    sender.stop(2.0)
    loop.agent.source.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The verbs for a person on a node: once, watch, doctor, capture, replay. They read and judge; nothing is sent."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from agents.node import doctor, screen
from agents.node.loop import PERIOD_S, say
from agents.node.opening import machine_boot, open_source
from agents.node.recording import Recorder, Recording, RecordingError
from agents.node.sources.base import Source, SourceError
from agents.readings import Fault, NodeSample
from agents.rules.evaluate import Evaluator
from agents.rules.load import RuleError, load_rules

CLEAR = "\x1b[H\x1b[2J"


def at(given: argparse.Namespace) -> int:
    """Does the verb; 1 when it cannot, with what is missing said."""
    verbs = {"once": once, "watch": watch, "doctor": examine, "capture": capture, "replay": replay}
    try:
        return verbs[given.verb](given)
    except (SourceError, RuleError, RecordingError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 0


def _open(given: argparse.Namespace) -> Source:
    watched = tuple(given.watch_space)
    return open_source(given.source, given.node, root=given.host_root, watched=watched, recording=given.recording)


def _samples(source: Source, seconds: float | None) -> Iterator[NodeSample]:
    """A sample each second, on a steady beat, for so long or without end."""
    begun = due = time.monotonic()
    while seconds is None or time.monotonic() - begun < seconds:
        yield source.sample(time.time(), time.monotonic())
        due += PERIOD_S
        time.sleep(max(0.0, due - time.monotonic()))


def _show(given: argparse.Namespace, source: Source, sample: NodeSample, faults: list[Fault]) -> str:
    facts = source.facts()
    if given.output == "json":
        return json.dumps(screen.document(facts, sample, faults))
    return screen.table(facts, sample, faults)


def once(given: argparse.Namespace) -> int:
    """One sample, and what the rules say of it."""
    source = _open(given)
    judge = Evaluator(load_rules(), given.node, machine_boot(), source.facts())
    sample = source.sample(time.time(), time.monotonic())
    judge.check(sample)
    print(_show(given, source, sample, judge.firing()))
    source.close()
    return 0


def watch(given: argparse.Namespace) -> int:
    """The same each second, in place; as JSON, a line a second."""
    source = _open(given)
    judge = Evaluator(load_rules(), given.node, machine_boot(), source.facts())
    place = CLEAR if given.output == "table" and sys.stdout.isatty() else ""
    for sample in _samples(source, given.seconds):
        judge.check(sample)
        print(f"{place}{_show(given, source, sample, judge.firing())}", flush=True)
    source.close()
    return 0


def examine(given: argparse.Namespace) -> int:
    """Every check of the doctor; 1 if something that is needed is missing."""
    found = list(doctor.checks(given.host_root))
    if given.output == "json":
        print(json.dumps([{**asdict(check), "ok": check.ok} for check in found]))
        return int(any(not check.ok and check.kind == doctor.NEEDED for check in found))
    return doctor.report(found, print)


def capture(given: argparse.Namespace) -> int:
    """Records the node, a sample a second, until the time is over or Ctrl-C."""
    source = _open(given)
    recorder = Recorder(given.file, source.facts())
    count = 0
    try:
        for sample in _samples(source, given.seconds):
            recorder.add(sample)
            count += 1
            if count % 60 == 0:
                say(f"{count} s recorded")
    finally:
        recorder.close()
        source.close()
        say(f"{count} s in {given.file}")
    return 0


def replay(given: argparse.Namespace) -> int:
    """Runs a recording through the rules; each fault is said when it begins and when it ends."""
    recording = Recording(given.file)
    judge = Evaluator(load_rules(given.rules), recording.facts.hostname, "replay", recording.facts)
    found = 0
    for moment in recording:
        if given.speed > 0:
            time.sleep(PERIOD_S / given.speed)
        for fault in judge.check(moment.sample(moment.after_s, moment.after_s)):
            found += fault.state == "firing"
            if given.output == "json":
                print(json.dumps({"after_s": moment.after_s, **asdict(fault)}), flush=True)
            else:
                print(f"+{moment.after_s:.0f} s  {fault.state}: {fault.sentence} ({fault.rule})", flush=True)
    say(f"{found} faults in {given.file}" if found else f"no fault in {given.file}")
    recording.close()
    return 0

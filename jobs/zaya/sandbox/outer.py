"""Runs Python that a model wrote, in a process of its own that can compute and nothing else.

The candidate cannot open a file (to read or to write), make a socket of any family, start a process or a thread, send
a signal or see our environment; CPU seconds, memory, output and wall clock are limited. `inner.py` is the half that
sees to it, by a seccomp filter that needs no rights and works inside a container. Where the filter
cannot be had (no Linux, an unknown machine, a kernel or container that refuses it) nothing is run and it is said why.

It does not judge: the values that calls return come back and are compared outside, so no expected answer is ever
where the candidate could read it. Not kept out: what the CPU leaks through timing, and a kernel's own faults.
"""

from __future__ import annotations

import json
import marshal
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.manifest import ContractError

_INNER = Path(__file__).with_name("inner.py")
MODULES = (
    *("abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "random"),
    *("re", "statistics", "string", "struct", "textwrap", "time", "typing"),
)
"""The modules that a candidate may import: loaded before the door is shut, those only whose name it mentions."""
_WORDS = re.compile(r"[a-z_]+")
_RESULT_BYTES = 1 << 20
_READY = b'{"ready": true}'
STARTUP_S = 60.0
"""for the interpreter, the modules and the filter, before the candidate's own clock runs: a loaded machine is slow"""
_SIGXCPU, _SIGKILL = 24, 9


class NotReadyError(RuntimeError):
    """The inner process ended, or was silent, before it had locked itself in: the candidate never ran."""


@dataclass(frozen=True)
class Limits:
    """What a candidate may use; `wall_s` counts from when it may begin. `memory_bytes` is address space, of which the
    bare interpreter takes some 30 MB."""

    cpu_s: int = 2
    wall_s: float = 10.0
    memory_bytes: int = 256 << 20
    output_bytes: int = 64 << 10
    source_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        if min(self.cpu_s, self.wall_s, self.output_bytes, self.source_bytes) <= 0 or self.memory_bytes < 64 << 20:
            raise ContractError("a sandbox's limits must be above 0, its memory at least 64 MiB")


@dataclass(frozen=True)
class Call:
    """What one call gave: a value of JSON's types, or an error's text."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a candidate ended: `done`, or `error` (its own), `cpu`, `wall`, `output`, `killed` (a signal).

    `calls` is empty unless `done`; `output` is what it printed, up to the limit; `error` is a sentence for people.
    """

    ended: str
    calls: tuple[Call, ...] = ()
    output: str = ""
    error: str = ""


def run_calls(
    source: str, function: str, calls: Sequence[Sequence[Any]], limits: Limits | None = None, extra: Sequence[str] = ()
) -> Outcome:
    """Defines the source's function and calls it with each list of arguments (JSON). ContractError: no sandbox here;
    NotReadyError: its process died twice before the candidate ran.

    `extra` are further modules that the candidate may use.
    """
    request: dict[str, Any] = {
        "source": source,
        "function": function,
        "calls": [list(one) for one in calls],
        "stdin": "",
    }
    return _run(source, request, limits or Limits(), extra)


def run_program(source: str, stdin: str = "", limits: Limits | None = None, extra: Sequence[str] = ()) -> Outcome:
    """Runs the source as a program; what it printed is the outcome's `output`. Raises as `run_calls`."""
    request: dict[str, Any] = {"source": source, "function": None, "calls": [], "stdin": stdin}
    return _run(source, request, limits or Limits(), extra)


def why_not() -> str:
    """Why no candidate can be run on this machine; empty where it can."""
    try:
        outcome = run_calls("def f(): return 1", "f", [[]])
    except (ContractError, NotReadyError) as error:
        return str(error)
    return "" if outcome.calls == (Call(1),) else f"a first try ended so: {outcome.ended} {outcome.error}"


def _run(source: str, request: dict[str, Any], limits: Limits, extra: Sequence[str]) -> Outcome:
    try:
        if len(source.encode()) > limits.source_bytes:
            return Outcome("error", error=f"the source is longer than {limits.source_bytes} bytes")
    except UnicodeEncodeError:
        return Outcome("error", error="the source is no text")
    mentioned = set(_WORDS.findall(source))
    request |= {
        "modules": [name for name in MODULES if name in mentioned] + list(extra),
        "limits": {"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes},
    }
    try:
        return _once(request, limits)
    except NotReadyError:  # killed from outside, for want of memory perhaps: that says nothing of the machine
        return _once(request, limits)


def _once(request: dict[str, Any], limits: Limits) -> Outcome:
    """Runs a request in a process of its own. ContractError where it is refused; NotReadyError."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as handed, os.fdopen(reading, "rb", buffering=0) as results:
        handed.write(marshal.dumps(request))
        handed.seek(0)
        try:
            process = _start(handed.fileno(), writing)
        finally:
            os.close(writing)
        with process:
            try:
                return _wait(process, results.fileno(), limits)
            finally:
                process.kill()


def _start(handed: int, writing: int) -> subprocess.Popen[bytes]:
    """The inner process: no site, no path of ours, an environment of its own."""
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # an interpreter may need it to find its own library
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-B", str(_INNER), str(writing)],
        stdin=handed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=environment,
        pass_fds=(writing,),
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], results: int, limits: Limits) -> Outcome:
    """Reads both pipes until they end, the clock runs out or one is too long. The clock starts at the first line."""
    assert process.stdout is not None
    printed = process.stdout.fileno()
    found = {printed: bytearray(), results: bytearray()}
    most = {printed: limits.output_bytes, results: _RESULT_BYTES}
    deadline, begun = time.monotonic() + STARTUP_S, False
    with selectors.DefaultSelector() as selector:
        for descriptor in found:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0 and not begun:
                raise NotReadyError(f"the sandbox was not ready within {STARTUP_S:g} s")
            if left <= 0:
                return _ended("wall", found[printed], f"not done within {limits.wall_s:g} s")
            for key, _ in selector.select(left):
                got = os.read(key.fd, 1 << 16)
                if not got:
                    selector.unregister(key.fd)
                found[key.fd] += got
                if not begun and b"\n" in found[results]:
                    deadline, begun = time.monotonic() + limits.wall_s, True
                if len(found[key.fd]) > most[key.fd]:
                    kind = "output" if key.fd == printed else "result"
                    return _ended("output", found[printed][: limits.output_bytes], f"its {kind} was too long")
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()) + 1.0)
    except subprocess.TimeoutExpired:  # it closed both pipes and went on
        return _ended("wall", found[printed], f"not done within {limits.wall_s:g} s")
    return _told(found[results], found[printed], code, limits)


def _ended(how: str, printed: bytes | bytearray, error: str = "", calls: tuple[Call, ...] = ()) -> Outcome:
    return Outcome(how, calls, bytes(printed).decode(errors="replace"), error)


def _told(results: bytearray, printed: bytearray, code: int, limits: Limits) -> Outcome:
    """What the inner process wrote: a first line from before the candidate ran; the rest may be the candidate's."""
    first, _, rest = bytes(results).partition(b"\n")
    if first != _READY:
        try:
            reason = json.loads(first)["refused"]
        except (ValueError, TypeError, KeyError):
            said = bytes(printed).decode(errors="replace")[-500:]
            raise NotReadyError(f"the sandbox's process ended with {code} before it was ready: {said}") from None
        raise ContractError(f"the sandbox runs nothing here: {reason}")
    if code in (-_SIGXCPU, -_SIGKILL):
        return _ended("cpu", printed, f"ended by signal {-code}: after {limits.cpu_s} CPU seconds it is sent")
    if code < 0:
        return _ended("killed", printed, f"ended by signal {-code}")
    try:
        found = json.loads(rest)
        if "error" in found:
            return _ended("error", printed, str(found["error"]))
        calls = tuple(Call(one.get("value"), str(one.get("error", ""))) for one in found["results"])
        return _ended("done", printed, calls=calls)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _ended("error", printed, "it ended without a result")

"""One node's part of an attempt, as a Ray actor: it starts a keeper, passes words on to it, and says how it ended.

It holds the node's GPUs for as long as it lives. Killed by Ray, it takes its keeper's standard input with it, and that
ends the member.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ray
import ray.util

from controlplane.backends import processes
from controlplane.backends.ray.keeper import STARTED
from controlplane.backends.ray.words import ENDED, RUNTIME, log_name, read_end
from jobs.termination import read_termination

Json = dict[str, Any]
KILLED = 137
# what belongs to Ray, to the server or to another launcher is no affair of the command: the cluster's token above all
_OTHERS = ("RAY_", "TRIMTAB_", "PET_")


class Member:
    """The actor. `name` is the attempt's; `node` is what we call this node."""

    def __init__(self, name: str, index: int, node: str) -> None:
        self.name, self.index, self.node = name, index, node
        self._keeper: subprocess.Popen[str] | None = None
        self._beats = Path()
        self._end: Json | None = None
        self._beginning, self._reading = threading.Lock(), threading.Lock()
        self._barred = False
        context = ray.get_runtime_context()
        self._log = Path(context.get_temp_dir(), context.get_session_name(), "logs", log_name(name, index))

    def place(self) -> tuple[str, int]:
        """Where the members meet, if this one is the first: its node's address, a port that is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's, untyped
            return address, int(probe.getsockname()[1])

    def begin(self, command: list[str], environment: dict[str, str], runtime_path: str) -> None:
        """Starts the member, once; OSError when it cannot be started, RuntimeError when it was killed before."""
        with self._beginning:
            if self._keeper is not None:
                return
            if self._barred:
                raise RuntimeError(f"member {self.index} of {self.name} was killed before it began")
            self._begin(command, environment, runtime_path)

    def _begin(self, command: list[str], environment: dict[str, str], runtime_path: str) -> None:
        folder = Path(os.environ.get(RUNTIME) or runtime_path)
        self._beats = folder / "attempts" / self.name
        words = [sys.executable if word == "{python}" else word for word in command]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
        given = {
            **inherited,
            **environment,
            processes.NODE: self.node,
            "TRIMTAB_HEARTBEAT_DIR": str(self._beats),
        }
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "controlplane.backends.ray.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=inherited,
            start_new_session=True,
        )
        self._keeper.wait()  # it leaves a child behind that is nobody's
        request = {"command": words, "environment": given, "beats": str(self._beats), "log": str(self._log)}
        self._say(json.dumps(request))
        line = _line(self._keeper)
        if line.strip() != STARTED:  # it could not be: what came instead is the end
            self._end = self._read(line)

    def wait(self) -> Json:
        """Blocks until no process of the member is left: {code, termination, reason}."""
        with self._beginning:
            keeper = self._begun()  # what it says first is for `begin`
        with self._reading:  # the driver waits, and so may whoever kills
            if self._end is None:
                self._end = self._read(_line(keeper))
            return self._end

    def _read(self, line: str) -> Json:
        """The end that a keeper told, or that it could not tell any more."""
        return (read_end(json.loads(line)) if line.endswith("\n") else None) or self._clear()

    def _clear(self) -> Json:
        """The keeper itself was killed: what it kept is found by the attempt's name and ended."""
        processes.kill(self.name, ())
        end: Json = {"code": KILLED, "termination": read_termination(self._beats), "reason": "its keeper was killed"}
        with self._log.open("a") as log:
            log.write(f"\n{ENDED}{json.dumps(end)}\n")
        return end

    def terminate(self) -> None:
        """Asks the member to save and end."""
        self._say("terminate")

    def kill(self) -> None:
        """Ends the member at once."""
        self._barred = True
        self._say("kill")

    def _begun(self) -> subprocess.Popen[str]:
        if self._keeper is None:
            raise RuntimeError(f"member {self.index} of {self.name} has not begun")
        return self._keeper

    def _say(self, word: str) -> None:
        if self._keeper is None or self._keeper.stdin is None:
            return
        try:
            self._keeper.stdin.write(f"{word}\n")
            self._keeper.stdin.flush()
        except (BrokenPipeError, ValueError):
            return


def _line(keeper: subprocess.Popen[str]) -> str:
    """What a keeper says next; empty when it says nothing any more."""
    return keeper.stdout.readline() if keeper.stdout is not None else ""

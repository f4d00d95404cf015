"""Attempts as processes of this machine: one launcher a node, each with its node's runtime directory. No cluster
needed.

Every attempt has a folder with its plan, the launchers' process ids with their starts, and the logs; so a restarted
server finds what runs and adopts it, and a process id that was reused by somebody else is never touched.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from controlplane.backends import processes
from controlplane.backends.base import (
    AttemptPlan,
    BackendUnavailable,
    Forecast,
    Handle,
    Member,
    NodeCapacity,
    NodeChange,
    NodeStatus,
    Observation,
    Quarantine,
    State,
    StopMode,
    SubmitConflict,
)
from controlplane.backends.processes import Launcher
from jobs.contract import write_json
from jobs.termination import read_termination

_PLAN, _PROCESSES = "plan.json", "processes.json"


class LocalBackend:
    """`folder` holds the attempts, `runtime_dir/<node>` is where the agent of a node looks."""

    name = "local"
    pins_nodes = True
    keeps_logs = True

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        self.folder, self.runtime_dir = folder, runtime_dir
        folder.mkdir(parents=True, exist_ok=True)
        self._children: dict[Launcher, subprocess.Popen[bytes]] = {}
        self._over: set[str] = set()
        """attempts of which no process lives or can come any more: their folders are not read again"""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Needs no copy of anything."""

    def stop_watching(self) -> None:
        """Has none."""

    def submit(self, plan: AttemptPlan) -> Handle:
        home = self.folder / plan.name
        with self._lock:
            self._over.discard(plan.name)
            if (home / _PLAN).exists():
                return self._adopt(home, plan)
            try:
                home.mkdir(parents=True, exist_ok=True)
                write_json(home / _PLAN, asdict(plan), durable=True)
                self._start(home, plan)
            except OSError as error:
                raise BackendUnavailable(f"{plan.name} could not be started: {error}") from error
        return Handle(plan.name, _uid(plan), False)

    def _adopt(self, home: Path, plan: AttemptPlan) -> Handle:
        try:
            found, started = _read_plan(home), _read_launchers(home)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"what is known of {plan.name} cannot be read: {error}") from error
        if (found.run_uid, found.attempt_no, found.spec_hash) != (plan.run_uid, plan.attempt_no, plan.spec_hash):
            raise SubmitConflict(f"{plan.name} exists and belongs to run {found.run_uid}, attempt {found.attempt_no}")
        if len(started) < len(plan.nodes):
            # a server died while it started them: what it had not recorded goes before another takes its place
            processes.kill(plan.name, started, spare=processes.known(started))
            try:
                self._start(home, plan, started)
            except OSError as error:
                raise BackendUnavailable(f"{plan.name} could not be started whole: {error}") from error
        return Handle(plan.name, _uid(plan), True)

    def _start(self, home: Path, plan: AttemptPlan, already: Sequence[Launcher] = ()) -> None:
        """Starts the launchers that are not there `already`; they share a port."""
        started = list(already)
        port = started[0].port if started else _free_port()
        there = {one.index for one in started}
        for index, node in enumerate(plan.nodes):
            if index in there:
                continue
            beats = self.heartbeat_dir(node, plan.name)
            beats.mkdir(parents=True, exist_ok=True)
            command = [sys.executable if word == "{python}" else word for word in plan.command]
            with (home / f"node-{index}.log").open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "jobs.launch", "--", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**_inherited(), **plan.environment, **self._environment(plan, index, node, port)},
                    start_new_session=True,
                )
            ticks = processes.started(child.pid) or 0  # it is not reaped yet, so it is always there
            launcher = Launcher(index, node, child.pid, processes.boot(), ticks, port)
            self._children[launcher] = child
            started.append(launcher)
            # after each one: a crash in between leaves no process that nobody knows
            write_json(home / _PROCESSES, [asdict(one) for one in started], durable=True)

    def _environment(self, plan: AttemptPlan, index: int, node: str, port: int) -> dict[str, str]:
        return {
            "PET_NNODES": str(len(plan.nodes)),
            "PET_NPROC_PER_NODE": str(plan.ranks_per_node),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_MAX_RESTARTS": "0",
            "PET_RDZV_ID": plan.name,
            "JOB_COMPLETION_INDEX": str(index),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            processes.ATTEMPT: plan.name,
            processes.NODE: node,
            "TRIMTAB_HEARTBEAT_DIR": str(self.heartbeat_dir(node, plan.name)),
        }

    def heartbeat_dir(self, node: str, attempt: str) -> Path:
        """Where the ranks of an attempt on a node leave heartbeats and rings."""
        return self.runtime_dir / node / "attempts" / attempt

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        return {name: self._look(name, now) for name in names}

    def _look(self, name: str, now: float) -> Observation:
        home = self.folder / name
        try:
            if not (home / _PLAN).exists():
                return Observation(name, "absent", now)
            plan, started = _read_plan(home), _read_launchers(home)
        except (OSError, ValueError) as error:
            return Observation(name, "unknown", now, reason=f"its folder cannot be read: {error}")
        members = tuple(self._member(name, one) for one in started)
        return Observation(name, _state(members, len(plan.nodes)), now, f"{plan.run_uid}/{name}", members)

    def _member(self, name: str, launcher: Launcher) -> Member:
        alive = self._alive(launcher)
        told = None if alive else read_termination(self.heartbeat_dir(launcher.node, name))
        code = int(str(told["code"])) if told else None
        return Member(launcher.index, launcher.node, alive, code, told)

    def _alive(self, launcher: Launcher) -> bool:
        child = self._children.get(launcher)
        if child is not None:
            return child.poll() is None
        process = processes.process_of(launcher)
        return process is not None and processes.is_running(process)

    def stop(self, name: str, *, mode: StopMode) -> None:
        started = self._launchers(name)
        if mode == "kill":
            processes.kill(name, started)
            return
        for one in started:
            process = processes.process_of(one)
            if process is not None:
                processes.tell(process, terminate=True)

    def fenced(self, name: str) -> bool:
        started = self._launchers(name)
        return not any(self._alive(one) for one in started) and not processes.everything(name, started)

    def _launchers(self, name: str) -> list[Launcher]:
        try:
            return _read_launchers(self.folder / name)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"the processes of {name} cannot be read: {error}") from error

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        try:
            names = [home.name for home in self.folder.iterdir() if home.name not in self._over]
        except OSError as error:
            raise BackendUnavailable(f"the attempts cannot be listed: {error}") from error
        busy = {node for name in names for node in self._occupied(name)}
        reachable = [node for node in nodes if (self.runtime_dir / node).is_dir()]
        return [NodeCapacity(node, node not in busy) for node in reachable]

    def mark_nodes(self, wanted: Mapping[str, Quarantine | None]) -> list[NodeChange]:
        del wanted  # this machine bears no marks: placement leaves such nodes out
        return []

    def node_status(self, nodes: Sequence[str], *, leases: bool = False) -> dict[str, NodeStatus]:
        del nodes, leases  # nobody but the agents knows more of them
        return {}

    def _occupied(self, name: str) -> set[str]:
        """The nodes on which an attempt's launchers live.

        A folder that cannot be read holds up no other attempt: what it started is then asked of the processes.
        """
        home = self.folder / name
        try:
            if not (home / _PLAN).exists():
                return set()
            started = _read_launchers(home)
            whole = len(started) == len(_read_plan(home).nodes)
            found = {one.node for one in started if self._alive(one)}
        except (OSError, ValueError):
            found, whole = processes.nodes_of(name), True
        if whole and not found:
            self._over.add(name)
        return found

    def forecast(self, _plan: AttemptPlan, /) -> Forecast | None:
        """Any plan is taken as it is."""
        return None

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        path = self.folder / name / f"node-{index}.log"
        if not path.exists():
            return b""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read()


def _state(members: Sequence[Member], wanted: int) -> State:
    """A gang ends with its first failure; it succeeds when all of it did."""
    if len(members) < wanted:
        return "pending"
    if all(member.alive for member in members):
        return "running"
    ended = [member for member in members if not member.alive]
    if any(member.exit_code != 0 for member in ended):
        return "failed"
    return "succeeded" if len(ended) == len(members) else "running"


def _uid(plan: AttemptPlan) -> str:
    return f"{plan.run_uid}/{plan.name}"


def _inherited() -> dict[str, str]:
    """The server's environment without what belongs to the server itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "PET_"))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_plan(home: Path) -> AttemptPlan:
    """What an attempt was asked to do; OSError, ValueError."""
    found = json.loads((home / _PLAN).read_text())
    try:
        plan = AttemptPlan(**{**found, "nodes": tuple(found["nodes"]), "command": tuple(found["command"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"no plan: {error}") from error
    if not all(isinstance(node, str) for node in plan.nodes):
        raise ValueError("a plan's nodes must be names")
    return plan


def _read_launchers(home: Path) -> list[Launcher]:
    """The launchers that were started, none before the first; OSError, ValueError."""
    path = home / _PROCESSES
    found = json.loads(path.read_text()) if path.exists() else []
    if not isinstance(found, list):
        raise ValueError("the launchers must be a list")
    return [Launcher.read(one) for one in found]

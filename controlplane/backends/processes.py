"""Processes of this machine, told apart from later ones that were given the same id: by boot and by tick of start.

The wall clock says nothing here: psutil's create_time is the start's tick plus the moment of boot, and that moment
moves whenever the clock is set. The local backend's half that knows /proc; it decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from jobs.contract import is_whole

ATTEMPT, NODE = "TRIMTAB_ATTEMPT_NAME", "TRIMTAB_NODE"
KILL_PASSES = 20


@dataclass(frozen=True, slots=True)
class Launcher:
    """A node's launcher of an attempt; `boot` and `ticks` say which of all processes ever called `pid` it is."""

    index: int
    node: str
    pid: int
    boot: str
    ticks: int
    port: int

    @classmethod
    def read(cls, found: Any) -> Launcher:
        """One that was written down; ValueError for anything else."""
        try:
            one = cls(**found)
        except TypeError as error:
            raise ValueError(f"no launcher: {error}") from error
        if not all(map(is_whole, (one.index, one.pid, one.ticks, one.port))):
            raise ValueError("a launcher lacks its index, process, start or port")
        if not isinstance(one.node, str) or not isinstance(one.boot, str):
            raise ValueError("a launcher lacks its node or boot")
        return one


@cache
def boot() -> str:
    """The kernel's id of this boot; empty where there is no /proc."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def started(pid: int) -> int | None:
    """The tick since boot at which a process began; None when there is none."""
    try:
        if not boot():  # a system without /proc: hundredths of a second by its clock
            return round(psutil.Process(pid).create_time() * 100)
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (psutil.Error, OSError, IndexError, ValueError):
        return None


def process_of(one: Launcher) -> psutil.Process | None:
    """The launcher, unless its id has gone to another process."""
    try:
        process = psutil.Process(one.pid)
    except psutil.NoSuchProcess:
        return None
    return process if (boot(), started(one.pid)) == (one.boot, one.ticks) else None


def known(launchers: Iterable[Launcher]) -> dict[int, psutil.Process]:
    """The launchers that still run and all below them, by process id."""
    found: dict[int, psutil.Process] = {}
    for one in launchers:
        process = process_of(one)
        if process is not None:
            found |= {each.pid: each for each in [process, *_below(process)]}
    return found


def everything(name: str, launchers: Collection[Launcher]) -> list[psutil.Process]:
    """The launchers, all below them, and whatever else carries the attempt's name after its parent was killed."""
    found = known(launchers)
    here = boot()
    # a launcher's id that now bears another process says nothing of the session of that id
    led = [one for one in launchers if one.boot == here and (process_of(one) or not psutil.pid_exists(one.pid))]
    sessions = {one.pid: one.ticks for one in led}
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, name, sessions):
            found[process.pid] = process
    return [process for process in found.values() if is_running(process)]


def kill(name: str, launchers: Collection[Launcher], spare: Collection[int] = ()) -> None:
    """Kills all of an attempt but the spared ones, and looks again: one of them may have forked in between."""
    killed: set[int] = set(spare)
    for _ in range(KILL_PASSES):
        found = [process for process in everything(name, launchers) if process.pid not in killed]
        if not found:
            return
        for process in found:
            tell(process, terminate=False)
            killed.add(process.pid)


def nodes_of(name: str) -> set[str]:
    """The nodes on which something that bears the attempt's name runs, as the processes themselves say."""
    found = (_environment(process) for process in psutil.process_iter() if is_running(process))
    return {its[NODE] for its in found if its.get(ATTEMPT) == name and NODE in its}


def bearing(pid: int, name: str) -> psutil.Process | None:
    """The process of this id if it runs and bears the attempt's name; None if the id has gone to anybody else."""
    try:
        process = psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None
    return process if is_running(process) and _environment(process).get(ATTEMPT) == name else None


def tell(process: psutil.Process, *, terminate: bool) -> None:
    """SIGTERM or SIGKILL; nothing to one that is gone."""
    try:
        if terminate:
            process.terminate()
        else:
            process.kill()
    except psutil.NoSuchProcess:
        return


def is_running(process: psutil.Process) -> bool:
    """Whether it lives; what only waits for its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _belongs(process: psutil.Process, name: str, sessions: Mapping[int, int]) -> bool:
    """Whether a process that lost its parent is of the attempt: by its session, then by its environment.

    `sessions`: the tick at which the leader began, by session. Whoever is older than the leader is somebody else's.
    """
    try:
        leader = sessions.get(os.getsid(process.pid))
    except OSError:
        return False
    if leader is not None and (started(process.pid) or 0) >= leader:
        return True
    return _environment(process).get(ATTEMPT) == name


def _environment(process: psutil.Process) -> dict[str, str]:
    """A process's environment; empty for another user's, and for one that is gone."""
    try:
        return process.environ() if process.uids().real == os.getuid() else {}
    except (psutil.Error, OSError):
        return {}

"""PID 1 of a pod: starts the job's command, passes signals on, leaves nobody behind, and says what really happened.

torchrun answers 1 whatever its workers answer, so the launcher reads the exit records that the ranks left and ends with
the code of the rank that failed first. It restarts nothing: that is the controller's decision.

    python -m jobs.launch -- python -m torch.distributed.run -m jobs.zaya.train
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    ExitRecord,
    Heartbeat,
    fingerprint,
    read_exit_records,
    write_save_by,
)
from jobs.termination import Termination, short_form, write_termination

CLASSES = {
    Exit.DONE: "done",
    Exit.SAVED: "saved",
    Exit.NUMERICS: "numerics",
    Exit.BAD_NODE: "bad_node",
    Exit.CONFIG: "configuration",
    Exit.UNSAVED: "killed",
}
# A code that a command which leaves no records (level 1) ends with on purpose.
_AGREED = frozenset({Exit.SAVED, Exit.NUMERICS, Exit.BAD_NODE, Exit.CONFIG})
# What a rank says when another one went away (gloo and RCCL): a symptom of an end elsewhere, never its cause.
_PEER_LOST = re.compile(r"connection (closed|reset) by peer|broken pipe|remote process exited|socket closed", re.I)
_PR_SET_CHILD_SUBREAPER = 36


def classify(status: int, records: list[ExitRecord], begun: frozenset[int], stopped_by: int | None) -> Termination:
    """What the command's status and its ranks' records mean together.

    `status` is the command's exit code, negative for a signal; `records` stand earliest first; `begun` are the ranks
    that wrote a heartbeat; `stopped_by` is the stop signal that was passed on, if one was.
    """
    failed = [record for record in records if record.code not in (Exit.DONE, Exit.SAVED)]
    causes = [record for record in failed if not _PEER_LOST.search(record.error_message)]
    silent = sorted(begun - {record.rank for record in records})
    if causes:
        return _by_record(causes[0])
    saved = any(record.code == Exit.SAVED for record in records)
    if status == 0 and not failed:
        return _ended_well(saved, told_to_stop=bool(stopped_by) and not records)
    if status in _AGREED and not records:
        return _by_code(Exit(status))
    if status < 0 or silent or (stopped_by and not records):
        return _from_outside(status, silent, stopped_by)
    if failed:
        return replace(_by_record(failed[0]), ended_as="peer_lost")
    if saved:
        return Termination(Exit.SAVED, "saved", "", "", None)
    how = "although its ranks were done" if records else "and left no record"
    return Termination(status, "error", f"exit: {status}", f"ended with code {status} {how}", None)


def _ended_well(saved: bool, told_to_stop: bool) -> Termination:
    """An end with 0 that no rank's record contradicts; `told_to_stop` where none has left one."""
    if saved:
        return Termination(Exit.SAVED, "saved", "", "", None)
    if told_to_stop:
        # Megatron and transformers save and return 0 when they are told to stop: that is no end of their work
        return Termination(Exit.SAVED, "saved", "", "it was told to stop and returned 0", None)
    return Termination(Exit.DONE, "done", "", "", None)


def _by_code(code: Exit) -> Termination:
    """An end of level 1: the command's own code is one of the contract's, and there is no record."""
    said = "" if code == Exit.SAVED else f"ended with code {code.value} and left no record"
    return Termination(code, CLASSES[code], f"exit: {code.value}" if said else "", said, None)


def _by_record(record: ExitRecord) -> Termination:
    known = record.code in set(Exit)
    return Termination(
        record.code,
        CLASSES[Exit(record.code)] if known else "error",
        fingerprint(record.error_type, record.error_message),
        f"{record.error_type}: {record.error_message}",
        record.rank,
    )


def _from_outside(status: int, silent: list[int], stopped_by: int | None) -> Termination:
    number = -status if status < 0 else stopped_by
    name = signal.Signals(number).name if number else "a signal"
    who = f"rank {silent[0]}" if silent else "the command"
    first = silent[0] if silent else None
    code = 128 + (number or signal.SIGKILL)
    return Termination(code, "killed", "killed from outside", f"{who} was ended by {name} and left no record", first)


def _parent(pid: int) -> int:
    """A process's parent, 0 when there is none to see."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = _parent(pid)
    return pid == ancestor


def _elastic_ranks(ancestor: int) -> list[int]:
    """The ranks that a torchrun below a process started: by its variables, without what those ranks started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if _is_elastic(pid) and not _is_elastic(_parent(pid)) and _descends(pid, ancestor):
            found.append(pid)
    return found


def _is_elastic(pid: int) -> bool:
    try:
        names = {line.partition(b"=")[0] for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    except OSError:
        return False
    return {b"RANK", b"TORCHELASTIC_RUN_ID"} <= names


class Command:
    """The job's command and the ranks under it."""

    def __init__(self, arguments: list[str], heartbeat_dir: Path | None, grace_s: float) -> None:
        self.arguments, self.heartbeat_dir, self.grace_s = arguments, heartbeat_dir, grace_s
        self.pid: int | None = None
        self.stopped_by: int | None = None
        self.started_s = time.time()

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that have written a heartbeat since the start, by rank."""
        found = {}
        for path in self.heartbeat_dir.glob("heartbeat-rank-*.json") if self.heartbeat_dir else ():
            try:
                beat = Heartbeat.from_json(path.read_bytes())
            except (ContractError, OSError):
                continue
            if beat.at_s >= self.started_s:
                found[beat.rank] = beat.pid
        return found

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Gives a signal to the ranks: those that wrote a heartbeat, else those that torchrun started; torchrun itself,
        given a stop, kills its ranks after 30 s. A stop goes to the command when no rank is known, and SIGUSR1, which
        would kill a command that does not know it, to nobody then."""
        if number != signal.SIGUSR1:
            if self.stopped_by is None:
                self._give_deadline()
            self.stopped_by = number
        if self.pid is None:
            return
        me = os.getpid()
        ranks = [pid for pid in self.ranks().values() if _descends(pid, me)]
        if not ranks and number != signal.SIGUSR1:  # a trainer without heartbeats
            ranks = _elastic_ranks(me) or [self.pid]
        for pid in ranks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _give_deadline(self) -> None:
        """Before the signal, so that who sees the stop finds it. A second stop grants no second grace."""
        if self.heartbeat_dir is None:
            return
        try:
            write_save_by(self.heartbeat_dir, time.time() + self.grace_s)
        except OSError as error:
            print(f"launch: the ranks know of no deadline: {error}", file=sys.stderr, flush=True)

    def run(self) -> int:
        """Runs to the end; returns the exit code, negative for a signal. Raises OSError when it cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self.pass_on)
        # Python ignores SIGPIPE; the command must not inherit that
        self.pid = os.posix_spawnp(self.arguments[0], self.arguments, os.environ, setsigdef=[signal.SIGPIPE])
        if self.stopped_by:
            self.pass_on(self.stopped_by)
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == self.pid:
                break
        _end_orphans()
        return os.waitstatus_to_exitcode(status)


def _adopt_orphans() -> None:
    """Makes this process the parent of its orphaned descendants, as PID 1 of a pod is anyway (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Kills what the command left running (the ranks of a killed torchrun) and waits for it."""
    me = os.getpid()
    while True:
        for path in Path("/proc").glob("[0-9]*"):
            if _parent(int(path.name)) == me:
                os.kill(int(path.name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _grace_s() -> float:
    """Time to save in; the contract's default when the environment cannot be read, which the ranks will say."""
    try:
        return Environment.read().grace_s
    except ContractError:
        return Environment.read({}).grace_s


def launch(arguments: list[str], heartbeat_dir: Path | None) -> Termination:
    """Runs the command to its end and says how it ended; raises nothing."""
    for stale in heartbeat_dir.glob("exit-rank-*.json") if heartbeat_dir else ():
        stale.unlink(missing_ok=True)
    if heartbeat_dir is not None:
        write_save_by(heartbeat_dir, None)
    _adopt_orphans()
    command = Command(arguments, heartbeat_dir, _grace_s())
    try:
        status = command.run()
    except OSError as error:
        mark = fingerprint(type(error).__name__, str(error))
        return Termination(Exit.CONFIG, "configuration", mark, str(error), None, time.time())
    records = read_exit_records(heartbeat_dir) if heartbeat_dir else []
    ended = classify(status, records, frozenset(command.ranks()), command.stopped_by)
    return replace(ended, at_s=time.time())


def main(arguments: list[str] | None = None) -> int:
    """Exits with the agreed code, having written termination.json beside the heartbeats."""
    given = sys.argv[1:] if arguments is None else arguments
    command = given[1:] if given[:1] == ["--"] else given
    if not command:
        print("launch: a command is needed: python -m jobs.launch -- COMMAND …", file=sys.stderr)
        return Exit.CONFIG
    directory = os.environ.get("TRIMTAB_HEARTBEAT_DIR")
    heartbeat_dir = Path(directory) if directory else None
    if heartbeat_dir is not None:
        heartbeat_dir.mkdir(parents=True, exist_ok=True)
    ended = launch(command, heartbeat_dir)
    if ended.message:
        print(f"launch: {ended.ended_as}: {ended.message}", file=sys.stderr, flush=True)
    if heartbeat_dir is not None:
        write_termination(heartbeat_dir, ended)
    _leave_word(ended, os.environ.get("TRIMTAB_TERMINATION_LOG"))
    return ended.code


def _leave_word(ended: Termination, path: str | None) -> None:
    """The same for a pod's status."""
    if not path:
        return
    try:
        Path(path).write_text(short_form(ended))
    except OSError as error:
        print(f"launch: the termination message could not be written: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Keeps one member of an attempt on a Ray node: starts its launcher, and leaves no process of it behind.

Ray kills a worker without asking, with the worker's children but not theirs, which would go on to write. So the
launcher runs under this process, which is no child of the worker's any more: every orphan below becomes its own
(Linux), and when the actor that speaks to it is gone, whatever the reason, its standard input ends and it kills
everything. Its last line in the member's output says that nothing is left. It loads no Ray and bears no variable of
the attempt.

    python -m controlplane.backends.ray.keeper     reads a request, then `terminate` or `kill`; tells its start, its end
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

from controlplane.backends.ray.words import ENDED
from jobs.termination import TERMINATION, read_termination

Json = dict[str, Any]
STARTED = "started"
_PR_SET_CHILD_SUBREAPER = 36


def kill_below() -> None:
    """Kills whatever runs under this process; what forks in the meantime is found by the next look."""
    for one in psutil.Process().children(recursive=True):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _listen(words: IO[str], launcher: subprocess.Popen[bytes], killing: threading.Event, over: threading.Event) -> None:
    """Does what the actor says until it is gone; then everything is killed."""
    asked = False
    for word in words:
        if word.strip() == "terminate":
            if not asked:  # a second signal would cut a launcher short that lets its ranks save
                launcher.terminate()
            asked = True
        elif word.strip() == "kill":
            break
    killing.set()
    while not over.is_set():
        kill_below()
        over.wait(0.02)


def _wait_for_nobody() -> None:
    """Kills and reaps until this process has no descendant."""
    while True:
        kill_below()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def keep(request: Json, words: IO[str]) -> Json:
    """Runs a member to its end: {code, termination, reason}. `request`: command, environment, beats, log."""
    beats = Path(request["beats"])
    with Path(request["log"]).open("ab") as log:
        try:
            beats.mkdir(parents=True, exist_ok=True)
            (beats / TERMINATION).unlink(missing_ok=True)
            launcher = subprocess.Popen(
                [sys.executable, "-m", "jobs.launch", "--", *request["command"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=request["environment"],
                start_new_session=True,
            )
        except OSError as error:
            return _told(log, 126, None, f"the launcher could not be started: {error}")
        print(STARTED, flush=True)
        killing, over = threading.Event(), threading.Event()
        listener = threading.Thread(target=_listen, args=(words, launcher, killing, over), daemon=True)
        listener.start()
        status = launcher.wait()
        _wait_for_nobody()
        over.set()
        if status >= 0:
            return _told(log, status, read_termination(beats), "")
        code, reason = 128 - status, f"its launcher was ended by {signal.Signals(-status).name}"
        # what was killed by our word says nothing; a launcher that somebody else killed may be why the others end
        return _told(log, code, None if killing.is_set() else killed(code, reason), reason)


def killed(code: int, reason: str) -> Json:
    """The record of a member that could write none, as its launcher would have written it."""
    return {
        "code": code,
        "class": "killed",
        "fingerprint": "killed from outside",
        "message": reason,
        "first_rank": None,
        "at_s": time.time(),
    }


def _told(log: IO[bytes], code: int, termination: Json | None, reason: str) -> Json:
    end: Json = {"code": code, "termination": termination, "reason": reason}
    log.write(f"\n{ENDED}{json.dumps(end)}\n".encode())
    return end


def main() -> int:
    """Leaves its parent, reads the request, keeps the member, answers with its end."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        # caught and not ignored: what is ignored would be ignored by the launcher too, until it has its own handlers
        signal.signal(number, lambda *_: None)
    end = keep(json.loads(sys.stdin.readline()), sys.stdin)
    try:
        print(json.dumps(end), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())

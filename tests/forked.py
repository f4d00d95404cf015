"""`python -m …` in a process forked from one that has loaded torch and the reference workload; not a test itself.

Loading them costs a process some two seconds of CPU time: the fork server pays them once for all commands of a test. A
command runs as its interpreter would run it, from the module's first line, with its own arguments, environment and
output. What is not shown is that a fresh interpreter finds the module; the demo's tests start real ones.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

PRELOADED = ("torch.distributed.run", "torch.testing", "jobs.zaya.train", "jobs.zaya.evaluate", "jobs.zaya.prepare")


def run(command: Sequence[str], environment: Mapping[str, str], output: Path, within_s: float = 300.0) -> int:
    """The exit code of `{python} -m module …`; what it says on both streams is in `output`.

    A command that takes longer than `within_s` is killed, and its code is negative.
    """
    assert command[0] == sys.executable and command[1] == "-m", command
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_as_main, args=(list(command[2:]), dict(environment), output))
    # a new process runs the main module's file first, and a page's test leaves its own script in that place
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
        process.start()
    process.join(within_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return -9 if code is None else code


def _as_main(words: list[str], environment: dict[str, str], output: Path) -> None:
    """Becomes the command."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'.*' found in sys.modules after import", RuntimeWarning)  # preloaded
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)

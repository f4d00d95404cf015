"""Attempts of several ranks in processes forked from one that has loaded torch and DCP already; not a test itself.

Loading both costs a process more than five seconds of CPU time; the fork server pays them once for all ranks of all
attempts, and the tests' own process not at all.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import contract

RANK = "tests.jobs.zaya_rank"
ROUTER = {"experts": 4, "layers": 2, "hidden": 32, "expertHidden": 16, "routerHidden": 16}


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _in_rank(function: str, arguments: tuple[Any, ...]) -> None:
    getattr(importlib.import_module(RANK), function)(*arguments)


class Ranks:
    """Runs attempts of one run; each rank of each is a new process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([RANK])

    def attempt(self, no: int, world: int, train: dict[str, Any], resume: Path | None = None) -> list[int]:
        """The exit codes of an attempt's ranks."""
        values = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(world),
            "TRIMTAB_ATTEMPT": str(no),
            "TRIMTAB_RUN_DIR": str(self.directory),
            "TRIMTAB_TRAIN_JSON": json.dumps(train),
            "TRIMTAB_ROUTER_JSON": json.dumps(ROUTER),
            "TRIMTAB_RESUME_FROM": str(resume or ""),
        }
        each = [{**values, "RANK": str(rank)} for rank in range(world)]
        return self._run("attempted", [(self.directory / f"output-{no}", one) for one in each])

    def saved(self, no: int, step: int) -> Path:
        return contract.step_directory(self.directory / f"attempt-{no:04d}", step)

    def differences(self, pairs: dict[str, tuple[Path, Path]]) -> dict[str, float]:
        """The largest difference between the states of two checkpoints, by the pair's name."""
        path = self.directory / "differences.json"
        assert self._run("compared", [(pairs, path)]) == [0]
        found: dict[str, float] = json.loads(path.read_text())
        return found

    def _run(self, function: str, calls: list[tuple[Any, ...]]) -> list[int]:
        processes = [self._context.Process(target=_in_rank, args=(function, arguments)) for arguments in calls]
        # a new process runs the main module's file first, and a page's test leaves its own script in that place
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
            for process in processes:
                process.start()
        for process in processes:
            process.join(120)
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode if process.exitcode is not None else -9 for process in processes]

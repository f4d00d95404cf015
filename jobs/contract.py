"""The contract between a training job and its controller: environment, heartbeat, stop, checkpoint, exit.

Standard library only: any trainer may import it. Levels: 0 an unchanged command, 1 heartbeat and stop, 2 manifest,
exact resume and exit record. It decides nothing: the controller reads what is written here and decides.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from jobs.exits import Exit, ExitRecord, fingerprint, read_exit_records, write_exit_record
from jobs.manifest import (
    ContractError,
    Manifest,
    ManifestFile,
    Verification,
    as_text,
    checkpoint_hash,
    is_finite,
    is_text,
    is_whole,
    list_checkpoints,
    read_manifest,
    sha256_of,
    step_directory,
    verify,
    write_json,
    write_manifest,
)
from jobs.results import Result, read_result, write_result
from jobs.skips import Ranges, data_index, format_ranges, merged, parse_ranges

__all__ = [
    "PHASES",
    "ContractError",
    "Environment",
    "Exit",
    "ExitRecord",
    "Heartbeat",
    "HeartbeatWriter",
    "Manifest",
    "ManifestFile",
    "Ranges",
    "Result",
    "StopFlag",
    "Verification",
    "announce_checkpoint",
    "as_text",
    "checkpoint_hash",
    "data_index",
    "fingerprint",
    "format_ranges",
    "hang_limit_s",
    "is_finite",
    "is_text",
    "is_whole",
    "list_checkpoints",
    "merged",
    "parse_ranges",
    "read_exit_records",
    "read_manifest",
    "read_result",
    "save_deadline_s",
    "sha256_of",
    "step_directory",
    "verify",
    "write_exit_record",
    "write_json",
    "write_manifest",
    "write_result",
    "write_save_by",
]

PHASES = ("start", "load", "compile", "train", "rollout", "weight_sync", "eval", "checkpoint", "exit")
HEARTBEAT_INTERVAL_S = 5.0
_SAVE_BY = "save-by.json"


@dataclass(frozen=True)
class Environment:
    """What the controller tells a job, from variables with the prefix TRIMTAB_.

    `init_from` is the checkpoint of the stage before and `init_hash` its `checkpoint_hash`: one that has another is
    refused. `prepared_dir` holds what the stage's preparing jobs wrote.
    """

    run_id: str
    lifecycle_id: str
    stage: str
    attempt_no: int
    attempt_name: str
    epoch: int
    run_dir: Path
    heartbeat_dir: Path | None
    checkpoint_dir: Path
    resume_from: Path | None
    init_from: Path | None
    init_hash: str
    prepared_dir: Path | None
    skip_steps: Ranges
    grace_s: float
    save_by_s: float | None
    ingest_url: str
    token_file: Path | None
    seed: int
    node: str

    @classmethod
    def read(cls, env: Mapping[str, str] | None = None) -> Environment:
        """Reads the variables; raises ContractError naming the one that cannot be read."""
        values = os.environ if env is None else env

        def text(name: str, default: str = "") -> str:
            return values.get(f"TRIMTAB_{name}", default)

        def number(name: str, default: float) -> float:
            try:
                value = float(text(name) or default)
            except ValueError as error:
                raise ContractError(f"TRIMTAB_{name}: {text(name)!r} is not a number") from error
            if not math.isfinite(value):
                raise ContractError(f"TRIMTAB_{name}: {text(name)!r} is not a finite number")
            return value

        def whole(name: str, default: int) -> int:
            try:
                return int(text(name) or default)
            except ValueError as error:
                raise ContractError(f"TRIMTAB_{name}: {text(name)!r} is not a whole number") from error

        def path(name: str) -> Path | None:
            return Path(text(name)) if text(name) else None

        run_dir, attempt_no = path("RUN_DIR") or Path("run"), whole("ATTEMPT", 1)
        return cls(
            run_id=text("RUN_ID", "local"),
            lifecycle_id=text("LIFECYCLE_ID"),
            stage=text("STAGE", "train"),
            attempt_no=attempt_no,
            attempt_name=text("ATTEMPT_NAME", f"local-{attempt_no}"),
            epoch=whole("EPOCH", 1),
            run_dir=run_dir,
            heartbeat_dir=path("HEARTBEAT_DIR"),
            checkpoint_dir=path("CHECKPOINT_DIR") or run_dir / f"attempt-{attempt_no:04d}",
            resume_from=path("RESUME_FROM"),
            init_from=path("INIT_FROM"),
            init_hash=text("INIT_HASH"),
            prepared_dir=path("PREPARED_DIR"),
            skip_steps=parse_ranges(text("SKIP_STEPS")),
            grace_s=number("GRACE_SECONDS", 30),
            save_by_s=number("SAVE_BY", 0) or None,
            ingest_url=text("INGEST_URL"),
            token_file=path("TOKEN_FILE"),
            seed=whole("SEED", 0),
            node=text("NODE", os.uname().nodename),
        )


@dataclass(frozen=True)
class Heartbeat:
    """What one rank is doing. `step`, `first_step`, `last_step`: optimizer steps that this attempt completed."""

    run_id: str
    attempt_no: int
    epoch: int
    rank: int
    world: int
    node: str
    pid: int
    phase: str
    step: int | None
    first_step: int | None
    last_step: int | None
    resumed_from: str | None
    at_s: float
    phase_since_s: float
    step_seconds_median: float | None
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, body: bytes | str) -> Heartbeat:
        """Reads a heartbeat; raises ContractError for anything that is not one."""
        try:
            found = json.loads(body)
            beat = cls(**{name: found.get(name) for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ContractError(f"a heartbeat cannot be read: {error}") from error
        if not all(is_whole(value) for value in (beat.attempt_no, beat.epoch, beat.rank, beat.world, beat.pid)):
            raise ContractError("a heartbeat lacks its attempt, epoch, rank, world or pid")
        if beat.phase not in PHASES:
            raise ContractError(f"a heartbeat's phase must be one of {', '.join(PHASES)}")
        if not all(is_finite(value) for value in (beat.at_s, beat.phase_since_s)):
            raise ContractError("a heartbeat lacks its times")
        if not all(value is None or is_whole(value) for value in (beat.step, beat.first_step, beat.last_step)):
            raise ContractError("a heartbeat's steps must be whole numbers")
        if beat.step_seconds_median is not None and not is_finite(beat.step_seconds_median):
            raise ContractError("a heartbeat's median step must be a number of seconds")
        if not is_text(beat.run_id) or not is_text(beat.node):
            raise ContractError("a heartbeat lacks its run or node")
        if not (beat.resumed_from is None or is_text(beat.resumed_from)):
            raise ContractError("a heartbeat's checkpoint must be a path")
        if not (beat.error is None or isinstance(beat.error, str)):
            raise ContractError("a heartbeat's error must be text")
        return replace(beat, error=as_text(beat.error)) if beat.error else beat


class HeartbeatWriter:
    """Writes a rank's heartbeat file: at once at a phase change and after the first step, else at most each 5 s.

    A file that cannot be written (a full disk) is said once on stderr and never stops the training.
    """

    def __init__(self, environment: Environment, rank: int, world: int) -> None:
        self.environment, self.rank, self.world = environment, rank, world
        self._phase, self._since = "start", time.time()
        self._first: int | None = None
        self._last: int | None = None
        self._error: str | None = None
        self._written = 0.0
        self._stepped: float | None = None
        self._seconds: list[float] = []
        self._complained = False
        if environment.heartbeat_dir is not None:
            environment.heartbeat_dir.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def current(self) -> str:
        """The phase that the rank is in."""
        return self._phase

    def phase(self, name: str, error: str | None = None) -> None:
        """Enters a phase of PHASES."""
        if name not in PHASES:
            raise ContractError(f"{name!r} is not one of {', '.join(PHASES)}")
        self._phase, self._since, self._error = name, time.time(), error or self._error
        self._stepped = None
        self._write()

    def step(self, number: int, seconds: float | None = None) -> None:
        """A completed optimizer step; `seconds` that it took, for a trainer whose steps have phases within them."""
        first, self._last, now = self._first is None, number, time.monotonic()
        if first:
            self._first = number
        if seconds is None and self._stepped is not None:
            seconds = now - self._stepped
        if seconds is not None:
            self._seconds = [*self._seconds[-31:], seconds]
        self._stepped = now
        if first or now - self._written >= HEARTBEAT_INTERVAL_S:
            self._write()

    def alive(self) -> None:
        """The same phase goes on: for work between two steps that may take longer than a rank may be silent."""
        if time.monotonic() - self._written >= HEARTBEAT_INTERVAL_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        environment = self.environment
        if environment.heartbeat_dir is None:
            return
        resumed = environment.resume_from
        beat = Heartbeat(
            run_id=environment.run_id,
            attempt_no=environment.attempt_no,
            epoch=environment.epoch,
            rank=self.rank,
            world=self.world,
            node=environment.node,
            pid=os.getpid(),
            phase=self._phase,
            step=self._last,
            first_step=self._first,
            last_step=self._last,
            resumed_from=str(resumed) if resumed else None,
            at_s=time.time(),
            phase_since_s=self._since,
            step_seconds_median=median(self._seconds) if self._seconds else None,
            error=self._error,
        )
        try:
            write_json(environment.heartbeat_dir / f"heartbeat-rank-{self.rank}.json", asdict(beat), durable=False)
        except OSError as error:
            if not self._complained:
                print(f"heartbeat: {error}", file=sys.stderr, flush=True)
            self._complained = True


def hang_limit_s(beat: Heartbeat, longest_checkpoint_s: float | None = None) -> float:
    """How long a rank may stay silent in its phase before it counts as hung, in seconds (JOBS: each phase its own)."""
    if beat.phase in ("start", "compile"):
        return 1800.0
    if beat.phase in ("load", "checkpoint"):
        return max(600.0, 3 * (longest_checkpoint_s or 0.0))
    if beat.phase in ("train", "rollout", "weight_sync", "eval") and beat.first_step is None:
        return 600.0
    return max(60.0, 5 * (beat.step_seconds_median or 0.0))


class StopFlag:
    """SIGTERM: save and stop. SIGUSR1: save and go on. A handler only notes it; the step boundary reads it.

    Wishes to save are counted, so that one that comes while another is taken is not lost.
    """

    stop = False
    _wished = 0
    _taken = 0

    def __init__(self) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, self._on_usr1)

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True

    def _on_usr1(self, _number: int, _frame: FrameType | None) -> None:
        self._wished += 1

    @property
    def save(self) -> bool:
        """Whether a save was wished for since the last `take_save`."""
        return self._wished != self._taken

    def take_save(self) -> bool:
        """The same, and these wishes count as met; one that comes meanwhile stands."""
        wished = self._wished
        found, self._taken = wished != self._taken, wished
        return found


def write_save_by(directory: Path, at_s: float | None) -> None:
    """The launcher's word to its ranks, before it passes a stop on: what is not saved by then (Unix seconds) is lost.

    None takes an earlier word back. Raises OSError when it cannot be written; the ranks then know of no limit.
    """
    if at_s is None:
        (directory / _SAVE_BY).unlink(missing_ok=True)
    else:
        write_json(directory / _SAVE_BY, {"save_by_s": at_s}, durable=False)


def save_deadline_s(environment: Environment) -> float | None:
    """When a save has to be complete, Unix seconds: TRIMTAB_SAVE_BY or the launcher's word, the earlier one.

    None while nobody has said; ask after the stop flag is seen, since the word comes with the signal.
    """
    told = [environment.save_by_s] if environment.save_by_s is not None else []
    if environment.heartbeat_dir is not None:
        try:
            found = json.loads((environment.heartbeat_dir / _SAVE_BY).read_bytes())["save_by_s"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            found = None
        told += [float(found)] if is_finite(found) else []
    return min(told, default=None)


def announce_checkpoint(environment: Environment, directory: Path, manifest: Manifest) -> str:
    """Tells the server of a new checkpoint. Never raises: the controller looks by itself; returns what went wrong."""
    if not environment.ingest_url or environment.token_file is None:
        return "no server to tell"
    body: dict[str, Any] = {
        "attempt_no": environment.attempt_no,
        "epoch": environment.epoch,
        "step": manifest.step,
        "path": str(directory),
    }
    url = f"{environment.ingest_url.rstrip('/')}/api/v1/runs/{environment.run_id}/checkpoints"
    try:
        headers = {
            "Authorization": f"Bearer {environment.token_file.read_text().strip()}",
            "Content-Type": "application/json",
        }
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=2):
            return ""
    except (OSError, ValueError) as error:
        return str(error)

"""Reads what trainers without heartbeats tell in files and logs, each second, and hands it to `reports`.

Of every run of level 0 or 1: RUN_DIR/steps.jsonl, and the meter that its spec names. Where a file was left is
remembered here; after a restart of the server it is read again from its beginning, and steps that are known are passed
over. What cannot be read is logged once and holds up no run. No file is read inside a database session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from controlplane.backends.absent import backend_of
from controlplane.backends.base import Backend, BackendUnavailable
from controlplane.services import reports
from controlplane.services.plans import Places
from controlplane.services.reports import Report
from controlplane.store import leases, runs, steps
from controlplane.store.base import ATTEMPT_LIVE
from controlplane.store.engine import Session, Store
from controlplane.store.tables import Attempt
from jobs.meters.base import LogMeter, Mark, Marks, lines
from jobs.meters.registry import FILE_METERS, LOG_METERS
from jobs.steps import FILE, StepScalars, parse_line

LEASE = "control"
LOG_EVERY_S = 5.0
LOG_BYTES = 64 << 10
LINGER_S = 60.0
"""how long after its end an attempt's files are still looked at: writers hold back what they were told last"""
_log = structlog.get_logger()


@dataclass
class _Followed:
    """What is remembered of an attempt: how far its files were read, its last steps told."""

    known: int
    marks: Marks = field(default_factory=dict)
    last: dict[int, StepScalars] = field(default_factory=dict)
    looked_s: float = 0.0
    complained: set[str] = field(default_factory=set)


class Metering:
    """Follows every live attempt of a job that does not speak for itself."""

    def __init__(self, store: Store, places: Places, backends: Mapping[str, Backend]) -> None:
        self._store, self._places, self._backends = store, places, backends
        self._followed: dict[tuple[str, int], _Followed] = {}

    def read_once(self, lease_epoch: int, now: float) -> int:
        """One look at every such attempt; returns how many steps were new. LeaseLost, StoreUnavailable."""
        with self._store.read() as session:
            found = _followable(session, now)
            names = {attempt.run_id: run.backend for attempt in found if (run := runs.get(session, attempt.run_id))}
            known = {(one.run_id, one.no): steps.last_step(session, one.run_id, one.no) or 0 for one in found}
        self._followed = {key: self._followed.get(key, _Followed(last)) for key, last in known.items()}
        told = []
        for attempt in found:
            followed = self._followed[attempt.run_id, attempt.no]
            new = self._look(attempt, followed, backend_of(self._backends, names[attempt.run_id]), now)
            told += [(attempt, report) for report in new if report.steps]
        if told:
            with self._store.write() as session:
                leases.guard(session, LEASE, lease_epoch)
                for attempt, report in told:
                    reports.take(session, attempt.run_id, attempt.no, report, now=now)
        return sum(len(report.steps) for _, report in told)

    def _look(self, attempt: Attempt, followed: _Followed, backend: Backend, now: float) -> list[Report]:
        meter = str((attempt.spec["spec"].get("trainer") or {}).get("meter") or "")
        own = self._steps_file(attempt, followed)
        found: Sequence[StepScalars] = []
        try:
            if meter in FILE_METERS:
                folder = self._places.attempt(attempt.run_id, attempt.no)
                found, followed.marks = FILE_METERS[meter].read(folder, followed.marks)
                if FILE_METERS[meter].replays:
                    found = [step for step in found if step.step > (attempt.resume_step or 0)]
            elif meter in LOG_METERS and now - followed.looked_s >= LOG_EVERY_S:
                followed.looked_s = now
                found = _printed(LOG_METERS[meter], attempt, backend)
        except (OSError, BackendUnavailable) as error:
            self._complain(followed, attempt, str(error))
        for path, mark in followed.marks.items():
            if mark.broken:
                self._complain(followed, attempt, f"{Path(path).name}: {mark.broken}")
        return [Report(FILE, _new(own, followed)), Report(meter, _new(found, followed))]

    def _steps_file(self, attempt: Attempt, followed: _Followed) -> list[StepScalars]:
        """The lines of steps.jsonl that are this attempt's: those that name it, with its epoch if they name one."""
        path = self._places.run(attempt.run_id) / FILE
        try:
            found, mark = lines(path, followed.marks.get(str(path), Mark()))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._complain(followed, attempt, str(error))
            return []
        followed.marks = {**followed.marks, str(path): mark}
        parsed = (step for line in found if (step := parse_line(line)) is not None)
        return [
            step for step in parsed if (step.attempt_no, step.epoch or attempt.epoch) == (attempt.no, attempt.epoch)
        ]

    @staticmethod
    def _complain(followed: _Followed, attempt: Attempt, why: str) -> None:
        if why not in followed.complained:
            followed.complained.add(why)
            _log.warning("a trainer's steps cannot be read", run=attempt.run_id, attempt=attempt.no, why=why)


def _followable(session: Session, now: float) -> list[Attempt]:
    """The attempts of jobs below level 2 that run, or ended just now."""
    found = runs.following(session, ATTEMPT_LIVE, ended_after_s=now - LINGER_S)
    return [one for one in found if int(one.spec["spec"].get("contractLevel", reports.OWN_LEVEL)) < reports.OWN_LEVEL]


def _printed(meter: LogMeter, attempt: Attempt, backend: Backend) -> list[StepScalars]:
    members = int(attempt.spec["spec"]["resources"]["nodes"])
    body = backend.read_logs(attempt.name, members - 1 if meter.last_member else 0, LOG_BYTES)
    whole = body[: body.rfind(b"\n") + 1]
    return meter.steps(whole.decode(errors="replace"))


def _new(found: Sequence[StepScalars], followed: _Followed) -> list[StepScalars]:
    """Steps that were not told yet, and the last one of a rank again where more became known of it."""
    fresh: dict[tuple[int, int], StepScalars] = {}
    for step in found:
        last = followed.last.get(step.rank)
        if step.step <= followed.known and last is None:  # told before this server began
            continue
        if last is not None and step.step < last.step:
            continue
        whole = last.completed_by(step) if last is not None and last.step == step.step else step
        if whole != last:
            fresh[step.rank, step.step] = followed.last[step.rank] = whole
    return list(fresh.values())

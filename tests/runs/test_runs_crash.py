"""The controller killed at every commit and at every call of the backend, one after the other; the next one goes on.

A point lies before and after each commit and each call, where a death leaves something that it did not leave at the
point before. The scenario is played once a point: the controller dies there, a fresh one takes over under a new epoch
with nothing remembered, and what the world sees must be the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from controlplane.backends.base import AttemptPlan, Handle, NodeCapacity, Observation, StopMode
from controlplane.backends.memory import MemoryBackend
from controlplane.services import tokens
from controlplane.services.reconcile import Controller
from controlplane.store.engine import Store
from tests.deaths import Killed, MortalStore, Points, files_of
from tests.runs.piloting import BOOK, Pilot


class MortalBackend:
    """A backend whose calls are points."""

    name, pins_nodes, keeps_logs = "memory", True, True

    def __init__(self, backend: MemoryBackend, points: Points) -> None:
        self._backend, self._points = backend, points

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        self._points.reach(f"before {name}")
        found = call()
        self._points.reach(f"after {name}")
        return found

    def submit(self, plan: AttemptPlan) -> Handle:
        alive = [name for name, one in self._backend.attempts.items() if one.state in ("pending", "running")]
        assert alive in ([], [plan.name]), f"{plan.name} is submitted beside {alive}"
        return self._call("submit", lambda: self._backend.submit(plan))

    def observe(self, names: Sequence[str], now: float) -> dict[str, Observation]:
        return self._call("observe", lambda: self._backend.observe(names, now))

    def stop(self, name: str, *, mode: StopMode) -> None:
        self._call("stop", lambda: self._backend.stop(name, mode=mode))

    def fenced(self, name: str) -> bool:
        return self._call("fenced", lambda: self._backend.fenced(name))

    def capacity(self, nodes: Sequence[str]) -> list[NodeCapacity]:
        return self._call("capacity", lambda: self._backend.capacity(nodes))

    def read_logs(self, name: str, index: int, limit: int = 1 << 20) -> bytes:
        return self._backend.read_logs(name, index, limit)


class MortalPilot(Pilot):
    """A pilot whose controllers die at the fatal point."""

    def __init__(self, store: Store, folder: Path, points: Points) -> None:
        self.points, self.failed_at = points, 0
        super().__init__(store, folder)

    def new_controller(self) -> Controller:
        store, backend = MortalStore(self.store, self.points), MortalBackend(self.backend, self.points)
        return Controller(store, {"memory": backend}, BOOK, self.places)  # type: ignore[arg-type]  # same shape

    def backend_as_it_is(self) -> tuple[object, ...]:
        """What the backend was told, and what came of it."""
        return (*self.backend.calls, *((name, one.state) for name, one in self.backend.attempts.items()))

    def live_round(self, seconds: float) -> None:
        """A round; if the controller dies in it, the next one begins at once."""
        try:
            self.round(seconds)
        except Killed:
            self.lead()


def world(pilot: MortalPilot, run_id: str, done: set[str], kind: str) -> None:
    """What nodes and trainers do by themselves: it sees the backend, never the controller's rows."""
    if not pilot.backend.attempts:
        return
    name, attempt = list(pilot.backend.attempts.items())[-1]
    number = attempt.plan.attempt_no
    if attempt.state == "pending":
        pilot.backend.run(name)
    elif attempt.state != "running":
        return
    elif number == 1 and "trained" not in done:
        pilot.beat(run_id, 1, 12, no=1)
        pilot.save(run_id, 10, no=1, at=-30)
        done.add("trained")
    elif number == 1 and "failed" not in done:
        if kind == "fault":
            pilot.hit()
        else:
            pilot.backend.end(name, "failed")
        done.add("failed")
        pilot.failed_at = pilot.points.seen
    elif number == 2 and "resumed" not in done:
        first = int(attempt.plan.environment["TRIMTAB_RESUME_FROM"].rpartition("-")[2]) + 1
        assert first == 11
        pilot.beat(run_id, first, 40, no=2)
        done.add("resumed")
    elif number == 2:
        pilot.backend.end(name, "succeeded")


def play(pilot: MortalPilot, kind: str) -> str:
    run_id, done = pilot.submit(steps=40), set[str]()
    for _ in range(60):
        pilot.live_round(1.0)
        if pilot.run(run_id).status == "succeeded":
            break
        world(pilot, run_id, done, kind)
    return run_id


def check(pilot: MortalPilot, run_id: str, kind: str) -> None:
    where = f"killed {pilot.points.where or 'nowhere'} (point {pilot.points.fatal})"
    first, second = pilot.attempts(run_id)
    assert pilot.run(run_id).status == "succeeded", where
    assert pilot.submissions() == [first.name, second.name], where
    assert (first.state, second.state) == ("superseded" if kind == "fault" else "failed", "succeeded"), where
    assert (second.resume_step, second.first_step, second.last_step) == (10, 11, 40), where
    (decision,) = pilot.decisions(run_id)
    assert (decision.state, decision.action) == ("verified", "restart_exclude" if kind == "fault" else "restart"), where
    kills = [name for call, name in pilot.backend.calls if call == "kill"]
    assert kills == ([first.name] if kind == "fault" else []), where
    assert len(pilot.checkpoints(run_id)) == 1, where
    with pilot.store.read() as session:
        given = pilot.places.token(run_id, 2).read_text()  # what the trainer was given is what the server knows
        assert tokens.identify(session, given, now=pilot.clock.now()).attempt_no == 2, where


def survive(kind: str, fresh: Path, folder: Path, fatal: int) -> MortalPilot:
    """Plays the scenario with a death at one point, and checks what came of it."""
    folder.mkdir()
    shutil.copy(fresh, folder / "store.db")
    store = Store(f"sqlite:///{folder / 'store.db'}", synchronous="OFF")  # the process dies, not the machine
    pilot = MortalPilot(store, folder, Points(fatal))
    pilot.points.look = lambda: (files_of(folder), pilot.clock.now(), *pilot.backend_as_it_is())
    try:
        check(pilot, play(pilot, kind), kind)
    finally:
        store.close()
    return pilot


@pytest.mark.parametrize("kind", ["fault", "exit"])
def test_a_controller_killed_anywhere_is_followed_by_one_that_goes_on(
    kind: str, sqlite_url: str, tmp_path: Path
) -> None:
    fresh = Path(sqlite_url.removeprefix("sqlite:///"))
    untouched = survive(kind, fresh, tmp_path / "untouched", 0)
    # up to the failure both kinds are one story
    first = 1 if kind == "fault" else untouched.failed_at
    assert untouched.points.seen - first > 15, "a restart has more points than that"
    for fatal in range(first, untouched.points.seen + 1):
        assert survive(kind, fresh, tmp_path / str(fatal), fatal).points.where, f"point {fatal} was never reached"

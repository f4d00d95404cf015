"""The conductor killed at its commits, one after the other; the next one goes on, and nothing is done twice.

The scenario is played once a point: a stage with a preparation, a gate and an alias, one that a person approves, and
one that is tried again. What comes of it must be the same whoever conducted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.reconcile import Controller
from controlplane.store import lifecycles
from controlplane.store.engine import Store
from tests.deaths import Killed, MortalStore, Points, files_of
from tests.runs.conducting import JOB, Conducting, gate

STAGES = (
    {"name": "a", "prepare": [{"name": "text", "job": JOB}], "gate": gate("loss < 2.6"), "promote": "base"},
    {"name": "b", "gate": gate(approval=True), "promote": "best"},
)


class MortalConducting(Conducting):
    """A conductor that dies at the fatal point; the controller beside it does not."""

    def __init__(self, store: Store, folder: Path, points: Points) -> None:
        self.points = points
        super().__init__(store, folder)

    def new_controller(self) -> Controller:
        controller = super().new_controller()
        mortal = MortalStore(self.store, self.points)
        self.conductor = Conductor(mortal, self.places, controller, lambda _spec: "memory")  # type: ignore[arg-type]  # same shape
        return controller

    def tick(self, seconds: float = 1.0) -> list[str]:
        try:
            return super().tick(seconds)
        except Killed:
            self.lead()
            return []


def play(pilot: MortalConducting) -> str:
    made = pilot.begin(*STAGES)
    pilot.walk(made)
    pilot.retry(made, "b", fresh=True)
    for _ in range(30):
        pilot.tick()
        stage = pilot.stages(made)["b"]
        if stage.state == "held" and stage.wish is None:
            break
        pilot.work_all(made)
    pilot.say(made, "b", "approved")
    pilot.walk(made, until="none", rounds=8)
    return made


def check(pilot: MortalConducting, made: str) -> None:
    where = f"killed {pilot.points.where or 'nowhere'} (point {pilot.points.fatal})"
    assert pilot.state(made).status == "succeeded", where
    works = [(one.work.stage, one.work.role, one.work.no) for one in pilot.works(made)]
    order = [("a", "prepare", 1), ("a", "train", 1), ("a", "evaluate", 1), ("b", "train", 1), ("b", "train", 2)]
    assert works == order, where
    base, best = (pilot.stages(made)[name].candidate_hash for name in ("a", "b"))
    with pilot.store.read() as session:
        moves = [(one.alias, one.checkpoint_hash) for one in lifecycles.alias_moves(session, "walk")]
        (word,) = lifecycles.approvals(session, made)
    assert moves == [("base", base), ("best", best)], where
    assert word.used_s is not None, where
    story = pilot.story(made)
    assert len(story) == len(set(story)), f"{where}: something was told twice"


def survive(fresh: Path, folder: Path, fatal: int) -> MortalConducting:
    folder.mkdir()
    shutil.copy(fresh, folder / "store.db")
    store = Store(f"sqlite:///{folder / 'store.db'}", synchronous="OFF")  # the process dies, not the machine
    pilot = MortalConducting(store, folder, Points(fatal))
    pilot.points.look = lambda: (files_of(folder), pilot.clock.now(), len(pilot.backend.calls))
    try:
        check(pilot, play(pilot))
    finally:
        store.close()
    return pilot


def test_a_conductor_killed_anywhere_is_followed_by_one_that_goes_on(sqlite_url: str, tmp_path: Path) -> None:
    fresh = Path(sqlite_url.removeprefix("sqlite:///"))
    seen = survive(fresh, tmp_path / "untouched", 0).points.seen
    assert seen > 20, "a lifecycle has more points than that"
    # each point would take half a minute
    for fatal in range(1 + seen % 3, seen + 1, 3):
        assert survive(fresh, tmp_path / str(fatal), fatal).points.where, f"point {fatal} was never reached"

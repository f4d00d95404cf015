"""A lifecycle of real processes: each role's job sees what it is promised and is judged by what it left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.backends.local import LocalBackend
from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.reconcile import Controller
from controlplane.store.engine import Store
from tests.runs.conducting import Conducting
from tests.runs.piloting import BOOK

WORKER = Path(__file__).with_name("stage_worker.py")
WORK = {
    "command": ["{python}", str(WORKER)],
    "train": {"steps": 3},
    "resources": {"gpusPerNode": 0},
}
STAGES = (
    {"name": "pretrain", "job": WORK, "gate": {"evaluation": WORK, "require": ["length > 5"]}, "promote": "base"},
    {"name": "sft", "prepare": [{"name": "text", "job": WORK}], "job": WORK},
    {"name": "release", "role": "release", "job": WORK, "gate": {"require": ["length > 5"]}},
)


class OnThisMachine(Conducting):
    """The same pilot over real processes and the real clock's pace."""

    def __init__(self, store: Store, folder: Path) -> None:
        for name in ("node-0", "node-1"):
            (folder / "runtime" / name).mkdir(parents=True)
        self.processes = LocalBackend(folder / "attempts", folder / "runtime")
        super().__init__(store, folder, 2)

    def new_controller(self) -> Controller:
        controller = Controller(self.store, {"local": self.processes}, BOOK, self.places)
        self.conductor = Conductor(self.store, self.places, controller, lambda _spec: "local")
        return controller

    def wait(self, lifecycle_id: str, within_s: float = 60.0) -> str:
        """Rounds until the lifecycle is over or held; the clock goes as the machine's does, so manifests fit to it."""
        deadline = time.monotonic() + within_s
        while self.state(lifecycle_id).status == "active" and time.monotonic() < deadline:
            if "held" in {one.state for one in self.stages(lifecycle_id).values()}:
                break
            self.tick(1.0)
            time.sleep(0.02)  # processes take their time
        return self.state(lifecycle_id).status


@pytest.fixture
def machine(sqlite_url: str, tmp_path: Path) -> Iterator[OnThisMachine]:
    store = Store(sqlite_url, synchronous="OFF")
    made = OnThisMachine(store, tmp_path)
    yield made
    for home in made.processes.folder.iterdir():
        made.processes.stop(home.name, mode="kill")
    store.close()


def test_real_jobs_hand_their_checkpoints_on_by_hash(machine: OnThisMachine) -> None:
    made = machine.begin(*STAGES)
    assert machine.wait(made) == "succeeded", machine.story(made)
    release = machine.newest(made, "release", "release")
    assert release.work.result is not None
    assert release.work.result["details"] == {
        "stages": ["pretrain", "sft"],
        "model": "pretrain()sft(data for sft from [pretrain()])",
    }
    assert release.work.result["checkpoint_hash"] == machine.hash_of(made, "sft", 3)

"""Checkpoints on disk: what is believed of them, when they are read, and what waits for them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.services.discovery import Discovery, Verifier
from controlplane.store.engine import Store
from jobs.contract import Manifest, Verification
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


class Slow(Verifier):
    """Reads for as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: set[str] = set()

    def verdict(self, directory: Path, size: int) -> Verification | None:
        return None if directory.name in self.reading else super().verdict(directory, size)


def scan(pilot: Pilot, discovery: Discovery, run_id: str) -> list[tuple[int, str]]:
    found = discovery.scan(run_id, pilot.places.run(run_id), pilot.clock.now())
    return [(values["step"], values["state"]) for values in found]


def test_a_large_checkpoint_is_read_beside_the_round_and_believed_afterwards(pilot: Pilot) -> None:
    run_id = pilot.started()
    directory = pilot.save(run_id, 10)
    verifier = Verifier(inline_bytes=1)
    assert verifier.verdict(directory, 2) is None
    for thread in threading.enumerate():
        if thread.name == "verify":
            thread.join(20)
    assert verifier.verdict(directory, 2) == Verification(True)
    (directory / "model.bin").write_bytes(b"torn")
    assert verifier.verdict(directory, 2) is None, "a verdict counts once"
    for thread in threading.enumerate():
        if thread.name == "verify":
            thread.join(20)
    assert verifier.verdict(directory, 2) == verifier.verdict(directory, 1)
    assert not Verifier().verdict(directory, 2).ok  # type: ignore[union-attr]  # small ones are read at once


def test_a_disk_is_looked_at_once_a_second_and_each_thing_told_once(pilot: Pilot) -> None:
    run_id = pilot.started()
    discovery = Discovery(pilot.store)
    pilot.save(run_id, 10)
    assert scan(pilot, discovery, run_id) == [(10, "validated")]
    pilot.save(run_id, 20)
    assert scan(pilot, discovery, run_id) == []
    discovery.forget(run_id)
    assert scan(pilot, discovery, run_id) == [(10, "validated"), (20, "validated")], "nobody wrote them down yet"
    pilot.round(1)
    pilot.clock.advance(1)
    assert scan(pilot, discovery, run_id) == []


class Stale(Verifier):
    """Its disk is away."""

    def verdict(self, directory: Path, size: int) -> Verification | None:
        return Verification(False, "model.bin cannot be read: stale file handle")


def test_a_look_at_files_that_cannot_be_read_has_failed(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10)
    discovery = Discovery(pilot.store, Stale())
    assert (scan(pilot, discovery, run_id), discovery.failed(run_id)) == ([(10, "complete")], True)
    again = Discovery(pilot.store)
    assert (scan(pilot, again, run_id), again.failed(run_id)) == ([(10, "validated")], False)


def test_what_was_incomplete_is_read_again_when_it_matters(pilot: Pilot) -> None:
    run_id = pilot.started()
    directory = pilot.save(run_id, 10)
    whole = (directory / "model.bin").read_bytes()
    (directory / "model.bin").write_bytes(b"half")
    pilot.round(1)
    assert [one.state for one in pilot.checkpoints(run_id)] == ["complete"]
    (directory / "model.bin").write_bytes(whole)  # a slow file system shows the rest later
    pilot.round(1)
    assert [one.state for one in pilot.checkpoints(run_id)] == ["complete"], "not hashed each second"
    pilot.end(run_id, "failed")
    pilot.round(1)
    assert (pilot.checkpoints(run_id)[0].state, pilot.last(run_id).resume_step) == ("validated", 10)


def test_a_restart_waits_for_the_newest_checkpoint_to_be_read_but_not_for_ever(pilot: Pilot) -> None:
    run_id = pilot.started()
    verifier = Slow()
    pilot.controller._discovery = Discovery(pilot.store, verifier)
    pilot.save(run_id, 10)
    pilot.round(1)
    newest = pilot.save(run_id, 20)
    verifier.reading.add(newest.name)
    pilot.end(run_id, "failed")
    for _ in range(3):
        pilot.round(5)
    assert len(pilot.attempts(run_id)) == 1 and pilot.run(run_id).status == "active"
    verifier.reading.clear()
    pilot.round(1)
    assert pilot.last(run_id).resume_step == 20
    verifier.reading.add(pilot.save(run_id, 30).name)
    pilot.end(run_id, "failed")
    pilot.round(1)
    pilot.round(601)
    assert pilot.last(run_id).resume_step == 20, "a disk that hangs costs ten steps, not the run"


def test_a_folder_that_cannot_be_listed_changes_nothing(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = pilot.started()
    pilot.save(run_id, 10)

    def broken(_folder: Path) -> list[Path]:
        raise OSError("the file system is away")

    monkeypatch.setattr("controlplane.services.discovery.list_checkpoints", broken)
    pilot.round(1)
    assert pilot.checkpoints(run_id) == [] and pilot.last(run_id).state == "training"
    monkeypatch.undo()
    pilot.round(1)
    assert [one.step for one in pilot.checkpoints(run_id)] == [10]


def test_blindness_is_told_once_and_its_end_once(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.backend.reachable = False
    for _ in range(12):
        pilot.round(5)
    pilot.backend.reachable = True
    pilot.beat(run_id, 1, 50)
    for _ in range(3):
        pilot.round(1)
    (blind,) = pilot.events(run_id, "backend_blind")
    (seen,) = pilot.events(run_id, "backend_seen")
    assert blind.sentence == "The memory backend has not said for 30 s how attempt 1 is."
    assert seen.sentence.startswith("The memory backend answers again after 56 s")
    assert pilot.last(run_id).state == "training" and pilot.decisions(run_id) == []
    pilot.backend.reachable = False
    pilot.round(5)
    pilot.backend.reachable = True
    pilot.round(5)
    assert len(pilot.events(run_id, "backend_blind", "backend_seen")) == 2, "a blink is not told"


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "MANIFEST.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_malformed_manifest_costs_its_checkpoint_and_nothing_else(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.strict = True
    rewrite(pilot.save(run_id, 10), lambda found: found.update(state_at_s=None))
    rewrite(pilot.save(run_id, 20), lambda found: found.update({"\ud800": 1}))
    pilot.save(run_id, 30)
    pilot.round(1)
    assert [(row.step, row.state) for row in pilot.checkpoints(run_id)] == [
        (10, "complete"),
        (20, "complete"),
        (30, "validated"),
    ]
    assert pilot.checkpoints(run_id)[0].reason == "step-00000010's manifest lacks its times"


def test_another_runs_manifest_is_refused(pilot: Pilot) -> None:
    run_id = pilot.started()
    rewrite(pilot.save(run_id, 10), lambda found: found.update(run_id="another-run"))
    pilot.round(1)
    (row,) = pilot.checkpoints(run_id)
    assert (row.state, row.reason) == ("tainted", "its manifest is that of run another-run")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def test_no_value_in_a_manifest_stops_the_scan(pilot: Pilot) -> None:
    run_id = pilot.started()
    pilot.strict = True
    steps = itertools.count(10, 10)

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from([field.name for field in fields(Manifest)]), JSON)
    def holds(name: str, value: Any) -> None:
        odd, good = next(steps), next(steps)
        rewrite(pilot.save(run_id, odd), lambda found: found.update({name: value}))
        pilot.save(run_id, good)
        pilot.round(1)
        rows = {row.step: row.state for row in pilot.checkpoints(run_id)}
        assert odd in rows and rows[good] == "validated"

    holds()


def test_a_verifier_that_breaks_gives_a_verdict_all_the_same(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = pilot.save(pilot.started(), 10)
    monkeypatch.setattr("controlplane.services.discovery.verify", lambda _directory: 1 / 0)
    verifier = Verifier(inline_bytes=1)
    assert verifier.verdict(directory, 2) is None
    for thread in threading.enumerate():
        if thread.name == "verify":
            thread.join(20)
    assert verifier.verdict(directory, 2) == Verification(False, "it cannot be read: division by zero")


def test_a_stale_manifest_is_not_even_read(pilot: Pilot) -> None:
    run_id = pilot.started()
    verifier = Slow()
    pilot.controller._discovery = Discovery(pilot.store, verifier)
    verifier.reading.add(pilot.save(run_id, 10, epoch=9).name)
    pilot.round(1)
    (row,) = pilot.checkpoints(run_id)
    assert (row.state, row.reason) == ("tainted", "it was written under epoch 9, its attempt holds 1")


def test_what_a_trainer_left_on_the_disk_never_stops_the_run_from_being_minded(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = pilot.started()

    def broken(*_found: object) -> None:
        raise TypeError("nobody thought of this")

    monkeypatch.setattr(Discovery, "_judge", broken)
    pilot.save(run_id, 10)
    pilot.strict = True
    pilot.hit()
    pilot.round(1)
    assert ("kill", f"{run_id}-1") in pilot.backend.calls and pilot.last(run_id).no == 2

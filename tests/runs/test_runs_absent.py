"""Runs of a backend that the server was started without: nothing is concluded, a person is told, and it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controlplane.backends.absent import AbsentBackend, backend_of
from controlplane.backends.base import BackendUnavailable
from controlplane.services.reconcile import Controller
from controlplane.store.engine import Store
from tests.runs.piloting import BOOK, Pilot


def test_a_run_waits_for_its_backend_to_come_back(sqlite_store: Store, tmp_path: Path) -> None:
    pilot = Pilot(sqlite_store, tmp_path)
    run_id = pilot.started(nodes=2)
    pilot.controller = Controller(pilot.store, {}, BOOK, pilot.places)
    with capture_logs() as logs:
        for _ in range(80):
            pilot.round(1.0)
    assert [one.state for one in pilot.attempts(run_id)] == ["training"] and pilot.decisions(run_id) == []
    assert not [one for one in logs if one["event"] == "a run could not be minded"]
    assert "this server runs without the backend memory" in {one["error"] for one in logs if "error" in one}
    assert len(pilot.events(run_id, "backend_blind")) == 1
    pilot.lead()
    pilot.beat(run_id, 1, 30)
    pilot.round(1.0)
    assert pilot.last(run_id).last_step == 30


def test_it_says_how_to_start_the_server() -> None:
    assert backend_of({}, "rayjob").name == "rayjob"
    with pytest.raises(BackendUnavailable, match="--backend kube --kube-ray"):
        AbsentBackend("rayjob").fenced("x")

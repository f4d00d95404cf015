"""What a controller asks of a backend only while it is sure to lead, and what becomes of what it did not ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.clock import ManualClock
from controlplane.loops import TTL_S, Leadership
from controlplane.services import runs as service
from controlplane.services.reconcile import Controller
from controlplane.store import leases
from controlplane.store.engine import Store
from controlplane.store.leases import LeaseLost
from tests.runs.piloting import BOOK, Pilot


class Doubtful(Pilot):
    """A pilot whose controller leads only as long as a test says so."""

    young = True

    def new_controller(self) -> Controller:
        backends = {"memory": self.backend}
        return Controller(
            self.store, backends, BOOK, self.places, leads=lambda epoch: self.young and epoch == self.epoch
        )


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Doubtful:
    return Doubtful(sqlite_store, tmp_path)


def test_nothing_is_submitted_under_a_lease_that_may_have_run_out(pilot: Doubtful) -> None:
    run_id = pilot.submit()
    pilot.young = False
    with pytest.raises(LeaseLost, match="nothing is asked under it"):
        pilot.round(1)
    assert pilot.last(run_id).state == "submitting" and pilot.backend.calls == []
    pilot.young = True
    pilot.round(1)
    assert pilot.last(run_id).state == "pending" and pilot.submissions() == [f"{run_id}-1"]


def test_nobody_is_stopped_under_it_either_but_by_the_next_who_leads(pilot: Doubtful) -> None:
    run_id = pilot.started()
    service.pause(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.young = False
    with pytest.raises(LeaseLost):
        pilot.round(1)
    assert pilot.last(run_id).state == "stopping" and [call for call, _ in pilot.backend.calls] == ["submit"]
    pilot.young = True
    pilot.clock.advance(10)  # the lease has run out
    pilot.lead("b")
    for _ in range(2):
        pilot.round(1)
    assert pilot.backend.calls[-1] == ("terminate", f"{run_id}-1") and pilot.run(run_id).status == "paused"


def test_half_the_lease_is_as_long_as_one_is_sure(sqlite_store: Store) -> None:
    clock = ManualClock()
    leadership = Leadership(sqlite_store, leases.this_process("a"), clock)
    assert not leadership.holds(1)
    leadership.campaign_once()
    assert leadership.holds(1) and not leadership.holds(2)
    clock.advance(TTL_S / 2)
    assert leadership.holds(1)
    clock.advance(0.1)
    assert not leadership.holds(1)
    leadership.campaign_once()
    assert leadership.holds(1)

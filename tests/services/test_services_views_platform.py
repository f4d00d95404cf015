"""What the platform says of members and nodes, in words; what cannot be asked is said and empties nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.backends.base import Member
from controlplane.services import quarantine, views_platform
from controlplane.store import nodes
from controlplane.store.engine import Store
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    return Pilot(sqlite_store, tmp_path)


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (Member(0, "a", True), ("ok", "runs")),
        (Member(0, "", True, running=False, reason="Unschedulable"), ("warn", "waits")),
        (Member(0, "a", True, deleted_s=5.0), ("warn", "is leaving")),
        (Member(0, "a", True, deleted_s=5.0, stuck=True), ("fault", "does not end; its node is not heard")),
        (Member(0, "a", False, 0), ("info", "ended well")),
        (Member(0, "a", False, 137), ("fault", "ended with code 137")),
        (Member(0, "a", False), ("fault", "ended")),
    ],
)
def test_each_state_of_a_member_has_its_words(member: Member, told: tuple[str, str]) -> None:
    assert views_platform._state(member) == told


def test_members_carry_their_ranks_and_those_in_trouble_come_first(pilot: Pilot) -> None:
    run_id = pilot.started()
    attempt = pilot.last(run_id)
    pilot.backend.attempts[attempt.name].terminations = {1: {"code": 1}}
    told = views_platform.members(pilot.backend, attempt, 8, pilot.clock.now())
    assert (told["backend"], told["attempt"], told["state"]) == ("memory", 1, "running")
    assert [(row["ranks"], row["node"]) for row in sorted(told["members"], key=lambda row: row["index"])] == [
        ([0, 7], attempt.nodes[0]),
        ([8, 15], attempt.nodes[1]),
    ]
    assert views_platform.members(pilot.backend, None, 8, 0.0)["members"] == []
    pilot.backend.reachable = False
    blind = views_platform.members(pilot.backend, attempt, 8, pilot.clock.now())
    assert blind["state"] == "unknown" and blind["problem"] and blind["members"] == []


def test_a_cordon_says_whose_it_is(pilot: Pilot) -> None:
    def cordon() -> str:
        (one,) = views_platform.platform({"memory": pilot.backend}, pilot.node("node-1"))["platforms"]
        return str(one["cordon"])

    assert cordon() == ""
    with pilot.store.write() as session:
        nodes.uncordon(session, "node-1", reason="a new session", now=pilot.clock.now())
    pilot.hit("node-1")
    backends = {"memory": pilot.backend}
    quarantine.take_out_once(pilot.store, pilot.watch.book, 1.0, pilot.epoch, pilot.clock.now())
    quarantine.mark_once(pilot.store, backends, pilot.epoch, pilot.clock.now())
    assert cordon() == "by Trimtab, this session"
    pilot.backend.marks["node-1"] = "0000"
    assert cordon() == "by Trimtab, an older session, 0000"


def test_a_platform_that_cannot_be_asked_is_said_to_be_so(pilot: Pilot) -> None:
    pilot.backend.reachable = False
    told = views_platform.platform({"memory": pilot.backend}, pilot.node("node-1"))
    assert told["platforms"] == [] and told["problems"][0].startswith("memory: ")

"""What failed members said last: kept before their end is acted on, bounded, and never waited for long."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from controlplane.backends.base import BackendUnavailable
from controlplane.runs import ends
from controlplane.runs.view import MemberView
from controlplane.services import lastwords
from controlplane.services import runs as service
from controlplane.services.lastwords import LastWords
from controlplane.services.reconcile import LEASE
from controlplane.store import last_words, upkeep
from controlplane.store.engine import Store
from controlplane.store.last_words import Said
from tests.runs.piloting import Pilot


@pytest.fixture
def pilot(sqlite_store: Store, tmp_path: Path) -> Pilot:
    made = Pilot(sqlite_store, tmp_path, node_count=16)
    made.strict, made.backend.keeps_logs = True, False
    return made


def kept(pilot: Pilot, run_id: str, no: int = 1) -> list[Said]:
    with pilot.store.read() as session:
        return last_words.of_attempt(session, run_id, no)


def said(kind: str, at_s: float, rank: int | None = None) -> dict[str, object]:
    return {
        "code": 1,
        "class": kind,
        "fingerprint": kind,
        "message": f"it was {kind}",
        "first_rank": rank,
        "at_s": at_s,
    }


def fail(pilot: Pilot, run_id: str, words: dict[int, dict[str, object]]) -> str:
    """The newest attempt fails, every member having written a line."""
    name = pilot.last(run_id).name
    for index in range(16):
        pilot.backend.logs[name, index] = f"member {index} of {name}\n".encode()
    pilot.backend.end(name, "failed", words)
    return name


def test_the_one_that_knows_the_cause_comes_first(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=3)
    name = fail(pilot, run_id, {0: said("killed", 1.0), 1: said("peer_lost", 2.0), 2: said("error", 3.0, 2)})
    pilot.round(1.0)
    found = kept(pilot, run_id)
    assert [one.member for one in found] == [2, 0, 1]
    assert found[0].log == f"member 2 of {name}\n".encode() and found[0].said == said("error", 3.0, 2)
    assert found[0].node == pilot.attempts(run_id)[0].nodes[2] and not found[0].missing
    assert lastwords.first_rank(found, 1) == 2 and lastwords.first_rank([], 1) == 0
    assert lastwords.first_rank(found, 8) == 16, "a rank of another member is not believed"
    assert lastwords.shown(found[0])["message"] == "it was error"


def test_one_without_a_record_comes_before_those_that_only_saw_their_peer_go() -> None:
    silent = MemberView("c", False, 137, None, reason="OOMKilled", index=2)
    lost = MemberView("a", False, 1, {"class": "peer_lost", "at_s": 1.0}, index=0)
    knows = MemberView("b", False, 1, {"class": "error", "at_s": 9.0}, index=1)
    saved = MemberView("d", False, 75, {"class": "saved", "at_s": 0.5}, index=3)  # it was told to, for another's end
    assert sorted((saved, silent, lost, knows), key=ends.order) == [knows, silent, lost, saved]


def test_so_many_members_and_bytes_and_no_more(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=16)
    name = fail(pilot, run_id, {index: said("error", float(index)) for index in range(16)})
    pilot.backend.logs[name, 0] = b"x" * lastwords.BYTES + b"the end"
    pilot.round(1.0)
    found = kept(pilot, run_id)
    assert [one.member for one in found] == list(range(lastwords.MEMBERS))
    assert len(found[0].log) == lastwords.BYTES and found[0].log.endswith(b"the end")


def test_who_ended_well_or_lives_is_not_read(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=2)
    fail(pilot, run_id, {0: {**said("done", 1.0), "code": 0}, 1: said("error", 1.0)})
    pilot.round(1.0)
    assert [one.member for one in kept(pilot, run_id)] == [1]


def test_members_that_the_stop_killed_are_not_read_and_one_that_failed_to_save_is(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=3)
    name = pilot.last(run_id).name
    pilot.backend.attempts[name].stuck = True
    service.stop(pilot.store, run_id, actor="ada", now=pilot.clock.now())
    pilot.round(1.0)
    assert pilot.attempts(run_id)[0].state == "stopping"
    fail(pilot, run_id, {2: said("error", 1.0)})
    pilot.backend.attempts[name].codes = {0: 137, 1: 143}
    pilot.round(1.0)
    assert [one.member for one in kept(pilot, run_id)] == [2]


def test_a_platform_that_keeps_them_itself_is_not_asked(pilot: Pilot) -> None:
    pilot.backend.keeps_logs = True
    run_id = pilot.started(nodes=2)
    fail(pilot, run_id, {1: said("error", 1.0)})
    pilot.round(1.0)
    assert pilot.attempts(run_id)[0].state == "failed" and kept(pilot, run_id) == []


def test_a_node_that_does_not_answer_delays_nothing(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=2)
    pilot.controller._last_words = LastWords(pilot.store, LEASE, patience_s=0.01)
    silent, asked = threading.Event(), threading.Event()

    def wait(call: str) -> None:
        if call == "read_logs":
            asked.set()
            silent.wait(30)

    pilot.backend.on_call = wait
    fail(pilot, run_id, {1: said("error", 1.0)})
    pilot.round(1.0)
    silent.set()
    assert asked.is_set() and pilot.attempts(run_id)[0].state == "failed"
    (word,) = kept(pilot, run_id)
    assert (word.log, word.exit_code, word.said) == (b"", 0, said("error", 1.0)) and "did not answer" in word.missing


def test_what_could_not_be_read_is_asked_for_again_and_not_for_ever(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=2)
    asked: list[int] = []
    name = fail(pilot, run_id, {1: said("error", 1.0)})
    pilot.backend.attempts[name].stuck = True  # looked at again and again: it is not fenced yet

    def refuse(call: str) -> None:
        if call == "read_logs":
            asked.append(1)
            raise BackendUnavailable("its kubelet is away")

    pilot.backend.on_call = refuse
    pilot.round(1.0)
    assert kept(pilot, run_id)[0].missing == "its kubelet is away"
    for _ in range(6):
        pilot.round(1.0)
    assert len(asked) == lastwords.TRIES
    pilot.backend.on_call = lambda _call: None
    pilot.lead()  # another server tries anew
    pilot.round(1.0)
    assert kept(pilot, run_id)[0].log == f"member 1 of {name}\n".encode() and not kept(pilot, run_id)[0].missing


def test_what_is_kept_is_not_lost_to_a_pod_that_has_gone(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=2)
    name = fail(pilot, run_id, {1: said("error", 1.0)})
    pilot.backend.attempts[name].stuck = True
    pilot.round(1.0)
    pilot.backend.logs[name, 1] = b""
    pilot.lead()
    pilot.round(1.0)
    assert kept(pilot, run_id)[0].log == f"member 1 of {name}\n".encode() and not kept(pilot, run_id)[0].missing


def test_it_is_forgotten_with_the_telemetry(pilot: Pilot) -> None:
    run_id = pilot.started(nodes=2)
    fail(pilot, run_id, {1: said("error", 1.0)})
    pilot.round(1.0)
    now = pilot.clock.now()
    upkeep.prune_once(pilot.store, now + upkeep.KEEP_TELEMETRY_S - 60.0)
    assert kept(pilot, run_id)
    upkeep.prune_once(pilot.store, now + upkeep.KEEP_TELEMETRY_S + 60.0)
    assert kept(pilot, run_id) == []


def test_both_databases_keep_it(store: Store, tmp_path: Path) -> None:
    made = Pilot(store, tmp_path)
    made.backend.keeps_logs = False
    run_id = made.started(nodes=2)
    fail(made, run_id, {1: said("error", 1.0)})
    made.round(1.0)
    assert [one.member for one in kept(made, run_id)] == [1]

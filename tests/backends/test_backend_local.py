"""The local backend and real processes: whom it reaches, whom it leaves alone, and what damaged files cost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from controlplane.backends import processes as identity
from controlplane.backends.base import BackendUnavailable
from controlplane.backends.local import _read_launchers
from tests.backends.benching import EXIT, FAMILY, HANDLER, Bench, carriers, launchers, local, ready, until


def test_a_terminated_attempt_may_save_and_says_so(processes: Bench) -> None:
    plan = processes.plan(HANDLER)
    processes.backend.submit(plan)
    ready(processes, plan.name, 2)
    processes.backend.stop(plan.name, mode="terminate")
    processes.reaches(plan.name, "failed")
    until(lambda: not any(member.alive for member in processes.look(plan.name).members))
    found = processes.look(plan.name)
    assert {member.exit_code for member in found.members} <= {75, 143}
    assert processes.backend.fenced(plan.name)


def test_a_kill_reaches_those_who_left_their_session_and_lost_their_parent(processes: Bench) -> None:
    plan = processes.plan(FAMILY, nodes=("node-0",))
    processes.backend.submit(plan)
    ready(processes, plan.name, 1)
    until(lambda: any(one.name() == "sleep" for one in carriers(plan.name)))
    processes.backend.stop(plan.name, mode="kill")
    until(lambda: processes.backend.fenced(plan.name))
    assert carriers(plan.name) == []


def test_an_attempt_is_not_fenced_while_an_orphan_of_a_killed_launcher_lives(processes: Bench) -> None:
    plan = processes.plan(FAMILY, nodes=("node-0",))
    processes.backend.submit(plan)
    ready(processes, plan.name, 1)
    until(lambda: any(one.name() == "sleep" for one in carriers(plan.name)))
    for one in launchers(plan.name):
        one.kill()
    until(lambda: processes.look(plan.name).state == "failed")
    assert not processes.backend.fenced(plan.name), "its command and its sleeper still run"
    assert processes.look(plan.name).members[0].exit_code is None, "nobody wrote how it ended"
    processes.backend.stop(plan.name, mode="kill")
    until(lambda: processes.backend.fenced(plan.name))
    assert carriers(plan.name) == []


def test_a_restarted_server_adopts_what_lives(processes: Bench, tmp_path: Path) -> None:
    plan = processes.plan()
    processes.backend.submit(plan)
    processes.reaches(plan.name, "running")
    second = local(tmp_path)
    assert second.observe([plan.name], 1.0)[plan.name].state == "running"
    assert second.submit(plan).adopted and len(launchers(plan.name)) == 2
    assert not next(one for one in second.capacity(["node-0"])).free
    second.stop(plan.name, mode="kill")
    until(lambda: second.fenced(plan.name))
    assert second.observe([plan.name], 1.0)[plan.name].state == "failed"


@pytest.mark.parametrize("recorded", [0, 1])
def test_a_start_that_was_cut_off_is_finished_and_leaves_no_second_launcher(
    processes: Bench, tmp_path: Path, recorded: int
) -> None:
    plan = processes.plan()
    processes.backend.submit(plan)
    processes.reaches(plan.name, "running")
    file = tmp_path / "attempts" / plan.name / "processes.json"
    started = json.loads(file.read_text())
    if recorded:
        file.write_text(json.dumps(started[:recorded]))  # the second one was started, but the server died then
    else:
        file.unlink()
    second = local(tmp_path)
    assert second.submit(plan).adopted
    until(lambda: len(launchers(plan.name)) == 2)
    assert second.observe([plan.name], 1.0)[plan.name].state == "running"
    kept = [one["pid"] for one in started[:recorded]]
    assert {one.pid for one in launchers(plan.name)} & {one["pid"] for one in started} == set(kept)


def test_a_process_id_that_went_to_somebody_else_is_left_alone(processes: Bench, tmp_path: Path) -> None:
    plan = processes.plan(EXIT[0], nodes=("node-0",))
    processes.backend.submit(plan)
    processes.reaches(plan.name, "succeeded")
    other = processes.plan(nodes=("node-1",))
    processes.backend.submit(other)
    processes.reaches(other.name, "running")
    (stranger,) = launchers(other.name)
    file = tmp_path / "attempts" / plan.name / "processes.json"
    (one,) = json.loads(file.read_text())
    born = identity.started(stranger.pid)
    assert born is not None
    for changes in ({"ticks": born - 1}, {"ticks": born, "boot": "the boot before"}):
        file.write_text(json.dumps([{**one, "pid": stranger.pid, **changes}]))
        second = local(tmp_path)
        second.stop(plan.name, mode="kill")
        second.stop(plan.name, mode="terminate")
        assert second.fenced(plan.name) and stranger.is_running()
    assert processes.look(other.name).state == "running"


def test_a_clock_that_is_set_makes_no_process_a_stranger(
    processes: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = processes.plan(HANDLER)
    processes.backend.submit(plan)
    ready(processes, plan.name, 2)
    at_boot = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: at_boot - 3600.0)
    second = local(tmp_path)
    assert second.observe([plan.name], 1.0)[plan.name].state == "running" and not second.fenced(plan.name)
    second.stop(plan.name, mode="terminate")
    until(lambda: second.fenced(plan.name))
    assert second.observe([plan.name], 1.0)[plan.name].state == "failed"


@pytest.mark.parametrize("file", ["plan.json", "processes.json"])
@pytest.mark.parametrize("body", ["", "{", "[1]", '{"a": 1}'])
def test_a_folder_that_cannot_be_read_takes_its_own_nodes_and_no_others(
    processes: Bench, tmp_path: Path, file: str, body: str
) -> None:
    plan = processes.plan(nodes=("node-1",))
    processes.backend.submit(plan)
    path = tmp_path / "attempts" / plan.name / file
    kept = path.read_text()
    path.write_text(body)
    second = local(tmp_path)
    assert {one.node: one.free for one in second.capacity(["node-0", "node-1"])} == {"node-0": True, "node-1": False}
    assert second.observe([plan.name], 1.0)[plan.name].state == "unknown"
    path.write_text(kept)
    processes.backend.stop(plan.name, mode="kill")
    until(lambda: processes.backend.fenced(plan.name))
    path.write_text(body)  # what is over leaves its nodes free, readable or not
    assert all(one.free for one in second.capacity(["node-0", "node-1"]))
    path.write_text(kept)


def test_what_is_over_is_not_read_again(processes: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, live = processes.plan(EXIT[0]), processes.plan(nodes=("node-2",))
    processes.backend.submit(over)
    until(lambda: not any(member.alive for member in processes.look(over.name).members))
    processes.backend.submit(live)
    backend = local(tmp_path)
    read: list[str] = []
    monkeypatch.setattr(
        "controlplane.backends.local._read_launchers", lambda home: read.append(home.name) or _read_launchers(home)
    )
    for _ in range(2):
        assert [one.free for one in backend.capacity(["node-0", "node-2"])] == [True, False]
    assert sorted(read) == sorted([over.name, live.name, live.name])


@pytest.mark.parametrize(
    "body", ["", "[]", "null", '"x"', '{"class": "error"}', '{"code": "1"}', '{"code": 1e400}', "[" * 100_000]
)
def test_a_termination_that_cannot_be_understood_counts_as_none(processes: Bench, tmp_path: Path, body: str) -> None:
    plan = processes.plan(EXIT[3], nodes=("node-0",))
    processes.backend.submit(plan)
    processes.reaches(plan.name, "failed")
    file = tmp_path / "runtime" / "node-0" / "attempts" / plan.name / "termination.json"
    told = json.loads(file.read_text())
    assert processes.look(plan.name).members[0].exit_code == 3
    bodies = [json.dumps({**told, name: None}) for name in ("code", "class", "message", "fingerprint", "at_s")]
    for each in (body, *bodies, json.dumps({**told, "first_rank": "0"})):
        file.write_text(each)
        (member,) = processes.look(plan.name).members
        assert (member.alive, member.exit_code, member.termination) == (False, None, None)


def test_logs_are_the_end_of_a_members_output(processes: Bench) -> None:
    plan = processes.plan(("{python}", "-S", "-c", "print('abc' * 5)"), nodes=("node-0",))
    processes.backend.submit(plan)
    processes.reaches(plan.name, "succeeded")
    assert processes.backend.read_logs(plan.name, 0) == b"abc" * 5 + b"\n"
    assert processes.backend.read_logs(plan.name, 0, limit=4) == b"abc\n"
    assert processes.backend.read_logs(plan.name, 7) == b""


def test_ranks_get_their_place_and_nothing_of_the_servers_own(
    processes: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ADMIN_SECRET", "s")
    command = ("{python}", "-S", "-c", "import json, os; print(json.dumps(dict(os.environ)))")
    plan = processes.plan(command)
    processes.backend.submit(plan)
    processes.reaches(plan.name, "succeeded")
    found = [json.loads(processes.backend.read_logs(plan.name, index)) for index in (0, 1)]
    assert [one["PET_NODE_RANK"] for one in found] == ["0", "1"]
    assert [one["TRIMTAB_NODE"] for one in found] == ["node-0", "node-1"]
    assert found[0]["PET_MASTER_PORT"] == found[1]["PET_MASTER_PORT"]
    assert all(one["PET_RDZV_ID"] == plan.name and "TRIMTAB_ADMIN_SECRET" not in one for one in found)


def test_a_command_that_does_not_exist_is_a_matter_of_configuration(processes: Bench) -> None:
    plan = processes.plan(("/nowhere/to/be/found",), nodes=("node-0",))
    processes.backend.submit(plan)
    found = processes.reaches(plan.name, "failed")
    assert (found.members[0].termination or {})["class"] == "configuration"


def test_what_cannot_be_read_is_unknown_and_decides_nothing(processes: Bench, tmp_path: Path) -> None:
    plan = processes.plan(nodes=("node-0",))
    processes.backend.submit(plan)
    file = tmp_path / "attempts" / plan.name / "processes.json"
    kept = file.read_text()
    file.write_text("{")
    assert processes.look(plan.name).state == "unknown"
    for call in (
        lambda: processes.backend.fenced(plan.name),
        lambda: processes.backend.stop(plan.name, mode="kill"),
        lambda: processes.backend.submit(plan),
    ):
        with pytest.raises(BackendUnavailable):
            call()
    file.write_text(kept)


def test_one_rank_killed_from_outside_fails_the_gang(processes: Bench) -> None:
    plan = processes.plan()
    processes.backend.submit(plan)
    processes.reaches(plan.name, "running")
    until(lambda: len(carriers(plan.name)) == 4)
    victim = next(
        one for one in carriers(plan.name) if one.environ()["TRIMTAB_NODE"] == "node-1" and one.children() == []
    )
    os.kill(victim.pid, signal.SIGKILL)
    found = processes.reaches(plan.name, "failed")
    ended = next(member for member in found.members if not member.alive)
    assert ended.node == "node-1" and (ended.termination or {})["class"] == "killed"
    assert not processes.backend.fenced(plan.name), "node-0 goes on until it is stopped"

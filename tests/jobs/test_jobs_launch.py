"""The launcher with real processes: what a rank left behind decides the class and the code, and nobody is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.contract import Exit, ExitRecord
from jobs.launch import classify
from jobs.termination import Termination, parse_termination, read_termination, short_form, write_termination

ROOT = Path(__file__).resolve().parents[2]
PEER = "[pair.cc:534] Connection closed by peer [10.0.0.7]:27405"

# A rank in miniature: a heartbeat, then whatever the test asks for. `leave(code, …)` writes the exit record.
RANK = """
import os, signal, subprocess, sys, time
from jobs.contract import Environment, ExitRecord, HeartbeatWriter, StopFlag, write_exit_record
environment = Environment.read()
def begin(rank=0):
    flag, beat = StopFlag(), HeartbeatWriter(environment, rank, 2)
    print("ready", flush=True)
    return flag
def leave(code, error="", message=""):
    record = ExitRecord(0, code, "train", 3, error, message, "", time.time())
    write_exit_record(environment.heartbeat_dir, record)
"""


def record(rank: int, code: int, at_s: float, error: str = "", message: str = "") -> ExitRecord:
    return ExitRecord(rank, code, "train", 3, error, message, "", at_s)


NAN = record(1, 76, 5.0, "NumericsError", "loss nan")
LOST = record(0, 1, 4.0, "RuntimeError", PEER)
SAVED = [record(0, 75, 3.0), record(1, 75, 3.1)]


@pytest.mark.parametrize(
    ("status", "records", "begun", "stopped_by", "code", "ended_as"),
    [
        (0, [], set(), None, 0, "done"),
        (1, SAVED, {0, 1}, signal.SIGTERM, 75, "saved"),
        # Megatron and transformers return 0 when they are told to stop
        (0, [], set(), signal.SIGTERM, 75, "saved"),
        (0, [record(0, 0, 1.0)], {0}, signal.SIGTERM, 0, "done"),
        # a shell between that forgets its command's code: the ranks know better
        (0, SAVED, {0, 1}, signal.SIGTERM, 75, "saved"),
        (0, [NAN], {1}, None, 76, "numerics"),
        (0, [LOST], {0}, None, 1, "peer_lost"),
        # level 1: heartbeats, and a code of the contract instead of a record
        (0, [], {0}, None, 0, "done"),
        (75, [], {0}, signal.SIGTERM, 75, "saved"),
        (76, [], {0}, None, 76, "numerics"),
        (77, [], {0}, None, 77, "bad_node"),
        (78, [], set(), None, 78, "configuration"),
        (1, [NAN], {1}, None, 76, "numerics"),
        (1, [record(0, 77, 1.0, "BadNode", "x")], {0}, None, 77, "bad_node"),
        (1, [record(0, 78, 1.0, "ContractError", "x")], {0}, None, 78, "configuration"),
        (1, [record(0, 1, 1.0, "ValueError", "x")], {0}, None, 1, "error"),
        (1, [record(0, 16, 1.0, "Rerun", "x")], {0}, None, 16, "error"),
        (1, [record(0, 143, 1.0, "TooLateError", "x")], {0}, signal.SIGTERM, 143, "killed"),
        # the symptom came first, the cause is still the cause
        (1, [LOST, NAN], {0, 1}, None, 76, "numerics"),
        (1, [LOST], {0}, None, 1, "peer_lost"),
        # a rank that had begun and says nothing was killed, whatever its peers saw
        (1, [LOST], {0, 1}, None, 137, "killed"),
        (1, [], {0}, None, 137, "killed"),
        (-9, [], set(), None, 137, "killed"),
        (-15, [], set(), signal.SIGTERM, 143, "killed"),
        (1, [], set(), signal.SIGTERM, 143, "killed"),
        (3, [], set(), None, 3, "error"),
    ],
)
def test_status_and_records_together_say_how_it_ended(
    status: int, records: list[ExitRecord], begun: set[int], stopped_by: int | None, code: int, ended_as: str
) -> None:
    found = classify(status, records, frozenset(begun), stopped_by)
    assert (found.code, found.ended_as) == (code, ended_as)


def test_the_message_and_fingerprint_are_those_of_the_earliest_cause() -> None:
    found = classify(1, [LOST, NAN, record(0, 1, 9.0, "KeyError", "late")], frozenset({0, 1}), None)
    assert (found.first_rank, found.message, found.fingerprint) == (
        1,
        "NumericsError: loss nan",
        "NumericsError: loss nan",
    )


def start(directory: Path, script: str, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.launch", "--", sys.executable, "-c", RANK + script]
    environment = {
        **os.environ,
        "TRIMTAB_HEARTBEAT_DIR": str(directory / "beats of one"),
        "TRIMTAB_RUN_DIR": str(directory),
        **more,
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def termination(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "beats of one" / "termination.json").read_text())
    return found


def test_a_command_that_ends_well_is_done(tmp_path: Path) -> None:
    code, out, err = end(start(tmp_path, "begin(); leave(0)"))
    assert (code, out, err) == (0, "ready\n", "")
    found = termination(tmp_path)
    assert (found["code"], found["class"], found["first_rank"]) == (0, "done", None)
    assert set(found) == {"code", "class", "fingerprint", "message", "first_rank", "at_s"}


def test_the_ranks_record_wins_over_the_commands_own_code(tmp_path: Path) -> None:
    script = "begin(); leave(76, 'NumericsError', 'loss nan at step 12'); sys.exit(1)"
    code, _, err = end(start(tmp_path, script))
    assert code == Exit.NUMERICS
    assert termination(tmp_path)["fingerprint"] == "NumericsError: loss nan at step <n>"
    assert "numerics: NumericsError: loss nan at step 12" in err


def test_a_record_of_an_earlier_start_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "beats of one").mkdir()
    end(start(tmp_path, "begin(); leave(76, 'NumericsError', 'old'); sys.exit(1)"))
    code, _, _ = end(start(tmp_path, "sys.exit(5)"))
    assert (code, termination(tmp_path)["class"]) == (5, "error")


def test_a_rank_killed_from_outside_leaves_no_record_and_is_called_killed(tmp_path: Path) -> None:
    code, _, _ = end(start(tmp_path, "begin(); os.kill(os.getpid(), signal.SIGKILL)"))
    assert code == 137
    found = termination(tmp_path)
    assert (found["class"], found["first_rank"]) == ("killed", 0)
    assert found["message"] == "rank 0 was ended by SIGKILL and left no record"


def test_sigterm_reaches_the_rank_which_saves_and_stops(tmp_path: Path) -> None:
    script = """
flag = begin()
while not flag.stop: time.sleep(0.01)
leave(75)
sys.exit(1)
"""
    process = start(tmp_path, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process)
    assert (code, termination(tmp_path)["class"]) == (75, "saved")


def test_the_ranks_are_told_with_the_stop_by_when_they_must_have_saved(tmp_path: Path) -> None:
    script = """
from jobs.contract import save_deadline_s
before = save_deadline_s(environment)
flag = begin()
while not flag.stop: time.sleep(0.01)
first = save_deadline_s(environment)
flag.stop = False
print(before, first, flush=True)
while not flag.stop: time.sleep(0.01)
print(save_deadline_s(environment) == first, flush=True)
leave(0)
"""
    beats = tmp_path / "beats of one"
    beats.mkdir()
    (beats / "save-by.json").write_text('{"save_by_s": 1.0}')  # of an earlier start
    begun = time.time()
    process = start(tmp_path, script, TRIMTAB_GRACE_SECONDS="500")
    out = process.stdout
    assert out is not None and out.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    before, deadline = out.readline().split()
    assert before == "None" and begun <= float(deadline) - 500 <= time.time()
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (0, "True\n")


def test_sigusr1_reaches_the_rank_and_it_goes_on(tmp_path: Path) -> None:
    script = """
flag = begin()
while not flag.save: time.sleep(0.01)
print("saving", flush=True)
leave(0)
"""
    process = start(tmp_path, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert end(process)[:2] == (0, "saving\n")


def test_a_command_without_heartbeats_gets_the_stop_but_never_the_save(tmp_path: Path) -> None:
    """Level 0: SIGUSR1 would kill a command that has no handler for it."""
    process = start(tmp_path, "print('up', flush=True)\ntime.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process)
    assert (code, termination(tmp_path)["class"]) == (143, "killed")
    assert "SIGTERM" in termination(tmp_path)["message"]


def test_a_stop_reaches_the_ranks_of_a_torchrun_without_heartbeats_and_nobody_else(tmp_path: Path) -> None:
    """torchrun would kill them after 30 s, and a data loader's worker that is told dies with its rank's save."""
    worker = "import time; print('worker', flush=True); time.sleep(600)"
    rank = f"""
import os, signal, subprocess, sys, time
def save(*_):
    worker.kill(); worker.wait(); print('saved', flush=True); os._exit(0)
signal.signal(signal.SIGTERM, save)
worker = subprocess.Popen([sys.executable, '-c', {worker!r}])
while worker.poll() is None: time.sleep(0.01)
print('lost its worker', flush=True)
"""
    script = f"""
ranks = dict(os.environ, RANK='0', TORCHELASTIC_RUN_ID='x')
sys.exit(subprocess.run([sys.executable, '-c', {rank!r}], env=ranks).returncode)
"""
    process = start(tmp_path, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "worker\n"
    process.send_signal(signal.SIGTERM)
    code, out, _ = end(process)
    assert (code, out, termination(tmp_path)["class"]) == (75, "saved\n", "saved")


def test_nobody_is_left_behind(tmp_path: Path) -> None:
    script = """
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(left.pid, flush=True)
os._exit(0)
"""
    code, out, _ = end(start(tmp_path, script))
    assert code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(out), 0)


def test_a_command_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    beats = tmp_path / "beats of one"
    done = subprocess.run(
        [sys.executable, "-m", "jobs.launch", "--", "no-such-program"],
        cwd=ROOT,
        env={**os.environ, "TRIMTAB_HEARTBEAT_DIR": str(beats)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.CONFIG
    assert termination(tmp_path)["class"] == "configuration"
    assert "no-such-program" in termination(tmp_path)["message"]


def test_a_launcher_without_a_command_says_how_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.launch"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.CONFIG
    assert "a command is needed" in done.stderr


def test_a_record_is_read_back_by_whoever_started_the_launcher(tmp_path: Path) -> None:
    ended = Termination(76, "numerics", "NumericsError: loss nan", "loss nan", 3, 12.5)
    assert read_termination(tmp_path) is None
    write_termination(tmp_path, ended)
    assert read_termination(tmp_path) == ended.to_dict()


@pytest.mark.parametrize("letter", ["x", "é", "😀", "\\"])
def test_what_a_pods_status_keeps_is_the_whole_record_with_as_much_of_the_message_as_fits(letter: str) -> None:
    text = short_form(Termination(1, "error", 1000 * letter, 9000 * letter, 2, 1.0))
    found = parse_termination(text)
    assert len(text.encode()) <= 4096 and found is not None and found["first_rank"] == 2
    assert set(str(found["message"])) == {letter} and len(str(found["message"])) > 90


@pytest.mark.parametrize("body", ["", "[]", "null", '{"class": "error"}', "\udcff", "[" * 4096])
def test_a_record_that_cannot_be_understood_is_none(body: str) -> None:
    assert parse_termination(body) is None
    whole = Termination(1, "error", "", "", None, 1.0).to_dict()
    broken = [{**whole, name: None} for name in ("code", "class", "fingerprint", "message", "at_s")]
    for each in (*broken, {**whole, "code": True}, {**whole, "first_rank": "0"}):
        assert parse_termination(json.dumps(each)) is None

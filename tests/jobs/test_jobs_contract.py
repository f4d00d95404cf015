"""The contract between job and controller: what is written can be read, and what was damaged is refused."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import contract
from jobs.contract import ContractError, Environment, ExitRecord, Heartbeat, HeartbeatWriter

whole = st.integers(min_value=0, max_value=2**40)
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
times = st.floats(min_value=0, max_value=1e11)
beats = st.builds(
    Heartbeat,
    run_id=text,
    attempt_no=whole,
    epoch=whole,
    rank=whole,
    world=whole,
    node=text,
    pid=whole,
    phase=st.sampled_from(contract.PHASES),
    step=st.none() | whole,
    first_step=st.none() | whole,
    last_step=st.none() | whole,
    resumed_from=st.none() | text,
    at_s=times,
    phase_since_s=times,
    step_seconds_median=st.none() | times,
    error=st.none() | text,
)
BEAT = Heartbeat("r", 1, 1, 0, 2, "n1", 7, "train", 5, 1, 5, None, 100.0, 90.0, 0.3)


def environment(directory: Path, **more: str) -> Environment:
    return Environment.read(
        {
            "TRIMTAB_RUN_ID": "run-1",
            "TRIMTAB_RUN_DIR": str(directory),
            "TRIMTAB_HEARTBEAT_DIR": str(directory / "beats"),
            **more,
        }
    )


def beat_of(directory: Path, rank: int = 0) -> Heartbeat:
    return Heartbeat.from_json((directory / "beats" / f"heartbeat-rank-{rank}.json").read_bytes())


@given(beats)
def test_a_heartbeat_reads_back_as_it_was_written(beat: Heartbeat) -> None:
    assert Heartbeat.from_json(beat.to_json()) == beat


@given(st.binary(max_size=200))
def test_bytes_that_are_no_heartbeat_are_refused_in_one_way(body: bytes) -> None:
    with pytest.raises(ContractError):
        Heartbeat.from_json(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", "0"),
        ("rank", True),
        ("pid", None),
        ("phase", "dreaming"),
        ("phase", ["train"]),
        ("step", 1.5),
        ("first_step", "1"),
        ("at_s", math.nan),
        ("phase_since_s", None),
        ("step_seconds_median", math.inf),
        ("at_s", 10**400),
        ("step", 2**63),
        ("run_id", 5),
        ("run_id", "\0"),
        ("node", None),
        ("resumed_from", ["step-00000010"]),
        ("error", 5),
    ],
)
def test_a_heartbeat_with_one_bad_field_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ContractError):
        Heartbeat.from_json(json.dumps({**asdict(BEAT), name: value}))


def test_an_error_that_cannot_be_written_down_costs_its_odd_characters_only() -> None:
    assert Heartbeat.from_json(json.dumps({**asdict(BEAT), "error": "no \udcff"})).error == "no ?"


def test_a_half_written_heartbeat_is_refused() -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        Heartbeat.from_json(BEAT.to_json()[:40])


def test_the_environment_has_sensible_values_outside_of_a_controller() -> None:
    found = Environment.read({})
    assert (found.run_id, found.attempt_no, found.heartbeat_dir, found.save_by_s) == ("local", 1, None, None)
    assert found.checkpoint_dir == Path("run/attempt-0001")


def test_the_environment_reads_what_the_controller_sets(tmp_path: Path) -> None:
    found = environment(
        tmp_path, TRIMTAB_ATTEMPT="3", TRIMTAB_SKIP_STEPS="120-140,160-161", TRIMTAB_SAVE_BY="12.5", TRIMTAB_SEED="9"
    )
    assert found.attempt_no == 3
    assert found.skip_steps == ((120, 140), (160, 161))
    assert (found.save_by_s, found.seed) == (12.5, 9)
    assert found.checkpoint_dir == tmp_path / "attempt-0003"


def test_a_save_has_to_be_complete_by_the_earlier_of_both_words(tmp_path: Path) -> None:
    plain, told = environment(tmp_path), environment(tmp_path, TRIMTAB_SAVE_BY="12.5")
    beats = tmp_path / "beats"
    beats.mkdir()
    assert (contract.save_deadline_s(plain), contract.save_deadline_s(told)) == (None, 12.5)
    contract.write_save_by(beats, 11.0)
    assert (contract.save_deadline_s(plain), contract.save_deadline_s(told)) == (11.0, 11.0)
    contract.write_save_by(beats, 20.0)
    assert (contract.save_deadline_s(plain), contract.save_deadline_s(told)) == (20.0, 12.5)
    for body in ("", "[]", "{}", '{"save_by_s": "soon"}', '{"save_by_s": 1e999}'):
        (beats / "save-by.json").write_text(body)
        assert contract.save_deadline_s(plain) is None
    contract.write_save_by(beats, None)
    contract.write_save_by(beats, None)
    assert list(beats.iterdir()) == []
    assert contract.save_deadline_s(Environment.read({})) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATTEMPT", "two"),
        ("ATTEMPT", "1.5"),
        ("EPOCH", "inf"),
        ("GRACE_SECONDS", "nan"),
        ("SAVE_BY", "soon"),
        ("SKIP_STEPS", "9-3"),
        ("SKIP_STEPS", "7"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(ContractError, match=name):
        Environment.read({f"TRIMTAB_{name}": value})


def test_the_first_step_is_written_at_once_and_later_ones_are_held_back(tmp_path: Path) -> None:
    writer = HeartbeatWriter(environment(tmp_path, TRIMTAB_RESUME_FROM="/ckpt/step-00000120"), 0, 2)
    assert (beat_of(tmp_path).phase, beat_of(tmp_path).step) == ("start", None)
    writer.phase("train")
    writer.step(121)
    writer.step(122)
    found = beat_of(tmp_path)
    assert (found.phase, found.first_step, found.step, found.resumed_from) == (
        "train",
        121,
        121,
        "/ckpt/step-00000120",
    )
    writer.phase("checkpoint")
    found = beat_of(tmp_path)
    assert (found.phase, found.first_step, found.last_step) == ("checkpoint", 121, 122)
    assert found.step_seconds_median is not None


def test_an_unknown_phase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="dreaming"):
        HeartbeatWriter(environment(tmp_path), 0, 1).phase("dreaming")


def test_a_heartbeat_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = HeartbeatWriter(environment(tmp_path), 0, 1)
    for path in (tmp_path / "beats").iterdir():
        path.unlink()
    (tmp_path / "beats").rmdir()
    writer.phase("train")
    writer.phase("checkpoint")
    assert capsys.readouterr().err.count("heartbeat:") == 1


@pytest.mark.parametrize(
    ("phase", "median", "longest", "limit"),
    [
        ("start", None, None, 1800),
        ("compile", 1.0, None, 1800),
        ("train", 1.0, None, 60),
        ("train", 40.0, None, 200),
        ("rollout", 40.0, None, 200),
        ("checkpoint", 1.0, None, 600),
        ("load", None, 900.0, 2700),
    ],
)
def test_each_phase_has_its_own_patience(phase: str, median: float | None, longest: float | None, limit: float) -> None:
    beat = replace(BEAT, phase=phase, step_seconds_median=median)
    assert contract.hang_limit_s(beat, longest_checkpoint_s=longest) == limit


@pytest.mark.parametrize("phase", ["train", "rollout", "weight_sync", "eval"])
def test_what_goes_before_a_first_step_has_ten_minutes(phase: str) -> None:
    assert contract.hang_limit_s(replace(BEAT, phase=phase, first_step=None)) == 600


def test_a_trainer_whose_steps_have_phases_says_how_long_they_took(tmp_path: Path) -> None:
    writer = HeartbeatWriter(environment(tmp_path), 0, 1)
    for number, seconds in enumerate((3.0, 5.0, 4.0), 1):
        writer.phase("rollout")
        writer.phase("train")
        writer.step(number, seconds)
    writer.phase("exit")
    found = Heartbeat.from_json((tmp_path / "beats" / "heartbeat-rank-0.json").read_bytes())
    assert found.step_seconds_median == 4.0


def test_work_between_two_steps_says_that_it_goes_on_but_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("jobs.contract.time.monotonic", lambda: now[0])
    monkeypatch.setattr("jobs.contract.time.time", lambda: 1000 + now[0])
    writer = HeartbeatWriter(environment(tmp_path), 0, 1)
    writer.phase("eval")
    now[0] += 4.9
    writer.alive()
    assert beat_of(tmp_path).at_s == 1100
    now[0] += 0.1
    writer.alive()
    assert (beat_of(tmp_path).at_s, beat_of(tmp_path).phase_since_s) == (1105, 1100)


def test_exit_records_come_back_earliest_first_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    late = ExitRecord(0, 1, "train", 5, "RuntimeError", "closed", "", 20.0)
    early = ExitRecord(1, 76, "train", 5, "NumericsError", "nan", "", 10.0)
    contract.write_exit_record(tmp_path, late)
    contract.write_exit_record(tmp_path, early)
    (tmp_path / "exit-rank-2.json").write_text('{"rank": 2')
    (tmp_path / "exit-rank-3.json").write_text(json.dumps({**asdict(early), "rank": 3, "code": "76"}))
    (tmp_path / "exit-rank-4.json").write_text(json.dumps({**asdict(early), "rank": 4, "error_message": None}))
    assert contract.read_exit_records(tmp_path) == [early, late]
    contract.write_exit_record(tmp_path, replace(late, error_message="no file \udcff"))
    assert contract.read_exit_records(tmp_path)[1].error_message == "no file ?"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rank 3 of 8 failed after 12.5 s", "rank 7 of 8 failed after 3 s"),
        ("cannot open /data/a/b.bin", "cannot open /scratch/x.bin"),
        ("fault at 0x7f00aa", "fault at 0x12"),
        ("peer 10.0.0.7:29500 left", "peer 10.3.2.1:1234 left"),
        ("peer [::1]:29500 left", "peer [fe80::1:2]:1 left"),
        ("no route to gpu-a.cluster.local", "no route to gpu-b.cluster.local"),
        ("object deadbeef0123 is gone", "object 0123456789ab is gone"),
    ],
)
def test_a_fingerprint_forgets_the_accidents_of_an_error(one: str, other: str) -> None:
    assert contract.fingerprint("E", one) == contract.fingerprint("E", other)


def test_a_fingerprint_keeps_what_distinguishes_errors() -> None:
    marks = {
        contract.fingerprint("ValueError", "shape mismatch"),
        contract.fingerprint("ValueError", "dtype mismatch"),
        contract.fingerprint("KeyError", "shape mismatch"),
        contract.fingerprint("RuntimeError", "torch.nn.Linear failed"),
        contract.fingerprint("RuntimeError", "torch.nn.Conv failed"),
    }
    assert len(marks) == 5


def test_the_stop_flag_tells_a_stop_from_a_save() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    try:
        flag = contract.StopFlag()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (flag.stop, flag.save) == (False, True)
        assert (flag.take_save(), flag.save, flag.take_save()) == (True, False, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.stop
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


class _Interrupted(contract.StopFlag):
    """A wish comes at the worst moment: its count was read a moment ago."""

    def __init__(self) -> None:
        self.armed = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name == "_wished" and self.armed:
            self.armed = False
            self._on_usr1(signal.SIGUSR1, None)
        return found


def test_a_wish_to_save_that_comes_while_one_is_taken_stands() -> None:
    flag = _Interrupted()
    flag._on_usr1(signal.SIGUSR1, None)
    flag.armed = True
    assert [flag.take_save() for _ in range(3)] == [True, True, False]


class _Server(BaseHTTPRequestHandler):
    """Keeps what it was told; answers with the status that its server carries."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.told.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined] # set below
        self.send_response(self.server.status)  # type: ignore[attr-defined] # set below
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.mark.parametrize(("status", "problem"), [(201, ""), (503, "HTTP Error 503")])
def test_a_checkpoint_is_announced_and_a_server_in_trouble_stops_nothing(
    tmp_path: Path, status: int, problem: str
) -> None:
    (tmp_path / "token").write_text("tt_trainer_x\n")
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        server.told, server.status = [], status  # type: ignore[attr-defined] # the handler's memory
        thread = Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        there = environment(tmp_path, TRIMTAB_INGEST_URL=url, TRIMTAB_TOKEN_FILE=str(tmp_path / "token"))
        manifest = contract.Manifest("run-1", 1, 1, "pretrain", 120, 2, (), 121, "ab", 1.0, 2.0)
        said = contract.announce_checkpoint(there, tmp_path / "step-00000120", manifest)
        thread.join()
        path, authorization, body = server.told[0]  # type: ignore[attr-defined] # the handler's memory
    assert said.startswith(problem) and bool(said) == bool(problem)
    assert (path, authorization) == ("/api/v1/runs/run-1/checkpoints", "Bearer tt_trainer_x")
    assert (body["step"], body["path"]) == (120, str(tmp_path / "step-00000120"))


def test_an_announcement_without_a_server_or_token_only_says_so(tmp_path: Path) -> None:
    manifest = contract.Manifest("run-1", 1, 1, "pretrain", 120, 2, (), 121, "ab", 1.0, 2.0)
    assert contract.announce_checkpoint(environment(tmp_path), tmp_path, manifest) == "no server to tell"
    gone = environment(tmp_path, TRIMTAB_INGEST_URL="http://127.0.0.1:9", TRIMTAB_TOKEN_FILE=str(tmp_path / "none"))
    assert "none" in contract.announce_checkpoint(gone, tmp_path, manifest)

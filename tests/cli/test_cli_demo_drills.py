"""The lifecycle demo's drills act on the attempt that is meant and on nobody else, and its last line always comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.backends.processes import ATTEMPT
from controlplane.cli import demo_lifecycle
from controlplane.cli.demo_drills import ActorKilled, RankKilled, Sight
from controlplane.cli.demo_lifecycle_report import _restarted, failures
from controlplane.client import ApiError
from tests.cli.test_cli_demo_lifecycle import whole

Json = dict[str, Any]
Start = Callable[[str], "subprocess.Popen[bytes]"]


class Answers:
    """What the API says, by path."""

    def __init__(self, **answers: Json) -> None:
        self.answers = answers

    def get(self, path: str) -> Json:
        if path not in self.answers:
            raise ApiError(404, "not_found", path)
        return self.answers[path]

    def run(self, run_id: str) -> Json:
        return self.get(f"runs/{run_id}")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that bears an attempt's name."""
    begun: list[subprocess.Popen[bytes]] = []

    def one(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        env = {**os.environ, ATTEMPT: name}
        begun.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert begun[-1].stdout is not None and begun[-1].stdout.readline() == b"\n"  # it has its own environment
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.communicate()


def attempt(no: int, **more: Any) -> Json:
    return {"no": no, "name": f"r-{no}", "first_step": 1, "resume_step": None, **more}


def job(*attempts: Json, **more: Any) -> Json:
    saved = [{"state": "validated"}]
    return {"id": "r", "step": 40, "status": "active", "attempts": list(attempts), "checkpoints": saved, **more}


def sight(run: Json) -> Sight:
    return Sight(Answers(), "l", {}, run)  # type: ignore[arg-type]  # the parts of a client that drills ask


def write(path: Path, found: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def test_only_an_actor_of_the_newest_attempt_is_killed_and_its_replacement_timed(tmp_path: Path, start: Start) -> None:
    drill = ActorKilled("rl-1", tmp_path, at_step=2)
    old, stranger, own = start("r-1"), start("another"), start("r-2")
    ended = start("r-2")
    ended.kill()
    ended.wait()
    write(tmp_path / "r" / "attempt-0001" / "rollouts.json", {"pids": [old.pid]})
    file = tmp_path / "r" / "attempt-0002" / "rollouts.json"
    run = job(attempt(1), attempt(2))
    assert drill.look(sight(run)) == "" and drill.look(sight(job())) == "", "it has not told its actors yet"
    for pids in ([], [ended.pid, stranger.pid], [-1, "1", None]):
        write(file, {"pids": pids})
        assert drill.look(sight(run)) == ""
    write(file, {"pids": [ended.pid, own.pid]})
    assert drill.look(sight(run)) == "drill rollout actor killed on r at step 40"
    assert own.wait() == -signal.SIGKILL and (old.poll(), stranger.poll()) == (None, None)
    drill.watch()
    done = job(attempt(1), attempt(2), status="succeeded", lifecycle={"id": "l"})
    told = {"stages": [{"runs": [{"id": "r", "metrics": {"rollout_restarts": 1.0}}]}]}
    client: Any = Answers(**{"runs/r": done, "lifecycles/l": told})
    assert (drill.told(client)["detect_seconds"], drill.told(client)["recovered"]) == (None, False)
    write(file, {"pids": [ended.pid, old.pid]})
    assert drill.injected_s is not None
    os.utime(file, (drill.injected_s + 2.5, drill.injected_s + 2.5))
    drill.watch()
    write(file, {"pids": [old.pid]})
    found = drill.told(client)
    assert (found["decision"], found["recovered"]) == ("replaced by its learner, 1 time(s)", True)
    assert found["detect_seconds"] == pytest.approx(2.5, abs=0.002)
    done["attempts"].append(attempt(3))
    assert not drill.told(client)["recovered"], "the attempt has ended all the same"


def test_only_a_rank_of_the_newest_attempt_is_killed(tmp_path: Path, start: Start) -> None:
    drill = RankKilled("pretrain", tmp_path, at_step=30)
    stranger, own = start("another"), start("r-1")
    beat = tmp_path / "node-1" / "attempts" / "r-1" / "heartbeat-rank-1.json"
    run = job(attempt(1))
    for found in ({"pid": stranger.pid}, {}, [], {"pid": 2**80}):
        write(beat, found)
        assert drill.look(sight(run)) == ""
    beat.write_text("{")
    assert drill.look(sight(run)) == ""
    write(beat, {"pid": own.pid})
    assert drill.look(sight(run)) == "drill rank killed on r at step 40"
    assert own.wait() == -signal.SIGKILL and stranger.poll() is None


def test_whatever_happens_the_last_line_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_self: object) -> str:
        raise ProcessLookupError("no such process")

    monkeypatch.setattr(demo_lifecycle.Demo, "open", broken)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test's process keeps its own
    assert demo_lifecycle.run(tmp_path, until_end=True) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"failed": "ProcessLookupError: no such process"}


def saved(id_: str, no: int, step: int) -> Json:
    return {"id": id_, "attempt": no, "step": step, "state": "validated", "path": f"/{id_}"}


@pytest.mark.parametrize(
    ("second", "right"),
    [
        ({"first_step": 31, "resume_step": 30}, True),
        ({"first_step": 1, "resume_step": None}, False),
        ({"first_step": 1, "resume_step": 30}, False),
        ({"first_step": 21, "resume_step": 20}, False),
    ],
)
def test_a_stage_that_began_from_scratch_again_does_not_hide_behind_another(second: Json, right: bool) -> None:
    checkpoints = [saved("a", 1, 20), saved("b", 1, 30), saved("d", 3, 60), saved("c", 2, 45)]
    answers = {
        f"runs/r/checkpoints/{id_}/manifest": {"step": step, "parent": parent}
        for id_, step, parent in (("a", 20, ""), ("b", 30, "/a"), ("c", 45, "/b"), ("d", 60, "/c"))
    }
    third = attempt(3, first_step=46, resume_step=45)
    run = job(attempt(1), attempt(2, **second), third, checkpoints=checkpoints)
    outcome = whole()
    outcome["stages"][2].update(_restarted(Answers(**answers), [run]))  # type: ignore[arg-type]  # as above
    sentence = "every restarted attempt went on at its manifest's step + 1"
    assert (sentence not in failures(outcome)) is right


def test_a_restarted_attempt_that_saved_nothing_is_held_to_what_it_was_given() -> None:
    run = job(attempt(1), attempt(2, first_step=31, resume_step=30), checkpoints=[saved("b", 1, 30)])
    client: Any = Answers(**{"runs/r/checkpoints/b/manifest": {"step": 30, "parent": ""}})
    assert _restarted(client, [run]) == {"first_step_after_restart": 31, "resume_step": 30, "manifest_step": 30}
    assert _restarted(client, [job(attempt(1))])["resume_step"] is None

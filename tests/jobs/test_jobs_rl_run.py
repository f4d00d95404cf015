"""Reinforcement learning on a real local Ray: whole attempts, exact resume, a killed actor, stop, result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from agents.probe.ring import RingReader, RingRecord
from jobs import contract
from jobs.contract import Environment, Exit, Heartbeat, StopFlag
from jobs.zaya.attempt import carry_out
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.envs.base import Problem
from jobs.zaya.envs.registry import find
from jobs.zaya.judge.pairs import PREFERENCES, pairs, write_pairs
from jobs.zaya.model.generate import Completion
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.actors import StoppedError, cluster
from jobs.zaya.rl.job import PIDS, Job
from jobs.zaya.rl.learner import collate
from jobs.zaya.rl.sampler import Sampler
from jobs.zaya.tokens import encode, prompt
from jobs.zaya.training.optim import FlatOptimizer
from tests.jobs.test_jobs_rl_learner import CONFIG, model
from tests.jobs.zaya_small import MODEL

TRAIN = {
    "steps": 6,
    "checkpointEvery": 3,
    "seed": 5,
    "sequences": 16,
    "length": 32,
    "limit": 6,
    "prompts": 6,
    "samples": 4,
    "learningRate": 1e-3,
    "warmup": 2,
    "redraws": 1,
}
DATA = {"environments": "micro/parity@3-6, micro/first@2-3", "curriculum": "zyphra"}


class Wishes(StopFlag):
    """A stop flag that no signal reaches: the test raises it."""

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One cluster for the attempts of this module: they find this process on it and leave it as it is."""
    torch.set_num_threads(1)
    with cluster(2):
        yield


def _answer(problem: Problem) -> Completion:
    """What is to be learned, in the form of a completion; its log-probabilities and routes say nothing."""
    tokens = encode(problem.answer)
    routes = torch.zeros(MODEL.num_hidden_layers, len(prompt(problem.question)) + len(tokens), dtype=torch.int16)
    return Completion(tokens, [0.0] * (len(tokens) + 1), True, routes)


@pytest.fixture(scope="module")
def trained() -> ZayaForCausalLM:
    """The small model, taught what an answer to a parity looks like: it is right about every second time."""
    of, sampler = model(), Sampler(replace(CONFIG, environments="micro/parity@3-6"))
    optimizer = FlatOptimizer(of, "adamw", 0.0)
    for number in range(1, 121):
        rows = [sampler.draw(number, slot).problem for slot in range(8)]
        found = [
            (prompt(one.question), Completion(encode(one.answer), [0.0] * (len(one.answer) + 1), True)) for one in rows
        ]
        routes = torch.zeros(MODEL.num_hidden_layers, 64, dtype=torch.int16)
        batch = collate([(p, replace(c, routes=routes[:, : len(p) + len(c.tokens)]), 0.0) for p, c in found], 0)
        optimizer.zero()
        losses = F.cross_entropy(of(batch.tokens_BT).transpose(1, 2), batch.targets_BT, reduction="none")
        (losses * batch.learned_BT).sum().div(batch.learned_BT.sum()).backward()
        optimizer.step(3e-3)
    return of.eval()


@pytest.fixture(scope="module")
def source(trained: ZayaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, to start from."""
    directory, _ = checkpoint.save(
        Environment.read({"TRIMTAB_RUN_DIR": str(tmp_path_factory.mktemp("sft"))}),
        {"model": trained.state_dict()},
        step=1,
        world=1,
        data_position=1,
        biases=torch.stack([router.balancing_biases for router in trained.routers()]),
        state_at_s=1.0,
        extra={"model": asdict(MODEL)},
    )
    return directory


class Run:
    """A run's directory, and attempts in it from one source."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.directory, self.source = directory, source

    def environment(self, no: int, train: dict[str, Any], **more: str) -> dict[str, str]:
        return {
            "TRIMTAB_RUN_ID": "run-1",
            "TRIMTAB_STAGE": "rl-1",
            "TRIMTAB_ATTEMPT": str(no),
            "TRIMTAB_RUN_DIR": str(self.directory),
            "TRIMTAB_HEARTBEAT_DIR": str(self.beats(no)),
            "TRIMTAB_INIT_FROM": str(self.source),
            "TRIMTAB_INIT_HASH": contract.checkpoint_hash(self.source),
            "TRIMTAB_TRAIN_JSON": json.dumps({**TRAIN, **train}),
            "TRIMTAB_DATA_JSON": json.dumps(DATA),
            **more,
        }

    def attempt(
        self,
        no: int = 1,
        flag: StopFlag | None = None,
        train: dict[str, Any] | None = None,
        of: type[Job] = Job,
        **more: str,
    ) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("TRIMTAB_")]:
                patch.delenv(name)
            for name, value in self.environment(no, train or {}, **more).items():
                patch.setenv(name, value)
            wishes = flag or Wishes()
            return carry_out(lambda environment, beat: of(environment, beat, wishes), 0, 1)

    def beats(self, no: int = 1) -> Path:
        return self.directory / "node" / "attempts" / f"run-1-{no}"

    def saved(self, no: int, step: int) -> Path:
        return contract.step_directory(self.directory / f"attempt-{no:04d}", step)

    def heartbeat(self, no: int = 1) -> Heartbeat:
        return Heartbeat.from_json((self.beats(no) / "heartbeat-rank-0.json").read_bytes())

    def result(self, no: int = 1) -> contract.Result:
        found = contract.read_result(self.directory / f"attempt-{no:04d}")
        assert found is not None
        return found

    def record(self, no: int = 1) -> contract.ExitRecord:
        return contract.read_exit_records(self.beats(no))[0]

    def ring(self, no: int = 1) -> list[RingRecord]:
        reader = RingReader(self.beats(no) / "ring-rank-0.bin")
        try:
            return list(reader.read())
        finally:
            reader.close()


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An attempt of six steps."""
    run = Run(tmp_path_factory.mktemp("run"), source)
    assert run.attempt() == Exit.DONE
    return run


def test_a_whole_attempt_leaves_checkpoints_records_and_a_result(whole: Run) -> None:
    names = [path.name for path in contract.list_checkpoints(whole.directory)]
    assert names == ["step-00000003", "step-00000006"]
    beat = whole.heartbeat()
    assert (beat.phase, beat.first_step, beat.last_step) == ("exit", 1, 6)
    assert beat.step_seconds_median is not None
    steps = whole.ring()
    assert [record.step for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record.data_position for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(record.tokens > 0 and record.grad_norm > 0 for record in steps)
    assert [record.route_mismatch for record in steps][::3] == [0, 0], "the first step after a push"
    result = whole.result()
    assert result.checkpoint_hash == contract.checkpoint_hash(whole.saved(1, 6))
    assert 0 < result.metrics["sampled_accuracy"] < 1
    assert result.metrics["dropped_groups"] > 0
    assert result.metrics["rollout_restarts"] == 0
    assert 2 <= result.metrics["first_difficulty"] < 5 and 2 <= result.metrics["difficulty"] <= 6
    told = result.details["told"]
    assert (told["micro/parity/bound"][0], told["micro/first/bound"][0]) == (3, 2), "where the curriculum starts"
    assert result.metrics["micro/parity/first_bound"] == 3 and 3 <= result.metrics["micro/parity/bound"] <= 6
    assert result.details["told"]["staleness"] == [0, 1, 0, 0, 0, 1], "pushed after steps 2 and 4 and the save after 3"


def test_three_steps_and_three_more_equal_six(whole: Run) -> None:
    assert whole.attempt(2, TRIMTAB_RESUME_FROM=str(whole.saved(1, 3))) == Exit.DONE
    assert (whole.heartbeat(2).first_step, whole.heartbeat(2).last_step) == (4, 6)
    assert [record.step for record in whole.ring(2)] == [4, 5, 6]
    one, state = checkpoint.load(whole.saved(1, 6))
    other, resumed = checkpoint.load(whole.saved(2, 6))
    assert one.extra["rl"]["told"] == other.extra["rl"]["told"], "the same prompts, the same rewards"
    assert one.extra["rl"]["sampler"] == other.extra["rl"]["sampler"]
    levels = one.extra["rl"]["sampler"]["curriculum"]["levels"]
    assert [level["bound"] for level in levels.values()] != [3, 2], "the curriculum has moved"
    for name, value in state["model"].items():
        assert torch.allclose(value, resumed["model"][name], atol=1e-6), name
    assert state["optimizer"]["steps"] == resumed["optimizer"]["steps"] == 6
    assert whole.result(2).metrics == whole.result(1).metrics
    assert other.parent == str(whole.saved(1, 3))


def test_an_attempt_that_resumes_from_the_last_step_has_its_result(whole: Run) -> None:
    assert whole.attempt(3, TRIMTAB_RESUME_FROM=str(whole.saved(1, 6))) == Exit.DONE
    assert whole.result(3) == whole.result(1)


class _StoppedAfterASave(Job):
    """A stop comes while completions are waited for, right after step 1 was saved."""

    def _one_step(self, tell: Callable[..., None]) -> None:
        self.flag.stop = self.step == 1
        if self.flag.stop:
            raise StoppedError
        super()._one_step(tell)


def test_a_stop_right_after_a_save_has_lost_nothing_however_little_time_is_left(source: Path, tmp_path: Path) -> None:
    run, late = Run(tmp_path, source), {"TRIMTAB_SAVE_BY": "1.0"}
    assert run.attempt(flag=Wishes(), train={"checkpointEvery": 1}, of=_StoppedAfterASave, **late) == Exit.SAVED
    assert [path.name for path in contract.list_checkpoints(tmp_path)] == ["step-00000001"]


def test_a_stop_saves_the_step_and_what_was_on_its_way(source: Path, tmp_path: Path) -> None:
    """With a preference model, which the second attempt has from the checkpoint: its file is gone by then."""
    run = Run(tmp_path, source)
    preferences = tmp_path / PREFERENCES
    write_pairs(preferences, pairs([(find("micro/parity"), range(3, 7))], 60, 0))
    more = {
        "TRIMTAB_DATA_JSON": json.dumps({"environments": "micro/parity@3-6", "judge": "proxy"}),
        "TRIMTAB_PREPARED_DIR": str(tmp_path),
    }
    assert run.attempt(flag=Wishes(stop=True), train={"ahead": 1}, **more) == Exit.SAVED
    extra = contract.read_manifest(run.saved(1, 1)).extra["rl"]
    assert list(extra["sampler"]["drawn"]) == ["2"], "on its way, and not learned from yet"
    assert len(extra["sampler"]["drawn"]["2"]) == TRAIN["prompts"]
    assert (run.record().code, run.heartbeat().last_step) == (75, 1)
    preferences.unlink()
    more |= {"TRIMTAB_RESUME_FROM": str(run.saved(1, 1))}
    assert run.attempt(2, train={"ahead": 1, "steps": 2}, **more) == Exit.DONE
    assert contract.read_manifest(run.saved(2, 2)).extra["rl"]["sampler"]["drawn"] == {}
    told = run.result(2).details["told"]
    assert told["proxy"] == told["reward"]
    assert [0 < value < 1 for value in told["proxy"] + told["gold"]] == [True] * 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"TRIMTAB_INIT_FROM": ""}, "TRIMTAB_INIT_FROM names none"),
        ({"TRIMTAB_INIT_HASH": "00"}, "not 00"),
        ({"TRIMTAB_ROUTER_JSON": '{"experts": 8}'}, "num_experts"),
        ({"TRIMTAB_DATA_JSON": '{"environments": "micro/nothing"}'}, "micro/nothing"),
        ({"TRIMTAB_DATA_JSON": "{}"}, "data.environments"),
    ],
)
def test_what_cannot_be_begun_ends_with_78(source: Path, tmp_path: Path, more: dict[str, str], said: str) -> None:
    run = Run(tmp_path, source)
    assert run.attempt(**more) == Exit.CONFIG
    assert said in run.record().error_message


class _PushedOnce(Job):
    """Its actors have the first weights and never others."""

    def _push(self) -> None:
        if self.step == 0:
            super()._push()


def test_a_stage_whose_completions_are_all_stale_ends_with_an_error(source: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, source)
    assert run.attempt(of=_PushedOnce) == 1
    assert (run.record().error_type, run.heartbeat().last_step) == ("StaleError", 5), "fresh in steps 1 to 3"
    assert "in 3 steps in a row up to step 6" in run.record().error_message
    assert [path.name for path in contract.list_checkpoints(tmp_path)] == ["step-00000003"]


def test_a_checkpoint_of_another_kind_of_stage_is_not_resumed(source: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, source)
    assert run.attempt(TRIMTAB_RESUME_FROM=str(source)) == Exit.CONFIG
    assert run.record().error_type == "ContractError"


def _wait(what: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_of_its_own_survives_a_killed_actor_and_stops_when_told(source: Path, tmp_path: Path) -> None:
    """With a Ray of its own, whose signal handlers do not take the contract's place."""
    run = Run(tmp_path, source)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "RAY_"))}
    env |= run.environment(1, {"steps": 1_000_000, "checkpointEvery": 1_000_000})
    log = tmp_path / "log"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "jobs.zaya.rl"], env=env, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        _wait(lambda: "step 1:" in log.read_text(), child)
        pids = tmp_path / "attempt-0001" / PIDS
        first = json.loads(pids.read_text())["pids"]
        os.kill(first[0], signal.SIGKILL)
        _wait(lambda: "\nstep" in log.read_text().partition("was replaced")[2].partition("\nstep")[2], child)
        assert json.loads(pids.read_text())["pids"] != first
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == Exit.SAVED, log.read_text()
    finally:
        child.kill()
        child.wait()
    saved = [path for path in contract.list_checkpoints(tmp_path) if contract.verify(path).ok]
    assert len(saved) == 1
    assert contract.read_manifest(saved[0]).extra["rl"]["rollout_restarts"] == 1
    assert run.heartbeat().pid == child.pid

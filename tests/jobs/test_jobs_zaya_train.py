"""One attempt in this process: checkpoints, exact resume, stop and save, and an exit record for every end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.probe.ring import RingReader, RingRecord
from jobs import contract
from jobs.contract import Environment, Exit, Heartbeat, HeartbeatWriter, StopFlag
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.train import Job, attempt
from jobs.zaya.training import data
from jobs.zaya.training.optim import FlatOptimizer

TRAIN = {"steps": 6, "checkpointEvery": 3, "sequences": 2, "length": 16, "seed": 5, "warmup": 2}
ROUTER = {"experts": 4, "layers": 2, "hidden": 32, "expertHidden": 16, "routerHidden": 16}


class Wishes(StopFlag):
    """A stop flag that no signal reaches: the test raises it."""

    def __init__(self, stop: bool = False, save: bool = False) -> None:
        self.stop = stop
        if save:
            self._on_usr1(signal.SIGUSR1, None)


class Run:
    """A run's directory, and attempts in it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.monkeypatch = directory, monkeypatch

    def attempt(
        self, no: int = 1, flag: StopFlag | None = None, train: dict[str, Any] | None = None, **more: str
    ) -> int:
        values = {
            "TRIMTAB_RUN_ID": "run-1",
            "TRIMTAB_STAGE": "pretrain",
            "TRIMTAB_ATTEMPT": str(no),
            "TRIMTAB_EPOCH": str(no),
            "TRIMTAB_RUN_DIR": str(self.directory),
            "TRIMTAB_HEARTBEAT_DIR": str(self.beats(no)),
            "TRIMTAB_TRAIN_JSON": json.dumps({**TRAIN, **(train or {})}),
            "TRIMTAB_ROUTER_JSON": json.dumps(ROUTER),
            **more,
        }
        with self.monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("TRIMTAB_")]:
                patch.delenv(name)
            for name, value in values.items():
                patch.setenv(name, value)
            return attempt(flag or Wishes(), rank=0, world=1)

    def beats(self, no: int = 1) -> Path:
        return self.directory / "node" / "attempts" / f"run-1-{no}"

    def saved(self, no: int, step: int) -> Path:
        return contract.step_directory(self.directory / f"attempt-{no:04d}", step)

    def heartbeat(self, no: int = 1) -> Heartbeat:
        return Heartbeat.from_json((self.beats(no) / "heartbeat-rank-0.json").read_bytes())

    def record(self, no: int = 1) -> contract.ExitRecord:
        return contract.read_exit_records(self.beats(no))[0]

    def ring(self, no: int = 1) -> list[RingRecord]:
        reader = RingReader(self.beats(no) / "ring-rank-0.bin")
        try:
            return list(reader.read())
        finally:
            reader.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Run(tmp_path, monkeypatch)
    torch.set_num_threads(threads)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def test_a_whole_attempt_leaves_checkpoints_heartbeat_records_and_a_ring(run: Run) -> None:
    assert run.attempt() == Exit.DONE
    names = [path.name for path in contract.list_checkpoints(run.directory)]
    assert names == ["step-00000003", "step-00000006"]
    manifest = contract.read_manifest(run.saved(1, 3))
    assert contract.verify(run.saved(1, 3)).ok
    assert (manifest.run_id, manifest.attempt_no, manifest.epoch, manifest.stage) == ("run-1", 1, 1, "pretrain")
    assert (manifest.step, manifest.world_size, manifest.data_position, manifest.parent) == (3, 1, 4, None)
    steps = run.ring()
    assert [record.step for record in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[2].at_s <= manifest.written_at_s
    assert abs(manifest.state_at_s - steps[2].at_s) < 0.5
    assert all(0 < record.loss < 8 and record.grad_norm > 0 and record.step_seconds > 0 for record in steps)
    assert [(record.tokens, record.data_position) for record in steps[:2]] == [(32, 1), (32, 2)]
    beat = run.heartbeat()
    assert (beat.phase, beat.first_step, beat.last_step, beat.error) == ("exit", 1, 6, None)
    assert (run.record().code, run.record().error_type) == (0, "")


def test_a_resumed_run_is_equal_to_the_last_bit(run: Run) -> None:
    run.attempt(1)
    assert run.attempt(2, TRIMTAB_RESUME_FROM=str(run.saved(1, 3))) == Exit.DONE
    beat = run.heartbeat(2)
    assert (beat.first_step, beat.last_step, beat.resumed_from) == (4, 6, str(run.saved(1, 3)))
    _, whole = checkpoint.load(run.saved(1, 6))
    manifest, resumed = checkpoint.load(run.saved(2, 6))
    assert same(whole, resumed)
    assert manifest.parent == str(run.saved(1, 3))
    assert [r.loss for r in run.ring(2)] == [r.loss for r in run.ring(1)][3:]


def test_what_a_training_leaves_for_people_is_of_the_whole_training(run: Run) -> None:
    run.attempt(1)
    result = contract.read_result(run.saved(1, 6).parent)
    losses = [record.loss for record in run.ring()]
    assert result.metrics["loss"] == result.metrics["first_loss"] == pytest.approx(sum(losses) / 6, abs=1e-6)
    assert 0 <= result.metrics["max_vio"] < 4
    assert result.metrics["skipped_steps"] == 0
    assert result.checkpoint_hash == contract.checkpoint_hash(run.saved(1, 6))
    run.attempt(2, TRIMTAB_RESUME_FROM=str(run.saved(1, 3)))
    assert contract.read_result(run.saved(2, 6).parent).metrics == result.metrics
    assert run.attempt(3, TRIMTAB_RESUME_FROM=str(run.saved(1, 6))) == Exit.DONE
    assert contract.read_result(run.saved(3, 6).parent) == result


def _cut_in_half(directory: Path) -> None:
    os.truncate(directory / "state.pt", (directory / "state.pt").stat().st_size // 2)


def _without_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()


def _hashes_fit_but_no_state(directory: Path) -> None:
    path = directory / "state.pt"
    path.write_bytes(b"not a state")
    file = contract.ManifestFile("state.pt", path.stat().st_size, contract.sha256_of(path))
    contract.write_manifest(directory, replace(contract.read_manifest(directory), files=(file,)))


def _other_biases(directory: Path) -> None:
    contract.write_manifest(directory, replace(contract.read_manifest(directory), bias_checksum="00"))


def _other_text(directory: Path) -> None:
    contract.write_manifest(directory, replace(contract.read_manifest(directory), extra={"text": "00"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut_in_half, "bytes"),
        (_without_manifest, "never completed"),
        (_hashes_fit_but_no_state, "cannot be loaded"),
        (_other_biases, "other balancing biases"),
        (_other_text, "another text"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_not_started_at_all(
    run: Run, damage: Callable[[Path], None], said: str
) -> None:
    run.attempt(1, train={"steps": 3})
    damage(run.saved(1, 3))
    assert run.attempt(2, TRIMTAB_RESUME_FROM=str(run.saved(1, 3))) == Exit.CONFIG
    assert run.heartbeat(2).first_step is None
    assert (run.record(2).phase, run.record(2).error_type) == ("load", "ContractError")
    assert said in run.record(2).error_message
    assert said in str(run.heartbeat(2).error)


def test_a_checkpoint_of_another_shape_or_optimizer_is_refused(run: Run) -> None:
    run.attempt(1, train={"steps": 3})
    source = str(run.saved(1, 3))
    assert run.attempt(2, TRIMTAB_RESUME_FROM=source, TRIMTAB_ROUTER_JSON="{}") == Exit.CONFIG
    assert "do not fit this model" in run.record(2).error_message
    assert run.attempt(3, train={"optimizer": "muon"}, TRIMTAB_RESUME_FROM=source) == Exit.CONFIG
    assert "does not fit this job" in run.record(3).error_message


def test_the_weights_of_a_stage_before_start_a_new_count_of_steps(run: Run) -> None:
    run.attempt(1)
    source = run.saved(1, 6)
    assert run.attempt(2, train={"steps": 1, "learningRate": 1e-12}, TRIMTAB_INIT_FROM=str(source)) == Exit.DONE
    assert run.heartbeat(2).first_step == 1
    name = "model.layers.0.self_attn.o_proj.weight"
    before, after = (checkpoint.load(path)[1] for path in (source, run.saved(2, 1)))
    assert torch.allclose(before["model"][name], after["model"][name], atol=1e-9)
    assert after["optimizer"]["steps"] == 1


def test_only_the_checkpoint_that_the_stage_before_promoted_starts_a_stage(run: Run) -> None:
    run.attempt(1)
    init = str(run.saved(1, 3))
    right, wrong = (contract.checkpoint_hash(run.saved(1, step)) for step in (3, 6))
    assert run.attempt(2, train={"steps": 1}, TRIMTAB_INIT_FROM=init, TRIMTAB_INIT_HASH=right) == Exit.DONE
    assert run.attempt(3, train={"steps": 1}, TRIMTAB_INIT_FROM=init, TRIMTAB_INIT_HASH=wrong) == Exit.CONFIG
    assert "not the one that was asked for" in run.record(3).error_message


def test_resume_wins_over_init(run: Run) -> None:
    run.attempt(1)
    more = {"TRIMTAB_RESUME_FROM": str(run.saved(1, 3)), "TRIMTAB_INIT_FROM": str(run.saved(1, 6))}
    run.attempt(2, **more)
    assert run.heartbeat(2).first_step == 4


def test_a_stage_of_two_phases_says_when_each_begins(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    phases = [{"steps": 4, "decay": "none"}, {"name": "anneal", "steps": 2, "codeShare": 0.5}]
    given = {"learningRate": 0.01, "warmup": 0, "phases": phases}
    assert run.attempt(1, train=given, TRIMTAB_DATA_JSON='{"source": "mix"}') == Exit.DONE
    assert "phase 1 begins at step 1: 4 steps, 0% code" in (said := capsys.readouterr().out)
    assert "phase anneal begins at step 5: 2 steps, 50% code" in said
    rates = [record.learning_rate for record in run.ring()]
    assert rates == pytest.approx([0.01] * 4 + [0.0055, 0.001])


def test_fine_tuning_reads_the_prepared_examples_and_no_others_when_it_resumes(run: Run, tmp_path: Path) -> None:
    examples = tmp_path / "prepared" / "sft.jsonl"
    examples.parent.mkdir()
    examples.write_text(json.dumps({"question": "ab", "answer": "ba"}) + "\n")
    more = {"TRIMTAB_PREPARED_DIR": str(examples.parent)}
    assert run.attempt(1, train={"objective": "sft"}, **more) == Exit.DONE
    more["TRIMTAB_RESUME_FROM"] = str(run.saved(1, 3))
    assert run.attempt(2, train={"objective": "sft"}, **more) == Exit.DONE
    assert [record.loss for record in run.ring(2)] == [record.loss for record in run.ring(1)][3:]
    examples.write_text(json.dumps({"question": "cd", "answer": "dc"}) + "\n")
    assert run.attempt(3, train={"objective": "sft"}, **more) == Exit.CONFIG
    assert "another text" in run.record(3).error_message


def test_skipped_data_is_not_read(run: Run) -> None:
    run.attempt(1, train={"steps": 3}, TRIMTAB_SKIP_STEPS="2-3")
    assert [record.data_position for record in run.ring()] == [1, 4, 5]
    assert contract.read_manifest(run.saved(1, 3)).data_position == 6


def test_a_stop_saves_the_step_and_says_saved(run: Run) -> None:
    assert run.attempt(1, flag=Wishes(stop=True)) == Exit.SAVED
    assert contract.verify(run.saved(1, 1)).ok
    assert (run.record().code, run.heartbeat().last_step) == (75, 1)


def test_a_stop_that_leaves_no_time_begins_no_save_and_says_so(run: Run) -> None:
    late = {"TRIMTAB_SAVE_BY": "1.0"}
    assert run.attempt(1, flag=Wishes(stop=True), train={"checkpointEvery": 1}, **late) == Exit.UNSAVED
    assert contract.list_checkpoints(run.directory) == []
    assert (run.record().code, run.record().error_type) == (143, "TooLateError")
    assert "at step 1 with too little time" in run.record().error_message
    assert run.attempt(2, flag=Wishes(stop=True), train={"steps": 1}, **late) == Exit.DONE, "the last step is saved"
    assert contract.verify(run.saved(2, 1)).ok


def test_a_save_as_long_as_the_longest_before_must_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(
        Environment.read({"TRIMTAB_SAVE_BY": "1000"}), 0, 1, HeartbeatWriter(Environment.read({}), 0, 1), Wishes()
    )
    monkeypatch.setattr("jobs.zaya.train.time.time", lambda: 990.0)
    job.saver.seconds = 11.0
    assert not job.too_late(), "nobody asked for a stop"
    job.flag.stop = True
    assert job.too_late()
    job.saver.seconds = 9.0
    assert not job.too_late()
    clock = [50.0]
    monkeypatch.setattr("jobs.zaya.checkpoints.saving.time.monotonic", lambda: clock[0])
    job.saver._writing, job.saver._begun = Future(), 44.0
    assert job.too_late(), "3 s more for the one being written, then 9"
    clock[0] = 52.5
    assert not job.too_late(), "0.5 s more"
    clock[0] = 55.5
    assert job.too_late(), "it takes 11.5 s already, and so will the next"
    job.saver._writing.set_result(None)
    assert not job.too_late()


def test_a_wish_to_save_is_met_once_and_training_goes_on(run: Run) -> None:
    assert run.attempt(1, flag=Wishes(save=True)) == Exit.DONE
    names = [path.name for path in contract.list_checkpoints(run.directory)]
    assert names == ["step-00000001", "step-00000003", "step-00000006"]


def test_a_stop_at_the_last_step_is_done(run: Run) -> None:
    assert run.attempt(1, flag=Wishes(stop=True), train={"steps": 1}) == Exit.DONE


def test_a_loss_that_is_not_finite_ends_with_76_and_saves_nothing(run: Run) -> None:
    assert run.attempt(1, train={"learningRate": 1e30, "warmup": 0, "checkpointEvery": 1}) == Exit.NUMERICS
    record = run.record()
    assert (record.error_type, record.phase) == ("NumericsError", "train")
    assert "at step 2" in record.error_message
    assert record.step == 1
    assert [path.name for path in contract.list_checkpoints(run.directory)] == ["step-00000001"]


def test_a_loss_spike_that_lasts_ends_with_76_and_the_next_attempt_leaves_its_data_out(run: Run) -> None:
    rule = {"window": 8, "sigmas": 5, "consecutive": 2}
    train = {"steps": 20, "checkpointEvery": 8, "sequences": 4, "length": 32, "learningRate": 0.01, "skipStep": rule}
    poison = {"TRIMTAB_DATA_JSON": '{"poison": "17-18"}'}
    assert run.attempt(1, train=train, **poison) == Exit.NUMERICS
    assert "on data indices 17-18, were skipped" in run.record().error_message
    last = run.record().step
    assert last == 17, "the skipped step counts as a step, the one that ends the attempt does not"
    assert [(one.step, one.learning_rate) for one in run.ring()][-1] == (17, 0.0)
    assert contract.verify(run.saved(1, 16)).ok
    more = {"TRIMTAB_RESUME_FROM": str(run.saved(1, 16)), "TRIMTAB_SKIP_STEPS": f"17-{last + 1}"}
    assert run.attempt(2, train=train, **poison, **more) == Exit.DONE
    assert [record.data_position for record in run.ring(2)] == [19, 20, 21, 22]


def test_weights_that_are_not_finite_are_never_saved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last update can break the weights although its own loss and gradient were finite."""
    step = FlatOptimizer.step

    def breaking(self: FlatOptimizer, rate: float) -> None:
        step(self, rate)
        self.values[0] = float("inf")

    monkeypatch.setattr(FlatOptimizer, "step", breaking)
    assert run.attempt(1, train={"checkpointEvery": 1}) == Exit.NUMERICS
    assert contract.list_checkpoints(run.directory) == []
    assert "not finite after step 1" in run.record().error_message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"TRIMTAB_ROUTER_JSON": '{"expertz": 4}'}, "router.expertz is not known"),
        ({"TRIMTAB_DATA_JSON": '{"source": "elsewhere"}'}, "python-docs"),
        ({"TRIMTAB_ATTEMPT": "two"}, "TRIMTAB_ATTEMPT"),
    ],
)
def test_a_wrong_setting_ends_with_78_and_a_plain_message(run: Run, more: dict[str, str], said: str) -> None:
    assert run.attempt(1, **more) == Exit.CONFIG
    assert said in run.record().error_message


def test_an_error_of_another_kind_leaves_its_record_too(run: Run) -> None:
    def broken() -> bytes:
        raise MemoryError("no room")

    run.monkeypatch.setattr("jobs.zaya.training.data.documentation", broken)
    assert run.attempt() == 1
    assert (run.record().error_type, run.record().error_message) == ("MemoryError", "no room")
    assert "broken" in run.record().traceback


def test_a_disk_without_room_for_the_exit_record_takes_nothing_from_the_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.zaya.attempt.write_exit_record", full)
    assert run.attempt(1, train={"steps": 0}) == Exit.CONFIG
    assert "exit record: [Errno 28] No space left on device" in capsys.readouterr().err
    assert run.heartbeat().phase == "exit"


def test_the_real_text_is_the_one_whose_hash_the_manifest_holds(run: Run) -> None:
    run.attempt(1, train={"steps": 1})
    text = data.Text(data.documentation(), 16, 5)
    assert contract.read_manifest(run.saved(1, 1)).extra["text"] == text.sha256

"""The reference trainer: one process a rank under torchrun (gloo), data parallel, level 2 of the contract.

A step is: forward and backward on this rank's share, sum the gradients and the expert counts over ranks, clip, move
weights and biases, tell the probe and the heartbeat, then look whether somebody asked to save or stop. It trains all
stages that learn from rows of bytes, text or questions with answers; reinforcement learning is jobs/zaya/rl.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.distributed as dist

from agents.probe.attach import attach
from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    HeartbeatWriter,
    Result,
    StopFlag,
    checkpoint_hash,
    data_index,
    save_deadline_s,
    write_result,
)
from jobs.zaya.attempt import TooLateError, carry_out, reached
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.checkpoints.saving import Saver
from jobs.zaya.config import ModelConfig, TrainConfig, read_config
from jobs.zaya.phases import place
from jobs.zaya.training.figures import Figures
from jobs.zaya.training.learner import Learner, NumericsError


def agreed(flag: StopFlag, world: int, too_late: bool) -> tuple[bool, bool, bool]:
    """(stop, save, too late to save) as all ranks agree: a drain may signal one node only."""
    save = flag.take_save()
    wishes = torch.tensor([flag.stop, flag.stop or save, too_late], dtype=torch.int32)
    if world > 1:
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
    return bool(wishes[0]), bool(wishes[1]), bool(wishes[2])


def join(world: int, config: TrainConfig) -> None:
    """Enters the ranks' process group; a lone process that shards makes one of its own."""
    if world > 1:
        dist.init_process_group("gloo")
    elif config.sharding == "fsdp2" or config.checkpoints == "dcp":
        store = dist.HashStore()  # type: ignore[attr-defined] # torch's own list of exports lacks it
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)


class Job:
    """One attempt of one rank: from the environment to an exit code."""

    def __init__(self, environment: Environment, rank: int, world: int, beat: HeartbeatWriter, flag: StopFlag) -> None:
        self.environment, self.rank, self.world, self.beat, self.flag = environment, rank, world, beat, flag
        self.step = 0
        self.stepped_at = time.time()
        self.saver = Saver(environment, rank, world)
        self.figures = Figures()

    def restore(self, model_config: ModelConfig) -> None:
        """Builds the learner and loads exactly what the controller names, or the weights of the stage before."""
        prepared = self.environment.prepared_dir
        self.learner = Learner(model_config, self.config, self.rank, self.world, prepared)
        resume, init = self.environment.resume_from, self.environment.init_from
        if resume is not None:
            manifest, state = checkpoint.load(resume, like=self.learner.state())
            if manifest.extra.get("text") != self.learner.rows.sha256:
                raise ContractError(
                    f"the checkpoint {resume} was trained on another text: its place in it means nothing"
                )
            self.learner.load(state)
            if checkpoint.bias_checksum(self.learner.balancer.biases) != manifest.bias_checksum:
                raise ContractError(f"the checkpoint {resume} holds other balancing biases than its manifest says")
            self.step = manifest.step
            if "figures" in manifest.extra:
                self.figures.load(manifest.extra["figures"])
        elif init is not None:
            _, state = checkpoint.load(init, self.environment.init_hash, self.learner.state())
            self.learner.load_weights(state)

    def save(self) -> None:
        """Begins a checkpoint of the last completed step, which is written while training goes on.

        Raises NumericsError on every rank alike if it is worth nothing, and whatever went wrong with the one before.
        """
        self.beat.phase("checkpoint")
        if not self.learner.finite():
            raise NumericsError(f"the weights are not finite after step {self.step}")
        shards = self.world if self.config.sharding == "fsdp2" else 1
        facts = checkpoint.Facts(
            step=self.step,
            world=self.world,
            data_position=data_index(self.step + 1, self.environment.skip_steps),
            bias_checksum=checkpoint.bias_checksum(self.learner.balancer.biases),
            state_at_s=self.stepped_at,
            parallel={"data": self.world, "shards": shards},
            extra={
                "text": self.learner.rows.sha256,
                "model": asdict(self.learner.model.model.config),
                "figures": self.figures.state(),
            },
        )
        self.saver.begin(self.learner.state(), facts)
        self.beat.phase("train")

    def too_late(self) -> bool:
        """Whether a stop was asked for and a save like those before would not be complete in time.

        One that is still being written comes first.
        """
        deadline_s = save_deadline_s(self.environment) if self.flag.stop else None
        return deadline_s is not None and time.time() + self.saver.needed_s() > deadline_s

    def run(self) -> Exit:
        """Trains to the last step, or until asked to stop; what is being saved then is waited for."""
        self.beat.phase("load")
        model_config, self.config = read_config()
        join(self.world, self.config)
        self.saver.open(self.config.checkpoints)
        self.restore(model_config)
        probe = attach(self.learner.model)
        self.beat.phase("train")
        try:
            code = self._train(probe.step)
            self.beat.phase("checkpoint")
            self.saver.finish()
            if code == Exit.DONE and self.rank == 0:
                self._leave_result()
            if self.world > 1:
                dist.barrier()  # a rank that ends with 75 before rank 0 has written would have it stopped
            return code
        finally:
            probe.close()
            self.saver.close()

    def _leave_result(self) -> None:
        """The training's figures, and the checkpoint that they lead to."""
        hash_ = checkpoint_hash(reached(self.environment, self.step))
        write_result(self.environment.checkpoint_dir, Result(self.figures.metrics(), hash_))

    def _train(self, tell: Callable[..., None]) -> Exit:
        while self.step < self.config.steps:
            self._one_step(tell)
            stop, save, too_late = agreed(self.flag, self.world, self.too_late())
            last = self.step == self.config.steps
            if too_late and not last:
                raise TooLateError(f"told to stop at step {self.step} with too little time left to save it")
            if save or last or self.step % self.config.checkpoint_every == 0:
                self.save()
            if stop and not last:
                return Exit.SAVED
        return Exit.DONE

    def _say_phase(self, number: int) -> None:
        which, before = place(number, self.config.schedule)
        phase = self.config.schedule[which]
        if self.rank == 0 and self.config.phases and number == before + 1:
            mix = f", {phase.code_share:.0%} code" if self.config.source == "mix" else ""
            print(f"phase {phase.name or which + 1} begins at step {number}: {phase.steps} steps{mix}", flush=True)

    def _one_step(self, tell: Callable[..., None]) -> None:
        begun = time.perf_counter()
        number = self.step + 1
        index = data_index(number, self.environment.skip_steps)
        self._say_phase(number)
        done = self.learner.step(number, index)
        self.step, self.stepped_at = number, time.time()
        seconds = time.perf_counter() - begun
        tell(
            number,
            loss=done.loss,
            grad_norm=done.grad_norm,
            step_seconds=seconds,
            tokens=done.tokens,
            learning_rate=done.learning_rate,
            data_position=index,
        )
        self.figures.told({"loss": done.loss, "max_vio": done.max_vio}, bool(done.skipped))
        self.learner.reset_counts()
        self.beat.step(number)
        if self.rank == 0 and done.skipped:
            print(f"step {number} moved nothing, data index {index}: {done.skipped}", flush=True)
        if self.rank == 0 and number % 10 == 0:
            print(f"step {number}: loss {done.loss:.3f}, gradient {done.grad_norm:.2f}, {seconds:.2f} s", flush=True)


def attempt(flag: StopFlag, rank: int, world: int) -> int:
    """Runs the attempt; every end leaves an exit record. An unexpected error is 1."""
    return carry_out(lambda environment, beat: Job(environment, rank, world, beat, flag), rank, world)


def main() -> int:
    """Exit codes of the contract."""
    flag = StopFlag()
    parser = argparse.ArgumentParser(
        prog="jobs.zaya.train", description="Trains the reference model; its words are in docs/trainer.md."
    )
    parser.add_argument("--config", choices=["toy"], default="toy", help="the shapes to start from")
    parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return attempt(flag, int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


if __name__ == "__main__":
    sys.exit(main())

"""One attempt of a reinforcement-learning stage: the learner in this process, rollout actors on Ray, level 2 of the
contract.

A step is: take a batch of groups (phase rollout), learn from it (train), push weights each syncEvery-th step
(weight_sync), tell the probe and the heartbeat, then look whether somebody asked to save or stop. A save is followed by
a push, so that a resumed attempt, which begins with one, goes on exactly as the one that was saved where `ahead` is 0;
otherwise the batches that were on their way at the save are completed again, by the saved weights and not older ones.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from agents.probe.attach import attach
from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    HeartbeatWriter,
    Result,
    StopFlag,
    announce_checkpoint,
    checkpoint_hash,
    data_index,
    save_deadline_s,
    write_json,
    write_result,
)
from jobs.zaya import config as zaya
from jobs.zaya.attempt import TooLateError, reached
from jobs.zaya.checkpoints import state as checkpoint
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.judge.preference import Proxy
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.actors import Pool, StoppedError, cluster
from jobs.zaya.rl.batches import Batches, Taken
from jobs.zaya.rl.config import read_config
from jobs.zaya.rl.learner import Learned, RLLearner
from jobs.zaya.rl.rewards import EnvironmentScorer, ProxyScorer, Scorer
from jobs.zaya.rl.rollout import Weights
from jobs.zaya.rl.sampler import Sampler
from jobs.zaya.training.learner import NumericsError

PIDS = "rollouts.json"
"""Beside an attempt's checkpoints: the process ids of its rollout actors, for whoever wants to look at one."""


def _held_to(shapes: ModelConfig, words: dict[str, Any]) -> TrainConfig:
    """The balancing that the spec's words ask for; ContractError where they ask for another shape of model."""
    model, train = zaya.read_config({"TRIMTAB_ROUTER_JSON": json.dumps(words)})
    plain, held = asdict(ModelConfig()), asdict(shapes)
    other = [name for name, value in asdict(model).items() if value != plain[name] and value != held[name]]
    if other:
        raise ContractError(f"the checkpoint's model has another {', '.join(other)} than the spec's router says")
    return train


def first_of(name: str) -> str:
    """The metric that has a number's mean over the first steps: `first_reward`, `micro/sort/first_bound`."""
    environment, slash, own = name.rpartition("/")
    return f"{environment}{slash}first_{own}"


def _say(line: str) -> None:
    print(line, flush=True)


class Job:
    """From the environment to an exit code. `told` is what the stage has seen, a number a step under each name."""

    def __init__(self, environment: Environment, beat: HeartbeatWriter, flag: StopFlag) -> None:
        self.environment, self.beat, self.flag = environment, beat, flag
        self.step = 0
        self.stepped_at = time.time()
        self.save_seconds = 0.0  # the longest save so far
        self.restarts_before = 0
        self.told: dict[str, list[float]] = {}
        self.saved_step: int | None = None
        self.noted: list[int] = []

    def restore(self) -> None:
        """Builds the learner from exactly the checkpoint that the controller names."""
        self.beat.phase("load")
        self.config, words = read_config()
        resume, init = self.environment.resume_from, self.environment.init_from
        source = resume or init
        if source is None:
            raise ContractError("reinforcement learning starts from a checkpoint, and TRIMTAB_INIT_FROM names none")
        manifest, model = checkpoint.model_of(source, "" if resume else self.environment.init_hash)
        self.shapes = checkpoint.config_of(manifest)
        balance = _held_to(self.shapes, words)
        self.learner = RLLearner(model, self.config, balance, self._reference())
        self.sampler = Sampler(self.config, self.environment.prepared_dir)
        self.restored: dict[str, Any] | None = None
        judged: Mapping[str, Any] | None = None
        if resume is not None:
            _, state = checkpoint.load(resume)
            judged = state.get("judge")
            self.learner.load(state)
            self.step, self.restored = manifest.step, manifest.extra.get("rl")
            if self.restored is None:
                raise ContractError(f"the checkpoint {resume} is not one of a reinforcement-learning stage")
            if checkpoint.bias_checksum(self.learner.balancer.biases) != manifest.bias_checksum:
                raise ContractError(f"the checkpoint {resume} holds other balancing biases than its manifest says")
            self.told, self.restarts_before = self.restored["told"], int(self.restored["rollout_restarts"])
        self.scorer = self._scorer(judged)

    def _scorer(self, judged: Mapping[str, Any] | None) -> Scorer:
        """What rewards: an attempt that resumes takes over the preference model of the one before."""
        if self.config.judge == "none":
            return EnvironmentScorer()
        if judged is None:
            return ProxyScorer.fitted(self.environment.prepared_dir, self.config.seed)
        proxy = Proxy()
        proxy.load(judged)
        return ProxyScorer(proxy)

    def _reference(self) -> ZayaForCausalLM | None:
        """The model that the stage started from, where a KL penalty holds to it."""
        if not self.config.kl:
            return None
        if self.environment.init_from is None:
            raise ContractError("train.kl holds to the stage's first weights, and TRIMTAB_INIT_FROM names none")
        return checkpoint.model_of(self.environment.init_from, self.environment.init_hash)[1]

    def run(self) -> Exit:
        """Learns to the last step, or until asked to stop."""
        self.restore()
        with cluster(self.config.rollouts):
            self.pool = Pool(asdict(self.shapes), self.scorer, self.config.rollouts, _say)
            self.pool.start()
            self._note_pids()
            self.batches = Batches(self.config, self.sampler, self.pool, self.environment.skip_steps, self.config.steps)
            if self.restored is not None:
                self.batches.load(self.restored["sampler"])
            probe = attach(self.learner.model)
            self._push()
            try:
                return self._steps(probe.step)
            finally:
                probe.close()
                self.pool.close()

    def _note_pids(self) -> None:
        """Writes the actors' process ids down when one has changed; one that has not started yet comes later."""
        pids = self.pool.pids()
        if pids == self.noted:
            return
        self.noted = pids
        print(f"rollout actors: {', '.join(map(str, pids))}", flush=True)
        self.environment.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.environment.checkpoint_dir / PIDS, {"pids": pids}, durable=False)

    def _steps(self, tell: Callable[..., None]) -> Exit:
        while self.step < self.config.steps:
            with contextlib.suppress(StoppedError):
                self._one_step(tell)
            stop, wished = self.flag.stop, self.flag.take_save()
            save = stop or wished
            last = self.step == self.config.steps
            if stop and not last and self.step != self.saved_step and self._too_late():
                raise TooLateError(f"told to stop at step {self.step} with too little time left to save it")
            if (save or last or self.step % self.config.checkpoint_every == 0) and self.step != self.saved_step:
                self._save()
                if not stop and not last:
                    self._push()
            elif self.step % self.config.sync_every == 0 and not stop:
                self._push()
            if stop and not last:
                return Exit.SAVED
        self._leave_result()
        return Exit.DONE

    def _one_step(self, tell: Callable[..., None]) -> None:
        begun, number = time.perf_counter(), self.step + 1
        bounds = self.sampler.bounds()
        self.beat.phase("rollout")
        taken = self.batches.take(number, self._stopped, self.beat.alive)
        self._note_pids()
        rolled = time.perf_counter() - begun
        self.beat.phase("train")
        done = self.learner.step(taken.teaching, number)
        self.step, self.stepped_at = number, time.time()
        seconds = time.perf_counter() - begun
        tell(
            number,
            loss=done.loss,
            grad_norm=done.grad_norm,
            step_seconds=seconds,
            tokens=done.tokens,
            learning_rate=done.learning_rate,
            data_position=data_index(number, self.environment.skip_steps),
            route_mismatch=done.mismatch,
        )
        self.learner.reset_counts()
        self.beat.step(number, seconds)
        self._keep(taken, done, bounds)
        self._tell_people(number, taken, done, rolled, seconds)

    def _stopped(self) -> bool:
        """Whether completions are waited for no longer; a first step is finished, or there would be nothing to save."""
        return self.flag.stop and self.step > 0

    def _keep(self, taken: Taken, done: Learned, bounds: Mapping[str, int]) -> None:
        """Keeps a step's numbers; `bounds` are those of an adaptive curriculum before the step moved them."""
        found: dict[str, float | None] = {
            "reward": taken.reward,
            "sampled_accuracy": taken.accuracy,
            "dropped_groups": taken.all_pass + taken.all_fail + taken.all_same,
            "stale_groups": taken.stale,
            "staleness": taken.staleness,
            "route_mismatch": done.mismatch,
            "proxy": None if self.config.judge == "none" else taken.reward,
            "gold": taken.gold,
            "difficulty": taken.difficulty if bounds else None,
            **{f"{name}/bound": bound for name, bound in bounds.items()},
        }
        for name, value in found.items():
            if value is not None and not math.isnan(value):
                self.told.setdefault(name, []).append(round(float(value), 6))

    @staticmethod
    def _tell_people(number: int, taken: Taken, done: Learned, rolled: float, seconds: float) -> None:
        """A line for the log."""
        gold = "" if taken.gold is None else f", gold {taken.gold:.3f}"
        print(
            f"step {number}: reward {taken.reward:.3f}{gold}, accuracy {taken.accuracy:.3f}, "
            f"{len(taken.teaching)} groups teach, {taken.all_pass} all right, {taken.all_fail} all wrong, "
            f"{taken.all_same} alike, {taken.stale} stale, staleness {taken.staleness}, mismatch {done.mismatch:.4f}, "
            f"ratio {done.ratio:.3f}, clipped {done.clipped:.3f}, gradient {done.grad_norm:.2f}, "
            f"{rolled:.1f} + {seconds - rolled:.1f} s",
            flush=True,
        )

    def _push(self) -> None:
        """Gives the actors the weights of the last completed step."""
        self.beat.phase("weight_sync")
        self.pool.push(Weights.of(self.step, self.learner.model))

    def _too_late(self) -> bool:
        """Whether a save as long as the longest before would not be complete in time."""
        deadline_s = save_deadline_s(self.environment)
        return deadline_s is not None and time.time() + self.save_seconds > deadline_s

    def _save(self) -> None:
        """A checkpoint of the last completed step; raises NumericsError if it is worth nothing."""
        self.beat.phase("checkpoint")
        begun = time.monotonic()
        if not self.learner.optimizer.finite():
            raise NumericsError(f"the weights are not finite after step {self.step}")
        directory, manifest = checkpoint.save(
            self.environment,
            self.learner.state() | self._judge(),
            step=self.step,
            world=1,
            data_position=data_index(self.step + 1, self.environment.skip_steps),
            biases=self.learner.balancer.biases,
            state_at_s=self.stepped_at,
            extra={"model": asdict(self.shapes), "rl": self._state()},
        )
        problem = announce_checkpoint(self.environment, directory, manifest)
        print(f"saved step {self.step}" + (f"; not announced: {problem}" if problem else ""), flush=True)
        self.saved_step = self.step
        self.save_seconds = max(self.save_seconds, time.monotonic() - begun)

    def _judge(self) -> dict[str, Any]:
        return {"judge": self.scorer.proxy.state()} if isinstance(self.scorer, ProxyScorer) else {}

    def _state(self) -> dict[str, Any]:
        restarts = self.restarts_before + self.pool.restarts
        return {"sampler": self.batches.state(), "told": self.told, "rollout_restarts": restarts}

    def _leave_result(self) -> None:
        """The stage's numbers over its first and its last fifth, and the checkpoint that they lead to."""
        metrics = {"rollout_restarts": float(self.restarts_before + self.pool.restarts)}
        for name, values in self.told.items():
            part = max(1, len(values) // 5)
            metrics[first_of(name)] = sum(values[:part]) / part
            metrics[name] = sum(values[-part:]) / part
        for name in ("dropped_groups", "stale_groups"):
            metrics[name] = sum(self.told.get(name, []))
            metrics.pop(f"first_{name}", None)
        hash_ = checkpoint_hash(reached(self.environment, self.step))
        write_result(self.environment.checkpoint_dir, Result(metrics, hash_, {"told": self.told}))

"""Rollout actors on Ray: a cluster of the job's own unless RAY_ADDRESS names one, weights pushed by version, and an
actor that is dead, hung or without its weights replaced by the learner that asked it.

Ray does not restart the actors by itself: it would bring one back without weights. The learner sees it when it asks for
the result, makes a new actor, gives it the newest weights and sends the same task again. Whether an actor is hung or
slow nobody can tell, so one that is silent for too long is replaced, and each time the next one is waited for twice as
long. What the tasks say is jobs/zaya/rl/rollout.py's.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError

from jobs.contract import ContractError
from jobs.zaya.rl.rewards import Scorer
from jobs.zaya.rl.rollout import Group, RolloutWorker, Task, Weights

# Ray puts session_<time>_<pid>/sockets/plasma_store behind the directory, and a socket's path has 107 bytes at most.
_LONGEST_DIRECTORY = 40
_OBJECT_STORE = 256 * 2**20
# An actor's end, as whoever asks it sees it.
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError)
_DEATHS_IN_A_ROW = 5
_START_S = 300.0
_TRIES = 3
_LOOK_S = 0.2
# What a task may take: so long, or so many times the longest one before it.
_PATIENCE_S, _LONGER = 600.0, 3.0


class StoppedError(Exception):
    """Somebody asked to stop while completions were waited for; the last step's state is as it was."""


class HungError(Exception):
    """An actor was at one task for longer than any may take."""


class WeightsError(Exception):
    """An actor did not take over the weights that it was given, and completes prompts with older ones."""


_FAILED: dict[type[Exception], str] = {HungError: "hangs", WeightsError: "did not take its weights over"}


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """A Ray cluster to work on: the one at RAY_ADDRESS, or one of its own with `cpus` on this machine, with token
    authentication unless RAY_AUTH_MODE says otherwise. What it started ends with it.

    One that this process is on already is used and left as it is. The signal handlers of before stand again when Ray
    has put its own in their place: they are the contract's.
    """
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    joined = bool(os.environ.get("RAY_ADDRESS"))
    directory = "" if joined else _short_directory()
    try:
        if joined:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start(cpus, directory)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if directory:
            shutil.rmtree(directory, ignore_errors=True)


def _start(cpus: int, directory: str) -> None:
    """Starts a cluster, in more than one try: Ray gives its agent 15 s to come up, which a busy machine can exceed."""
    if not any(os.environ.get(f"RAY_AUTH_TOKEN{end}") for end in ("", "_PATH")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray keeps one in the home directory
    for left in reversed(range(_TRIES)):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE,
                _temp_dir=directory,
            )
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise
            print(f"Ray did not start and is tried again: {error}", flush=True)


def _short_directory() -> str:
    """A new directory whose path leaves room for the names of Ray's sockets."""
    base = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="rl-", dir=base if len(base) < _LONGEST_DIRECTORY - 12 else "/tmp")


@dataclass(frozen=True)
class Sent:
    """A task on its way: to which place, which actor was there, where its result will be, and whether the weights that
    it was given last have come before it (None: it was given none)."""

    task: Task
    place: int
    actor: Any
    result: Any
    load: Any


class Pool:
    """`size` rollout actors of one model. `restarts` counts those that were replaced; `say` gets a line for each.
    `clock` counts seconds."""

    def __init__(
        self,
        model: Mapping[str, Any],
        scorer: Scorer,
        size: int,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say, self.clock, self.restarts = say, clock, 0
        self._model, self._scorer = dict(model), ray.put(scorer)
        self._made = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutWorker)
        self._weights: Any = None
        self._deaths = 0
        self._longest_s = 0.0
        self._actors: list[Any] = [None] * size
        self._pids: list[Any] = [None] * size
        self._loads: list[Any] = [None] * size
        self._asked: list[list[Any]] = [[] for _ in range(size)]  # the results that were not collected yet, in order
        for place in range(size):
            self._make(place)

    def _make(self, place: int) -> Any:
        """A new actor at a place, with the newest weights; it is asked for its process id before anything else."""
        actor: Any = self._made.remote(self._model, self._scorer)
        self._actors[place], self._asked[place] = actor, []
        self._pids[place] = actor.pid.remote()
        self._loads[place] = None if self._weights is None else actor.load.remote(self._weights)
        return actor

    def start(self) -> None:
        """Waits until all actors have started; ContractError when the cluster has no room for them.

        One that died meanwhile is seen and replaced when its results are collected.
        """
        _, missing = ray.wait(self._pids, num_returns=len(self._pids), timeout=_START_S)
        if missing:
            raise ContractError(
                f"{len(self._actors)} rollout actors did not start within {_START_S:.0f} s: each needs a CPU of the "
                "Ray cluster; ask for fewer (train.rollouts) or for a larger cluster"
            )

    def pids(self) -> list[int]:
        """The process ids of the actors that have started, in order. Waits for none, whoever died."""
        found = []
        for answer in ray.wait(self._pids, num_returns=len(self._pids), timeout=0)[0]:
            try:
                found.append(int(ray.get(answer)))
            except _LOST:
                continue
        return found

    def push(self, weights: Weights) -> None:
        """Gives all actors new weights, behind the tasks that they have. One that does not take them over is seen and
        replaced when what it was asked afterwards is collected."""
        self._weights = ray.put(weights)
        self._loads = [actor.load.remote(self._weights) for actor in self._actors]

    def send(self, tasks: Sequence[Task]) -> list[Sent]:
        """Sends tasks to the actors in turn."""
        return [self._send(task, number % len(self._actors)) for number, task in enumerate(tasks)]

    def _send(self, task: Task, place: int) -> Sent:
        actor = self._actors[place]
        sent = Sent(task, place, actor, actor.roll.remote(task), self._loads[place])
        self._asked[place].append(sent.result)
        return sent

    def collect(self, sent: Sequence[Sent], stopped: Callable[[], bool], told: Callable[[], None]) -> list[Group]:
        """The groups of all tasks, in order; `told` is called at each look, some five a second, while they are waited
        for. StoppedError once `stopped` says so, RuntimeError when actors are replaced one after the other."""
        found: list[Group] = []
        for one in sent:
            found += self._result(one, stopped, told)
        return found

    def _result(self, one: Sent, stopped: Callable[[], bool], told: Callable[[], None]) -> list[Group]:
        while True:
            try:
                self._wait(one, stopped, told)
                groups: list[Group] = self._groups(one)
            except (*_LOST, HungError, WeightsError) as error:
                one = self._again(one, error)
                continue
            self._deaths = 0
            return groups

    def _wait(self, one: Sent, stopped: Callable[[], bool], told: Callable[[], None]) -> None:
        """Until a task is done or its actor dead. HungError when its actor has worked for too long on one task, this
        one or one that was sent before it and is collected later."""
        since, done = self.clock(), 0
        while True:
            ready, _ = ray.wait([one.result], timeout=_LOOK_S)
            told()
            if stopped():
                raise StoppedError
            now = self.clock()
            if ready:
                self._longest_s = max(self._longest_s, now - since)
                return
            before, asked = done, self._asked[one.place]
            done = len(ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else 0
            if done != before:
                since = now
            limit_s = max(_PATIENCE_S, _LONGER * self._longest_s) * 2**self._deaths
            if now - since > limit_s:
                raise HungError(f"nothing came from it for {now - since:.0f} s")

    def _groups(self, one: Sent) -> list[Group]:
        """A finished task's groups, of the weights that its actor was given before it."""
        asked = self._asked[one.place]
        self._asked[one.place] = [result for result in asked if result != one.result]
        if one.load is not None:
            try:
                ray.get(one.load)
            except _LOST:
                raise
            except RayError as error:
                raise WeightsError(str(error)) from error
        groups: list[Group] = ray.get(one.result)
        return groups

    def _again(self, one: Sent, error: Exception) -> Sent:
        """Sends the task of an actor that is of no use to the one that takes its place."""
        if self._actors[one.place] is one.actor:
            self._deaths += 1
            if self._deaths > _DEATHS_IN_A_ROW:
                raise RuntimeError(f"rollout actors fail one after the other; the last one: {error}") from error
            ray.kill(one.actor)
            self._make(one.place)
            self.restarts += 1
            self.say(
                f"rollout actor {one.place} {_FAILED.get(type(error), 'is gone')} ({type(error).__name__}) and was "
                f"replaced; its {len(one.task.asked)} prompts are sent again"
            )
        return self._send(one.task, one.place)

    def close(self) -> None:
        """Ends the actors, whatever they are doing."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

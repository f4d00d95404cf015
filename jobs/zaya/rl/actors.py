"""Rollout actors on Ray: a cluster of the job's own unless RAY_ADDRESS names one, weights pushed by version, and a dead
actor replaced by the learner that asked it.

Ray does not restart the actors by itself: it would bring one back without weights. The learner sees the death when it
asks for the result, makes a new actor, gives it the newest weights and sends the same task again. What the tasks say
is jobs/zaya/rl/rollout.py's.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError

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


class StoppedError(Exception):
    """Somebody asked to stop while completions were waited for; the last step's state is as it was."""


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
    """A task on its way: to which place, which actor was there, and where its result will be."""

    task: Task
    place: int
    actor: Any
    result: Any


class Pool:
    """`size` rollout actors of one model. `restarts` counts those that were replaced; `say` gets a line for each."""

    def __init__(self, model: Mapping[str, Any], scorer: Scorer, size: int, say: Callable[[str], None] = print) -> None:
        self.say, self.restarts = say, 0
        self._model, self._scorer = dict(model), ray.put(scorer)
        self._made = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutWorker)
        self._weights: Any = None
        self._deaths = 0
        self._actors: list[Any] = [None] * size
        self._pids: list[Any] = [None] * size
        for place in range(size):
            self._make(place)

    def _make(self, place: int) -> Any:
        """A new actor at a place; it is asked for its process id before anything else."""
        actor: Any = self._made.remote(self._model, self._scorer)
        self._actors[place] = actor
        self._pids[place] = actor.pid.remote()
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
        """Gives all actors new weights, behind the tasks that they have."""
        self._weights = ray.put(weights)
        for actor in self._actors:
            actor.load.remote(self._weights)

    def send(self, tasks: Sequence[Task]) -> list[Sent]:
        """Sends tasks to the actors in turn."""
        return [self._send(task, number % len(self._actors)) for number, task in enumerate(tasks)]

    def _send(self, task: Task, place: int) -> Sent:
        actor = self._actors[place]
        return Sent(task, place, actor, actor.roll.remote(task))

    def collect(self, sent: Sequence[Sent], stopped: Callable[[], bool], told: Callable[[], None]) -> list[Group]:
        """The groups of all tasks, in order; `told` is called for each task. StoppedError once `stopped` says so."""
        found: list[Group] = []
        for one in sent:
            found += self._result(one, stopped)
            told()
        return found

    def _result(self, one: Sent, stopped: Callable[[], bool]) -> list[Group]:
        while True:
            ready, _ = ray.wait([one.result], timeout=0.2)
            if stopped():
                raise StoppedError
            if not ready:
                continue
            try:
                groups: list[Group] = ray.get(one.result)
            except _LOST as error:
                one = self._again(one, error)
                continue
            self._deaths = 0
            return groups

    def _again(self, one: Sent, error: Exception) -> Sent:
        """Sends a dead actor's task to the one that takes its place."""
        if self._actors[one.place] is one.actor:
            self._deaths += 1
            if self._deaths > _DEATHS_IN_A_ROW:
                raise RuntimeError(f"rollout actors die one after the other; the last one: {error}") from error
            ray.kill(one.actor)
            actor = self._make(one.place)
            self.restarts += 1
            if self._weights is not None:
                actor.load.remote(self._weights)
            self.say(
                f"rollout actor {one.place} is gone ({type(error).__name__}) and was replaced; "
                f"its {len(one.task.asked)} prompts are sent again"
            )
        return self._send(one.task, one.place)

    def close(self) -> None:
        """Ends the actors, whatever they are doing."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

"""Rollout actors on a real local Ray: one that is dead, hung or without its weights is replaced and its task done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.actors import Pool, StoppedError, cluster
from jobs.zaya.rl.rewards import EnvironmentScorer
from jobs.zaya.rl.rollout import Weights
from tests.jobs.test_jobs_rl_learner import model, task
from tests.jobs.zaya_small import MODEL


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One cluster for this module, with room for one actor: a hung one that held its CPU would let no other begin."""
    torch.set_num_threads(1)
    with cluster(1):
        yield


@pytest.fixture(scope="module")
def of() -> ZayaForCausalLM:
    return model()


def test_a_killed_actor_is_replaced_and_its_prompts_completed(of: ZayaForCausalLM) -> None:
    said: list[str] = []
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1, said.append)
    try:
        pool.start()
        pid = pool.pids()[0]
        pool.push(Weights.of(7, of))
        wanted = pool.collect(pool.send([task()]), lambda: False, lambda: None)
        sent = pool.send([task(), task()])
        os.kill(pid, signal.SIGKILL)
        found = pool.collect(sent, lambda: False, lambda: None)
        with pytest.raises(StoppedError):
            pool.collect(pool.send([task()]), lambda: True, lambda: None)
        (second,) = pool.pids()
        assert second != pid
        os.kill(second, signal.SIGKILL)
        with pytest.raises(RayActorError):
            ray.get(pool._actors[0].pid.remote())
        assert pool.pids() == [second], "until it is replaced"
    finally:
        pool.close()
    assert [group.version for group in found] == [7] * 6
    said_by = [
        [one.tokens for group in groups for one in group.completions] for groups in (wanted, found[:3], found[3:])
    ]
    assert said_by[0] == said_by[1] == said_by[2], "the same task and weights, the same completions"
    assert pool.restarts == 1
    assert len(said) == 1
    assert "3 prompts are sent again" in said[0]


def test_an_error_of_an_environments_own_is_no_death(of: ZayaForCausalLM) -> None:
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1)
    try:
        sent = pool.send([task()])
        with pytest.raises(RuntimeError, match="before it was given weights"):
            pool.collect(sent, lambda: False, lambda: None)
        assert pool.restarts == 0
    finally:
        pool.close()


def test_an_actor_that_dies_before_it_says_its_process_id_is_waited_for_by_nobody() -> None:
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1)
    try:
        ray.kill(pool._actors[0])
        pool.start()
        assert pool.pids() == []
    finally:
        pool.close()


def test_an_actor_that_hangs_is_replaced_once_its_time_is_up_and_the_learner_says_meanwhile_that_it_goes_on(
    of: ZayaForCausalLM,
) -> None:
    said: list[str] = []
    looks: list[float] = []
    now, deadline = [0.0], time.monotonic() + 120
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1, said.append, lambda: now[0])

    def told() -> None:
        looks.append(now[0])
        if len(looks) in (3, 5):
            now[0] += 590 if len(looks) == 3 else 20

    try:
        pool.start()
        pool.push(Weights.of(7, of))
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGSTOP)
        found = pool.collect(pool.send([task()]), lambda: time.monotonic() > deadline, told)
        assert pool.pids() != [pid]
    finally:
        pool.close()
    assert [group.version for group in found] == [7] * 3
    assert (pool.restarts, looks[:5]) == (1, [0, 0, 0, 590, 590]), "not before ten minutes"
    assert "hangs (HungError)" in said[0]


def test_an_actor_that_works_off_what_it_was_asked_before_is_not_hung(of: ZayaForCausalLM) -> None:
    """Each task has a time of its own, here nine tenths of what is allowed."""
    now, done = [0.0], [0]
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1, clock=lambda: now[0])
    try:
        pool.start()
        pool.push(Weights.of(0, of))
        sent = pool.send([task()] * 40)

        def told() -> None:
            before, done[0] = done[0], len(ray.wait([one.result for one in sent], num_returns=40, timeout=0)[0])
            now[0] += 540 * (done[0] - before)

        assert len(pool.collect(sent[-1:], lambda: False, told)) == 3
        assert (pool.restarts, done[0]) == (0, 40)
    finally:
        pool.close()


def test_an_actor_that_does_not_take_its_weights_over_is_replaced(of: ZayaForCausalLM) -> None:
    """What it completed by the weights of before is completed anew, by those that it was given."""
    said: list[str] = []
    pool = Pool(asdict(MODEL), EnvironmentScorer(), 1, said.append)
    try:
        pool.push(Weights.of(7, of))
        pool.push(Weights(8, {}))
        pool._weights = ray.put(Weights.of(8, of))  # the next actor finds them whole
        found = pool.collect(pool.send([task(), task()]), lambda: False, lambda: None)
    finally:
        pool.close()
    assert ([group.version for group in found], pool.restarts) == ([8] * 6, 1)
    assert "did not take its weights over (WeightsError)" in said[0]

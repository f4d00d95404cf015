"""One optimizer step on completions of the smallest real model: replayed routes, frozen routers, honest counts."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from jobs.contract import ContractError
from jobs.zaya.config import TrainConfig
from jobs.zaya.model.generate import Completion
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.rl.batches import Taken
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.learner import RLLearner, collate, learning_rate
from jobs.zaya.rl.rewards import EnvironmentScorer
from jobs.zaya.rl.rollout import Asked, Group, RolloutWorker, Task, Weights
from jobs.zaya.rl.sampler import Sampler
from jobs.zaya.tokens import ASK, REPLY, TAIL
from jobs.zaya.training.learner import NumericsError
from tests.jobs.zaya_small import MODEL

CONFIG = RLConfig(
    steps=10,
    sequences=5,
    length=64,
    learning_rate=1e-2,
    warmup=0,
    weight_decay=0.1,
    prompts=3,
    samples=4,
    limit=6,
    environments="micro/reverse@2-5",
)


def model(seed: int = 0) -> ZayaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return ZayaForCausalLM(MODEL)


def task(config: RLConfig = CONFIG, aggregate: bool = False) -> Task:
    sampler = Sampler(config)
    asked = [Asked(sampler.draw(1, slot).problem, aggregate) for slot in range(config.prompts)]
    return Task(
        asked, 1, config.samples, config.limit, config.temperature, config.candidates, config.tail, config.length
    )


def rolled(of: ZayaForCausalLM, config: RLConfig = CONFIG, aggregate: bool = False) -> list[Group]:
    """Completions of a model, with rewards of which half are 1 in every group."""
    worker = RolloutWorker(asdict(MODEL), EnvironmentScorer())
    worker.load(Weights.of(0, of))
    groups = worker.roll(task(config, aggregate))
    half = config.samples // 2
    return [
        replace(group, worths=[replace(one, reward=float(n < half)) for n, one in enumerate(group.worths)])
        for group in groups
    ]


def learner(of: ZayaForCausalLM, **changed: Any) -> RLLearner:
    return RLLearner(of, replace(CONFIG, **changed), TrainConfig())


def moved(of: ZayaForCausalLM) -> ZayaForCausalLM:
    """The same model after an update that no rollout knows of."""
    with torch.no_grad():
        for parameter in of.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return of


def test_the_learner_agrees_with_the_rollout_that_has_its_weights() -> None:
    one = learner(model())
    done = one.step(rolled(one.model), 1)
    assert done.mismatch == 0
    assert done.ratio == pytest.approx(1, abs=1e-5)
    assert done.clipped == 0
    assert done.tokens == sum(len(c.logprobs) for g in rolled(model()) for c in g.completions)
    assert done.grad_norm > 0


def test_the_learner_agrees_with_a_rollout_at_another_temperature() -> None:
    config = replace(CONFIG, temperature=0.5)
    one = learner(model(), temperature=0.5)
    done = one.step(rolled(one.model, config), 1)
    assert done.ratio == pytest.approx(1, abs=1e-5)
    assert done.clipped == 0


def test_the_likelihood_of_what_was_rewarded_rises() -> None:
    of = model()
    groups = rolled(of)
    one = learner(of, learning_rate=2e-3)
    ratios = {True: [0.0, 0], False: [0.0, 0]}
    for number in range(1, 4):
        one.step(groups, number)
    for group in groups:
        for completion, reward in zip(group.completions, group.rewards, strict=True):
            batch = collate([(group.prompt, completion, 0.0)], one.skip)
            now = one._logprobs(one.model, batch, batch.routes_LBT.flatten(1))
            gained = float((now - batch.sampled_BT)[batch.learned_BT].sum().detach())
            ratios[reward > 0][0] += gained
            ratios[reward > 0][1] += 1
    assert ratios[True][0] / ratios[True][1] > ratios[False][0] / ratios[False][1] + 0.1


def test_replayed_routes_are_taken_and_the_mismatch_is_of_what_would_have_been_chosen() -> None:
    groups = rolled(model())
    replayed, free = learner(moved(model())), learner(moved(model()), replay=False)
    taken = {"replayed": replayed.step(groups, 1), "free": free.step(groups, 1)}
    assert 0 < taken["replayed"].mismatch < 1
    assert 0 < taken["free"].mismatch < 1
    routes = torch.zeros_like(replayed.balancer.biases, dtype=torch.int64)
    for group in groups:
        for one in group.completions:
            assert one.routes is not None
            for layer, slots in enumerate(one.routes.long()):
                routes[layer] += torch.bincount(slots, minlength=routes.shape[1])
    counts = torch.stack([router.tokens_per_expert for router in replayed.routers])
    assert torch.equal(counts, routes), "the probe is told of the rollout's tokens, and of no padding"
    other = torch.stack([router.tokens_per_expert for router in free.routers])
    assert torch.equal(other.sum(dim=1), routes.sum(dim=1)), "nor is padding counted where the learner chooses"
    assert not torch.equal(other, routes)
    replayed.reset_counts()
    assert sum(int(router.tokens_per_expert.sum()) for router in replayed.routers) == 0


def test_frozen_routers_stay_as_they_are_to_the_last_bit_and_others_move() -> None:
    groups = rolled(model())
    for freeze in (True, False):
        one = learner(model(), freeze=freeze)
        before = {name: value.clone() for name, value in one.model.state_dict().items()}
        one.step(groups, 1)
        same = [name for name, value in one.model.state_dict().items() if torch.equal(value, before[name])]
        gates = [name for name in before if ".gate." in name]
        assert gates
        assert set(same) >= set(gates) if freeze else not set(same) & {n for n in gates if n.endswith("weight")}
        assert "model.layers.0.self_attn.o_proj.weight" not in same


def test_groups_that_teach_nothing_move_nothing() -> None:
    one = learner(model())
    before = one.optimizer.values.clone()
    done = one.step([], 1)
    assert done.tokens == 0 and math.isnan(done.loss) and math.isnan(done.grad_norm)
    assert torch.equal(one.optimizer.values, before)


def test_a_kl_penalty_holds_the_policy_to_its_reference() -> None:
    groups = [replace(g, worths=[replace(w, reward=0.0) for w in g.worths]) for g in rolled(model())]
    held = RLLearner(moved(model()), replace(CONFIG, kl=1.0, weight_decay=0.0), TrainConfig(), model().eval())
    assert held.step(groups, 1).grad_norm > 0
    same = RLLearner(model(), replace(CONFIG, kl=1.0), TrainConfig(), model().eval())
    assert same.step(groups, 1).grad_norm == pytest.approx(0, abs=1e-5)


def test_micro_batches_of_another_size_give_the_same_gradient() -> None:
    groups = rolled(model())
    found = []
    for sequences in (2, 100):
        one = learner(model(), sequences=sequences, clip=1e9)
        one.step(groups, 1)
        found.append(one.optimizer.gradients[1:].clone())
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert float(found[0].norm()) > 0


def test_a_loss_that_is_not_finite_is_numerics() -> None:
    one = learner(model())
    groups = rolled(one.model)
    with torch.no_grad():
        one.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="step 4"):
        one.step(groups, 4)


def test_a_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(ContractError, match="does not fit"):
        learner(model(), optimizer="muon").load(learner(model()).state())


def test_completions_without_routes_are_refused() -> None:
    with pytest.raises(ContractError, match="routes"):
        collate([([1, 2], Completion([3], [-1.0], False), 1.0)], 4)


def test_the_learning_rate_warms_up_and_stays() -> None:
    config = replace(CONFIG, warmup=4, learning_rate=1e-4)
    assert [learning_rate(step, config) for step in (1, 2, 4, 9)] == pytest.approx([2.5e-5, 5e-5, 1e-4, 1e-4])


def test_an_aggregation_prompt_carries_the_ends_of_the_policys_own_candidates() -> None:
    config = replace(CONFIG, candidates=2, tail=3)
    for group in rolled(model(), config, aggregate=True):
        question, *tails = "".join(map(chr, group.prompt)).split(chr(TAIL))
        assert question == chr(ASK) + group.problem.question
        assert tails[-1].endswith(chr(REPLY))
        assert [len(tail.rstrip(chr(REPLY))) <= 3 for tail in tails] == [True, True]
    assert rolled(model(), config, aggregate=True)[0].prompt == rolled(model(), config, aggregate=True)[0].prompt


def test_the_tails_of_an_aggregation_prompt_are_cut_to_the_length() -> None:
    for length in (24, 27, 64):
        config = replace(CONFIG, candidates=2, tail=5, length=length)
        groups = rolled(model(), config, aggregate=True)
        assert all(len(group.prompt) + config.limit <= length for group in groups)
    assert any(len(group.prompt) > 27 - CONFIG.limit for group in groups)


def test_a_length_beyond_the_models_context_is_refused() -> None:
    with pytest.raises(ContractError, match="beyond the model's context of 4096"):
        learner(model(), length=4097)


def test_a_worker_without_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="weights"):
        RolloutWorker(asdict(MODEL), EnvironmentScorer()).roll(task())


def test_a_completion_that_did_not_end_is_worth_nothing() -> None:
    problem = task().asked[0].problem
    scorer = EnvironmentScorer()
    assert scorer.worth(problem, problem.answer, ended=True).reward == 1
    assert scorer.worth(problem, problem.answer, ended=False).reward == 0


def test_nothing_is_known_of_a_step_whose_groups_were_all_stale() -> None:
    taken = Taken(stale=4)
    assert all(math.isnan(value) for value in (taken.reward, taken.accuracy, taken.difficulty)) and taken.gold is None

"""Does training on aggregation prompts make Markovian RSA pay? Models that saw them in SFT and RL beside models that
did not.

`make bench NAME=rsa`. For each seed one model is trained from scratch on solved micro-tasks and stopped while it still
errs. From its weights two models go on: one sees, for a share of the questions, candidates, in SFT those that the first
model sampled and in RL its own; the other never does. SFT is the same steps over the same problems and rows of the same
length, RL the same steps at the same number of generated completions. After SFT and after RL both answer the same
held-out questions by plain sampling (pass@1, majority) and by RSA, at equal generated tokens. Uplift is RSA less the
other method, of one model; the effect is the difference of the two models' uplifts, paired by seed, with Student's
interval over the seeds. An interval that holds zero is reported as no effect. `ARGS=--page` writes docs/rsa.md,
`ARGS="--scale 0.1"` is a tenth of it, whose figures mean nothing. Two processes, one thread each.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.rsa_figures import ARMS, STAGES, Line, Trained, lines_of
from benchmarks.rsa_page import write_page
from benchmarks.rsa_rl import questions, reinforced
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.evaluation.compare import compare, means
from jobs.zaya.evaluation.policy import Policy
from jobs.zaya.evaluation.problem_sets import drawn, score
from jobs.zaya.evaluation_config import PrepareConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.preparation.lines import policy_tails, sft_lines
from jobs.zaya.prepare import as_lines
from jobs.zaya.rl.config import RLConfig
from jobs.zaya.rl.rewards import EnvironmentScorer
from jobs.zaya.rsa import Aggregation
from jobs.zaya.training.learner import Learner

MODEL = ModelConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    moe_intermediate_size=64,
    router_hidden_size=32,
)
ENVIRONMENTS = "micro/reverse@9-12, micro/sort@9-12"
BEFORE, AFTER = 300, 400
"""optimizer steps of the first model, and of each that goes on from it"""
SEQUENCES, LENGTH, RATES = 16, 96, (5e-3, 2e-3)
EXAMPLES, PROBLEMS = 2000, 64
"""of each environment: solved ones to train on, held-out ones to answer"""
SHARE = 0.5
NUMBERS = Aggregation(rollouts=8, candidates=3, rounds=2, limit=13, tail=12)
SEEDS = (11, 12, 13, 14, 15, 16)
"""lengths and steps were chosen on seeds 0 and 1, which are not among them"""
RL_STEPS, RL_RATE, ASKED, SAMPLES = 80, 5e-5, 16, 8
"""of RL: optimizer steps, questions a step with aggregation prompts, completions a question"""


def trained(lines: Sequence[Line], steps: int, rate: float, seed: int, state: Line | None) -> tuple[Learner, float]:
    """A learner after `steps` on these examples, from a state's weights or from scratch, and its last losses' mean."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "sft.jsonl").write_text(as_lines(lines))
        config = TrainConfig(
            steps=steps,
            sequences=SEQUENCES,
            length=LENGTH,
            seed=seed,
            warmup=20,
            learning_rate=rate,
            optimizer="muon",
            objective="sft",
        )
        learner = Learner(MODEL, config, 0, 1, Path(directory))
    if state is not None:
        learner.load_weights(state)
    losses = []
    for number in range(1, steps + 1):
        losses.append(learner.step(number, number).loss)
        learner.reset_counts()
    return learner, fmean(losses[-20:])


def one_seed(job: tuple[int, float]) -> list[Trained]:
    """The models of one seed: before both arms, then each arm after SFT and after RL."""
    seed, scale = job
    torch.set_num_threads(1)
    begun = time.process_time()
    examples = max(8, round(EXAMPLES * min(1.0, scale)))
    plain = PrepareConfig(aggregation=0.0, seed=seed)
    lines = sft_lines(drawn(ENVIRONMENTS, examples, seed, held=False), plain, score)
    first, loss = trained(lines, steps_of(BEFORE, scale), RATES[0], seed, None)
    state = copy.deepcopy(first.state())
    found = [answered(first.model, job, ("before", "before"), begun, {"loss": loss})]
    policy = Policy(first.model.eval(), seed=seed, together=256)
    solved = drawn(ENVIRONMENTS, examples, seed + 1000, held=False)
    for arm in ARMS:
        begun = time.process_time()
        config = PrepareConfig(
            aggregation=SHARE if arm == "with" else 0.0,
            candidates=NUMBERS.candidates,
            tail=NUMBERS.tail,
            limit=NUMBERS.limit,
            seed=seed,
        )
        tails = partial(policy_tails, generate=policy, config=config)
        lines = sft_lines(solved, config, score, tails)
        learner, loss = trained(lines, steps_of(AFTER, scale), RATES[1], seed, state)
        found.append(answered(learner.model, job, (arm, STAGES[0]), begun, {"loss": loss}))
        begun = time.process_time()
        done = reinforced(learner.model, MODEL, rl_of(arm, seed, scale), EnvironmentScorer())
        found.append(answered(done.model, job, (arm, STAGES[1]), begun, done.told()))
    return found


def steps_of(steps: int, scale: float) -> int:
    """Optimizer steps at a scale."""
    return max(2, round(steps * scale))


def rl_of(arm: str, seed: int, scale: float) -> RLConfig:
    """An arm's stage of reinforcement learning; both generate as many completions, candidates counted."""
    config = RLConfig(
        steps=steps_of(RL_STEPS, scale),
        seed=seed,
        learning_rate=RL_RATE,
        warmup=10,
        sequences=64,
        length=LENGTH,
        prompts=ASKED,
        samples=SAMPLES,
        limit=NUMBERS.limit,
        candidates=NUMBERS.candidates,
        tail=NUMBERS.tail,
        sync_every=1,
        redraws=0,
        aggregate=SHARE,
        environments=ENVIRONMENTS,
    )
    return config if arm == "with" else replace(config, aggregate=0.0, prompts=questions(config))


def answered(
    model: ZayaForCausalLM, job: tuple[int, float], what: tuple[str, str], begun: float, told: Mapping[str, float]
) -> Trained:
    """What a model's methods score on held-out problems; `what` is its arm and stage, `begun` the CPU's time before."""
    seed, scale = job
    asked = drawn(ENVIRONMENTS, max(2, round(PROBLEMS * scale)), seed, held=True)
    metrics = means(compare(asked, Policy(model.eval(), seed=seed, together=256), NUMBERS, seed, score))
    one = Trained(seed, *what, metrics, time.process_time() - begun, told)
    said = f"seed {seed} {', '.join(what)}: {dict(told)} {metrics} {one.cpu_s:.0f} CPU-s"
    print(said, file=sys.stderr, flush=True)
    return one


def main(arguments: Sequence[str]) -> int:
    """One JSON line a figure; it is an experiment without a target, so 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.rsa", description="The uplift of RSA, with and without training.")
    parser.add_argument("--page", action="store_true", help="write docs/rsa.md")
    parser.add_argument("--scale", type=float, default=1.0, help="of steps and problems")
    given = parser.parse_args(arguments)
    if given.page and given.scale != 1:
        parser.error("the page is of a whole run")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [one for each in pool.map(one_seed, [(seed, given.scale) for seed in SEEDS]) for one in each]
    lines = lines_of(found, given.scale)
    for line in lines:
        print(json.dumps(line), flush=True)
    if given.page:
        write_page(lines, facts())
    return 0


def facts() -> Line:
    """What the page says of the experiment."""
    return {
        "parameters": 493_480,
        "environments": ENVIRONMENTS,
        "before": BEFORE,
        "after": AFTER,
        "rows": f"{SEQUENCES} × {LENGTH}",
        "examples": EXAMPLES,
        "problems": PROBLEMS * len(ENVIRONMENTS.split(",")),
        "share": SHARE,
        "rl_steps": RL_STEPS,
        "rl_rate": f"rate {RL_RATE:g}",
        "asked": ASKED,
        "asked_plain": rl_of("without", 0, 1.0).prompts,
        "samples": SAMPLES,
        "n": NUMBERS.rollouts,
        "c": NUMBERS.candidates,
        "t": NUMBERS.rounds,
        "beta": NUMBERS.limit,
        "tau": NUMBERS.tail,
        "seeds": len(SEEDS),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

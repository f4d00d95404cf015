"""Does training on aggregation prompts make Markovian RSA pay? Models that saw them in SFT beside models that did not.

`make bench NAME=rsa`. For each seed one model is trained from scratch on solved micro-tasks and stopped while it still
errs. From its weights two models go on for the same steps over the same problems and rows of the same length: one
sees, for a share of the questions, candidates that the first model sampled; the other never does. Both then answer the
same held-out questions by plain sampling (pass@1, majority) and by RSA, at equal generated tokens. Uplift is RSA less
the other method, of one model; the effect is the difference of the two models' uplifts, paired by seed, with Student's
interval over the seeds. An interval that holds zero is reported as no effect. SFT alone: reinforcement learning on
aggregation prompts is not part of this bench. `ARGS=--page` writes docs/rsa.md, `ARGS="--scale 0.1"` is a tenth of it,
whose figures mean nothing. Two processes, one thread each.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.rsa_page import write_page
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.evaluation.compare import compare, means
from jobs.zaya.evaluation.policy import Policy
from jobs.zaya.evaluation.problem_sets import drawn, score
from jobs.zaya.evaluation_config import PrepareConfig
from jobs.zaya.preparation.lines import policy_tails, sft_lines
from jobs.zaya.prepare import as_lines
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
ARMS = {"with": SHARE, "without": 0.0}
_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 % by degrees of freedom"""
Line = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """One model's scores on the held-out problems."""

    seed: int
    arm: str
    loss: float
    """nats a learned byte, mean of the last 20 steps; the arms learn from other examples"""
    metrics: dict[str, float]
    cpu_s: float

    def uplift(self, over: str) -> float:
        """RSA's score less that of another method."""
        return self.metrics["rsa"] - self.metrics[over]


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


def answers_of(learner: Learner, seed: int, scale: float) -> dict[str, float]:
    """What a model's methods score on held-out problems."""
    asked = drawn(ENVIRONMENTS, max(2, round(PROBLEMS * scale)), seed, held=True)
    policy = Policy(learner.model.eval(), seed=seed, together=256)
    return means(compare(asked, policy, NUMBERS, seed, score))


def one_seed(job: tuple[int, float]) -> list[Trained]:
    """The models of one seed: with and without, and before both."""
    seed, scale = job
    torch.set_num_threads(1)
    begun = time.process_time()
    before, after = (max(2, round(steps * scale)) for steps in (BEFORE, AFTER))
    examples = max(8, round(EXAMPLES * min(1.0, scale)))
    plain = PrepareConfig(aggregation=0.0, seed=seed)
    first, loss = trained(
        sft_lines(drawn(ENVIRONMENTS, examples, seed, held=False), plain, score), before, RATES[0], seed, None
    )
    state = copy.deepcopy(first.state())
    found = [Trained(seed, "before", loss, answers_of(first, seed, scale), time.process_time() - begun)]
    policy = Policy(first.model.eval(), seed=seed, together=256)
    solved = drawn(ENVIRONMENTS, examples, seed + 1000, held=False)
    for arm, share in ARMS.items():
        begun = time.process_time()
        config = PrepareConfig(
            aggregation=share,
            candidates=NUMBERS.candidates,
            tail=NUMBERS.tail,
            limit=NUMBERS.limit,
            seed=seed,
        )
        tails = partial(policy_tails, generate=policy, config=config)
        learner, loss = trained(sft_lines(solved, config, score, tails), after, RATES[1], seed, state)
        found.append(Trained(seed, arm, loss, answers_of(learner, seed, scale), time.process_time() - begun))
    for one in found:
        print(
            f"seed {seed} {one.arm}: loss {one.loss:.3f} {one.metrics} {one.cpu_s:.0f} CPU-s",
            file=sys.stderr,
            flush=True,
        )
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t, values taken as independent and normal; at least two."""
    mean = fmean(values)
    half = _QUANTILES[len(values) - 1] * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def word_for(low: float, high: float) -> str:
    """What an interval lets one say."""
    return "gain" if low > 0 else "loss" if high < 0 else "no effect"


def lines_of(found: Sequence[Trained], scale: float) -> list[Line]:
    """Each model's scores, then uplifts and effects over the seeds."""
    by_arm = {arm: [one for one in found if one.arm == arm] for arm in ARMS}
    both = list(zip(by_arm["with"], by_arm["without"], strict=True))
    told: dict[str, list[float]] = {}
    for over in ("pass@1", "maj"):
        for arm, models in by_arm.items():
            told[f"RSA less {over}, {arm} aggregation prompts"] = [one.uplift(over) for one in models]
        told[f"effect of the prompts on RSA less {over}"] = [a.uplift(over) - b.uplift(over) for a, b in both]
    for method in ("pass@1", "maj", "rsa"):
        told[f"effect of the prompts on {method}"] = [a.metrics[method] - b.metrics[method] for a, b in both]
    told["RSA with the prompts less the better plain method without them"] = [
        a.metrics["rsa"] - max(b.metrics["pass@1"], b.metrics["maj"]) for a, b in both
    ]
    return [*(_scores(one) for one in found), *(_figure(name, values, scale) for name, values in told.items())]


def _scores(one: Trained) -> Line:
    return {
        "name": f"RSA, seed {one.seed}, {one.arm}",
        "value": round(one.metrics["rsa"], 4),
        "unit": "1",
        "target": None,
        "better": "higher",
        "peer": "majority at equal generated tokens",
        "peer_value": round(one.metrics["maj"], 4),
        "pass@1": round(one.metrics["pass@1"], 4),
        "seed": one.seed,
        "arm": one.arm,
        "rsa_tokens": round(one.metrics["tokens_per_problem"], 1),
        "plain_tokens": round(one.metrics["plain_tokens_per_problem"], 1),
        "loss": round(one.loss, 4),
        "cpu_s": round(one.cpu_s, 1),
    }


def _figure(name: str, values: Sequence[float], scale: float) -> Line:
    mean, low, high = interval(values)
    return {
        "name": name,
        "value": round(mean, 4),
        "unit": "1",
        "target": None,
        "better": "higher",
        "peer": None,
        "peer_value": None,
        "interval": [round(low, 4), round(high, 4)],
        "each": [round(value, 4) for value in values],
        "found": word_for(low, high),
        "scale": scale,
    }


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
        "n": NUMBERS.rollouts,
        "c": NUMBERS.candidates,
        "t": NUMBERS.rounds,
        "beta": NUMBERS.limit,
        "tau": NUMBERS.tail,
        "seeds": len(SEEDS),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

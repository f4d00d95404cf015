"""Evaluates one checkpoint, the one whose hash it was given, and leaves the metrics that a gate judges.

`python -m jobs.zaya.evaluate`: one process, level 2 of the contract. A step is a batch of problems; there are
`train.steps` of them. It writes no checkpoint, so one that is stopped begins anew. What is measured: the loss on text
with the balance of the experts on it, and on held-out problems pass@1, majority and Markovian RSA at equal generated
tokens beside the best constant answer.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from jobs.contract import (
    ContractError,
    Environment,
    Exit,
    HeartbeatWriter,
    Result,
    StopFlag,
    checkpoint_hash,
    write_result,
)
from jobs.zaya.attempt import TooLateError, carry_out_alone
from jobs.zaya.checkpoints.state import model_of
from jobs.zaya.envs.base import Problem, constant_baseline_of
from jobs.zaya.envs.registry import find
from jobs.zaya.evaluation.compare import Compared, compare, means
from jobs.zaya.evaluation.policy import Policy
from jobs.zaya.evaluation.problem_sets import by_environment, drawn, of_sets, telling
from jobs.zaya.evaluation.text_loss import held_out_windows, text_metrics
from jobs.zaya.evaluation_config import EvaluationConfig, read_config
from jobs.zaya.judge.pairs import PREFERENCES, read_pairs
from jobs.zaya.judge.preference import Proxy
from jobs.zaya.judge.rubric import gold

SHOWN = 60
"""rows of the table of problems that a result keeps"""
_CHARACTERS = 200


def batches(problems: Sequence[Problem], count: int) -> list[Sequence[Problem]]:
    """The problems in `count` parts of nearly equal size, in order; some are empty when there are too few."""
    edges = [len(problems) * number // count for number in range(count + 1)]
    return [problems[begin:end] for begin, end in pairwise(edges)]


def metrics_of(found: Sequence[Compared], told: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The metrics over all problems, and of each environment under `<environment>/<metric>`.

    `pass@1_se` is the standard error of pass@1 on these very problems: what other samples of them would change.
    `constant_baseline` has answers scored (`constant_baseline_of`), and `told` is called after each.
    """
    problems = [one.problem for one in found]
    metrics = means(found) | _spread(found)
    baselines = []
    for name, places in by_environment(problems).items():
        own = [found[place] for place in places]
        baseline = constant_baseline_of(find(name), [one.problem for one in own], told)
        baselines += [baseline] * len(own)
        metrics |= {f"{name}/{metric}": value for metric, value in (means(own) | _spread(own)).items()}
        metrics[f"{name}/constant_baseline"] = baseline
    return metrics | {"constant_baseline": fmean(baselines), "problems": float(len(found))}


def _spread(found: Sequence[Compared]) -> dict[str, float]:
    """`pass@1_se`; nothing where a problem has one sample, which says nothing of its spread.

    Each problem's samples are independent, so the mean over problems has the variance Σ s²/n / N², where s² is the
    unbiased variance of a problem's n scores: p (1 − p) n / (n − 1) of scores 0 and 1, and no more of those between.
    """
    if any(one.samples < 2 for one in found):
        return {}
    variance = sum(one.pass_at_1 * (1 - one.pass_at_1) / (one.samples - 1) for one in found)
    return {"pass@1_se": math.sqrt(variance) / len(found)}


def table(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """What a person looks at: up to SHOWN problems, spread over all of them, with the answers given."""
    step = max(1, -(-len(found) // SHOWN))
    return [
        {
            "environment": one.problem.environment,
            "id": one.problem.id,
            "difficulty": one.problem.difficulty,
            "question": one.problem.question[:_CHARACTERS],
            "answer": one.problem.answer[:_CHARACTERS],
            "majority": one.majority_answer[:_CHARACTERS],
            "rsa_majority": one.rsa_answer[:_CHARACTERS],
            "pass@1": one.pass_at_1,
            "maj": one.maj,
            "rsa": one.rsa,
            "samples": one.samples,
            "rsa_tokens": one.rsa_tokens,
        }
        for one in found[::step]
    ]


def judged(found: Sequence[Compared], proxy: Proxy | None) -> dict[str, float]:
    """`gold`, the rubric's mean score over all plain samples, and `proxy`, the mean of what rewards them in training
    (Proxy.preferred), 0 to 1 both. One that never ended is no answer and counts as 0, as it does there and in pass@1.
    """
    given = [(one.problem.question, answer) for one in found for answer in one.answers]
    samples = sum(one.samples for one in found)
    metrics = {"gold": math.fsum(gold(*pair) for pair in given) / samples}
    if proxy is not None:
        metrics["proxy"] = math.fsum(proxy.preferred(*pair) for pair in given) / samples
    return metrics


class Evaluation:
    """One attempt. `step` counts batches of problems."""

    def __init__(self, environment: Environment, beat: HeartbeatWriter, flag: StopFlag) -> None:
        self.environment, self.beat, self.flag = environment, beat, flag
        self.step = 0

    def run(self) -> Exit:
        """Evaluates and writes the result; ContractError without the checkpoint that was asked for."""
        self.beat.phase("load")
        config = read_config(EvaluationConfig)
        init = self.environment.init_from
        if init is None:
            raise ContractError("TRIMTAB_INIT_FROM names no checkpoint: there is nothing to evaluate")
        manifest, self.model = model_of(init, self.environment.init_hash)
        problems = drawn(config.environments, config.problems, config.seed, held=True) + of_sets(config.sets)
        proxy = self._proxy(config) if problems else None  # in this phase: a fit is one silent piece of work
        self.beat.phase("eval")
        found = self._attempt(problems, config)
        metrics, details = (metrics_of(found, self._look), self._details(found, config)) if found else ({}, {})
        if found and config.judge != "none":
            metrics |= judged(found, proxy)
        if config.windows:
            told, text = self._text(config)
            metrics, details = metrics | told, details | {"text": text}
        details |= {"checkpoint": str(init), "step": manifest.step, "stage": manifest.stage}
        found_hash = self.environment.init_hash or checkpoint_hash(init)
        write_result(self.environment.checkpoint_dir, Result(metrics, found_hash, details))
        print(" ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name), flush=True)
        return Exit.DONE

    def _attempt(self, problems: Sequence[Problem], config: EvaluationConfig) -> list[Compared]:
        policy = Policy(
            self.model,
            seed=config.seed,
            temperature=config.temperature,
            together=config.sequences,
            told=self._look,
        )
        found: list[Compared] = []
        score = telling(self._look)
        for part in batches(problems, config.batches):
            found += compare(part, policy, config.aggregation, config.seed, score) if part else []
            self._look()
            self.step += 1
            self.beat.step(self.step)
            print(f"batch {self.step} of {config.batches}: {len(found)} of {len(problems)} problems", flush=True)
        return found

    def _text(self, config: EvaluationConfig) -> tuple[dict[str, float], dict[str, Any]]:
        """`loss` and `max_vio` on the documentation, `code_loss` on source code, and what to say of the text."""
        docs, code = (held_out_windows(name, config.length, config.windows) for name in ("python-docs", "python-code"))
        metrics = text_metrics(self.model, docs, self._look)
        metrics["code_loss"] = text_metrics(self.model, code, self._look)["loss"]
        about = {"windows": config.windows, "length": config.length, "held_out": True}
        return metrics, about

    def _proxy(self, config: EvaluationConfig) -> Proxy | None:
        """The preference model, fitted to the pairs that the stage's preparing job wrote; None if not asked for."""
        if config.judge != "proxy":
            return None
        if self.environment.prepared_dir is None:
            raise ContractError("the judge proxy is fitted to prepared pairs, and TRIMTAB_PREPARED_DIR is not set")
        proxy = Proxy()
        proxy.fit(read_pairs(self.environment.prepared_dir / PREFERENCES), config.seed)
        return proxy

    def _details(self, found: Sequence[Compared], config: EvaluationConfig) -> dict[str, Any]:
        return {
            "problems": table(found),
            "rsa": asdict(config.aggregation),
            "temperature": config.temperature,
            "seed": config.seed,
            "longest_prompt": max(one.longest_prompt for one in found),
            "longest_completion": max(one.longest_completion for one in found),
            "samples_per_problem": fmean(one.samples for one in found),
            "first_rollouts": fmean(one.first for one in found),
        }

    def _look(self) -> None:
        """Says that work goes on, and ends the attempt if somebody asked for it."""
        self.beat.alive()
        if self.flag.stop:
            raise TooLateError(f"told to stop after batch {self.step}: an evaluation keeps nothing and begins anew")


def attempt(flag: StopFlag) -> int:
    """Runs the attempt; every end leaves an exit record."""
    return carry_out_alone(Evaluation, "an evaluation", flag)


def main() -> int:
    """Exit codes of the contract."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return attempt(StopFlag())


if __name__ == "__main__":
    sys.exit(main())

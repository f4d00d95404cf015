"""Prepares a stage's data from problems, and from the policy that the stage starts from where the kind needs one.

`python -m jobs.zaya.prepare`: one process, level 2 of the contract; a step is a batch of problems. What `data.kind`
names is written into TRIMTAB_PREPARED_DIR, a file whole or not at all, equal for equal seeds and policies:

- `sft`: sft.jsonl, solved problems and aggregation prompts (their candidates noise, or the policy's own);
- `preferences`: preferences.jsonl, pairs of answers that the written rubric tells apart, some labels turned round;
  answers in made-up manners, or the policy's own;
- `calibration`: calibration.json, where each environment's adaptive difficulty starts, by the policy's accuracy;
- `filter`: problems.jsonl, the problems that the policy neither always nor never solves;
- `pack`: sft.jsonl again, its tails cut so that every example fits into `train.length` tokens.

Held-out questions are never drawn, and left out of sets; the sets that ship are evaluation's and refused.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
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
    sha256_of,
    write_result,
)
from jobs.zaya.attempt import TooLateError, carry_out_alone
from jobs.zaya.checkpoints.state import model_of
from jobs.zaya.envs.base import Problem, draw
from jobs.zaya.evaluate import batches
from jobs.zaya.evaluation.policy import Policy
from jobs.zaya.evaluation.problem_sets import drawn, of_sets, ranges, telling, trainable
from jobs.zaya.evaluation_config import PrepareConfig, read_config
from jobs.zaya.judge.pairs import PREFERENCES, labelled, pairs
from jobs.zaya.judge.rubric import gold
from jobs.zaya.preparation.lines import (
    Answered,
    Line,
    answered,
    answers_by_environment,
    calibrated,
    manner_lines,
    packed,
    policy_tails,
    sft_lines,
    taught_by,
)
from jobs.zaya.training.examples import FILE

Made = tuple[str, str, dict[str, float]]
"""a file's name, its text, and metrics for people"""


def write_whole(path: Path, text: str) -> None:
    """Writes a file under its name only when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_lines(lines: Sequence[Line]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


class Preparation:
    """One attempt. `step` counts batches of problems."""

    def __init__(self, environment: Environment, beat: HeartbeatWriter, flag: StopFlag) -> None:
        self.environment, self.beat, self.flag = environment, beat, flag
        self.step = 0
        self._policy: Policy | None = None

    def run(self) -> Exit:
        """Writes the file and the result; ContractError when something that the kind needs is not there."""
        self.beat.phase("load")
        self.config = read_config(PrepareConfig)
        if self.environment.prepared_dir is None:
            raise ContractError("TRIMTAB_PREPARED_DIR names no directory to prepare into")
        kinds: dict[str, Callable[[], Made]] = {
            "sft": self._sft,
            "preferences": self._preferences,
            "calibration": self._calibration,
            "filter": self._filter,
            "pack": self._pack,
        }
        name, text, metrics = kinds[self.config.kind]()
        self.beat.phase("checkpoint")
        path = self.environment.prepared_dir / name
        write_whole(path, text)
        details = {"kind": self.config.kind, "path": str(path), "sha256": sha256_of(path), "head": text[:2000]}
        write_result(self.environment.checkpoint_dir, Result(metrics, self.environment.init_hash, details))
        print(f"prepared {path}: {metrics}", flush=True)
        return Exit.DONE

    def policy(self) -> Policy:
        """The model that the stage starts from."""
        init = self.environment.init_from
        if init is None:
            raise ContractError(f"{self.config.kind} needs a policy, and TRIMTAB_INIT_FROM names no checkpoint")
        if self._policy is None:
            _, model = model_of(init, self.environment.init_hash)
            config = self.config
            self._policy = Policy(
                model,
                seed=config.seed,
                temperature=config.temperature,
                together=config.sequences,
                told=self._look,
            )
        return self._policy

    def _problems(self) -> list[Problem]:
        config = self.config
        return drawn(config.environments, config.problems, config.seed, held=False) + trainable(
            of_sets(config.sets), config.sets
        )

    def _each(self, problems: Sequence[Problem], work: Callable[[Sequence[Problem]], None]) -> None:
        """Works the problems off in `train.steps` batches, a step each."""
        self.beat.phase("rollout" if self._policy else "eval")
        for part in batches(problems, self.config.batches):
            if part:
                work(part)
            self._look()
            self.step += 1
            self.beat.step(self.step)

    def _look(self) -> None:
        """Says that work goes on, and ends the attempt if somebody asked for it."""
        self.beat.alive()
        if self.flag.stop:
            raise TooLateError(f"told to stop after batch {self.step}: a preparation keeps nothing and begins anew")

    def _sft(self) -> Made:
        lines: list[Line] = []
        score = telling(self._look)
        policy = self.policy() if self.config.source == "policy" else None
        tails = partial(policy_tails, generate=policy, config=self.config) if policy is not None else None
        problems = [problem for problem in self._problems() if problem.answer]  # some of RLVE's know no answer
        if not problems:
            raise ContractError("none of these problems comes with an answer to learn: ask for other environments")
        others = answers_by_environment(problems)
        self._each(problems, lambda part: lines.extend(sft_lines(part, self.config, score, tails, others)))
        config = self.config
        lines += manner_lines(drawn(config.manners, config.problems, config.seed, held=False), config.seed)
        shown = [line for line in lines if line["tails"]]
        right = [line["answer"].endswith(tail) and bool(tail) for line in shown for tail in line["tails"]]
        return (
            FILE,
            as_lines(lines),
            {
                "lines": float(len(lines)),
                "aggregation_share": len(shown) / len(lines),
                "right_tails": fmean(right) if right else 0.0,
            },
        )

    def _answered(self, problems: Sequence[Problem]) -> list[Answered]:
        policy, found, score = self.policy(), list[Answered](), telling(self._look)
        self._each(problems, lambda part: found.extend(answered(part, policy, self.config, score)))
        return found

    def _calibration(self) -> Made:
        config = self.config
        problems = [
            draw(one, difficulty, config.seed * 1_000_003 + number, held=False)
            for one, difficulties in ranges(config.environments)
            for difficulty in difficulties
            for number in range(config.problems)
        ]
        found = self._answered(problems)
        environments = calibrated(found, config.threshold)
        told: dict[str, Any] = {
            "checkpoint_hash": self.environment.init_hash,
            "threshold": config.threshold,
            "problems": config.problems,
            "samples": config.samples,
            "environments": environments,
        }
        metrics = {f"{name}/bound": float(one["bound"]) for name, one in environments.items()}
        return "calibration.json", json.dumps(told, indent=1) + "\n", metrics | {"pass@1": _mean(found)}

    def _filter(self) -> Made:
        found = self._answered(self._problems())
        kept = taught_by(found)
        if not kept:
            raise ContractError(
                f"the policy always or never solves each of {len(found)} problems: ask for others or for more samples"
            )
        text = "".join(one.problem.to_json() + "\n" for one in kept)
        metrics = {
            "problems": float(len(found)),
            "kept": float(len(kept)),
            "always": float(sum(min(one.scores) == max(one.scores) == 1 for one in found)),
            "never": float(sum(max(one.scores) == 0 for one in found)),
            "pass@1": _mean(found),
        }
        return "problems.jsonl", text, metrics

    def _preferences(self) -> Made:
        config = self.config
        if config.source == "policy":
            found = [(one.problem.question, one.answers) for one in self._answered(self._problems())]
            made = list(labelled(found, config.seed, config.noise))
        else:
            count = config.problems * len(ranges(config.environments))
            made = pairs(ranges(config.environments), count, config.seed, config.noise)
            self._each([], lambda _part: None)
        if not made:
            raise ContractError("the rubric finds the policy's answers to each question equal: ask for more samples")
        told = [gold(pair.question, pair.better) > gold(pair.question, pair.worse) for pair in made]
        metrics = {"pairs": float(len(made)), "labels_right": fmean(told)}
        return PREFERENCES, as_lines([asdict(pair) for pair in made]), metrics

    def _pack(self) -> Made:
        directory = self.environment.prepared_dir or Path()
        try:
            lines = [json.loads(line) for line in (directory / FILE).read_text(encoding="utf-8").splitlines() if line]
            # the trainer's rows hold one token more than it predicts
            kept, metrics = packed(lines, self.config.length + 1)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ContractError(
                f"no {FILE} to pack, which a preparing job before this one writes: {error!r}"
            ) from error
        if not kept:
            raise ContractError(f"no example of {len(lines)} fits into train.length {self.config.length}")
        self._each([], lambda _part: None)
        return FILE, as_lines(kept), metrics


def _mean(found: Sequence[Answered]) -> float:
    return fmean(one.accuracy for one in found)


def attempt(flag: StopFlag) -> int:
    """Runs the attempt; every end leaves an exit record."""
    return carry_out_alone(Preparation, "a preparation", flag)


def main() -> int:
    """Exit codes of the contract."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return attempt(StopFlag())


if __name__ == "__main__":
    sys.exit(main())

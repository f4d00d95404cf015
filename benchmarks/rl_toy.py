"""Reinforcement learning at toy size: what each stage makes of a model that was fine-tuned a little.

`make bench NAME=rl-toy` prepares and fine-tunes the toy, then runs the four stages one behind the other with the
programs that a lifecycle runs, and evaluates before and after each: pass@1 of sampled answers to questions that
training never draws, beside the best constant answer. One JSON line a stage; seconds are of this machine.

    python -m benchmarks.rl_toy [--directory DIR] [--seed N] [--stages rl-1,rl-2,rl-3,rl-4] [--sft-steps N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.contract import checkpoint_hash, list_checkpoints, read_result
from jobs.zaya.envs.base import draw
from jobs.zaya.envs.registry import find
from jobs.zaya.judge.pairs import PREFERENCES, manners, pairs, write_pairs

ROUTER = {"experts": 16, "balancing": "adamw"}
REASONING = "micro/reverse@3-4,micro/sort@2-3"
ADAPTIVE = "micro/reverse@2-8,micro/sort@2-8"
MIXED = "math/union@2-3,code/fold@1-2"
MANNERS = "micro/first@2-3"
LEARNED = f"micro/reverse@2-4,micro/sort@2-4,{MIXED}"
RL = {
    "steps": 25,
    "checkpointEvery": 25,
    "prompts": 16,
    "samples": 8,
    "limit": 10,
    "sequences": 128,
    "length": 64,
    "learningRate": 5e-4,
    "warmup": 5,
    "ahead": 1,
}


@dataclass(frozen=True)
class Stage:
    """One stage: its words beside RL, and what it is evaluated on."""

    name: str
    data: dict[str, Any]
    evaluated: str
    train: dict[str, Any] = field(default_factory=dict)
    metric: str = "pass@1"
    problems: int = 48
    """held-out ones of each environment; there are as many as its span has"""


STAGES = (
    Stage("rl-1", {"environments": REASONING}, REASONING),
    Stage("rl-2", {"environments": ADAPTIVE, "curriculum": "zyphra"}, "micro/reverse@4-6,micro/sort@4-6"),
    Stage("rl-3", {"environments": MIXED}, MIXED, {"redraws": 0}),
    Stage(
        "rl-4", {"environments": MANNERS, "judge": "proxy"}, MANNERS, {"limit": 24, "learningRate": 2e-4}, "gold", 24
    ),
)


class Bench:
    """Runs programs as a controller would, each in a run directory of its own."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.seed = directory, seed
        self.cpu_s = self.wall_s = 0.0

    def run(self, name: str, module: str, maps: dict[str, dict[str, Any]], **more: str) -> Path:
        """A program's run to its end; returns its attempt's directory. SystemExit with its output when it fails."""
        run = self.directory / name
        prepared = self.directory / name.partition("_")[0] / "prepared"
        for needed in (run, prepared):
            needed.mkdir(parents=True, exist_ok=True)
        env = {key: value for key, value in os.environ.items() if not key.startswith("TRIMTAB_")}
        env |= {"TRIMTAB_RUN_DIR": str(run), "TRIMTAB_STAGE": name.partition("_")[0], "OMP_NUM_THREADS": "1", **more}
        env |= {f"TRIMTAB_{key.upper()}_JSON": json.dumps(value) for key, value in maps.items()}
        env["TRIMTAB_PREPARED_DIR"] = str(prepared)
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", module], env=env, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall_s = time.monotonic() - begun
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        (run / "log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return run / "attempt-0001"

    def from_(self, checkpoint: Path) -> dict[str, str]:
        return {"TRIMTAB_INIT_FROM": str(checkpoint), "TRIMTAB_INIT_HASH": checkpoint_hash(checkpoint)}

    def fine_tune(self, steps: int) -> Path:
        """A model that knows what answers look like and is right now and then; returns its checkpoint."""
        data = {"kind": "sft", "environments": LEARNED, "problems": 1500, "aggregation": 0.1, "tail": 8}
        self.run("sft_prepare", "jobs.zaya.prepare", {"train": {"steps": 1, "seed": self.seed}, "data": data})
        self._with_manners(self.directory / "sft" / "prepared" / "sft.jsonl")
        train = {"steps": steps, "checkpointEvery": steps, "seed": self.seed, "sequences": 64, "length": 72}
        train |= {"objective": "sft", "learningRate": 3e-3, "warmup": 20}
        self.run("sft", "jobs.zaya.train", {"train": train, "router": ROUTER})
        return list_checkpoints(self.directory / "sft")[-1]

    def _with_manners(self, path: Path) -> None:
        """Adds questions answered in many manners, so that the behaviour stage has something to choose from."""
        rng = random.Random(self.seed)
        name, _, span = MANNERS.partition("@")
        with path.open("a") as file:
            for number in range(500):
                problem = draw(find(name), rng.choice([int(one) for one in span.split("-")]), number, held=False)
                line = {"id": problem.id, "question": problem.question, "answer": manners(problem, rng)[:24]}
                file.write(json.dumps(line) + "\n")

    def evaluate(self, name: str, stage: Stage, checkpoint: Path) -> dict[str, float]:
        """Metrics of a checkpoint on a stage's held-out questions."""
        data: dict[str, Any] = {
            "environments": stage.evaluated,
            "problems": stage.problems,
            "rollouts": 384 // stage.problems,
            "rounds": 0,
            "candidates": 1,
            "windows": 0,
            "limit": stage.train.get("limit", RL["limit"]),
            "tail": 4,
        }
        data |= {"judge": "proxy"} if stage.metric == "gold" else {}
        maps = {"train": {"steps": 1, "seed": self.seed + 1}, "data": data}
        found = read_result(self.run(name, "jobs.zaya.evaluate", maps, **self.from_(checkpoint)))
        assert found is not None
        return dict(found.metrics)

    def stage(self, stage: Stage, start: Path) -> tuple[Path, dict[str, Any]]:
        """Runs a stage from a checkpoint; returns its last one and the line to print."""
        prepared = self.directory / stage.name / "prepared"
        prepared.mkdir(parents=True, exist_ok=True)
        if stage.metric == "gold":
            name, _, span = stage.evaluated.partition("@")
            low, high = map(int, span.split("-"))
            write_pairs(prepared / PREFERENCES, pairs([(find(name), range(low, high + 1))], 600, self.seed))
        before = self.evaluate(f"{stage.name}_before", stage, start)
        maps = {"train": {**RL, **stage.train, "seed": self.seed}, "router": ROUTER, "data": stage.data}
        attempt = self.run(stage.name, "jobs.zaya.rl", maps, **self.from_(start))
        cpu_s, wall_s = self.cpu_s, self.wall_s
        last = list_checkpoints(self.directory / stage.name)[-1]
        after = self.evaluate(f"{stage.name}_after", stage, last)
        trained = read_result(attempt)
        assert trained is not None
        return last, {
            "name": f"{stage.name}, {stage.metric} on held-out prompts",
            "value": round(after[stage.metric], 4),
            "peer": "before the stage",
            "peer_value": round(before[stage.metric], 4),
            "constant_baseline": round(after["constant_baseline"], 4),
            "environments": {
                key.removesuffix("/pass@1"): [round(one[key], 4) for one in (before, after)]
                for key in after
                if key.endswith("/pass@1")
            },
            "pass@1": [round(before["pass@1"], 4), round(after["pass@1"], 4)],
            "reward": [round(trained.metrics[key], 4) for key in ("first_reward", "reward")],
            "proxy": [round(one.get("proxy", 0.0), 4) for one in (before, after)],
            "steps": maps["train"]["steps"],
            "cpu_s": round(cpu_s, 1),
            "wall_s": round(wall_s, 1),
            "seed": self.seed,
        }


def main() -> int:
    """Prints a line a stage; 1 when one did not raise its metric, or stays below a constant answer."""
    parser = argparse.ArgumentParser(description="Reinforcement learning at toy size.")
    parser.add_argument("--directory", type=Path, help="where the runs are kept; a temporary one otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(stage.name for stage in STAGES))
    parser.add_argument("--sft-steps", type=int, default=250)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rl-toy-") as temporary:
        directory = given.directory or Path(temporary)
        bench = Bench(directory, given.seed)
        tuned = list_checkpoints(directory / "sft")
        last = tuned[-1] if tuned else bench.fine_tune(given.sft_steps)
        failed = False
        for stage in STAGES:
            if stage.name in given.stages.split(","):
                last, line = bench.stage(stage, last)
                print(json.dumps(line), flush=True)
                failed |= line["value"] <= line["peer_value"] or line["value"] <= line["constant_baseline"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

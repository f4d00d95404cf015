"""A labelled corpus of expert balance, made by really training the reference model at a small shape: `make corpus`.

Each run is one process: the batch of four data-parallel ranks goes through the model at once (which is what data
parallelism computes), and each rank's choices are counted apart, so that the spread between ranks is real too. Into the
runs that are not healthy something is planted, named in SCENARIOS, at a known step. A run is kept under a hash of what
it is made of: its recipe, its plant's code and what the trainer does in its first steps. What judges the runs is not
here (benchmarks/expert_judgement.py).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.zaya.checkpoints.state import bias_checksum
from jobs.zaya.config import ModelConfig, TrainConfig
from jobs.zaya.model.network import Router
from jobs.zaya.training import data
from jobs.zaya.training.learner import Learner, NumericsError

FOLDER = Path(".cache/corpus")
RANKS, EXPERT_PARALLEL, LENGTH = 4, 4, 64
SHAPE = ModelConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    head_dim=8,
    num_experts=8,
    moe_intermediate_size=16,
    router_hidden_size=16,
)
SEEDS, SEQUENCES = (1, 2, 5, 6), (1, 2, 4)
CHOOSING = (1, 2)
"""Thresholds were chosen on the runs of these seeds; the others are held out."""
HEALTHY_STEPS, CHOOSING_STEPS, PLANTED_STEPS, ONSET, RESUMED = 5400, 2600, 1100, 800, 1300
RATE, PLANTED_SEQUENCES, FINGERPRINT_STEPS = 0.02, (2,), 24


@dataclass(frozen=True)
class Recipe:
    """One run: `sequences` a rank, `rate` of the balancing; the plant of `scenario` from step `onset` on."""

    scenario: str
    seed: int
    sequences: int
    steps: int
    controller: str = "adamw"
    rate: float = RATE
    onset: int = 0

    @property
    def name(self) -> str:
        return f"{self.scenario}-seed{self.seed}-{RANKS}x{self.sequences * LENGTH}"


@dataclass
class Run:
    """A learner under way and what its record says beside the counts."""

    learner: Learner
    recipe: Recipe
    attempt: int = 1
    start_bias: int = 0
    checkpoint_bias: int = 0
    """heads of the biases' checksums: of this attempt's start, and of the checkpoint that it resumed from"""

    @property
    def biases(self) -> Tensor:
        """[L, S], the skip slot last."""
        return self.learner.balancer.biases

    def resume(self, keep: bool) -> None:
        """A new attempt: its biases are those of the checkpoint, or lost."""
        self.attempt += 1
        self.checkpoint_bias = head(self.biases)
        if not keep:
            self.biases.zero_()
        self.start_bias = head(self.biases)


Plant = Callable[[Run, int], None]


def head(biases: Tensor) -> int:
    """A head of the biases' checksum: two attempts are compared by it."""
    return int(bias_checksum(biases)[:16], 16)


def _healthy(run: Run, step: int) -> None:
    if step == RESUMED:
        run.resume(keep=True)


def _inverted(run: Run, step: int) -> None:
    if step == run.recipe.onset:
        run.learner.balancer.rate = -run.learner.balancer.rate


def _frozen(run: Run, step: int) -> None:
    if step == run.recipe.onset:
        run.learner.balancer.rate = 0.0


def _dead(run: Run, step: int) -> None:  # noqa: ARG001 - from the onset on, at every step
    """Two experts of the middle layer are pushed out of reach, whatever the controller does."""
    run.biases[SHAPE.num_hidden_layers // 2, 2:4] = -8.0


def _zeroed(run: Run, step: int) -> None:
    if step == run.recipe.onset:
        run.resume(keep=False)


def every_topic() -> bytes:
    """The documentation whole: nothing of a corpus run is held out."""
    return data.documentation() + data.held_out()["python-docs"]


def _other_mix(run: Run, step: int) -> None:
    """From prose alone to prose and hexadecimal dumps, half of the bytes each."""
    if step == run.recipe.onset:
        prose = every_topic()
        run.learner.rows = data.Text(prose + prose.hex().encode()[: len(prose)], LENGTH, run.recipe.seed)


def _skewed(run: Run, step: int) -> None:
    """The experts of the first expert-parallel rank are favoured a little, in every layer."""
    if step == run.recipe.onset:
        run.learner.balancer.rate = 0.0
        run.biases[:, : SHAPE.num_experts // EXPERT_PARALLEL] += 0.15


def _skipping(run: Run, step: int) -> None:
    """The skip slot is as welcome as the layer's best-liked expert."""
    if step == run.recipe.onset:
        run.biases[:, -1] = run.biases[:, :-1].amax(dim=1)


SCENARIOS: dict[str, tuple[Plant | None, dict[str, Any]]] = {
    "healthy": (_healthy, {}),
    "no-balancing": (None, {"controller": "none"}),
    "too-fast": (None, {"controller": "sign", "rate": 0.05}),
    "too-fast-adamw": (None, {"rate": 0.2}),
    "fast-adamw": (None, {"rate": 0.06}),
    "too-slow": (None, {"controller": "sign", "rate": 2e-6}),
    "inverted": (_inverted, {"onset": ONSET}),
    "frozen": (_frozen, {"onset": ONSET}),
    "dead": (_dead, {"onset": ONSET}),
    "zeroed-at-resume": (_zeroed, {"onset": ONSET}),
    "data-mix": (_other_mix, {"onset": ONSET}),
    "skewed-ranks": (_skewed, {"onset": ONSET}),
    "skip-slot": (_skipping, {"onset": ONSET}),
}
"""By name, what is planted and how the recipe differs; without an onset it is so from the first step."""


def recipes() -> list[Recipe]:
    """Every run of the corpus, the longest first."""
    found = [
        Recipe(name, seed, sequences, **{"steps": _length(name, seed), **differs})
        for name, (_, differs) in SCENARIOS.items()
        for seed in SEEDS
        for sequences in (SEQUENCES if name == "healthy" else PLANTED_SEQUENCES)
    ]
    return sorted(found, key=lambda recipe: recipe.steps * recipe.sequences, reverse=True)


def _length(scenario: str, seed: int) -> int:
    """Healthy runs are long where false alarms are counted."""
    if scenario != "healthy":
        return PLANTED_STEPS
    return CHOOSING_STEPS if seed in CHOOSING else HEALTHY_STEPS


class Choices:
    """Counts each rank's choices apart, with a hook on every router."""

    def __init__(self, routers: list[Router]) -> None:
        self._chosen: list[Tensor] = []
        for router in routers:
            router.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> None:
        self._chosen.append(output[0])

    def taken(self, slots: int) -> NDArray[np.int64]:
        """[L, R, S] of the step that is over."""
        chosen = torch.stack(self._chosen).view(len(self._chosen), RANKS, -1)
        self._chosen.clear()
        counts = torch.zeros(*chosen.shape[:2], slots, dtype=torch.int64)
        return counts.scatter_add_(2, chosen, torch.ones_like(chosen)).numpy()


def train(recipe: Recipe) -> dict[str, NDArray[Any]]:
    """One run, step by step; it ends early when its loss is no number, which is kept as what happened."""
    torch.set_num_threads(1)
    settings = TrainConfig(
        steps=recipe.steps,
        seed=recipe.seed,
        sequences=RANKS * recipe.sequences,
        length=LENGTH,
        balancing=recipe.controller,
        balancing_rate=recipe.rate,
    )
    run = Run(Learner(SHAPE, settings, 0, 1), recipe)
    run.learner.rows = data.Text(every_topic(), LENGTH, recipe.seed)
    plant = SCENARIOS[recipe.scenario][0]
    choices = Choices(run.learner.routers)
    return _stacked(list(_steps(run, plant, choices)))


def _steps(run: Run, plant: Plant | None, choices: Choices) -> Iterator[dict[str, Any]]:
    experts = SHAPE.num_experts
    for step in range(1, run.recipe.steps + 1):
        if plant is not None and step >= run.recipe.onset:
            plant(run, step)
        begun = time.perf_counter()
        try:
            run.learner.step(step, step)
        except NumericsError:
            return
        seconds = time.perf_counter() - begun
        run.learner.reset_counts()
        ranks = choices.taken(experts + 1)
        real = ranks[..., :experts].astype(np.float64)
        yield {
            "step": step,
            "attempt": run.attempt,
            "seconds": seconds,
            "counts": ranks.sum(axis=1).astype(np.uint16),
            "bias": run.biases.numpy().astype(np.float32),
            "squares": ((real - real.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)).astype(np.float32),
            "start_bias": np.uint64(run.start_bias),
            "checkpoint_bias": np.uint64(run.checkpoint_bias),
        }


def _stacked(steps: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


# --- the cache ---


def key_of(recipe: Recipe) -> str:
    """The content hash of a run: its recipe, its plant's code with the constants it reads, the trainer's behaviour."""
    constants = [RANKS, LENGTH, RESUMED, EXPERT_PARALLEL]
    whole = hashlib.sha256(json.dumps([asdict(recipe), asdict(SHAPE), constants]).encode())
    for part in (SCENARIOS[recipe.scenario][0], every_topic, head, train, _steps, Choices, Run):
        if part is not None:
            whole.update(_code(part))
    whole.update(behaviour(recipe.controller))
    return whole.hexdigest()[:16]


@cache
def _code(part: Callable[..., Any] | type) -> bytes:
    """What a function or class says, whatever its layout and comments."""
    return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(part)))).encode()


@cache
def behaviour(controller: str) -> bytes:
    """What the trainer does in its first steps, bit by bit: a change of it that changes nothing keeps the corpus."""
    found = train(Recipe("no-balancing", 0, 1, FINGERPRINT_STEPS, controller))
    return hashlib.sha256(found["counts"].tobytes() + found["bias"].tobytes()).digest()


def path_of(recipe: Recipe) -> Path:
    """Where a run is kept."""
    return FOLDER / f"{recipe.name}-{key_of(recipe)}.npz"


def load(recipe: Recipe) -> dict[str, NDArray[Any]]:
    """A run of the corpus as `train` gave it."""
    with np.load(path_of(recipe)) as found:
        return dict(found)


def make(recipe: Recipe) -> float:
    """Trains a run and keeps it; returns the seconds."""
    begun, path = time.perf_counter(), path_of(recipe)
    found = train(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **found)  # type: ignore[arg-type] # numpy takes the names for options
    temporary.replace(path)
    return time.perf_counter() - begun


def main() -> int:
    """Trains what is not there yet, a process a core."""
    parser = argparse.ArgumentParser(prog="benchmarks.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="scenarios whose name begins so")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    wanted = [recipe for recipe in recipes() if recipe.scenario.startswith(given.only)]
    missing = [recipe for recipe in wanted if not path_of(recipe).exists()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are there", flush=True)
    begun, steps = time.perf_counter(), 0
    with ProcessPoolExecutor(given.processes) as pool:
        waiting = {pool.submit(make, recipe): recipe for recipe in missing}
        for done, future in enumerate(as_completed(waiting), 1):
            recipe, seconds = waiting[future], future.result()
            steps += recipe.steps
            rate = steps / (time.perf_counter() - begun)
            print(f"{done}/{len(missing)} {recipe.name}: {seconds:.0f} s; {rate:.0f} steps/s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

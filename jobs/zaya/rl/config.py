"""The numbers of a reinforcement-learning stage: one frozen value, read from the job's environment. No torch, no Ray.

The words of the maps `train`, `router` and `data` are the spec's; `problems` says all that is wrong with them before a
job is submitted. The model's shapes come from the checkpoint that the stage starts from: the trainer's words in
`router` may stand there (a lifecycle gives them to all its stages), and are held against the checkpoint by the job.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jobs.contract import ContractError
from jobs.zaya import config as zaya
from jobs.zaya.envs.curriculum import RULES
from jobs.zaya.evaluation_config import parts, wrong_parts


@dataclass(frozen=True)
class RLConfig:
    """A step learns from `prompts` groups of `samples` completions of at most `limit` tokens each."""

    steps: int = 50
    checkpoint_every: int = 10
    seed: int = 0
    sequences: int = 32
    """completions in one forward and backward pass"""
    length: int = 256
    """tokens of a prompt and its completion together, at most: a question that leaves no room for `limit` is not drawn,
    the tails of an aggregation prompt are cut"""
    learning_rate: float = 1e-4
    warmup: int = 5
    weight_decay: float = 0.0
    clip: float = 1.0
    """of the gradient's norm"""
    optimizer: str = "adamw"
    prompts: int = 16
    samples: int = 8
    limit: int = 24
    temperature: float = 1.0
    advantage: str = "group"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    staleness: int = 2
    """optimizer steps that a completion's weights may lie behind; an older one is dropped"""
    sync_every: int = 2
    """optimizer steps from one push of weights to the next"""
    ahead: int = 0
    """batches that are rolled out while one is learned from; 0: rollout and learning take turns"""
    rollouts: int = 1
    """rollout actors"""
    redraws: int = 2
    """times that dropped groups are drawn anew in one step"""
    aggregate: float = 0.0
    """share of the prompts that carry the ends of candidates which the policy has just given (arXiv 2605.05365)"""
    candidates: int = 4
    tail: int = 16
    """tokens kept of a candidate"""
    freeze: bool = True
    """whether the routers stay as they are, their balancing biases too"""
    replay: bool = True
    """whether the learner's forward takes the experts that the rollout took"""
    environments: str = ""
    """`micro/reverse@2-4, micro/sort`: names, each with the difficulties that it may take"""
    curriculum: str = "fixed"
    problems: str = "drawn"
    """drawn from the environments, or prepared: those that the stage's preparing job has left over"""
    judge: str = "none"


# The job's own words for them, in the maps that a spec hands over as JSON.
_WORDS = {
    "train": {
        "steps": "steps",
        "checkpointEvery": "checkpoint_every",
        "seed": "seed",
        "sequences": "sequences",
        "length": "length",
        "learningRate": "learning_rate",
        "warmup": "warmup",
        "weightDecay": "weight_decay",
        "clip": "clip",
        "optimizer": "optimizer",
        "prompts": "prompts",
        "samples": "samples",
        "limit": "limit",
        "temperature": "temperature",
        "advantage": "advantage",
        "clipLow": "clip_low",
        "clipHigh": "clip_high",
        "kl": "kl",
        "staleness": "staleness",
        "syncEvery": "sync_every",
        "ahead": "ahead",
        "rollouts": "rollouts",
        "redraws": "redraws",
        "aggregate": "aggregate",
        "candidates": "candidates",
        "tail": "tail",
    },
    "router": {"freeze": "freeze", "replay": "replay"},
    "data": {
        "environments": "environments",
        "curriculum": "curriculum",
        "problems": "problems",
        "judge": "judge",
    },
}
ADVANTAGES = ("group", "dr")
JUDGES = ("none", "proxy")
_CHOICES = {
    "optimizer": zaya.OPTIMIZERS,
    "advantage": ADVANTAGES,
    "curriculum": RULES,
    "problems": ("drawn", "prepared"),
    "judge": JUDGES,
}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
_KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
# Whole numbers start at 1 and others above 0, except these.
_FROM_ZERO = {"seed", "warmup", "weight_decay", "kl", "staleness", "ahead", "redraws", "aggregate"}
_FIELDS = {field.name: str(field.type) for field in fields(RLConfig)}


def _wrong(name: str, value: object) -> str:
    """What is wrong with a value of a field; empty if nothing is."""
    kind = _FIELDS[name]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        return f"must be {_KINDS[kind]}, not {value!r}"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, not {value!r}"
    if kind not in ("int", "float") or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return "must be a finite number"
    if value < 0 or (value == 0 and name not in _FROM_ZERO):
        return "must be ≥ 0" if name in _FROM_ZERO else "must be ≥ 1" if kind == "int" else "must be > 0"
    return ""


def _together(config: RLConfig) -> list[tuple[str, str]]:
    """What is wrong between values that are each right."""
    wrong = []
    oldest = config.sync_every - 1 + config.ahead
    if oldest > config.staleness:
        reason = f"completions would lie {oldest} steps behind (syncEvery − 1 + ahead), and {config.staleness} are kept"
        wrong.append(("train.staleness", reason))
    if config.samples < 2:
        wrong.append(("train.samples", "must be ≥ 2: an advantage is taken within a group"))
    if config.limit >= config.length:
        wrong.append(("train.limit", f"must leave room for a prompt in train.length, {config.length}"))
    if config.aggregate > 1:
        wrong.append(("train.aggregate", "is a share: must be ≤ 1"))
    shown = config.candidates * (config.tail + 1) + config.limit
    if config.aggregate > 0 and shown >= config.length:
        reason = f"candidates × (tail + 1) + limit, {shown}, leave no room for a question in train.length"
        wrong.append(("train.aggregate", f"{reason}, {config.length}"))
    if config.problems == "prepared" and config.curriculum != "fixed":
        reason = "moves the difficulty of drawn problems: with data.problems prepared it must be fixed"
        wrong.append(("data.curriculum", f"{reason}, not {config.curriculum}"))
    named = wrong_parts(config.environments)
    if not named and not parts(config.environments):
        named = [("data.environments", "is needed: the names of environments, with commas between")]
    return wrong + named


def problems(maps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that this stage would refuse in a spec's maps `train`, `router` and `data`."""
    found: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for where, known in _WORDS.items():
        for word, value in maps.get(where, {}).items():
            if word in known:
                wrong = _wrong(known[word], value)
                values |= {} if wrong else {known[word]: value}
            elif where == "router":
                shapes[word], wrong = value, ""
            else:
                wrong = f"is not known to the reinforcement learner; it knows {', '.join(sorted(known))}"
            found += [(f"{where}.{word}", wrong)] if wrong else []
    told = {path for path, _ in found}
    found += [one for one in _together(RLConfig(**values)) if one[0] not in told]
    return found + zaya.problems({"router": shapes})


def read_config(env: Mapping[str, str] | None = None) -> tuple[RLConfig, dict[str, Any]]:
    """The stage's numbers from TRIMTAB_TRAIN_JSON, _ROUTER_JSON and _DATA_JSON, and the words in `router` that are
    the trainer's; ContractError on any surprise."""
    maps = zaya.read_maps(os.environ if env is None else env)
    wrong = problems(maps)
    if wrong:
        raise ContractError("; ".join(f"{path} {message}" for path, message in wrong))
    given = {
        known[word]: value for where, known in _WORDS.items() for word, value in maps[where].items() if word in known
    }
    return RLConfig(**given), {word: value for word, value in maps["router"].items() if word not in _WORDS["router"]}

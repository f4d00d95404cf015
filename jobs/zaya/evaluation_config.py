"""What the jobs evaluate, prepare and release take from a spec's maps, each one frozen value. No torch.

All three understand the lengths that every spec has: `train.steps` is in how many batches the work is done (a release
is one), `train.sequences` how many prompts the model answers at once, `train.length` the bytes of one window of text.
The map `router` is the trainer's: the model comes from the checkpoint alone, so it is only held to be right.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from jobs.contract import ContractError
from jobs.zaya import config as trainer
from jobs.zaya.envs import registry
from jobs.zaya.rsa import Aggregation

Maps = Mapping[str, Mapping[str, Any]]
KINDS = ("sft", "preferences", "calibration", "filter", "pack")
JUDGES = ("none", "gold", "proxy")
CANDIDATES = ("noise", "policy")
SHIPPED = Path(__file__).parent / "problems"
_PART = re.compile(r"(?P<name>[^@,\s]+)(?:@(?P<low>\d+)(?:-(?P<high>\d+))?)?")


@dataclass(frozen=True)
class Work:
    """What all three share."""

    batches: int = 1
    seed: int = 0
    sequences: int = 64
    length: int = 128


@dataclass(frozen=True)
class EvaluationConfig(Work):
    """Problems of environments and of sets, and how each is attempted; names as in jobs/zaya/rsa.py."""

    environments: str = ""
    """`micro/reverse@2-4, micro/sort`: names, each with the difficulties that take turns; without, all of them"""
    problems: int = 32
    """of each environment"""
    sets: str = ""
    """problem sets: names of those that ship (jobs/zaya/problems), or paths of JSONL files"""
    rollouts: int = 4
    candidates: int = 2
    rounds: int = 2
    limit: int = 32
    tail: int = 16
    temperature: float = 1.0
    windows: int = 16
    """of held-out text, for the loss; 0: it is not measured"""
    judge: str = "none"
    """gold: the written rubric's score of the answers; proxy: the preference model's beside it, fitted to the stage's
    preferences.jsonl"""

    @property
    def aggregation(self) -> Aggregation:
        """N, C, T, β and τ."""
        return Aggregation(self.rollouts, self.candidates, self.rounds, self.limit, self.tail)


@dataclass(frozen=True)
class PrepareConfig(Work):
    """What is written for a stage's training, and from which problems."""

    kind: str = "sft"
    environments: str = ""
    problems: int = 256
    """of each environment; for a calibration of each difficulty"""
    sets: str = ""
    manners: str = ""
    """environments of which as many lines more are answered in many manners, for a judge to choose from"""
    aggregation: float = 0.5
    """the share of lines that show candidates"""
    source: str = "noise"
    """whose candidates: right answers, of which some are corrupted, or the policy's own"""
    corrupted: float = 0.5
    """the share of noise candidates that are wrong"""
    candidates: int = 2
    tail: int = 16
    samples: int = 8
    """answers of the policy to each problem (calibration, filter, preferences)"""
    limit: int = 32
    temperature: float = 1.0
    noise: float = 0.1
    """the share of preferences whose label is turned round"""
    threshold: float = 0.5
    """a calibration starts an environment at its hardest difficulty that is solved so often"""


@dataclass(frozen=True)
class ReleaseConfig(Work):
    """How the released model is compared with ours before it counts as one."""

    prompts: int = 8
    """four questions, then runs over all the bytes"""
    new_tokens: int = 24
    tolerance: float = 1e-5
    """the largest difference of a logit"""


Config = TypeVar("Config", bound=Work)
_SHARED = {"steps": "batches", "seed": "seed", "sequences": "sequences", "length": "length"}
_UNUSED = ("checkpointEvery",)


def _words(kind: type[Any]) -> dict[str, str]:
    """The map's words, in camel case, for the fields that a configuration adds to those that all share."""
    shared = {field.name for field in fields(Work)}
    own = [field.name for field in fields(kind) if field.name not in shared]
    return {re.sub(r"_(.)", lambda found: found[1].upper(), name): name for name in own}


_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
_SAID = {"int": "a whole number", "float": "a number", "str": "text"}
_FROM_ZERO = {"seed", "rounds", "windows", "temperature", "aggregation", "corrupted", "noise"}
_SHARES = {"aggregation", "corrupted", "noise", "threshold"}
_CHOICES = {"kind": KINDS, "source": CANDIDATES, "judge": JUDGES}


def _wrong(name: str, kind: str, value: object) -> str:
    """What is wrong with a value of a field; empty if nothing is."""
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        return f"must be {_SAID[kind]}, not {value!r}"
    if isinstance(value, str):
        choices = _CHOICES.get(name)
        return f"must be one of {', '.join(choices)}, not {value!r}" if choices and value not in choices else ""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "must be a finite number"
    if name in _SHARES and not 0 <= value <= 1:
        return "must be a share, 0 to 1"
    if name in _FROM_ZERO:
        return "must be ≥ 0" if value < 0 else ""
    return "" if value > 0 else "must be ≥ 1" if kind == "int" else "must be > 0"


def _problems(maps: Maps, kind: type[Work]) -> list[tuple[str, str]]:
    """(path, what is wrong) of each word by itself."""
    types = {field.name: str(field.type) for field in fields(kind)}
    found = list(trainer.problems({"router": maps.get("router", {})}))
    for where, words in (("train", _SHARED), ("data", _words(kind))):
        for word, value in maps.get(where, {}).items():
            if word in words:
                message = _wrong(words[word], types[words[word]], value)
            elif where == "train" and word in _UNUSED:
                message = ""
            else:
                message = f"is not known to this job; it knows {', '.join(sorted(words))}"
            if message:
                found.append((f"{where}.{word}", message))
    return found


def _made(maps: Maps, kind: type[Config]) -> Config:
    """The value of maps in which each word by itself is right."""
    values = {
        words[word]: value
        for where, words in (("train", _SHARED), ("data", _words(kind)))
        for word, value in maps.get(where, {}).items()
        if word in words
    }
    return kind(**values)


def parts(environments: str) -> list[tuple[str, int | None, int | None]]:
    """(name, lowest and highest difficulty or None for the environment's own) of `micro/reverse@2-4, micro/sort`.

    Raises ContractError for what is not of this form.
    """
    found: list[tuple[str, int | None, int | None]] = []
    for text in (part.strip() for part in environments.split(",")):
        match = _PART.fullmatch(text)
        if text and match is None:
            raise ContractError(f"{text!r} is not an environment's name, or one with difficulties such as name@2-4")
        if match is None:
            continue
        low = int(match["low"]) if match["low"] else None
        high = int(match["high"]) if match["high"] else low
        if low is not None and high is not None and high < low:
            raise ContractError(f"{text!r} ends with an easier difficulty than it begins with")
        found.append((match["name"], low, high))
    return found


def shipped() -> list[str]:
    """The names of the problem sets that ship: evaluation's alone."""
    return sorted(path.stem for path in SHIPPED.glob("*.jsonl"))


def named_sets(sets: str) -> list[str]:
    """The names and paths of `micro, /data/own.jsonl`."""
    return [name for name in (part.strip() for part in sets.split(",")) if name]


def path_of_set(name: str) -> Path:
    """Where a set lies: one that ships under its name, another under its path."""
    return SHIPPED / f"{name}.jsonl" if name in shipped() else Path(name)


def _owned(sets: str) -> list[tuple[str, str]]:
    """What is wrong with sets to train on: those that ship are evaluation's, by name or by path."""
    owned = [name for name in named_sets(sets) if path_of_set(name).resolve().parent == SHIPPED.resolve()]
    reason = f"{', '.join(owned)} is kept for evaluation and never trained on: name a set of your own"
    return [("data.sets", reason)] if owned else []


def wrong_parts(environments: str, path: str = "data.environments") -> list[tuple[str, str]]:
    """What is wrong with names of environments and the difficulties asked of them."""
    try:
        named = parts(environments)
    except ContractError as error:
        return [(path, str(error))]
    return [(path, wrong) for wrong in (registry.refused(*one) for one in named) if wrong]


def wrong_sets(sets: str) -> list[tuple[str, str]]:
    """What is wrong with names of problem sets; whether a path is there is seen on the node alone."""
    unknown = [name for name in named_sets(sets) if name not in shipped() and "/" not in name and "." not in name]
    reason = f"there is no set {', '.join(unknown)}: there are {', '.join(shipped())}, or give the path of a file"
    return [("data.sets", reason)] if unknown else []


def evaluate_problems(maps: Maps) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that jobs.zaya.evaluate would refuse."""
    found = _problems(maps, EvaluationConfig)
    if found:
        return found
    config = _made(maps, EvaluationConfig)
    found += wrong_parts(config.environments) + wrong_sets(config.sets)
    if not found and not parts(config.environments) and not config.sets.strip() and not config.windows:
        found.append(("data.environments", "with no sets and no windows of text nothing would be evaluated"))
    try:
        _ = config.aggregation
    except ContractError as error:
        found.append(("data.candidates" if "candidates" in str(error) else "data.tail", str(error)))
    return found


def prepare_problems(maps: Maps) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that jobs.zaya.prepare would refuse."""
    found = _problems(maps, PrepareConfig)
    if found:
        return found
    config = _made(maps, PrepareConfig)
    found += wrong_parts(config.environments) + wrong_parts(config.manners, "data.manners") + wrong_sets(config.sets)
    if config.manners and config.kind != "sft":
        found.append(("data.manners", "is read by the kind sft alone"))
    if config.kind != "pack" and not parts("" if found else config.environments) and not config.sets.strip():
        found.append(("data.environments", f"{config.kind} needs environments or sets to take problems from"))
    if config.sets.strip() and (
        config.kind == "calibration" or (config.kind, config.source) == ("preferences", "noise")
    ):
        found.append(("data.sets", f"{config.kind} here is of environments, which have difficulties"))
    found += _owned(config.sets)
    if config.noise >= 0.5:
        found.append(("data.noise", "must be < 0.5: beyond it the labels say the opposite"))
    return found


def release_problems(maps: Maps) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that jobs.zaya.release would refuse."""
    found = _problems(maps, ReleaseConfig)
    if not found and maps.get("train", {}).get("steps", 1) != 1:
        found.append(("train.steps", "a release is one step"))
    return found


_JUDGES: Mapping[type[Any], Callable[[Maps], list[tuple[str, str]]]] = {
    EvaluationConfig: evaluate_problems,
    PrepareConfig: prepare_problems,
    ReleaseConfig: release_problems,
}


def read_config(kind: type[Config], env: Mapping[str, str] | None = None) -> Config:
    """A job's configuration from TRIMTAB_TRAIN_JSON, _ROUTER_JSON and _DATA_JSON; ContractError on any surprise."""
    maps = trainer.read_maps(os.environ if env is None else env)
    wrong = _JUDGES[kind](maps)
    if wrong:
        raise ContractError("; ".join(f"{path} {message}" for path, message in wrong))
    return _made(maps, kind)

"""The reference model's and training's numbers: one frozen value each, read from the job's environment. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jobs.contract import ContractError, parse_ranges
from jobs.zaya.phases import Phase, SkipRule, Wrong, read_phases, read_skip, wrong_phases, wrong_skip
from jobs.zaya.tokens import VOCABULARY


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of the model, named as in transformers' ZayaConfig. The default is the toy: some 2 M parameters."""

    vocab_size: int = 256
    hidden_size: int = 96
    num_hidden_layers: int = 6
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int = 16
    num_experts: int = 16
    moe_intermediate_size: int = 64
    router_hidden_size: int = 32
    cca_time0: int = 2
    cca_time1: int = 2
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 0.5
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    skip_bias: float = -1.0
    max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        if self.vocab_size < VOCABULARY:
            raise ContractError(f"vocab_size must be ≥ {VOCABULARY}: a token is a byte")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ContractError("num_attention_heads must be a multiple of num_key_value_heads")
        if (self.num_key_value_heads * self.head_dim) % 2 or int(self.head_dim * self.partial_rotary_factor) % 2:
            raise ContractError("half of each value is delayed and rotary pairs are used: head sizes must be even")


@dataclass(frozen=True)
class TrainConfig:
    """How long and on what: `sequences` of `length` bytes are one rank's share of a step."""

    steps: int = 200
    checkpoint_every: int = 10
    seed: int = 0
    sequences: int = 8
    length: int = 128
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: str = "adamw"
    balancing: str = "adamw"
    balancing_rate: float = 0.005
    balancing_kp: float = 0.005
    balancing_ki: float = 0.01
    balancing_kd: float = 0.0
    balancing_until: int = 0
    """the last step that moves the biases; 0: all of them do"""
    objective: str = "text"
    packing: str = "packed"
    """of examples: rows filled with as many as there is room for, or a single one each"""
    source: str = "python-docs"
    code_share: float = 0.0
    poison: str = ""
    """data indices that hold noise, as "120-140": a planted bad shard for drills"""
    sharding: str = "none"
    checkpoints: str = "whole"
    phases: tuple[Phase, ...] = ()
    skip_step: SkipRule | None = None

    @property
    def schedule(self) -> tuple[Phase, ...]:
        """The phases; where none are named the whole training is one."""
        return self.phases or (Phase(self.steps, self.learning_rate, code_share=self.code_share),)


# The job's own words for them, in the maps that a spec hands over as JSON.
_TRAIN = {
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
    "objective": "objective",
    "packing": "packing",
    "sharding": "sharding",
    "checkpoints": "checkpoints",
}
_DATA = {"source": "source", "codeShare": "code_share", "poison": "poison"}
_STRUCTURED = ("phases", "skipStep")
_BALANCE = {
    "balancing": "balancing",
    "balancingRate": "balancing_rate",
    "balancingKp": "balancing_kp",
    "balancingKi": "balancing_ki",
    "balancingKd": "balancing_kd",
    "balancingUntil": "balancing_until",
}
_MODEL = {
    "experts": "num_experts",
    "skipBias": "skip_bias",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "expertHidden": "moe_intermediate_size",
    "routerHidden": "router_hidden_size",
    "vocabulary": "vocab_size",
    "heads": "num_attention_heads",
    "keyValueHeads": "num_key_value_heads",
    "headSize": "head_dim",
    "ropeTheta": "rope_theta",
    "contextLength": "max_position_embeddings",
}
SOURCES = ("python-docs", "python-code", "mix")
OBJECTIVES = ("text", "sft")
PACKINGS = ("packed", "single")
SHARDINGS = ("none", "fsdp2")
CHECKPOINTS = ("whole", "dcp")
OPTIMIZERS = ("muon", "adamw")
CONTROLLERS = ("adamw", "sign", "centred-sign", "pi", "pid", "none")
# Who reads which gain; a gain that the named controller would not read is refused.
_GAINS = {"balancingKp": ("pi", "pid"), "balancingKi": ("pi", "pid"), "balancingKd": ("pid",)}
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "balancing": CONTROLLERS,
    "source": SOURCES,
    "objective": OBJECTIVES,
    "packing": PACKINGS,
    "sharding": SHARDINGS,
    "checkpoints": CHECKPOINTS,
}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
_KINDS = {"int": "a whole number", "float": "a number", "str": "text"}
# Whole numbers start at 1 and others above 0, except these.
_FROM_ZERO = {
    "seed",
    "warmup",
    "weight_decay",
    "balancing_kp",
    "balancing_ki",
    "balancing_kd",
    "balancing_until",
    "code_share",
}
_AT_MOST_ONE = {"code_share"}
_ANY = {"skip_bias"}


def read_maps(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The spec's maps `train`, `router` and `data` from TRIMTAB_TRAIN_JSON and its like; ContractError for no map."""
    maps = {}
    for where in ("train", "router", "data"):
        name = f"TRIMTAB_{where.upper()}_JSON"
        try:
            found = json.loads(env.get(name) or "{}")
        except ValueError as error:
            raise ContractError(f"{name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ContractError(f"{name} must be a JSON object")
        maps[where] = found
    return maps


def _out_of_range(name: str, kind: str, value: float) -> str:
    """What is wrong with a number under a config's field name; empty if nothing is."""
    if not math.isfinite(value):
        return "must be a finite number"
    if name in _ANY:
        return ""
    if name in _AT_MOST_ONE and value > 1:
        return "must be ≤ 1"
    if name in _FROM_ZERO:
        return "must be ≥ 0" if value < 0 else ""
    return "" if value > 0 else "must be ≥ 1" if kind == "int" else "must be > 0"


def _wrong(name: str, kind: str, value: object) -> str:
    """What is wrong with a value of a field of this type; empty if nothing is."""
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        return f"must be {_KINDS[kind]}, not {value!r}"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, not {value!r}"
    if name == "poison":
        return _wrong_ranges(str(value))
    return _out_of_range(name, kind, value) if isinstance(value, int | float) else ""


def _wrong_ranges(text: str) -> str:
    """What is wrong with ranges of data indices; empty if nothing is."""
    try:
        return "" if parse_ranges(text) else "must be a range of data indices like 120-140"
    except ContractError:
        return f"must be ranges of data indices like 120-140,300-310, not {text!r}"


def _fields(kind: type[Any], words: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The job's words for a config's fields, each with the field's name and type."""
    types = {field.name: str(field.type) for field in fields(kind)}
    return {word: (name, types[name]) for word, name in words.items()}


_KNOWN: dict[str, dict[str, tuple[str, str]]] = {
    "train": _fields(TrainConfig, _TRAIN),
    "router": _fields(ModelConfig, _MODEL) | _fields(TrainConfig, _BALANCE),
    "data": _fields(TrainConfig, _DATA),
}


def problems(maps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that this trainer would refuse in a spec's maps `train`, `router` and `data`."""
    found = []
    for where, known in _KNOWN.items():
        structured = _STRUCTURED if where == "train" else ()
        for word, value in maps.get(where, {}).items():
            if word in structured:
                continue
            if word not in known:
                message = f"is not known to this trainer; it knows {', '.join(sorted([*known, *structured]))}"
            else:
                message = _wrong(*known[word], value)
            if message:
                found.append((f"{where}.{word}", message))
    train, router, data = (maps.get(where, {}) for where in ("train", "router", "data"))
    if not any(path.startswith("router.") for path, _ in found):
        found += _wrong_shapes(router)
    return found + _wrong_structures(train) + _wrong_together(train, data) + _wrong_gains(router)


def _wrong_shapes(router: Mapping[str, Any]) -> Wrong:
    """Shapes that are numbers one by one and no model together."""
    try:
        ModelConfig(**{_MODEL[word]: value for word, value in router.items() if word in _MODEL})
    except ContractError as error:
        return [("router", str(error))]
    return []


def _wrong_structures(train: Mapping[str, Any]) -> Wrong:
    """What is wrong with the phases and the rule of skipped steps."""
    found: Wrong = []
    if "phases" in train:
        below = wrong_phases(train["phases"], train.get("steps", TrainConfig.steps))
        found += [(f"train.phases.{path}".rstrip("."), message) for path, message in below]
    if "skipStep" in train:
        found += [(f"train.skipStep.{path}".rstrip("."), message) for path, message in wrong_skip(train["skipStep"])]
    return found


def _wrong_together(train: Mapping[str, Any], data: Mapping[str, Any]) -> Wrong:
    """Words that mean nothing beside others: they would be taken and never read."""
    found: Wrong = []
    phases = train.get("phases")
    mixed = [number for number, one in enumerate(phases) if _has(one, "codeShare")] if isinstance(phases, list) else []
    if data.get("source", TrainConfig.source) != "mix":
        paths = ["data.codeShare"] * ("codeShare" in data) + [f"train.phases.{number}.codeShare" for number in mixed]
        found += [(path, "is read with the source mix alone") for path in paths]
    if train.get("objective") == "sft" and "source" in data:
        found.append(("data.source", "is not read by the objective sft, which reads the prepared examples"))
    if train.get("objective", TrainConfig.objective) == "text" and "packing" in train:
        found.append(("train.packing", "is read by the objective sft alone"))
    if train.get("sharding") == "fsdp2" and train.get("checkpoints") == "whole":
        found.append(("train.checkpoints", "must be dcp with the sharding fsdp2: no rank holds the whole state"))
    return found


def _has(value: object, word: str) -> bool:
    return isinstance(value, Mapping) and word in value


def _wrong_gains(router: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Gains that the map's controller does not have, or only zeros where it has some: nothing would come of them."""
    controller = router.get("balancing", TrainConfig.balancing)
    if controller not in CONTROLLERS:
        return []
    wrong = [
        (f"router.{word}", f"is a gain of {' and '.join(having)}, not of the balancing {controller}")
        for word, having in _GAINS.items()
        if word in router and controller not in having
    ]
    gains = [router.get(w, getattr(TrainConfig, _BALANCE[w])) for w, having in _GAINS.items() if controller in having]
    if gains and not any(gains):
        wrong.append(("router.balancing", f"{controller} moves nothing: it has no gain above 0"))
    return wrong


def shape_of(router: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a map `router` that a checkpoint's weights must agree in, each with its value or its default."""
    return {
        word: router.get(word, getattr(ModelConfig, name))
        for word, name in _MODEL.items()
        if word not in ("skipBias", "ropeTheta", "contextLength")
    }


def read_config(env: Mapping[str, str] | None = None) -> tuple[ModelConfig, TrainConfig]:
    """Both configurations from TRIMTAB_TRAIN_JSON, _ROUTER_JSON and _DATA_JSON; ContractError on any surprise."""
    maps = read_maps(os.environ if env is None else env)
    wrong = problems(maps)
    if wrong:
        raise ContractError("; ".join(f"{path} {message}" for path, message in wrong))
    train = {_TRAIN[word]: value for word, value in maps["train"].items() if word in _TRAIN}
    train |= {_DATA[word]: value for word, value in maps["data"].items()}
    if train.get("sharding") == "fsdp2":
        train["checkpoints"] = "dcp"
    plain = TrainConfig(**train)
    if "phases" in maps["train"]:
        train["phases"] = read_phases(maps["train"]["phases"], plain.learning_rate, plain.code_share)
    if "skipStep" in maps["train"]:
        train["skip_step"] = read_skip(maps["train"]["skipStep"])
    balance = {_BALANCE[word]: value for word, value in maps["router"].items() if word in _BALANCE}
    model = {_MODEL[word]: value for word, value in maps["router"].items() if word in _MODEL}
    return ModelConfig(**model), TrainConfig(**train, **balance)

"""The reference model's and training's numbers: one frozen value each, read from the job's environment. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jobs.contract import ContractError


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

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
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
}
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
}
SOURCES = ("python-docs",)
OPTIMIZERS = ("muon", "adamw")
CONTROLLERS = ("adamw", "sign", "centred-sign", "pi", "pid", "none")
# Who reads which gain; a gain that the named controller would not read is refused.
_GAINS = {"balancingKp": ("pi", "pid"), "balancingKi": ("pi", "pid"), "balancingKd": ("pid",)}
_CHOICES = {"optimizer": OPTIMIZERS, "balancing": CONTROLLERS, "source": SOURCES}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
_KINDS = {"int": "a whole number", "float": "a number", "str": "text"}
# Whole numbers start at 1 and others above 0, except these.
_FROM_ZERO = {"seed", "warmup", "weight_decay", "balancing_kp", "balancing_ki", "balancing_kd", "balancing_until"}
_ANY = {"skip_bias"}


def _read(env: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        found = json.loads(env.get(name) or "{}")
    except ValueError as error:
        raise ContractError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ContractError(f"{name} must be a JSON object")
    return found


def _out_of_range(name: str, kind: str, value: float) -> str:
    """What is wrong with a number under a config's field name; empty if nothing is."""
    if not math.isfinite(value):
        return "must be a finite number"
    if name in _ANY:
        return ""
    if name in _FROM_ZERO:
        return "must be ≥ 0" if value < 0 else ""
    return "" if value > 0 else "must be ≥ 1" if kind == "int" else "must be > 0"


def _wrong(name: str, kind: str, value: object) -> str:
    """What is wrong with a value of a field of this type; empty if nothing is."""
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        return f"must be {_KINDS[kind]}, not {value!r}"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, not {value!r}"
    return _out_of_range(name, kind, value) if isinstance(value, int | float) else ""


def _fields(kind: type[Any], words: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The job's words for a config's fields, each with the field's name and type."""
    types = {field.name: str(field.type) for field in fields(kind)}
    return {word: (name, types[name]) for word, name in words.items()}


_KNOWN: dict[str, dict[str, tuple[str, str]]] = {
    "train": _fields(TrainConfig, _TRAIN),
    "router": _fields(ModelConfig, _MODEL) | _fields(TrainConfig, _BALANCE),
    "data": {"source": ("source", "str")},
}


def problems(maps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(path, what is wrong) of all that this trainer would refuse in a spec's maps `train`, `router` and `data`."""
    found = []
    for where, known in _KNOWN.items():
        for word, value in maps.get(where, {}).items():
            if word not in known:
                message = f"is not known to this trainer; it knows {', '.join(sorted(known))}"
            else:
                message = _wrong(*known[word], value)
            if message:
                found.append((f"{where}.{word}", message))
    return found + _wrong_gains(maps.get("router", {}))


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


def read_config(env: Mapping[str, str] | None = None) -> tuple[ModelConfig, TrainConfig]:
    """Both configurations from TRIMTAB_TRAIN_JSON, _ROUTER_JSON and _DATA_JSON; ContractError on any surprise."""
    values = os.environ if env is None else env
    maps = {where: _read(values, f"TRIMTAB_{where.upper()}_JSON") for where in _KNOWN}
    wrong = problems(maps)
    if wrong:
        raise ContractError("; ".join(f"{path} {message}" for path, message in wrong))
    train = {_TRAIN[word]: value for word, value in maps["train"].items()}
    balance = {_BALANCE[word]: value for word, value in maps["router"].items() if word in _BALANCE}
    model = {_MODEL[word]: value for word, value in maps["router"].items() if word in _MODEL}
    return ModelConfig(**model), TrainConfig(**train, **balance)

"""The reference model's configuration and weights in transformers' terms (`zaya`, transformers 5.24), both ways.

Names and layouts of all tensors are the same in both, so a state needs only to be checked. A configuration says more
there than here: what this model cannot express is refused instead of dropped. transformers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from jobs.contract import ContractError
from jobs.zaya.config import ModelConfig
from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.tokens import END, PAD, VOCABULARY

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "moe_intermediate_size",
    "router_hidden_size",
    "cca_time0",
    "cca_time1",
    "rms_norm_eps",
    "initializer_range",
    "max_position_embeddings",
)
# What this model always does, under the names that transformers has for it.
_FIXED = {
    "hidden_act": "silu",
    "num_experts_per_tok": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "lm_head_bias": False,
    "tie_word_embeddings": True,
}
_LAYER = "hybrid"  # attention over all tokens before; transformers' other kind, "hybrid_sliding", is not here


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """The keywords of a ZayaConfig, ready for its config.json. A model of bytes names its own end and padding."""
    found: dict[str, Any] = {"model_type": "zaya", "architectures": ["ZayaForCausalLM"], **_FIXED}
    found |= {name: getattr(config, name) for name in _SAME}
    found["layer_types"] = [_LAYER] * config.num_hidden_layers
    found["rope_parameters"] = {
        _LAYER: {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
        }
    }
    if config.vocab_size == VOCABULARY:
        found |= {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    return found


def from_transformers(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a ZayaConfig describes (`config.to_dict()` or a config.json); ContractError for what it cannot."""
    wrong = [
        f"{name} must be {fixed!r}, not {config[name]!r}"
        for name, fixed in _FIXED.items()
        if config.get(name, fixed) != fixed
    ]
    missing = [name for name in _SAME if name not in config and name not in ("initializer_range",)]
    if missing:
        wrong.append(f"{', '.join(missing)} missing")
    kinds = set(config.get("layer_types") or [_LAYER])
    if kinds != {_LAYER}:
        wrong.append(f"layer_types must all be {_LAYER!r}, not {', '.join(sorted(kinds))}")
    rope = (config.get("rope_parameters") or {}).get(_LAYER, {})
    if rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        wrong.append(f"rope_parameters must hold a rope_theta of rope_type default under {_LAYER!r}")
    if wrong:
        raise ContractError("this configuration is not one of the reference model's: " + "; ".join(wrong))
    same = {name: config[name] for name in _SAME if name in config}
    return ModelConfig(
        **same,
        rope_theta=float(rope["rope_theta"]),
        partial_rotary_factor=float(rope.get("partial_rotary_factor", 1.0)),
    )


def state_to_transformers(model: ZayaForCausalLM) -> dict[str, Tensor]:
    """The model's weights and balancing biases under transformers' names. The tied `lm_head.weight` is left out, as
    transformers itself leaves it out of what it saves."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def load_from_transformers(model: ZayaForCausalLM, state: Mapping[str, Tensor]) -> None:
    """Takes over weights under transformers' names in place, with or without the tied one; ContractError if any lacks,
    is unknown or has another shape."""
    given = {"lm_head.weight": state.get("model.embed_tokens.weight"), **state}
    try:
        model.load_state_dict(given)
    except (RuntimeError, AttributeError) as error:
        raise ContractError(f"the weights are not those of this model: {error}") from error

"""Megatron-LM: the counts are the argument of `get_updated_expert_bias`, copied before its all-reduce changes them.

So each rank reports its own tokens, which the spread between ranks needs, and no collective is added. Tensor-parallel
ranks without sequence parallelism route the same tokens: all but the first report none. Without a bias Megatron does
not count; then each router's map of tokens is counted here. Layers of a multi-token-prediction head are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.probe.counting import MAP
from agents.probe.facts import Facts, Gauge
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import AtMoment, Options, Reader, Replaced, Router, made_by
from agents.probe.tapping import Forward

_PLACE, _FUNCTION = "megatron.core.distributed.finalize_model_grads", "get_updated_expert_bias"


def _moe_layers(config: Any) -> list[int]:
    """The numbers, from 0, of the model's mixture-of-experts layers over all pipeline stages."""
    frequency = config.moe_layer_freq
    if isinstance(frequency, int):
        return list(range(0, config.num_layers, frequency))
    return [number for number, sparse in enumerate(frequency) if sparse]


def _is_copy(module: Any) -> bool:
    """Whether another tensor-parallel rank routes, and so reports, the same tokens."""
    group = module.tp_group
    if module.config.sequence_parallel or group is None or not torch.distributed.is_initialized():
        return False
    return torch.distributed.get_world_size(group) > 1 and torch.distributed.get_rank(group) > 0


def _routers(models: Sequence[nn.Module]) -> list[Router]:
    found = []
    for model in models:
        for name, module in model.named_modules():
            if not made_by(module, "megatron") or not hasattr(module, "enable_expert_bias"):
                continue
            if ".mtp." in f".{name}." or not hasattr(module, "topk"):
                continue
            any_module = cast(Any, module)
            experts = any_module.config.num_moe_experts
            bias = (module._buffers, "expert_bias") if any_module.enable_expert_bias else None
            number = any_module.layer_number
            numbered = None if number is None else number - 1
            found.append(Router(name, module, experts, experts, any_module.topk, bias, numbered))
    return sorted(found, key=lambda router: -1 if router.number is None else router.number)


class MegatronCounts(AtMoment):
    """With expert biases: Megatron's own counters."""

    framework = "megatron"
    looks_for = "Megatron's TopKRouter"

    def __init__(self, routers: Sequence[Router], options: Options, models: Sequence[nn.Module]) -> None:
        super().__init__(routers, options)
        _describe(self, cast(Any, routers[0].module))
        stacked = [module for model in models for module in model.modules() if hasattr(module, "expert_bias")]
        self._rows = [next(i for i, module in enumerate(stacked) if module is r.module) for r in self.routers]
        self._stacked = len(stacked)
        self._replaced = Replaced()

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        routers = _routers(models)
        if not routers:
            return None
        if all(router.bias is not None for router in routers) and _PLACE in sys.modules:
            return cls(routers, options, models)
        return MegatronMaps(routers, options)

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        original = getattr(sys.modules[_PLACE], _FUNCTION)

        def ours(tokens_per_expert: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.armed and tokens_per_expert.shape[0] == self._stacked:
                self.armed = False
                self.attempt(lambda: tokens_per_expert.detach()[self._rows])
            return original(tokens_per_expert, *args, **kwargs)

        self._replaced.around(original, _FUNCTION, "megatron", ours)

    def counter_of(self, module: nn.Module) -> Tensor | None:
        return cast(Any, module).local_tokens_per_expert  # type: ignore[no-any-return]  # a buffer of theirs

    def close(self) -> None:
        self._replaced.close()


class MegatronMaps(Tapped):
    """Without expert biases: the routing maps, bool [tokens, experts], without padding."""

    framework = "megatron"
    looks_for = MegatronCounts.looks_for

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        super().__init__(routers, options)
        _describe(self, cast(Any, routers[0].module))

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        for tap in self.counter.taps:
            tap.choose(MAP, _map_without_padding)

    def gauge(self, facts: Facts, router: Router) -> Gauge:
        return Gauge(facts, router)  # probabilities and a map: no logits


def _map_without_padding(call: Forward) -> Tensor:
    """`padding_mask` is True where a token is padding, as Megatron's own counter takes it."""
    padding = call.kwargs.get("padding_mask") if len(call.args) < 2 else call.args[1]
    chosen = cast(Tensor, call.output[1]).detach()
    return chosen if padding is None else chosen & ~padding.reshape(-1, 1)


_UNEVEN = (
    "virtual_pipeline_model_parallel_size",
    "pipeline_model_parallel_layout",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)
"""Of the configuration: what makes a stage's layers other than an even, contiguous share."""


def outermost(ranks: Sequence[int], world: int) -> bool:
    """Whether the stages are the outermost groups, given the global ranks of one pipeline (Megatron's order "…-pp")."""
    return len(ranks) < 2 or ranks[1] - ranks[0] == world // len(ranks)


def _stages_outermost() -> bool:
    state: Any = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return True
    ranks = torch.distributed.get_process_group_ranks(state.get_pipeline_model_parallel_group())
    return outermost(ranks, torch.distributed.get_world_size())


def group_sizes(config: Any) -> dict[str, int]:
    """The sizes of the groups over which experts and their layers lie, to be read as RingMeta says. None of them if the
    layers do not lie there as it says: in even, contiguous shares, a mixture as many times in each stage."""
    stages = getattr(config, "pipeline_model_parallel_size", 1) or 1
    if stages > 1:
        depth, over = divmod(config.num_layers, stages)
        held = [sum(number // max(depth, 1) == stage for number in _moe_layers(config)) for stage in range(stages)]
        if over or len(set(held)) > 1 or any(getattr(config, name, None) for name in _UNEVEN):
            return {}
        if not _stages_outermost():
            return {}
    whole = getattr(config, "tensor_model_parallel_size", 1) or 1
    return {
        "expert_parallel": getattr(config, "expert_model_parallel_size", 1) or 1,
        "tensor_parallel": getattr(config, "expert_tensor_parallel_size", None) or whole,
        "pipeline_parallel": stages,
    }


def _describe(reader: Reader, module: Any) -> None:
    config = module.config
    reader.layers = reader.layers if reader.layers is not None else _moe_layers(config)
    reader.duplicate = reader.duplicate or _is_copy(module)
    reader.parallel = group_sizes(config) | reader.parallel

"""Hugging Face transformers ≥ 5: the class that a model records as `router_logits`.

`_can_record_outputs["router_logits"]` names the class, the place of its logits in what it returns (`index`) and perhaps
a part of its name (`layer_name`); a composite model's parts each have their own. The choices are the router's integer
output; one that returns only logits (Llama 4) chooses the largest. Padding is what the model's `attention_mask` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from agents.probe.counting import INDEX
from agents.probe.facts import Facts, Gauge, output_at
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import (
    AttachError,
    Options,
    Reader,
    Router,
    bias_of,
    experts_of,
    named,
    number_of,
    top_k_of,
)
from agents.probe.tapping import Forward

_RECORDED = "_can_record_outputs"


def _recorders(module: nn.Module) -> list[tuple[Any, int, str | None]]:
    """(class, place of the logits, part of the name) for each way in which this model records router logits."""
    specs = (getattr(module, _RECORDED, None) or {}).get("router_logits", [])
    found: list[tuple[Any, int, str | None]] = []
    for spec in specs if isinstance(specs, list) else [specs]:
        if isinstance(spec, type):
            found.append((spec, 1, None))  # transformers' own default for a bare class
        elif getattr(spec, "target_class", None) is not None:
            found.append((spec.target_class, spec.index, spec.layer_name))
    return found


def _recorded(models: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module, int]]:
    """Each router with its name and where its logits lie, in order of depth."""
    modules = named(models)
    owners = {name: module for name, module in modules if getattr(module, _RECORDED, None) is not None}
    for name, module in modules:
        parts = name.split(".")
        above = (owners.get(".".join(parts[:depth])) for depth in range(len(parts) - 1, -1, -1))
        owner = next((one for one in above if one is not None), None)
        for target, index, layer_name in _recorders(owner) if owner is not None else []:
            if isinstance(module, target) and (layer_name is None or f".{layer_name.strip('.')}." in f".{name}."):
                yield name, module, index
                break


class Transformers(Tapped):
    """Counts by taps on the recorded routers."""

    framework = "transformers"
    looks_for = "a transformers model that records router_logits"

    def __init__(self, routers: Sequence[Router], options: Options, models: Sequence[nn.Module]) -> None:
        super().__init__(routers, options)
        self._models = models
        self.duplicate = self.duplicate or any(_is_copy(module) for model in models for module in model.modules())
        self._logits_at: dict[str, int] = {}

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        table = dict(named(models))
        found, places = [], {}
        for name, module, index in _recorded(models):
            experts, top_k = experts_of(module, options) or _width(module), top_k_of(module, options)
            if experts is None or top_k is None:
                raise AttachError(f"{name} does not tell its experts and its top_k: give attach(experts=…, top_k=…)")
            bias = bias_of(name, table)
            slots = experts if bias is None else bias[0][bias[1]].numel()
            found.append(Router(name, module, slots, experts, top_k, bias, number_of(name)))
            places[name] = index
        if not found:
            return None
        reader = cls(found, options, models)
        reader._logits_at = places
        return reader

    def install(self, counts: Tensor) -> None:
        super().install(counts)
        owner = next(
            (one for model in self._models for one in model.modules() if getattr(one, _RECORDED, None) is not None),
            None,
        )
        if owner is not None:
            names = list(inspect.signature(owner.forward).parameters)
            place = names.index("attention_mask") if "attention_mask" in names else None
            self._mask_hook = owner.register_forward_pre_hook(self._before(place), with_kwargs=True)

    def tap(self, router: Router) -> None:
        tap = self.counter.tap(router.module, router.top_k, self._logits_at[router.name])
        if getattr(router.module, "num_router_classes", router.experts) == router.experts + 1:
            tap.choose(INDEX, _with_skips)

    def gauge(self, facts: Facts, router: Router) -> Gauge:
        return Gauge(facts, router, output_at(self._logits_at[router.name]))

    def _before(self, place: int | None) -> Any:
        counter = self.counter

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training:
                mask = kwargs.get("attention_mask")
                if mask is None and place is not None and len(args) > place:
                    mask = args[place]
                counter.keep(mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)

        return before


def _is_copy(module: nn.Module) -> bool:
    """Whether another rank of the model's tensor parallelism (`DistributedConfig(tp_size=…)`, `tp_plan`) is given the
    same tokens: every plan of transformers routes all of them on each rank of the group."""
    mesh: Any = getattr(module, "_device_mesh", None)
    size = getattr(module, "_tp_size", None)
    if not isinstance(size, int) or size < 2 or mesh is None:
        return False
    names = mesh.mesh_dim_names or ()
    name = "tp" if "tp" in names else None
    return (name is not None or not names) and int(mesh.get_local_rank(name)) > 0


def _width(module: nn.Module) -> int | None:
    """The number of experts of a router that tells it by its weight only."""
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _with_skips(call: Forward) -> Tensor:
    """ZAYA's (logits, weights, indices, state): a skipped token is written to expert 0 with weight 0; it belongs to the
    skip slot, which is the last."""
    weights, indices = cast(Tensor, call.output[1]).detach(), cast(Tensor, call.output[2])
    return torch.where(weights == 0, call.module.num_experts, indices)

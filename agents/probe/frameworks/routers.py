"""What every reader shares: routers in order of depth, where their biases lie, and how a step's counts are taken.

A reader knows one framework: it finds the routers and says when their counts are whole. It imports nothing of the
framework; what it needs of it is in the model, or in sys.modules because the trainer imported it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.probe.counting import local
from agents.probe.facts import Facts
from agents.probe.tapping import tap

BIASES = ("balancing_biases", "expert_bias", "expert_bias_E", "e_score_correction_bias", "score_bias")
_EXPERTS = ("num_experts", "n_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("top_k", "topk", "moe_top_k", "num_experts_per_tok", "k")


class AttachError(Exception):
    """A model whose routers cannot be recorded; the message says what was looked for."""


@dataclass(frozen=True)
class Options:
    """What the caller of `attach` knows and the model does not tell; `attach` says what each means."""

    layers: int | Sequence[int] | None = None
    first_layer: int = 0
    routers: str | None = None
    experts: int | None = None
    top_k: int | None = None
    duplicate: bool = False
    parallel: dict[str, int] = field(default_factory=dict)
    facts_every: int = 0


@dataclass(frozen=True)
class Router:
    """One router that this process holds. `bias` is a module's table of buffers or parameters and a name in it;
    `number` the layer's own, from 0 and across pipeline stages; `doubled` where a recomputation counts again."""

    name: str
    module: nn.Module
    slots: int
    experts: int
    top_k: int
    bias: tuple[dict[str, Any], str] | None = None
    number: int | None = None
    doubled: bool = False


def layer_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts `layers.10` after `layers.9`: numbers by value, words by letters."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def named(models: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Every module of the model or of its pipeline parts, in order of depth."""
    found = [item for model in models for item in model.named_modules()]
    return sorted(found, key=lambda item: layer_order(item[0]))


def number_of(name: str) -> int | None:
    """The layer's number in a module's name: the first number, which pipeline parts keep."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def made_by(module: nn.Module, package: str) -> bool:
    """Whether a class of the module's line comes from this package."""
    return any(cls.__module__.split(".")[0] == package for cls in type(module).__mro__)


def attribute(module: nn.Module, names: Sequence[str]) -> int | None:
    """The first of these attributes that is a positive whole number."""
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0 and value is not True), None)


def top_k_of(module: nn.Module, options: Options) -> int | None:
    """How many experts a token chooses."""
    return options.top_k or attribute(module, _TOP_K)


def experts_of(module: nn.Module, options: Options) -> int | None:
    """How many experts a router has, without slots that are none."""
    return options.experts or attribute(module, _EXPERTS)


def bias_of(name: str, modules: dict[str, nn.Module]) -> tuple[dict[str, Any], str] | None:
    """Where a router's balancing bias lies: in the router, in a part of it, or in the block that owns it."""
    parent = modules.get(name.rpartition(".")[0]) if "." in name else None
    places = [modules[name], *modules[name].children(), *([parent] if parent is not None else [])]
    for module in places:
        for table in (module._buffers, module._parameters):
            for bias in BIASES:
                if isinstance(table.get(bias), Tensor):
                    return table, bias
    return None


def wrapped(name: str, modules: dict[str, nn.Module], reentrant: bool) -> bool:
    """Whether a wrapper above this module recomputes it in the backward pass, so that a counter in it counts twice.
    With `reentrant` False, wrappers whose first forward runs without gradients are left out."""
    parts = name.split(".")
    for depth in range(len(parts)):
        implementation = getattr(modules.get(".".join(parts[:depth])), "checkpoint_impl", None)
        if implementation is not None and (reentrant or getattr(implementation, "name", "") == "NO_REENTRANT"):
            return True
    return False


def exact(counter: Tensor, name: str) -> Tensor:
    """The counter, if it counts far: bfloat16 stands still at 256, float16 at 2,048, and whole numbers of 8 or 16 bits
    go round. Raises AttachError otherwise."""
    if counter.dtype.itemsize < 4:
        raise AttachError(f"{name} is {counter.dtype}: too narrow to count in, keep it in float32 or int64")
    return counter


class Biases:
    """Reads every router's bias, anew each time: moving a model to a device replaces its buffers."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._places = [router.bias for router in routers]
        self._plain = all(place is not None for place in self._places)
        self.none = all(place is None for place in self._places)
        self._shape = torch.Size([routers[0].slots])

    def read(self, out: Tensor) -> None:
        """Fills `out` [rows, S]: zeros for a router without a bias, NaN where a bias is cut over several ranks."""
        if self.none:
            return
        if self._plain:
            found = [table[name] for table, name in self._places]  # type: ignore[misc]  # see _plain
            try:
                if found[0].shape == self._shape:  # of another shape, `out` would be resized
                    torch.stack(found, out=out)
                    return
            except (RuntimeError, TypeError, NotImplementedError):
                pass  # biases of several shapes, kinds or layouts: read one by one from here on
            self._plain = False
        for row, place in zip(out, self._places, strict=True):
            if place is not None:
                bias = local(place[0][place[1]].detach()).reshape(-1)
                if bias.shape == row.shape:
                    row.copy_(bias)
                else:
                    row.fill_(float("nan"))


class Reader(ABC):
    """One framework's way. `install` is called once, `collect` before and `forget` after each record."""

    framework: ClassVar[str]
    looks_for: ClassVar[str]

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        self.routers, self.options = list(routers), options
        self.counts = torch.empty(0, dtype=torch.int32)
        self.layers: int | Sequence[int] | None = options.layers
        self.duplicate = options.duplicate
        self.parallel = dict(options.parallel)
        self.facts: Facts | None = None

    @classmethod
    @abstractmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        """A reader of this model, or None if it is not this framework's; raises AttachError if it cannot be read."""

    def install(self, counts: Tensor) -> None:
        """Begins to count into `counts`, int32 [rows, S] of zeros."""
        self.counts = counts

    @abstractmethod
    def collect(self) -> None:
        """Makes `counts` whole."""

    def forget(self) -> None:
        """Begins the next step."""
        self.counts.zero_()

    def paused(self) -> Any:
        """A context in which nothing is counted, where this reader counts itself."""
        raise AttachError(f"{self.framework} counts by itself: pause it there")

    def keep(self, mask: Tensor | None) -> None:
        """Takes the padding mask of the forward to come, where this reader counts itself."""
        del mask  # theirs to apply
        raise AttachError(f"{self.framework} counts by itself: give it the mask")

    def close(self) -> None:
        """Lets go of the model."""
        self.counts = torch.empty(0, dtype=torch.int32)


class AtMoment(Reader):
    """Takes the framework's own counters, of all routers together, at a moment of the framework's choosing.

    `moment` may come several times a step: with `once` only the first is taken, else all are added up.
    """

    once: ClassVar[bool] = True

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        super().__init__(routers, options)
        self.armed, self.taken = True, False
        self.failed: Exception | None = None
        halves = [2 if router.doubled else 1 for router in routers]
        self._halves = torch.tensor(halves, dtype=torch.int32)[:, None] if max(halves) > 1 else None

    @abstractmethod
    def counter_of(self, module: nn.Module) -> Tensor | None:
        """A router's counts of the step so far, [S]."""

    def install(self, counts: Tensor) -> None:
        for router in self.routers:
            if (counter := self.counter_of(router.module)) is not None:
                exact(counter, f"the counter of {router.name}")
        super().install(counts)

    def moment(self) -> None:
        """Takes the counters, before the framework resets them."""
        if not self.armed:
            return
        self.armed = not self.once
        self.attempt(self._counted)

    def _counted(self) -> Tensor | None:
        found = [local(one) for router in self.routers if (one := self.counter_of(router.module)) is not None]
        return torch.stack(found) if len(found) == len(self.routers) else None

    def attempt(self, counted: Callable[[], Tensor | None]) -> None:
        """Takes counts inside a call of the framework's, which no error of ours may end: `collect` raises it."""
        try:
            self.take(counted())
        except Exception as error:
            self.failed = error

    def take(self, counted: Tensor | None) -> None:
        """Adds counts [rows, S]; AttachError if they have become too narrow, as `model.bfloat16()` makes them."""
        if counted is None:
            return
        whole = exact(counted, "the routers' counter").to(self.counts.dtype)
        self.counts.add_(whole if self._halves is None else whole // self._halves.to(whole.device))
        self.taken = True

    def collect(self) -> None:
        """Everything was taken at its moment; RuntimeError if it could not be, or if the moment never came: then the
        step's counts are unknown and not zero."""
        if self.failed is not None:
            raise RuntimeError(f"the framework's counters could not be taken: {self.failed}") from self.failed
        if not self.taken:
            raise RuntimeError(f"{self.framework} has not come to where its counters are whole since the last step")

    def forget(self) -> None:
        super().forget()
        self.armed, self.taken, self.failed = True, False, None

    def before(self, method: str) -> None:
        """Makes each router's `method` a moment."""
        made: dict[type, type] = {}
        for router in self.routers:
            tap(router.module, self, lambda base: {method: _before(base, method)}, made)


def _before(base: type, method: str) -> Callable[..., Any]:
    original = getattr(base, method)

    def tapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dry_run"):
            self._trimtab.moment()
        return original(self, *args, **kwargs)

    return tapped


class Replaced:
    """Functions of the framework with one of ours around them, wherever a module holds the name."""

    def __init__(self) -> None:
        self._held: list[tuple[Any, str, Any, Any]] = []

    def around(self, original: Callable[..., Any], name: str, package: str, ours: Callable[..., Any]) -> int:
        """Puts `ours` in place of `original` in the modules of `package` and in __main__; how many held it."""
        for module in list(_modules(package)):
            if getattr(module, name, None) is original:
                setattr(module, name, ours)
                self._held.append((module, name, original, ours))
        return len(self._held)

    def close(self) -> None:
        """Puts the framework's own functions back, unless somebody has replaced ours."""
        for module, name, original, ours in self._held:
            if getattr(module, name, None) is ours:
                setattr(module, name, original)
        self._held.clear()


def _modules(package: str) -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if module is not None and (name.split(".")[0] in (package, "__main__")):
            yield module

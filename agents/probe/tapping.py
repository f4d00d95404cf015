"""Taps on a model's modules: a method of ours in place of one of theirs, and what a router's forward has chosen.

A tapped module gets a subclass of its class, one a class, so that torch.compile sees the same code in every layer. A
forward hook would need none, but any hook at all sends `nn.Module.__call__` down a path that costs a microsecond a
module more. A router's subclass has a `__call__` too: where nothing else wants to see the call, it goes straight to the
router's own `forward` and so saves two of torch's frames, more than the tap takes (docs/attach.md has the figures).

What it is not: counting, which is counting.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.modules import module as torch_module

inside_backward = torch._C._current_graph_task_id
"""-1 outside of a backward pass."""
_NOTHING: Any = object()
_OF_ALL = tuple(
    getattr(torch_module, f"_global_{name}_hooks") for name in ("forward", "forward_pre", "backward", "backward_pre")
)
"""Hooks on every module's calls, as `nn.Module.__call__` asks for them."""


class Forward(NamedTuple):
    """One call of a tapped router."""

    module: Any
    output: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Methods = dict[str, Callable[..., Any]]


def tap(module: nn.Module, told: Any, make: Callable[[type], Methods], made: dict[type, type]) -> None:
    """Gives `module` a subclass of its class that has the methods which `make` returns for that class; `told` is found
    there as `self._trimtab`. One subclass a class, kept in `made`."""
    base = type(module)
    if base not in made:
        body = {**make(base), "__reduce_ex__": _reduce_of(base), "_trimtab_base": base}
        made[base] = type(base.__name__, (base,), {**body, "__module__": base.__module__, "__doc__": base.__doc__})
        made[base].__qualname__ = base.__qualname__
    object.__setattr__(module, "_trimtab", told)
    module.__class__ = made[base]


def untap(module: nn.Module) -> None:
    """Gives a tapped module its class back, unless somebody has changed it again since."""
    if "_trimtab_base" in type(module).__dict__:
        module.__class__ = type(module).__dict__["_trimtab_base"]
        module.__dict__.pop("_trimtab", None)


def _reduce_of(base: type) -> Callable[..., Any]:
    def reduced(self: Any, protocol: Any) -> Any:
        """A copy or a pickle of a tapped module is a plain one, of the class that it had, and counts nothing."""
        function, made, state, *rest = cast(Any, base).__reduce_ex__(self, protocol)
        if type(self).__base__ is base:
            made = (base, *made[1:])
        return (function, made, {name: value for name, value in state.items() if name != "_trimtab"}, *rest)

    return reduced


class _Take:
    """Takes what a class of routers has chosen. `at` is the place of the choices in what they return, once known."""

    def __init__(self, counter: Any) -> None:
        self.counter = counter
        self.at: int | None = None
        self.last = counter.modules[-1]

    def take(self, module: Any, output: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """No error of ours reaches the trainer, whose forward has its output."""
        counter = self.counter
        try:
            if self.at is not None:
                counter.chosen.append(output[self.at])
            else:
                picked, self.at = counter.read(Forward(module, output, args, named))
                counter.chosen.append(picked)
            counter.ran.append(module)
            if counter.facts is not None and counter.facts.computing:
                module._trimtab.gauge.add(Forward(module, output, args, named), counter.kept)
            if module is self.last:
                counter.flush()
                counter.kept = None  # it was this forward's
        except Exception as error:
            counter.fail(error)


def tapped_methods(counter: Any, base: type, count_traced: Callable[[Forward], None]) -> Methods:
    """`forward` and `__call__` of a tapped router's class, which tell `counter` what was chosen; `count_traced` is
    called in their stead where a compiler traces."""
    forward: Callable[..., Any] = base.forward  # type: ignore[attr-defined]  # of an nn.Module
    taken = _Take(counter)
    outside, compiling = inside_backward, torch.compiler.is_dynamo_compiling

    def tapped(self: Any, *args: Any, **named: Any) -> Any:
        output = forward(self, *args, **named)
        if self.training:
            if compiling():
                count_traced(Forward(self, output, args, named))
            elif outside() == -1:
                taken.take(self, output, args, named)
        return output

    if base.__call__ is not nn.Module.__call__:  # theirs: it comes to `forward` in its own way
        return {"forward": tapped}
    return {"forward": tapped, "__call__": _call_of(forward, taken)}


def _call_of(forward: Callable[..., Any], taken: _Take) -> Callable[..., Any]:
    """What `nn.Module.__call__` does of a call with one argument that no hook, compiler or tracer wants to see; any
    other call is left to it. It runs once a layer and step: what it needs is at hand in cells."""
    outside, compiling, tracing = inside_backward, torch.compiler.is_dynamo_compiling, torch._C._get_tracing_state
    torch_call, torch_class = nn.Module.__call__, nn.Module
    hooks_1, hooks_2, hooks_3, hooks_4 = _OF_ALL
    counter, last = taken.counter, taken.last
    ran, chose = counter.ran.append, counter.chosen.append
    alone = counter.facts is None

    def called(self: Any, given: Any = _NOTHING, *more: Any, **named: Any) -> Any:
        own = self.__dict__
        if (
            compiling()
            or more
            or named
            or given is _NOTHING
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or hooks_1
            or hooks_2
            or hooks_3
            or hooks_4
            or "forward" in own
            or "_compiled_call_impl" in own
            or tracing() is not None
            or torch_class.__call__ is not torch_call  # somebody traces by replacing it
        ):
            return torch_class.__call__(self, *(() if given is _NOTHING else (given, *more)), **named)
        output = forward(self, given)
        if own["training"] and outside() == -1:
            at = taken.at
            if at is not None and alone and self is not last:
                try:
                    chose(output[at])
                    ran(self)
                except Exception as error:
                    counter.fail(error)
            else:
                taken.take(self, output, (given,), {})
        return output

    return called

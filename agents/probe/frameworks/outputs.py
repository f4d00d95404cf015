"""Anything else: routers by their names, counted by what their `forward` returns. Base of every reader that counts
itself.

A router is a module whose class is called a router, gate or gating and which tells how many experts it has and how many
a token chooses; `attach(routers=…, experts=…, top_k=…)` names those that do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from agents.probe.counting import Counter
from agents.probe.facts import Facts, Gauge, output_as_wide
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

_NAMED = re.compile(r"(Router|Gate|Gating)\w*$")


class Tapped(Reader):
    """Counts by taps on the routers."""

    framework = "outputs"
    looks_for = "modules called a router, gate or gating with a number of experts and a top_k"

    def __init__(self, routers: Sequence[Router], options: Options) -> None:
        super().__init__(routers, options)
        self._mask_hook: Any = None

    @classmethod
    def find(cls, models: Sequence[nn.Module], options: Options) -> Reader | None:
        modules = named(models)
        table = dict(modules)
        found = []
        for name, module in modules:
            if not _wanted(name, module, options):
                continue
            experts, top_k = experts_of(module, options), top_k_of(module, options)
            if experts is None or top_k is None:
                continue
            bias = bias_of(name, table)
            slots = experts if bias is None else bias[0][bias[1]].numel()
            found.append(Router(name, module, slots, experts, top_k, bias, number_of(name)))
        return cls(found, options) if found else None

    def install(self, counts: Tensor) -> None:
        for router in self.routers:
            if "forward" in router.module.__dict__:  # a tap, being a method of a class, would never be called
                raise AttachError(f"forward of {router.name} was replaced on the module: attach before that is done")
        super().install(counts)
        self.counter = Counter(counts)
        for router in self.routers:
            self.tap(router)
        if self.options.facts_every:
            self.facts = self.counter.facts = Facts(counts.device, self.options.facts_every)
            for router, tap in zip(self.routers, self.counter.taps, strict=True):
                tap.gauge = self.gauge(self.facts, router)
                self.facts.gauges.append(tap.gauge)
        self.counter.begin()

    def tap(self, router: Router) -> None:
        """Says how one router is counted."""
        self.counter.tap(router.module, router.top_k)

    def gauge(self, facts: Facts, router: Router) -> Gauge:
        """Says where one router's logits are seen."""
        return Gauge(facts, router, output_as_wide((router.slots, router.experts)))

    def collect(self) -> None:
        self.counter.collect()

    def forget(self) -> None:
        self.counter.forget()
        if self.facts is not None:
            self.facts.next()

    def paused(self) -> Any:
        return self.counter.paused()

    def keep(self, mask: Tensor | None) -> None:
        self.counter.keep(mask)

    def close(self) -> None:
        if self._mask_hook is not None:
            self._mask_hook.remove()
        if self.facts is not None:
            self.facts.close()
        self.counter.close()


def _wanted(name: str, module: nn.Module, options: Options) -> bool:
    if options.routers is not None:
        return re.search(options.routers, name) is not None
    return _NAMED.search(type(module).__name__) is not None

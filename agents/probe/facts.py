"""What a router's logits and an expert's capacity tell of a layer, averaged over a step's tokens: readings.LAYER_FACTS.

Every tapped router has a gauge; the tap calls it where it counts, so a recomputation, an evaluation or a pause adds
nothing. Sums stay on the model's device and nothing here waits for it. It costs a pass over the logits, hence it is
off unless `attach(facts_every=n)` asks for it, and then computed in the first step and every n-th after it only.

z_loss is the mean of logsumexp(logits)² (Zoph et al. 2022, ST-MoE, arXiv 2202.08906, equation 5, without its
coefficient); margin the mean distance of the last score chosen from the first one not chosen.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agents.probe.counting import local
from agents.probe.tapping import Forward, inside_backward

log = logging.getLogger("trimtab.probe")

SUMS = 5
"""Of a layer: tokens seen, Σ logsumexp², Σ margin, copies dropped, copies sent."""
_SCORING = ("score_function", "score_func", "scoring_func", "moe_router_score_function")
_NUMBERS = itertools.count()
_computing: set[int] = set()  # the Facts whose step is computed, for compiled graphs to ask at run time


def scoring(module: Any) -> str | None:
    """softmax or sigmoid, as the router or its configuration names it, else as the one its `forward` calls; None if
    neither tells."""
    for owner in (module, getattr(module, "config", None)):
        named = next((value for name in _SCORING if isinstance(value := getattr(owner, name, None), str)), None)
        if named in ("softmax", "sigmoid"):
            return named
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    called = {"softmax", "sigmoid"} & set(code.co_names if code is not None else ())
    return called.pop() if len(called) == 1 else None


def limited(module: Any) -> bool:
    """Whether a token may choose from some groups of experts only: then scores alone do not say what was chosen."""
    groups = next((n for name in ("n_group", "num_group") if isinstance(n := getattr(module, name, None), int)), 1)
    return groups > 1 and getattr(module, "topk_group", groups) != groups


def add_logits(
    row: Tensor, logits: Tensor, bias: Tensor | None, kept: Tensor | None, top_k: int, sigmoid: bool
) -> None:
    """Adds one forward's logits [..., S] to a layer's sums. `top_k` 0: the margin is unknown. An output that is nowhere
    negative holds scores and no logits: unknown."""
    values = logits.reshape(-1, logits.shape[-1]).float()
    tokens, width = values.shape
    weight = values.new_ones(tokens) if kept is None or kept.shape[0] != tokens else kept.to(values.dtype)
    squares = values.logsumexp(-1).square()
    margin = torch.full_like(squares, torch.nan)
    if 0 < top_k < width and (bias is None or bias.numel() == width):
        scores = values.sigmoid() if sigmoid else values.softmax(-1)
        best = (scores if bias is None else scores + bias.reshape(-1)).topk(top_k + 1).values
        margin = best[:, -2] - best[:, -1]
    means = torch.stack([squares, margin]) * weight
    row[0] += weight.sum()
    row[1:3] += means.sum(-1).masked_fill((values >= 0).all(), torch.nan)


@torch.library.custom_op("trimtab::facts", mutates_args=("row",))
def facts_of(
    logits: Tensor, row: Tensor, bias: Tensor | None, kept: Tensor | None, top_k: int, sigmoid: bool, number: int
) -> None:
    """The gauge inside a compiled graph; opaque to the compiler, so it can ask at run time whether it is to compute."""
    if number in _computing and inside_backward() == -1:
        add_logits(row, logits, bias, kept, top_k, sigmoid)


@facts_of.register_fake
def _(*_: Any) -> None:
    return None


class Gauge:
    """One router's sums and how its logits are found in a forward of it; without `find` they are not seen."""

    def __init__(self, facts: Facts, router: Any, find: Callable[[Forward], Tensor | None] | None = None) -> None:
        self.row = torch.zeros(SUMS, device=facts.device)
        self.number, self.find, self.bias = facts.number, find, router.bias
        self.widths = (router.slots, router.experts)
        known = scoring(router.module)
        self.known, self.sigmoid = known is not None, known == "sigmoid"
        self.top_k = 0 if limited(router.module) else router.top_k

    @property
    def tells(self) -> bool:
        """Whether anything is added at all."""
        return self.find is not None

    def add(self, call: Forward, kept: Tensor | None) -> None:
        """Adds a forward's logits; in a compiled graph this is traced and changes nothing but `row`."""
        found = None if self.find is None else self.find(call)
        if found is None or (logits := local(found.detach())).shape[-1] not in self.widths:
            return
        bias = None if self.bias is None else local(self.bias[0][self.bias[1]].detach())
        if torch.compiler.is_dynamo_compiling():
            facts_of(logits, self.row, bias, kept, self.top_k, self.sigmoid, self.number)
        else:
            add_logits(self.row, logits, bias, kept, self.top_k, self.sigmoid)


class Facts:
    """A gauge for each router of a reader, in the order of its rows, and whether this step is computed."""

    def __init__(self, device: torch.device, every: int) -> None:
        self.device, self.every, self.number = device, every, next(_NUMBERS)
        self.gauges: list[Gauge] = []
        self._step = 0
        self.computing = True
        _computing.add(self.number)

    def take(self) -> Tensor | None:
        """[3, rows] of the step so far, NaN where nothing tells; None in a step that is not computed."""
        if not self.computing:
            return None
        tokens, squares, margin, dropped, copies = torch.stack([gauge.row for gauge in self.gauges]).unbind(-1)
        means = torch.stack([squares / tokens, margin / tokens, dropped / copies])
        return means.masked_fill_(means.isnan(), torch.nan)  # 0 ÷ 0 may be a NaN of other bits, which the ring compares

    def next(self) -> None:
        """Begins the next step."""
        if self.computing:
            torch._foreach_zero_([gauge.row for gauge in self.gauges])
        self._step += 1
        self._compute(self._step % self.every == 0)

    def _compute(self, wanted: bool) -> None:
        self.computing = wanted
        (_computing.add if wanted else _computing.discard)(self.number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Adds nothing of what runs inside."""
        before = self.computing
        self._compute(False)
        try:
            yield
        finally:
            self._compute(before)

    def close(self) -> None:
        """Computes no more."""
        self._compute(False)


def say_what_is_unknown(facts: Facts | None, framework: str) -> None:
    """One line in the trainer's log on what was asked for and cannot be told."""
    gauges = [] if facts is None else facts.gauges
    if not any(gauge.tells for gauge in gauges):
        log.warning("router facts are not recorded: the probe sees no logits of %s routers", framework)
    elif guessed := sum(gauge.find is not None and not gauge.known for gauge in gauges):
        log.warning("%d routers do not tell how they score: their margin is of softmax(logits)", guessed)


def output_at(place: int) -> Callable[[Forward], Tensor | None]:
    """Logits at a known place of what a router returns."""

    def find(call: Forward) -> Tensor | None:
        found = call.output if isinstance(call.output, Tensor) else call.output[place]
        return found if isinstance(found, Tensor) else None

    return find


def output_as_wide(widths: Sequence[int]) -> Callable[[Forward], Tensor | None]:
    """The first real-valued output [..., S] with one value an expert or slot."""

    def find(call: Forward) -> Tensor | None:
        for item in (call.output,) if isinstance(call.output, Tensor) else call.output:
            if isinstance(item, Tensor) and item.dim() > 1 and item.is_floating_point() and item.shape[-1] in widths:
                return item
        return None

    return find

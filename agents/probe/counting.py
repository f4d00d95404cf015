"""Our own counters: how many tokens each router sent to each slot, where the framework itself does not count.

Each tapped router (tapping.py) leaves a reference to the chosen experts behind; the last router of the model adds all
of them to one buffer in two operations. Inside torch.compile the tap is a custom op, so that the graph does not break.
Nothing here waits for a device: indices are added with scatter_add_, since bincount must know its length first. An
index that is no slot (routers mark dropped and padded tokens with −1) counts nothing; on a device, where it would end
the process, three more operations see to it always, on the CPU from the first such index on. Outside of compiled
graphs no error of ours reaches the trainer's forward: the first one ends the counting.

What is counted: forwards in training mode, with or without gradients (reentrant checkpointing runs its first forward
without), but none that happen inside a backward pass: those are recomputations. What is not: statistics.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from agents.probe.tapping import Forward, inside_backward, tap, tapped_methods, untap

INDEX, MAP, COUNTS = 0, 1, 2
"""What a tap takes: int [..., K] chosen slots, bool [..., S] a map of them, or [S] counts of this forward."""

_compiled = [False]  # whether any compiled graph has ever counted
_numbers = itertools.count()
_counters: WeakValueDictionary[int, Counter] = WeakValueDictionary()  # for compiled graphs, which hold numbers only


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be distributed."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _within(chosen: Tensor, weight: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Indices that are all slots, and int32 weights that are 0 where they were none."""
    inside = chosen.clamp(0, slots - 1)
    return inside, weight * (inside == chosen)


def _add(row: Tensor, picked: Tensor, kind: int, kept: Tensor | None) -> None:
    """Adds one router's choices to its row [S] of int32. `kept` [T] is 0 where a token is padding."""
    if kind == COUNTS:
        row.add_(picked.to(row.dtype))
        return
    chosen = picked.reshape(-1, picked.shape[-1])
    if kept is not None and kept.shape[0] != chosen.shape[0]:
        kept = None  # not this batch's mask
    if kind == MAP:
        row.add_(chosen.sum(0) if kept is None else (chosen * kept[:, None]).sum(0))
        return
    weight = torch.ones((), dtype=row.dtype, device=row.device) if kept is None else kept[:, None]
    row.scatter_add_(0, *_within(chosen.reshape(-1).long(), weight.expand(chosen.shape).reshape(-1), len(row)))


@torch.library.custom_op("trimtab::count", mutates_args=("row",))
def count(picked: Tensor, row: Tensor, kind: int, kept: Tensor | None, ends: int = -1) -> None:
    """The tap inside a compiled graph; opaque to the compiler, so it can ask at run time whether this is a backward.
    `ends` is the number of the counter whose masked forward ends here: the graph itself may not change the counter,
    since checkpointing inside of it allows no side effects."""
    _compiled[0] = True
    if inside_backward() == -1:
        _add(row, picked, kind, kept)
        if ends in _counters:
            _counters[ends].kept = None


@count.register_fake
def _(*_: Any) -> None:
    return None


class Tap:
    """What is known of one tapped router: its row, and how its choices are found in what `forward` returns."""

    def __init__(self, counter: Counter, row: int, top_k: int, logits_at: int | None) -> None:
        self.counter, self.row, self.top_k, self.logits_at = counter, row, top_k, logits_at
        self.compiled_row = torch.zeros(counter.slots, dtype=torch.int32, device=counter.counts.device)
        self.last = False
        """Whether a forward of the model ends with this router."""
        self.kind = INDEX
        """Of what was chosen, once it is known."""
        self.pick: Callable[[Forward], Tensor] | None = None
        self.gauge: Any = None
        """facts.Gauge, where the counter has `facts`."""

    def choose(self, kind: int, pick: Callable[[Forward], Tensor]) -> None:
        """In place of a search of the output: `pick` tells what a call has chosen, of this kind."""
        self.kind, self.pick = kind, pick
        self.counter.alike = self.counter.alike and kind == INDEX

    def read(self, call: Forward) -> tuple[int, Tensor, int | None]:
        """What was chosen, its kind, and its place if that is all there is to know. Keeps nothing, since it is traced
        into compiled graphs; raises TypeError if nothing in the output tells the choices."""
        if self.pick is not None:
            picked = self.pick(call)
            if self.kind == COUNTS and picked.dtype.itemsize < 4:
                raise TypeError(f"a router's counts are {picked.dtype}: too narrow to count in")
            return self.kind, picked, None
        whole = isinstance(call.output, Tensor)
        items = (call.output,) if whole else call.output
        for at, item in enumerate(items):
            kind = self._kind_of(item)
            if kind is not None:
                return kind, item, None if whole else at
        if self.logits_at is None:
            raise TypeError("a router's output holds neither chosen experts nor a map of them")
        return INDEX, items[self.logits_at].detach().topk(self.top_k, dim=-1).indices, None

    def _kind_of(self, item: Any) -> int | None:
        if not isinstance(item, Tensor) or item.dim() == 0:
            return None
        width, floating = item.shape[-1], item.is_floating_point()
        if item.dtype == torch.bool:
            return MAP if item.dim() > 1 and width == self.counter.slots else None
        if item.dim() > 1:
            return INDEX if not floating and width == self.top_k else None
        exact = item.dtype.itemsize >= 4
        return COUNTS if width == self.counter.slots and exact and not item.requires_grad else None


def _count_traced(call: Forward) -> None:
    tap: Tap = call.module._trimtab
    kind, picked, _ = tap.read(call)
    kept = tap.counter.kept
    # `last` is asked of masked forwards only: all others of compiled blocks share one graph
    count(picked, tap.compiled_row, kind, kept, tap.counter.number if kept is not None and tap.last else -1)
    if tap.gauge is not None:
        tap.gauge.add(call, kept)


class Counter:
    """Adds up what tapped routers chose since `forget`, into `counts`: int32 [rows, S], on the routers' device."""

    def __init__(self, counts: Tensor) -> None:
        self.counts, self.number = counts, next(_numbers)
        _counters[self.number] = self
        self.rows, self.slots = counts.shape
        self._guarded = counts.device.type != "cpu"
        self._zero = True  # whether nothing was added since `forget`
        self.alike = True
        """Whether every router tells indices."""
        self.failed: Exception | None = None
        """What ended the counting."""
        self.facts: Any = None
        """facts.Facts, set before `begin` where they are asked for; then every tap has its gauge."""
        self.kept: Tensor | None = None
        """int32 [T], 0 where a token of the forward to come is padding, or None."""
        self.ran: list[nn.Module] = []
        self.chosen: list[Tensor] = []
        self.modules: list[nn.Module] = []
        self.taps: list[Tap] = []
        self._ones: dict[torch.Size, Tensor] = {}

    def tap(self, module: nn.Module, top_k: int, logits_at: int | None = None) -> Tap:
        """Will count `module`'s forwards into the next row, from `begin` on; the tap may be given a `pick`."""
        tap = Tap(self, len(self.taps), top_k, logits_at)
        self.modules.append(module)
        self.taps.append(tap)
        return tap

    def begin(self) -> None:
        """Begins to count, once every row has its tap."""
        made: dict[type, type] = {}
        self.taps[-1].last = True
        for module, own in zip(self.modules, self.taps, strict=True):
            tap(module, own, lambda base: tapped_methods(self, base, _count_traced), made)

    def keep(self, mask: Tensor | None) -> None:
        """Sets the padding mask of the forward to come: bool or int [B, T], 0 or False where a token is padding."""
        if not torch.compiler.is_dynamo_compiling():
            self.flush()
        self.kept = None if mask is None else mask.detach().reshape(-1).to(torch.int32)

    def read(self, call: Forward) -> tuple[Tensor, int | None]:
        """What a call has chosen, and its place in the output if all routers of its class have it there."""
        tap: Tap = call.module._trimtab
        kind, picked, at = tap.read(call)
        if at is not None or kind != tap.kind:
            for module, other in zip(self.modules, self.taps, strict=True):
                if other is tap or (at is not None and type(module) is type(call.module)):
                    other.kind = kind
            self.alike = all(one.kind == INDEX for one in self.taps)
        return picked, at

    def fail(self, error: Exception) -> None:
        """Ends the counting for good and gives every router its class back; `collect` says why."""
        self.failed = self.failed or error
        self.ran.clear()
        self.chosen.clear()
        for module in self.modules:
            untap(module)

    def flush(self) -> None:
        """Adds what is pending: two operations when each router ran once on as many tokens."""
        if not self.ran:
            return
        modules, chosen = self.ran.copy(), self.chosen.copy()
        self.ran.clear()
        self.chosen.clear()
        try:
            if self.alike and modules == self.modules and self._add_together(chosen):
                return
            for module, one in zip(modules, chosen, strict=True):
                tap: Any = module._trimtab
                _add(self.counts[tap.row], one, tap.kind, self.kept)
            self._zero = False
        except Exception as error:  # as in `tapped`
            self.fail(error)

    def _add_together(self, picked: list[Tensor]) -> bool:
        """Adds one choice of each router at once; False if they are not alike."""
        try:
            stacked = torch.stack(picked)
        except RuntimeError:  # of different numbers of tokens
            return False
        if stacked.dtype != torch.int64:
            return False
        chosen = stacked.view(self.rows, -1)
        weight = self._weight(chosen.shape, picked[0].shape)
        if not self._guarded:
            before = None if self._zero else self.counts.clone()
            self._zero = False
            try:
                self.counts.scatter_add_(1, chosen, weight)
                return True
            except RuntimeError:  # an index that is no slot; those before it were added
                self._guarded = True
                self.counts.copy_(before) if before is not None else self.counts.zero_()
        self.counts.scatter_add_(1, *_within(chosen, weight, self.slots))
        return True

    def _weight(self, shape: torch.Size, one: torch.Size) -> Tensor:
        """What each choice adds: 1, or 0 for padding; int32 [rows, T * K]."""
        if self.kept is not None and self.kept.shape[0] == (tokens := one[:-1].numel()):
            return self.kept[:, None].expand(tokens, one[-1]).reshape(1, -1).expand(shape)
        ones = self._ones.get(shape)
        if ones is None:
            self._ones.clear()
            ones = torch.ones((1, 1), dtype=torch.int32, device=self.counts.device).expand(shape)
            self._ones[shape] = ones
        return ones

    def _gather(self) -> None:
        """Adds what is pending and what compiled graphs counted."""
        self.flush()
        if _compiled[0]:
            rows = [tap.compiled_row for tap in self.taps]
            self.counts.add_(torch.stack(rows))
            self._zero = False
            torch._foreach_zero_(rows)

    def collect(self) -> None:
        """Makes the counts whole; RuntimeError once the counting has ended."""
        self._gather()
        if self.failed is not None:
            raise RuntimeError(f"the routers are counted no longer: {self.failed}") from self.failed

    def forget(self) -> None:
        """Begins the next step, whether or not this one was collected."""
        self.ran.clear()
        self.chosen.clear()
        self.counts.zero_()
        self._zero = True
        if _compiled[0]:
            torch._foreach_zero_([tap.compiled_row for tap in self.taps])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forgets what is counted inside."""
        self._gather()
        before = self.counts.clone()
        try:
            with nullcontext() if self.facts is None else self.facts.paused():
                yield
        finally:
            self._gather()
            self.counts.copy_(before)

    def close(self) -> None:
        """Gives every router its class back."""
        for module in self.modules:
            untap(module)
        self.modules.clear()
        self.taps.clear()
        self.ran.clear()
        self.chosen.clear()

"""`attach(model)`: finds a model's routers, whatever framework made them, and records their loads once a step.

One small reader a framework (agents/probe/frameworks) knows where the counts and biases are and when they are whole;
the first that fits is taken. Frameworks are never imported here: a model brings its own. docs/attach.md has the three
lines for each of them and says what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from agents.probe.capture import Probe
from agents.probe.facts import say_what_is_unknown
from agents.probe.frameworks.automodel import AutomodelLoads
from agents.probe.frameworks.buffers import Buffers
from agents.probe.frameworks.deepspeed import DeepSpeed
from agents.probe.frameworks.megatron import MegatronCounts
from agents.probe.frameworks.olmo_core import OlmoCore
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.prime_rl import PrimeRL
from agents.probe.frameworks.routers import AttachError, Biases, Options, Reader
from agents.probe.frameworks.torchtitan import Torchtitan
from agents.probe.frameworks.transformers import Transformers
from agents.probe.sending import DeviceLane, DeviceSender, Frame, HostSender

__all__ = ["READERS", "AttachError", "AttachedProbe", "attach"]

READERS: tuple[type[Reader], ...] = (
    MegatronCounts,
    Torchtitan,
    OlmoCore,
    AutomodelLoads,
    PrimeRL,
    DeepSpeed,
    Transformers,
    Buffers,
    Tapped,
)


def _reader(models: Sequence[nn.Module], framework: str | None, options: Options) -> Reader:
    """The first reader that fits; raises AttachError with what all of them looked for."""
    if any("_trimtab" in module.__dict__ for model in models for module in model.modules()):
        raise AttachError("the model is attached to a probe already: close that one first")
    wanted = [one for one in READERS if framework in (None, one.framework)]
    if not wanted:
        raise AttachError(f"no framework is called {framework!r}: one of {', '.join(r.framework for r in READERS)}")
    if options.routers is not None and framework is None:
        wanted = [Tapped]
    for one in wanted:
        found = one.find(models, options)
        if found is not None:
            if len({router.slots for router in found.routers}) > 1:
                raise AttachError("the model's routers have different numbers of slots")
            return found
    raise AttachError(f"no router found; looked for {'; '.join(one.looks_for for one in wanted)}")


def _rows(reader: Reader, options: Options) -> tuple[list[int], int]:
    """The rows of the whole model's matrix that this process's routers fill, and how many rows there are."""
    held, layers = len(reader.routers), reader.layers
    if layers is not None and not isinstance(layers, int):
        place = {number: row for row, number in enumerate(layers)}
        try:
            return [place[router.number] for router in reader.routers if router.number is not None], len(place)
        except KeyError as error:
            raise AttachError(f"layer {error} is not among the numbers given as layers") from error
    total = options.first_layer + held if layers is None else layers
    if options.first_layer + held > total:
        raise AttachError(f"{held} routers from layer {options.first_layer} on do not fit into {total} layers")
    return list(range(options.first_layer, options.first_layer + held)), total


def _device(models: Sequence[nn.Module]) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    found = next((parameter.device for model in models for parameter in model.parameters()), torch.device("cpu"))
    return found if found.type == "cuda" else torch.device("cpu")


def bias_checksum(biases: Biases, shape: tuple[int, int], rows: Sequence[int], device: torch.device) -> int:
    """The first 15 hexadecimal digits (64 signed bits hold them) of SHA-256 over the float32 [layers, S] biases, row by
    row and little-endian (the
    head of a manifest's bias_checksum, docs/jobs.md); 0 if some are not held here, or are cut over several ranks."""
    if len(rows) < shape[0]:
        return 0
    frame = Frame(torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device), rows)
    biases.read(frame.held_bias)
    frame.spread()
    bias = frame.bias.cpu()
    if bool(bias.isnan().any()):
        return 0
    return int(hashlib.sha256(bias.numpy().astype("<f4").tobytes()).hexdigest()[:15], 16)


class AttachedProbe:
    """A probe over a model's routers. `step` is called once an optimizer step, before counters of your own reset."""

    def __init__(self, models: Sequence[nn.Module], framework: str | None, options: Options, every: int) -> None:
        self._sender: HostSender | DeviceSender | None = None
        if not os.environ.get("TRIMTAB_HEARTBEAT_DIR"):
            self.framework, self._probe = framework or "", Probe(layers=0, slots=0, experts=0, top_k=0)
            return
        self._reader = reader = _reader(models, framework, options)
        self.framework = reader.framework
        rows, layers = _rows(reader, options)
        router = reader.routers[0]
        shape, device = (layers, router.slots), _device(models)
        parallel: dict[str, Any] = dict(reader.parallel)
        self._probe = Probe(
            layers=layers,
            slots=router.slots,
            experts=router.experts,
            top_k=router.top_k,
            start_bias=bias_checksum(Biases(reader.routers), shape, rows, device),
            **parallel,
        )
        if not self._probe.active:
            return
        try:
            if device.type == "cpu":
                self._sender = HostSender(self._probe, reader, shape, rows)
            else:
                lane = DeviceLane(device)
                self._sender = DeviceSender(self._probe, reader, shape, rows, device=device, lane=lane, every=every)
            if options.facts_every:
                say_what_is_unknown(reader.facts, reader.framework)
        except BaseException:
            self._probe.close()
            raise

    @property
    def dropped(self) -> int:
        """Steps that could not be recorded."""
        return self._probe.dropped

    def step(self, step: int, **scalars: Any) -> None:
        """Records optimizer step `step`, all its micro batches together, with its scalars: loss, grad_norm,
        step_seconds, learning_rate, tokens, data_position, route_mismatch (see Probe.write)."""
        if self._sender is None:
            return
        try:
            self._sender.send(step, scalars)
        except Exception as error:  # buffers taken away, shapes changed, a device that failed: none may end a training
            self._probe.drop(step, error)

    def paused(self) -> AbstractContextManager[None]:
        """Counts nothing of what runs inside, for forwards in training mode that are no training (a reference policy's
        log-probabilities). Only where the probe counts itself; elsewhere AttachError."""
        if self._sender is None:
            return nullcontext()
        return self._reader.paused()  # type: ignore[no-any-return]  # a context of the reader's

    def padding(self, mask: Tensor | None) -> None:
        """Gives the forward to come its mask, bool or int [B, T], 0 where a token is padding; transformers models tell
        it themselves. Only where the probe counts itself; elsewhere AttachError."""
        if self._sender is not None:
            self._reader.keep(mask)

    def close(self) -> None:
        """Writes what is on its way, waiting for it two seconds at most, gives the model back as it was and lets go of
        the ring."""
        try:
            if self._sender is not None:
                self._sender.close()
                self._reader.close()
        finally:
            self._sender = None
            self._probe.close()


def attach(
    model: nn.Module | Sequence[nn.Module],
    *,
    framework: str | None = None,
    layers: int | Sequence[int] | None = None,
    first_layer: int = 0,
    routers: str | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    duplicate: bool = False,
    every: int = 1,
    expert_parallel: int | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    facts_every: int = 0,
) -> AttachedProbe:
    """A probe on every router of `model` (or of its pipeline parts), in order of depth; call it after a checkpoint is
    loaded, so that the biases which the run begins with are known. Without TRIMTAB_HEARTBEAT_DIR the model is not even
    looked at.

    A pipeline stage says which rows of the whole model it fills: `layers` is how many mixture layers there are and
    `first_layer` the first one's place here, or `layers` is the list of all their numbers as the modules' names have
    them (Megatron tells by itself). `duplicate` marks a rank whose tokens another one reports. `routers` (a regular
    expression over module names), `experts` and `top_k` describe routers that no reader knows. `every` copies from a
    device only every so many steps. The sizes of the parallel groups are noted with the run (RingMeta says how they are
    read; `tensor_parallel` is the experts'). `facts_every` n measures
    the routers' logits in the first step and every n-th after it, where they are seen; 0 never (facts.py).

    Raises AttachError when there is no router, with all that was looked for; ValueError if `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}: copies are made every so many steps, at least every 1")
    models = [model] if isinstance(model, nn.Module) else list(model)
    sizes = {
        "expert_parallel": expert_parallel,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
    }
    parallel = {name: size for name, size in sizes.items() if size is not None}
    options = Options(layers, first_layer, routers, experts, top_k, duplicate, parallel, max(0, facts_every))
    return AttachedProbe(models, framework, options, every)

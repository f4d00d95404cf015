"""From counts to records: at once where the routers are on the CPU, a step late and without waiting on a device.

On a device a step's counts and biases lie in one flat buffer, which one non-blocking copy on a side stream brings into
pinned memory; the record is written at a later step, once the copy's event has passed. Nothing here waits for a device
before `close`, and that only for a while: when every buffer is still on its way, the step is dropped and counted.

The device path is tested with a stand-in for the stream (tests/agents); on a GPU it is unmeasured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from agents.probe.capture import Probe
from agents.probe.frameworks.routers import Biases, Reader
from agents.readings import LAYER_FACTS

SCALARS = ("loss", "grad_norm", "step_seconds", "learning_rate", "route_mismatch")
WHOLE = ("tokens", "data_position")
BUFFERS = 4
PATIENCE_S, LOOK_S = 2.0, 0.001
"""How long `close` waits for copies, and how often it looks: one behind a collective that hangs never arrives."""


def _own(value: Any) -> Any:
    """A scalar as this rank holds it; of a distributed tensor None, unless all ranks hold the same: asking them would
    be a collective (FSDP2's gradient norm is such a one)."""
    placements = getattr(value, "placements", None)
    if placements is None:
        return value
    return value.to_local() if all(place.is_replicate() for place in placements) else None


def plain(scalars: dict[str, Any]) -> dict[str, Any]:
    """The scalars as numbers. One that is none, or that is on a device and would have to be awaited, is left out."""
    found = {}
    for name, value in scalars.items():
        kind = type(value)
        if kind is int or (kind is float and name in SCALARS) or not (name in SCALARS or name in WHOLE):
            found[name] = value
            continue
        try:
            own = _own(value)
            if not isinstance(own, Tensor) or own.device.type == "cpu":
                found[name] = int(own) if name in WHOLE else float(own)
        except Exception:  # noqa: S112  # whatever a value raises, the step is worth more than it
            continue
    return found


class Frame:
    """One step of the whole model, [layers, S], perhaps with LAYER_FACTS [3, layers]: zeros and NaN for layers that
    this process does not hold."""

    def __init__(self, counts: Tensor, bias: Tensor, rows: Sequence[int], facts: Tensor | None = None) -> None:
        self.counts, self.bias, self.facts = counts, bias, facts
        counts.zero_()
        bias.fill_(float("nan"))
        if facts is not None:
            facts.fill_(float("nan"))
        first, held = rows[0], len(rows)
        self._held = slice(first, first + held)
        if list(rows) == list(range(first, first + held)):
            self.held_counts, self.held_bias = counts[first : first + held], bias[first : first + held]
            self.rows: Tensor | None = None
        else:
            self.rows = torch.tensor(rows, device=counts.device)
            self.held_counts = torch.zeros_like(counts[:held])
            self.held_bias = torch.zeros_like(bias[:held])
        self.held_bias.zero_()
        self.spread()

    def spread(self) -> None:
        """Puts what is held in its rows, where those are not one block."""
        if self.rows is not None:
            self.counts.index_copy_(0, self.rows, self.held_counts)
            self.bias.index_copy_(0, self.rows, self.held_bias)

    def tell(self, reader: Reader) -> bool:
        """Puts the reader's facts of this step in their columns; False if it has none, or another rank tells them."""
        told = None if reader.facts is None or reader.duplicate else reader.facts.take()
        if told is None or self.facts is None:
            return False
        if self.rows is None:
            self.facts[:, self._held] = told
        else:
            self.facts.index_copy_(1, self.rows, told)
        return True


class HostSender:
    """Writes the record of a step when the step is told."""

    def __init__(self, probe: Probe, reader: Reader, shape: tuple[int, int], rows: Sequence[int]) -> None:
        self.probe, self.reader = probe, reader
        self.biases = Biases(reader.routers)
        facts = torch.empty((len(LAYER_FACTS), shape[0]))
        self.frame = Frame(torch.empty(shape, dtype=torch.int32), torch.empty(shape), rows, facts)
        self._facts = facts.numpy()
        self._counts, self._bias = self.frame.counts.numpy(), self.frame.bias.numpy()
        self._none = torch.zeros(shape, dtype=torch.int32).numpy() if reader.duplicate else None
        self._one, self._top_k = self._counts[rows[0]], reader.routers[0].top_k
        reader.install(self.frame.held_counts)

    def send(self, step: int, scalars: dict[str, Any]) -> None:
        """Takes and writes one step; raises whatever the model does where it can no longer be read."""
        reader, frame = self.reader, self.frame
        try:
            reader.collect()
            self.biases.read(frame.held_bias)
            if frame.rows is not None:
                frame.spread()
            if self._none is None:
                routed = int(self._one.sum()) // self._top_k
                facts = self._facts if reader.facts is not None and frame.tell(reader) else None
                self.probe.write(step, self._counts, self._bias, routed=routed, **{"facts": facts, **plain(scalars)})
            else:
                self.probe.write(step, self._none, self._bias, **plain(scalars))
        finally:
            reader.forget()

    def close(self) -> None:
        """Nothing is on its way."""


class Lane(Protocol):
    """The way from a device into host memory. `bring` starts a copy and gives its event, which is asked (`query`) and
    never awaited."""

    def host(self, shape: tuple[int, ...]) -> Tensor: ...

    def bring(self, host: Tensor, device: Tensor) -> Any: ...


class DeviceLane:
    """A side stream of a CUDA or HIP device, into pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def host(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, pin_memory=True)

    def bring(self, host: Tensor, device: Tensor) -> Any:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(device, non_blocking=True)
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            event.record(self._stream)
        return event


class _Told(NamedTuple):
    """What the caller said of a step: scalars known at once and those that travel; whether there are facts."""

    step: int
    scalars: dict[str, Any]
    late: list[str]
    facts: bool


@dataclass
class _Buffer:
    """`every` steps on the device, the same in host memory, and what the caller said of each."""

    device: Tensor
    host: Tensor
    frames: list[Frame]
    scalars: list[Tensor]
    told: list[_Told] = field(default_factory=list)
    event: Any = None


class DeviceSender:
    """Writes the record of a step when its copy has arrived, in the order of the steps."""

    def __init__(
        self,
        probe: Probe,
        reader: Reader,
        shape: tuple[int, int],
        rows: Sequence[int],
        *,
        device: torch.device,
        lane: Lane,
        every: int = 1,
    ) -> None:
        self.probe, self.reader, self.lane, self.shape = probe, reader, lane, shape
        self.biases = Biases(reader.routers)
        self._size = shape[0] * shape[1]
        self._facts_at = 2 * self._size + len(SCALARS)
        self._first, self._top_k = rows[0], reader.routers[0].top_k
        self._free = deque(self._make(every, rows, device) for _ in range(BUFFERS))
        self._away: deque[_Buffer] = deque()
        self._filling: _Buffer | None = None
        self._every = every
        reader.install(torch.zeros((len(rows), shape[1]), dtype=torch.int32, device=device))

    def _make(self, every: int, rows: Sequence[int], device: torch.device) -> _Buffer:
        width = self._facts_at + (len(LAYER_FACTS) * self.shape[0] if self.reader.options.facts_every else 0)
        flat = torch.empty((every, width), dtype=torch.int32, device=device)
        parts = [self._parts(line) for line in flat]
        frames = [Frame(counts, bias, rows, facts) for counts, bias, _, facts in parts]
        return _Buffer(flat, self.lane.host((every, width)), frames, [scalars for _, _, scalars, _ in parts])

    def _parts(self, line: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Counts, biases, scalars and, where they were asked for, facts: views of one step's int32 numbers."""
        size, at = self._size, self._facts_at
        reals = line.view(torch.float32)
        facts = reals[at:].view(len(LAYER_FACTS), -1) if len(line) > at else None
        return line[:size].view(self.shape), reals[size : 2 * size].view(self.shape), reals[2 * size : at], facts

    def send(self, step: int, scalars: dict[str, Any]) -> None:
        """Takes one step on the device and starts its copy; writes what has arrived of earlier steps."""
        try:
            self._write_arrived()
            if self._filling is None and self._free:
                self._filling = self._free.popleft()
            if self._filling is None:
                self.probe.drop(
                    step, RuntimeError(f"the copies of {BUFFERS * self._every} steps are still on their way")
                )
                return
            self.reader.collect()
            self._fill(self._filling, step, scalars)
        finally:
            self.reader.forget()
        if len(self._filling.told) == self._every:
            self._start(self._filling)

    def _fill(self, buffer: _Buffer, step: int, scalars: dict[str, Any]) -> None:
        at = len(buffer.told)
        frame = buffer.frames[at]
        if not self.reader.duplicate:
            frame.held_counts.copy_(self.reader.counts)
        self.biases.read(frame.held_bias)
        frame.spread()
        places = zip(SCALARS, buffer.scalars[at], strict=True)
        late = [name for name, place in places if name in scalars and self._travels(place, scalars[name])]
        known = plain({name: value for name, value in scalars.items() if name not in late})
        buffer.told.append(_Told(step, known, late, frame.tell(self.reader)))

    @staticmethod
    def _travels(place: Tensor, value: Any) -> bool:
        """Sends a number that is on the device along with the counts, since asking for it here would wait."""
        if not isinstance(value, Tensor) or value.device.type != place.device.type:
            return False
        try:
            place.copy_(_own(value).detach().reshape(()), non_blocking=True)
        except Exception:  # not one number, or not ours to read: unknown
            place.fill_(float("nan"))
        return True

    def _start(self, buffer: _Buffer) -> None:
        self._filling = None
        try:
            buffer.event = self.lane.bring(buffer.host, buffer.device)
        except Exception as error:  # the device failed; the buffer may be filled again
            self._drop(buffer, error)
            self._free.append(buffer)
        else:
            self._away.append(buffer)

    def _drop(self, buffer: _Buffer, error: Exception) -> None:
        for told in buffer.told:
            self.probe.drop(told.step, error)
        buffer.told.clear()

    def _write_arrived(self) -> None:
        while self._away and self._away[0].event.query():
            buffer = self._away.popleft()
            for at, told in enumerate(buffer.told):
                try:
                    self._write(buffer.host[at], told)
                except Exception as error:  # this step's alone: the others of the buffer are sound
                    self.probe.drop(told.step, error)
            buffer.told.clear()
            self._free.append(buffer)

    def _write(self, line: Tensor, told: _Told) -> None:
        counts, bias, scalars, facts = self._parts(line)
        arrived: dict[str, Any] = {name: float(scalars[SCALARS.index(name)]) for name in told.late}
        if facts is not None and told.facts:
            arrived["facts"] = facts.numpy()
        routed = int(counts[self._first].sum()) // self._top_k
        self.probe.write(told.step, counts.numpy(), bias.numpy(), routed=routed, **told.scalars, **arrived)

    def close(self) -> None:
        """Writes what is on its way and arrives within PATIENCE_S; the rest is dropped."""
        if self._filling is not None and self._filling.told:
            self._start(self._filling)
        until, error = time.monotonic() + PATIENCE_S, RuntimeError("its copy from the device did not arrive in time")
        try:
            self._write_arrived()
            while self._away and time.monotonic() < until:
                time.sleep(LOOK_S)
                self._write_arrived()
        except RuntimeError as failed:  # the device itself
            error = failed
        while self._away:
            self._drop(self._away.popleft(), error)

"""The way of a device's counts into records, with a stand-in for its stream: copies arrive when the test says so, or
once they were asked for often enough.

The tensors are on the CPU and everything else is what runs on a device. No GPU was there to measure or to run it on.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from agents.probe import sending
from agents.probe.capture import Probe
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import Options
from agents.probe.sending import BUFFERS, DeviceSender
from tests.records import Records, records

__all__ = ["records"]


class Event:
    """A copy that is made when it arrives, so that whatever spoils its source on the way is seen. `asked` counts down
    to when it arrives by itself."""

    def __init__(self, host: Tensor, device: Tensor) -> None:
        self._host, self._device, self.arrived, self.awaited = host, device, False, False
        self.asked = 20.0

    def arrive(self) -> None:
        self._host.copy_(self._device)
        self.arrived = True

    def query(self) -> bool:
        self.asked -= 1
        if self.asked <= 0 and not self.arrived:
            self.arrive()
        return self.arrived

    def synchronize(self) -> None:
        self.awaited = True


class Lane:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def host(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, -1, dtype=torch.int32)

    def bring(self, host: Tensor, device: Tensor) -> Event:
        self.events.append(Event(host, device))
        return self.events[-1]


class Router(nn.Module):
    num_experts, top_k = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expert_bias", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Trainer:
    """Two routers and a sender over them; a step sends `tokens` tokens to expert `step % 4`."""

    def __init__(
        self, every: int = 1, layers: int = 2, rows: tuple[int, ...] = (0, 1), duplicate: bool = False
    ) -> None:
        self.model = nn.ModuleList(Router() for _ in range(2))
        reader: Any = Tapped.find([self.model], Options(duplicate=duplicate))
        self.probe = Probe(layers=layers, slots=4, experts=4, top_k=1)
        self.lane = Lane()
        where = {"device": torch.device("cpu"), "lane": self.lane, "every": every}
        self.sender = DeviceSender(self.probe, reader, (layers, 4), rows, **where)  # type: ignore[arg-type]  # as named

    def step(self, step: int, tokens: int, **scalars: Any) -> None:
        for router in self.model:
            router(torch.full((tokens, 1), step % 4))
            router.expert_bias[step % 4] += 1
        self.sender.send(step, scalars)


def test_a_record_is_written_at_the_step_after_its_copy_has_arrived(records: Records) -> None:
    trainer = Trainer()
    trainer.step(1, 3, loss=0.5)
    assert records.rows() == []
    trainer.lane.events[0].arrive()
    trainer.step(2, 5, loss=0.25)
    (first,) = records.rows()
    assert (first.step, first.loss, first.routed) == (1, 0.5, 3)
    assert records.counts(first).tolist() == [[0, 3, 0, 0]] * 2
    assert records.bias(first).tolist() == [[0, 1, 0, 0]] * 2
    trainer.sender.close()
    (second,) = records.rows()
    assert (second.step, records.counts(second).tolist()) == (2, [[0, 0, 5, 0]] * 2)
    assert records.bias(second).tolist() == [[0, 1, 1, 0]] * 2
    trainer.probe.close()


def test_a_device_that_lags_drops_steps_and_is_never_waited_for(records: Records) -> None:
    trainer = Trainer()
    for step in range(BUFFERS + 2):
        trainer.step(step, step + 1)
    assert not any(event.awaited for event in trainer.lane.events)
    assert (trainer.probe.dropped, len(trainer.lane.events)) == (2, BUFFERS)
    for event in trainer.lane.events:
        event.arrive()
    trainer.step(9, 7)
    assert [(record.step, record.routed) for record in records.rows()] == [(step, step + 1) for step in range(BUFFERS)]
    trainer.sender.close()
    assert [(record.step, record.routed) for record in records.rows()] == [(9, 7)]
    trainer.probe.close()


def test_one_copy_carries_every_step_of_several(records: Records) -> None:
    trainer = Trainer(every=3)
    for step in range(5):
        trainer.step(step, step + 1)
    assert len(trainer.lane.events) == 1
    trainer.sender.close()
    assert len(trainer.lane.events) == 2
    assert not any(event.awaited for event in trainer.lane.events)
    assert [(record.step, record.routed) for record in records.rows()] == [(step, step + 1) for step in range(5)]
    trainer.probe.close()


def test_a_stage_with_rows_apart_and_a_duplicate(records: Records) -> None:
    trainer = Trainer(layers=3, rows=(0, 2))
    trainer.step(1, 3)
    trainer.sender.close()
    record = records.last()
    assert records.counts(record).tolist() == [[0, 3, 0, 0], [0] * 4, [0, 3, 0, 0]]
    assert records.bias(record)[1].tolist() == pytest.approx([float("nan")] * 4, nan_ok=True)
    trainer.probe.close()


def test_a_rank_whose_tokens_another_reports_sends_biases_only(records: Records) -> None:
    trainer = Trainer(duplicate=True)
    trainer.step(1, 3)
    trainer.sender.close()
    record = records.last()
    assert (records.counts(record).sum(), record.routed, records.bias(record)[0, 1]) == (0, 0, 1)
    trainer.probe.close()


def test_closing_gives_up_copies_that_never_arrive(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PATIENCE_S", 0.02)
    trainer = Trainer()
    for step in range(3):
        trainer.step(step, 1)
    trainer.lane.events[0].arrive()
    for event in trainer.lane.events[1:]:
        event.asked = math.inf
    trainer.sender.close()
    assert [record.step for record in records.rows()] == [0]
    assert trainer.probe.dropped == 2
    trainer.probe.close()


def test_a_device_that_fails_ends_neither_the_training_nor_the_closing(records: Records) -> None:
    trainer = Trainer()
    trainer.step(1, 1)

    def failed() -> bool:
        raise RuntimeError("unspecified launch failure")

    trainer.lane.events[0].query = failed  # type: ignore[method-assign]  # the device's own word
    with pytest.raises(RuntimeError):  # which AttachedProbe.step drops
        trainer.step(2, 1)
    trainer.sender.reader.collect()
    assert not trainer.sender.reader.counts.any()  # and the next step does not begin with this one's tokens
    trainer.sender.close()
    assert trainer.probe.dropped == 1
    trainer.probe.close()


def test_a_copy_that_cannot_be_started_is_dropped_and_its_buffer_used_again(records: Records) -> None:
    trainer = Trainer(every=2)
    bring = trainer.lane.bring

    def failed(*_: Any) -> Any:
        raise RuntimeError("out of streams")

    trainer.lane.bring = failed  # type: ignore[method-assign]
    for step in range(2 * BUFFERS + 2):
        trainer.step(step, 1)
    assert trainer.probe.dropped == 2 * BUFFERS + 2
    trainer.lane.bring = bring  # type: ignore[method-assign]
    for step in (20, 21):
        trainer.step(step, 2)
    trainer.sender.close()
    assert [(record.step, record.routed) for record in records.rows()] == [(20, 2), (21, 2)]
    trainer.probe.close()


def test_a_scalar_travels_with_the_counts_and_one_that_is_no_number_costs_only_itself(records: Records) -> None:
    trainer = Trainer()
    scalars: dict[str, Any] = {"loss": torch.tensor(0.5), "grad_norm": torch.ones(2), "learning_rate": "1e-3"}
    trainer.step(1, 3, **scalars, step_seconds=object(), data_position=None)
    trainer.sender.close()
    record = records.last()
    assert (record.loss, record.learning_rate, record.data_position) == (0.5, 0.001, 0)
    assert math.isnan(record.grad_norm)
    assert math.isnan(record.step_seconds)
    assert (trainer.probe.dropped, record.routed) == (0, 3)
    trainer.probe.close()


def test_what_cannot_be_written_costs_its_step_and_not_those_after_it(records: Records) -> None:
    trainer = Trainer(every=2)
    trainer.step(1, 3, temperature=1.0)  # no scalar of ours
    trainer.step(2, 4)
    trainer.sender.close()
    assert [(record.step, record.routed) for record in records.rows()] == [(2, 4)]
    assert trainer.probe.dropped == 1
    trainer.probe.close()


WAITING = {"_local_scalar_dense", "item", "bincount", "nonzero", "nonzero_numpy", "masked_select", "unique", "equal"}
"""Operations that need a device's numbers on the host, or must know how many there are, and so wait for it."""


class Seen(TorchDispatchMode):
    """The names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__.lstrip("_"))
        return func(*args, **(kwargs or {}))


class MapGate(nn.Module):
    num_experts, top_k = 4, 1

    def forward(self, x: Tensor) -> Tensor:
        return x == torch.arange(4, device=x.device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_on_the_way_from_a_router_to_a_copy_waits_for_the_device(device: str, records: Records) -> None:
    """On the meta device there are no numbers at all: whatever asks for one fails there, a copy to the host too."""
    routers: list[nn.Module] = [Router(), Router()]
    for model in (routers, [*routers, MapGate()]):
        made = nn.ModuleList(model).to(device)
        reader: Any = Tapped.find([made], Options(facts_every=1))
        probe = Probe(layers=len(made), slots=4, experts=4, top_k=1)
        lane: Any = StillOnTheWay()
        where = torch.device(device)
        sender = DeviceSender(probe, reader, (len(made), 4), range(len(made)), device=where, lane=lane)
        chosen = torch.tensor([[1], [2], [-1]], device=device)
        mask = torch.tensor([[1, 1, 0]], device=device)
        reader.counter._guarded = True  # as on every device that is not the CPU
        with Seen() as seen:
            for tokens, kept in ((chosen, None), (chosen, mask), (chosen[:2], None)):
                reader.keep(kept)
                for router in made:
                    router(tokens)
            made[0](chosen)  # one router alone
            sender.send(1, {"loss": torch.ones((), device=device), "tokens": 3})
            sender.send(2, {})
        assert {"scatter_add_", "stack"} <= seen.names
        assert seen.names & {name.lstrip("_") for name in WAITING} == set()
        assert (probe.dropped, len(lane.events)) == (0, 2)
        reader.close()
        probe.close()


class StillOnTheWay(Lane):
    """No copy arrives."""

    def host(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    def bring(self, host: Tensor, device: Tensor) -> Event:
        self.events.append(Event(host, device))
        self.events[-1].asked = math.inf
        return self.events[-1]

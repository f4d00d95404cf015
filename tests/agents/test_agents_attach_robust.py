"""A trainer that does what the probe did not expect: it loses a scalar, a step or all counts and is not interrupted."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from agents.probe.attach import attach, bias_checksum
from agents.probe.counting import COUNTS, INDEX, MAP, count
from agents.probe.frameworks.routers import Biases, Router
from tests.records import Records, records

__all__ = ["records"]


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks, of which this is the first; the other is not there, so that a collective would give nonsense."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


class Counted(nn.Module):
    """Counts by itself, in a buffer that `attach` reads."""

    num_experts, top_k = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens_per_expert", torch.tensor([3.0, 1, 0, 0]))
        self.register_buffer("expert_bias", torch.zeros(4))


def test_of_a_distributed_scalar_only_what_every_rank_holds_is_read(mesh: DeviceMesh, records: Records) -> None:
    """FSDP2's clip_grad_norm_ returns a norm that lies in parts: to read it would be a collective."""
    probe = attach(nn.ModuleList([Counted()]))
    for placement in (Replicate(), Partial(), Shard(0)):
        held = torch.ones(1) if isinstance(placement, Shard) else torch.tensor(1.0)
        probe.step(1, grad_norm=DTensor.from_local(held, mesh, [placement], run_check=False), loss=2.0)
    whole, partial, cut = records.rows()
    assert (whole.grad_norm, whole.loss, partial.loss, cut.loss) == (1, 2, 2, 2)
    assert math.isnan(partial.grad_norm)
    assert math.isnan(cut.grad_norm)
    assert probe.dropped == 0
    probe.close()


def test_biases_that_are_cut_over_ranks_have_no_checksum(mesh: DeviceMesh) -> None:
    def checksum(bias: Tensor) -> int:
        place = (dict[str, Any](bias=bias), "bias")
        router = Router("router", nn.Identity(), 4, 4, 1, place)
        return bias_checksum(Biases([router]), (1, 4), [0], torch.device("cpu"))

    known = checksum(torch.arange(4.0))
    digest = hashlib.sha256(struct.pack("<4f", 0, 1, 2, 3)).hexdigest()
    assert known == int(digest[:15], 16)
    assert checksum(DTensor.from_local(torch.arange(4.0), mesh, [Replicate()], run_check=False)) == known
    assert checksum(DTensor.from_local(torch.arange(2.0), mesh, [Shard(0)], run_check=False)) == 0


def test_a_counter_that_was_taken_away_costs_steps_and_not_the_training(records: Records) -> None:
    model = nn.ModuleList([Counted()])
    probe = attach(model)
    del model[0].tokens_per_expert
    probe.step(1)
    probe.step(2)
    assert (probe.dropped, records.rows()) == (2, [])
    model[0].register_buffer("tokens_per_expert", torch.tensor([1.0, 0, 0, 0]))
    probe.step(3)
    assert records.last().routed == 1
    probe.close()


def test_without_an_agent_a_model_without_routers_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_HEARTBEAT_DIR", raising=False)
    probe = attach(nn.Linear(2, 2))
    probe.step(1, loss=1.0)
    probe.close()
    assert probe.dropped == 0


class Gate(nn.Module):
    """Hands out whatever the test chooses."""

    num_experts, top_k = 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.gives: Any = None

    def forward(self, x: Tensor) -> Any:
        return x, self.gives


class MapGate(Gate):
    """Another class of router, in the same model."""


class CountGate(Gate):
    """And a third."""


CHOSEN = torch.tensor([[0, 1], [-1, 3], [3, -1], [4, 2], [2**40, -(2**40)]])
COUNTED = [1, 1, 1, 2]


def test_a_router_whose_output_tells_nothing_ends_the_counting_and_not_the_training(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.ModuleList([Gate(), Gate()])
    probe = attach(model)
    for step in (1, 2):
        for gate in model:
            assert gate(torch.ones(1))[0].tolist() == [1]
        probe.step(step)
    assert (probe.dropped, records.rows(), [type(gate) for gate in model]) == (2, [], [Gate, Gate])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("counted no longer: a router's output holds neither chosen experts nor a map of them")
    with probe.paused():
        probe.padding(torch.ones(1, 1))
    probe.close()


def test_choices_that_change_under_way_end_the_counting_and_not_the_training(records: Records) -> None:
    model = nn.ModuleList([Gate(), Gate()])
    probe = attach(model)
    given: list[Any] = [CHOSEN, None, CHOSEN]
    for step, gives in enumerate(given):
        for gate in model:
            gate.gives = gives
            gate(torch.ones(1))
        probe.step(step)
    assert ([record.step for record in records.rows()], probe.dropped) == ([0], 2)
    probe.close()


@pytest.mark.parametrize("micro_batches", [[CHOSEN], [torch.tensor([[1, 2]]), CHOSEN]])
def test_an_index_that_is_no_expert_counts_nothing(micro_batches: list[Tensor], records: Records) -> None:
    """Routers mark dropped and padded tokens with −1; on a device such an index would end the process."""
    model = nn.ModuleList([Gate(), Gate()])
    probe = attach(model)
    for gives in micro_batches:
        for gate in model:
            gate.gives = gives
            gate(torch.ones(1))
    probe.step(1)
    good = len(micro_batches) - 1
    assert records.counts(records.last()).tolist() == [[1, 1 + good, 1 + good, 2]] * 2
    model[1].gives = CHOSEN[:2].int()  # fewer tokens: each router is added by itself
    for gate in model:
        gate(torch.ones(1))
    probe.step(2)
    assert records.counts(records.last()).tolist() == [COUNTED, [1, 1, 0, 1]]
    row = torch.zeros(4, dtype=torch.int32)
    count(CHOSEN, row, INDEX, None)
    assert row.tolist() == COUNTED
    probe.close()


def test_router_classes_that_tell_their_choices_in_different_ways(records: Records) -> None:
    model = nn.ModuleList([Gate(), MapGate(), CountGate(), Gate(), MapGate()])
    chosen = torch.tensor([[0, 1], [1, 3], [1, 2]])
    counts = torch.tensor([1, 3, 1, 1])
    told: dict[Any, Tensor] = {Gate: chosen, MapGate: nn.functional.one_hot(chosen, 4).sum(1).bool(), CountGate: counts}
    for gate in model:
        gate.gives = told[type(gate)]
    probe = attach(model)
    for step in (1, 2):
        for gate in model:
            gate(torch.ones(1))
        probe.step(step)
        assert records.counts(records.last()).tolist() == [counts.tolist()] * 5
    assert [cast(Any, gate)._trimtab.kind for gate in model] == [INDEX, MAP, COUNTS, INDEX, MAP]
    probe.close()


def test_a_mask_is_of_one_forward_only(records: Records) -> None:
    model = nn.ModuleList([Gate(), Gate()])
    probe = attach(model)
    probe.padding(torch.tensor([[1, 0, 0]]))
    for chosen in (torch.tensor([[0, 1], [2, 3], [2, 3]]), torch.tensor([[0, 1], [0, 1], [0, 1]])):
        for gate in model:
            gate.gives = chosen
            gate(torch.ones(1))
    probe.step(1)
    assert records.counts(records.last()).tolist() == [[4, 4, 0, 0]] * 2
    probe.close()

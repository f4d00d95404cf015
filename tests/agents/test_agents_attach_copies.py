"""Ranks whose tokens another rank reports: without this every tensor-parallel rank would add the same counts again.

Frameworks are stood for by doubles with their names, and the other ranks by torch's process group that talks to nobody:
what is tested asks where this rank stands and needs no answer. tests/frameworks has transformers' own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.testing._internal.distributed.fake_pg import FakeStore

from agents.probe.attach import attach
from tests.agents.test_agents_attach_moments import Double, MegatronRouter, megatron, torchtitan
from tests.records import Records, records

__all__ = ["records"]

Join = Callable[[int, int], None]


@pytest.fixture
def join() -> Iterator[Join]:
    """Makes this process one rank of so many."""

    def joined(rank: int, world: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)

    yield joined
    if dist.is_initialized():
        dist.destroy_process_group()


def reported(records: Records, model: nn.Module, end: Callable[[], Any]) -> list[int]:
    """The first layer's counts of one step, as `attach` records them on this rank; its biases are always told."""
    probe = attach(model)
    end()
    probe.step(1)
    record = records.last()
    assert records.bias(record)[0].tolist() == [0.5] * 4
    probe.close()
    return records.counts(record)[0].tolist()


def biased(double: Double) -> Double:
    double.set(torch.float32)
    for router in double.routers:
        for buffer in (name for name in ("expert_bias", "expert_bias_E") if name in router._buffers):
            router._buffers[buffer].fill_(0.5)
    return double


@pytest.mark.parametrize(
    ("rank", "world", "sequence_parallel", "counts"),
    [
        (0, 2, False, [4, 2, 0, 0]),
        (1, 2, False, [0, 0, 0, 0]),
        (1, 2, True, [4, 2, 0, 0]),  # each rank routes its own part of the sequence
        (0, 1, False, [4, 2, 0, 0]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_of_megatrons_tensor_parallel_ranks_the_first_reports(
    rank: int,
    world: int,
    sequence_parallel: bool,
    counts: list[int],
    bias: bool,
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
) -> None:
    """With a bias Megatron counts, without one its maps are counted."""
    join(rank, world)
    double = biased(megatron(monkeypatch))
    chosen = torch.tensor([[1, 0, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2, dtype=torch.bool)
    monkeypatch.setattr(MegatronRouter, "enable_expert_bias", bias)
    monkeypatch.setattr(MegatronRouter, "forward", lambda self, x: (x, chosen))
    for router in double.routers:
        router.tp_group, router.config.sequence_parallel = dist.group.WORLD, sequence_parallel
        if not bias:
            router.expert_bias = None
    probe = attach(double.model)
    for router in double.routers:
        router(torch.ones(1))
    double.end() if bias else None
    probe.step(1)
    record = records.last()
    assert records.counts(record).tolist() == [counts] * 2
    assert record.routed == sum(counts) // 2
    assert records.bias(record).tolist() == [[0.5 if bias else 0.0] * 4] * 2
    probe.close()


@pytest.mark.parametrize(
    ("rank", "names", "placement", "counts"),
    [
        (0, ("dp", "tp"), Replicate(), [4, 2, 0, 0]),
        (1, ("dp", "tp"), Replicate(), [0, 0, 0, 0]),
        (2, ("dp", "tp"), Replicate(), [4, 2, 0, 0]),  # the first of another batch
        (3, ("dp", "tp"), Replicate(), [0, 0, 0, 0]),
        (1, ("dp", "cp"), Replicate(), [4, 2, 0, 0]),  # context parallelism cuts the sequence
        (1, ("dp", "tp"), Partial(), [4, 2, 0, 0]),  # each rank counts tokens of its own
    ],
)
def test_of_torchtitans_tensor_parallel_ranks_the_first_reports(
    rank: int,
    names: tuple[str, str],
    placement: Any,
    counts: list[int],
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
) -> None:
    join(rank, 4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
    double = biased(torchtitan(monkeypatch))
    for router in double.routers:
        whole = DTensor.from_local(getattr(router, router.counter), mesh, [Replicate(), placement], run_check=False)
        router._buffers[router.counter] = whole
    assert reported(records, double.model, double.end) == counts


class Router(nn.Module):
    """Of a transformers model, as far as `attach` looks: its class is what the model records."""

    num_experts, top_k = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("e_score_correction_bias", torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.tensor([[0], [0], [1]])


class Recorded(nn.Module):
    _can_record_outputs: ClassVar = {"router_logits": SimpleNamespace(target_class=Router, index=0, layer_name=None)}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Router()])

    def forward(self, x: Tensor) -> None:
        self.layers[0](x)


@pytest.mark.parametrize(
    ("rank", "shape", "names", "counts"),
    [
        (0, (2, 2), ("fsdp", "tp"), [2, 1, 0, 0]),
        (1, (2, 2), ("fsdp", "tp"), [0, 0, 0, 0]),
        (2, (2, 2), ("fsdp", "tp"), [2, 1, 0, 0]),
        (1, (4,), None, [0, 0, 0, 0]),  # older versions: the mesh of the group itself
        (1, (4,), ("fsdp",), [2, 1, 0, 0]),
        (0, (4,), ("tp",), [2, 1, 0, 0]),
    ],
)
def test_of_transformers_tensor_parallel_ranks_the_first_reports(
    rank: int,
    shape: tuple[int, ...],
    names: tuple[str, ...] | None,
    counts: list[int],
    join: Join,
    records: Records,
) -> None:
    join(rank, 4)
    model: Any = Recorded()
    model._device_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model._tp_size = None if names == ("fsdp",) else shape[-1]
    wrapped = nn.ModuleDict({"module": model})  # as DistributedDataParallel holds it
    assert reported(records, wrapped, lambda: model(torch.ones(1))) == counts

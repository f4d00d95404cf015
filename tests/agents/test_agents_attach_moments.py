"""Counters that a framework keeps and hands over at a moment of its own: too narrow ones, and moments that never come.

Each framework is stood for by a double with its names, which shares no code with it; tests/frameworks has the real
classes. A count that is not known must not be recorded as zero.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.probe.attach import AttachError, attach
from agents.probe.frameworks.routers import AtMoment
from tests.records import Records, records

__all__ = ["records"]

FINALIZE = "megatron.core.distributed.finalize_model_grads"
PRIME = "prime_rl.trainer.model"


class Mixture(nn.Module):
    """torchtitan's and prime-rl's pattern; `ending` is the name's, `_E` in newer torchtitan."""

    load_balance_coeff = 1e-3

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.router = nn.Module()
        self.router.top_k = 2  # type: ignore[assignment]  # no tensor and no module
        self.counter = f"tokens_per_expert{ending}"
        self.register_buffer(self.counter, torch.zeros(4))
        self.register_buffer(f"expert_bias{ending}", torch.zeros(4))


class TorchtitanMoE(Mixture):
    def __init__(self) -> None:
        super().__init__("_E")


class PrimeMoE(Mixture):
    def __init__(self) -> None:
        super().__init__("")


class MegatronRouter(nn.Module):
    counter, enable_expert_bias, topk, tp_group = "local_tokens_per_expert", True, 2, None
    layer_number: int

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_moe_experts=4, moe_layer_freq=1, num_layers=2, sequence_parallel=False)
        self.register_buffer("local_tokens_per_expert", torch.zeros(4))
        self.register_buffer("expert_bias", torch.zeros(4))


class OlmoRouter(nn.Module):
    counter, num_experts, top_k = "_batch_size_per_expert", 4, 2

    def __init__(self) -> None:
        super().__init__()
        self._batch_size_per_expert = torch.zeros(4)
        self.register_buffer("score_bias", torch.zeros(4))

    @property
    def batch_size_per_expert(self) -> Tensor:
        return self._batch_size_per_expert

    def post_batch(self, dry_run: bool = False) -> None:
        """Moves the bias."""


class AutomodelGate(nn.Module):
    counter, n_experts, topk, bias_update_factor = "_cumulative_expert_load", 4, 2, 0.1

    def __init__(self) -> None:
        super().__init__()
        self._cumulative_expert_load: Tensor | None = torch.zeros(4)
        self.register_buffer("e_score_correction_bias", torch.zeros(4))

    def update_bias(self) -> None:
        """Moves the bias."""


class Double:
    """A model of two routers; `end` is what the framework does when a step's counts are whole."""

    def __init__(self, cls: type[nn.Module], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cls, "__module__", f"{package}.models")
        self.routers: list[Any] = [cls() for _ in range(2)]
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.ModuleDict({"part": router}) for router in self.routers)
        self.end: Callable[[], Any] = self._methods

    def set(self, dtype: torch.dtype) -> None:
        for number, router in enumerate(self.routers):
            router.layer_number = number + 1
            setattr(router, router.counter, torch.tensor([4, 2, 0, 0]).to(dtype))

    def _methods(self) -> None:
        for router in self.routers:
            router.post_batch() if isinstance(router, OlmoRouter) else router.update_bias()


def torchtitan(monkeypatch: pytest.MonkeyPatch) -> Double:
    made = Double(TorchtitanMoE, "torchtitan", monkeypatch)
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    made.end = torch.optim.SGD([weight], lr=0.1).step
    return made


def prime_rl(monkeypatch: pytest.MonkeyPatch) -> Double:
    made, module = Double(PrimeMoE, "prime_rl", monkeypatch), ModuleType(PRIME)
    module.get_load_balance_stats = lambda: None  # type: ignore[attr-defined]  # a made-up module
    monkeypatch.setitem(sys.modules, PRIME, module)
    made.end = lambda: module.get_load_balance_stats()
    return made


def megatron(monkeypatch: pytest.MonkeyPatch) -> Double:
    made, module = Double(MegatronRouter, "megatron", monkeypatch), ModuleType(FINALIZE)
    module.get_updated_expert_bias = lambda counts, bias, rate: bias  # type: ignore[attr-defined]  # a made-up module
    monkeypatch.setitem(sys.modules, FINALIZE, module)

    def end() -> None:
        counts, bias = (
            torch.stack([getattr(r, name) for r in made.routers]) for name in (MegatronRouter.counter, "expert_bias")
        )
        module.get_updated_expert_bias(counts, bias, 0.1)

    made.end = end
    return made


def olmo_core(monkeypatch: pytest.MonkeyPatch) -> Double:
    return Double(OlmoRouter, "olmo_core", monkeypatch)


def automodel(monkeypatch: pytest.MonkeyPatch) -> Double:
    return Double(AutomodelGate, "nemo_automodel", monkeypatch)


@pytest.fixture(params=[torchtitan, prime_rl, megatron, olmo_core, automodel], ids=lambda made: made.__name__)
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Double:
    made: Double = request.param(monkeypatch)
    return made


NARROW = [torch.bfloat16, torch.float16, torch.int16]


@pytest.mark.parametrize("dtype", NARROW)
def test_a_counter_that_cannot_count_far_is_refused(double: Double, dtype: torch.dtype, records: Records) -> None:
    """A bfloat16 that is added to one by one stands still at 256."""
    double.set(dtype)
    with pytest.raises(AttachError, match=rf"layers\.0\.part.* is {dtype}: too narrow to count in"):
        attach(double.model)


def test_counters_that_become_narrow_cost_their_steps(double: Double, records: Records) -> None:
    """`model.bfloat16()` after `attach` casts the buffers too."""
    double.set(torch.float32)
    probe = attach(double.model)
    assert isinstance(probe._reader, AtMoment)
    double.set(torch.bfloat16)
    double.end()
    probe.step(1)
    assert (probe.dropped, records.rows()) == (1, [])
    double.set(torch.int64)
    double.end()
    probe.step(2)
    assert records.counts(records.last()).tolist() == [[4, 2, 0, 0]] * 2
    probe.close()


def test_a_step_whose_moment_never_came_is_unknown_and_not_zero(
    double: Double, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    double.set(torch.float32)
    probe = attach(double.model)
    probe.step(1)
    assert (probe.dropped, records.rows()) == (1, [])
    assert caplog.messages[-1].endswith("has not come to where its counters are whole since the last step")
    double.end()
    probe.step(2)
    probe.step(3)
    (record,) = records.rows()
    assert (record.step, record.routed, probe.dropped) == (2, 3, 2)
    probe.close()


def test_automodel_without_a_forward_has_no_counts_to_take(monkeypatch: pytest.MonkeyPatch, records: Records) -> None:
    made = automodel(monkeypatch)
    made.routers[1]._cumulative_expert_load = None
    probe = attach(made.model)
    made.end()
    probe.step(1)
    assert (probe.dropped, records.rows()) == (1, [])
    probe.close()


class Counted(nn.Module):
    num_experts, top_k = 4, 1

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("tokens_per_expert", torch.tensor([3, 1, 0, 0], dtype=dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_a_buffer_of_ones_own_is_refused_too(dtype: torch.dtype, records: Records) -> None:
    with pytest.raises(AttachError, match=rf"0\.tokens_per_expert is {dtype}: too narrow"):
        attach(nn.ModuleList([Counted(dtype)]))
    model = nn.ModuleList([Counted(torch.float32)])
    probe = attach(model)
    model[0].tokens_per_expert = torch.ones(4, dtype=dtype)
    probe.step(1)
    assert (probe.dropped, records.rows()) == (1, [])
    probe.close()


class MOELayer(nn.Module):
    """DeepSpeed's, whose counts are read after each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = SimpleNamespace(k=1, wg=SimpleNamespace(weight=torch.zeros(4, 2)))
        self.exp_counts = torch.tensor([1, 2, 0, 0])

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_deepspeeds_counts_that_are_narrow_end_the_counting(
    monkeypatch: pytest.MonkeyPatch, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MOELayer, "__module__", "deepspeed.moe.sharded_moe")
    model = nn.ModuleList([MOELayer()])
    probe = attach(model, framework="deepspeed")
    model[0](torch.zeros(1))
    probe.step(1)
    assert records.counts(records.last()).tolist() == [[1, 2, 0, 0]]
    model[0].exp_counts = torch.ones(4, dtype=torch.bfloat16)
    model[0](torch.zeros(1))
    probe.step(2)
    assert (probe.dropped, records.rows()) == (1, [])
    assert "bfloat16: too narrow" in caplog.messages[-1]
    probe.close()

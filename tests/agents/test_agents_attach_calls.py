"""A tapped router's own `__call__`: whatever else wants to see a call sees it as it does without a tap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from agents.probe.attach import attach
from tests.agents.test_agents_attach import Model, TopKRouter, batch, expected
from tests.records import Records, records

__all__ = ["records"]


def test_hooks_see_a_tapped_routers_calls_as_they_do_without_a_tap(records: Records) -> None:
    """A tapped router's own `__call__` leaves everything but a plain call to torch's."""
    model = Model(layers=2)
    probe = attach(model)
    gate: Any = model.layers[0].gate
    seen: list[str] = []
    hooks: list[Callable[[], Any]] = [
        lambda: gate.register_forward_pre_hook(lambda *_: seen.append("before")),
        lambda: gate.register_forward_hook(lambda *_: seen.append("after")),
        lambda: gate.register_full_backward_hook(lambda *_: seen.append("backward")),
        lambda: gate.register_full_backward_pre_hook(lambda *_: seen.append("before backward")),
        lambda: module_hooks.register_module_forward_pre_hook(lambda *_: seen.append("before")),
        lambda: module_hooks.register_module_forward_hook(lambda *_: seen.append("after")),
    ]
    for register in hooks:
        handle = register()
        model(batch(1)).sum().backward()
        handle.remove()
        assert seen
        seen.clear()
    model(batch(1)).sum().backward()
    assert seen == []
    probe.step(1)
    wanted = np.array(expected(model, batch(1))) * (len(hooks) + 1)
    assert records.counts(records.last()).tolist() == wanted.tolist()
    probe.close()


def test_a_tapped_router_is_called_in_any_way_that_torch_allows(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(layers=1)
    probe = attach(model)
    gate, x, seen = model.layers[0].gate, batch(1), []
    gate.forward(x)  # past `__call__`
    gate(x=x)
    gate(x)
    original = gate.forward
    gate.forward = lambda x: seen.append("replaced") or original(x)
    gate(x)
    del gate.forward
    plain = nn.Module.__call__
    with monkeypatch.context() as patch:  # as torch.fx does
        patch.setattr(nn.Module, "__call__", lambda self, *args: seen.append("traced") or plain(self, *args))
        gate(x)
    assert seen == ["replaced", "traced"]
    with pytest.raises(TypeError, match=r"forward\(\) missing 1 required positional argument: 'x'"):
        gate()
    probe.step(1)
    assert records.counts(records.last()).tolist() == (5 * np.array(expected(model, x))).tolist()
    probe.close()


class OwnCallRouter(TopKRouter):
    def __call__(self, x: Tensor) -> Any:
        self.called = True
        return super().__call__(2 * x)


def test_a_router_with_a_call_of_its_own_keeps_it(records: Records) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([OwnCallRouter(4, 1)])
    twin = copy.deepcopy(model)
    probe = attach(model)
    model[0](batch(1))
    probe.step(1)
    wanted = torch.bincount(twin[0](batch(1))[2].reshape(-1), minlength=4)
    assert records.counts(records.last()).tolist() == [wanted.tolist()]
    assert model[0].called
    probe.close()

"""Router facts of a step (z-loss, margin) against numbers computed apart from the probe's, on torch alone."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.probe.attach import attach
from agents.probe.capture import Probe
from agents.probe.facts import limited, scoring
from agents.probe.frameworks.outputs import Tapped
from agents.probe.frameworks.routers import Options
from agents.probe.sending import DeviceSender
from tests.agents.test_agents_attach import Model, batch
from tests.agents.test_agents_attach_device import Lane
from tests.records import Records, records

__all__ = ["records"]


def expected(model: Any, *batches: Tensor, kept: Tensor | None = None, k: int = 2) -> NDArray[np.float64]:
    """[2, layers] in float64 from an untouched copy: mean (ln Σ exp)² and mean gap of the sorted softmax plus bias."""
    twin = copy.deepcopy(model)
    twin.recompute = None
    squares: list[list[NDArray[np.float64]]] = [[] for _ in twin.layers]
    gaps: list[list[NDArray[np.float64]]] = [[] for _ in twin.layers]
    for x in batches:
        for row, layer in enumerate(twin.layers):
            logits = layer.gate(x)[0].detach().double().numpy()
            x = layer(x)
            logits = logits if kept is None else logits[kept.reshape(-1).bool().numpy()]
            powers = np.exp(logits)
            squares[row].append(np.log(powers.sum(-1)) ** 2)
            bias = layer.gate.e_score_correction_bias.double().numpy()
            ordered = np.sort(powers / powers.sum(-1, keepdims=True) + bias, axis=-1)
            gaps[row].append(ordered[:, -k] - ordered[:, -k - 1])
    return np.array([[np.concatenate(of).mean() for of in told] for told in (squares, gaps)])


def assert_facts(told: NDArray[np.float32], wanted: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(told[:2], wanted, rtol=1e-4)
    assert np.isnan(told[2]).all(), "nothing tells of a capacity"


def test_every_nth_step_is_measured_over_all_its_micro_batches(records: Records) -> None:
    model = Model()
    probe = attach(model, facts_every=2)
    for step in range(3):
        model(batch(step, tokens=10)).sum().backward()
        model(batch(step + 10, tokens=30)).sum().backward()
        probe.step(step)
    first, second, third = records.rows()
    for step, record in ((0, first), (2, third)):
        assert_facts(records.facts(record), expected(model, batch(step, tokens=10), batch(step + 10, tokens=30)))
    assert second.facts == b""
    assert records.counts(second).sum() == 3 * 40 * 2
    probe.close()


def test_without_the_option_no_fact_is_written(records: Records) -> None:
    model = Model()
    probe = attach(model)
    model(batch())
    probe.step(0)
    assert records.last().facts == b""
    probe.close()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_evaluation_and_pauses_add_nothing(reentrant: bool, records: Records) -> None:
    model = Model()
    probe = attach(model, facts_every=1)
    model.eval()(batch(2))
    model.train()
    with probe.paused():
        model(batch(3))
    model.recompute = reentrant
    model(batch(1)).sum().backward()
    tokens = [float(layer.gate._trimtab.gauge.row[0]) for layer in model.layers]
    probe.step(0)
    assert tokens == [10.0] * 3
    assert_facts(records.facts(records.last()), expected(model, batch(1)))
    probe.close()


def test_padding_has_no_part_in_a_mean(records: Records) -> None:
    model, kept = Model(), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    probe = attach(model, facts_every=1)
    probe.padding(kept)
    model(batch(1))
    probe.step(0)
    assert_facts(records.facts(records.last()), expected(model, batch(1), kept=kept))
    probe.close()


def test_a_compiled_model_stays_one_graph_for_measured_steps_and_others(records: Records) -> None:
    import torch._dynamo.testing  # takes seconds, and the other tests do without

    torch._dynamo.reset()
    model = Model()
    probe = attach(model, facts_every=2)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(3):
        compiled(batch(step)).sum().backward()
        with torch.no_grad():
            for layer in model.layers:
                layer.gate.e_score_correction_bias.add_(0.0)
        probe.step(step)
    first, second, third = records.rows()
    assert_facts(records.facts(first), expected(model, batch(0)))
    assert_facts(records.facts(third), expected(model, batch(2)))
    assert second.facts == b""
    assert counter.frame_count == 1
    probe.close()
    torch._dynamo.reset()


def test_compiled_blocks_share_their_graph(records: Records) -> None:
    """Twelve layers with a bias and a gauge each, recomputed: a graph a layer would be too many."""
    import torch._dynamo.testing  # as above

    torch._dynamo.reset()
    model = Model(layers=12)
    probe = attach(model, facts_every=1)
    counter = torch._dynamo.testing.CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model.recompute = False
    model(batch(1)).sum().backward()
    probe.step(0)
    assert_facts(records.facts(records.last()), expected(Model(layers=12), batch(1)))
    assert counter.frame_count <= 3
    probe.close()
    torch._dynamo.reset()


class Scores(nn.Module):
    """A gate that hands out its scores and no logits."""

    num_experts, top_k = 4, 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x.softmax(-1)
        return scores, scores.topk(2).indices


def test_scores_are_not_taken_for_logits(records: Records) -> None:
    model = nn.ModuleDict({"router": Scores()})
    probe = attach(model, routers="router", facts_every=1)
    model["router"](torch.randn(9, 4))
    probe.step(0)
    assert records.last().facts == b"", "all of them unknown"
    probe.close()


class Grouped(nn.Module):
    """A sigmoid router that chooses among groups of experts."""

    n_group, topk_group = 2, 1

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Named(Scores):
    """Names its score function, whatever its forward calls."""

    score_function = "sigmoid"


def test_how_a_router_scores_is_told_by_a_name_or_by_its_forward() -> None:
    assert (scoring(Scores()), scoring(Grouped()), scoring(Named())) == ("softmax", "sigmoid", "sigmoid")
    assert scoring(nn.Linear(2, 2)) is None
    assert (limited(Scores()), limited(Grouped())) == (False, True)


class Unknown(nn.Module):
    num_experts, top_k = 4, 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.topk(1).indices


def test_what_is_guessed_and_what_is_not_seen_is_said(records: Records, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trimtab.probe"):
        attach(nn.ModuleDict({"router": Unknown()}), routers="router", facts_every=1).close()
        counted = nn.Module()
        counted.register_buffer("tokens_per_expert", torch.zeros(4))
        attach(nn.ModuleList([counted]), facts_every=1).close()
    assert [record.getMessage() for record in caplog.records] == [
        "1 routers do not tell how they score: their margin is of softmax(logits)",
        "router facts are not recorded: the probe sees no logits of buffers routers",
    ]


@pytest.mark.parametrize("rows", [(1, 2, 3), (0, 2, 4)])
def test_a_devices_facts_travel_with_its_counts(rows: tuple[int, ...], records: Records) -> None:
    model, lane = Model(), Lane()
    reader: Any = Tapped.find([model], Options(facts_every=2))
    probe = Probe(layers=5, slots=6, experts=6, top_k=2)
    sender = DeviceSender(probe, reader, (5, 6), rows, device=torch.device("cpu"), lane=lane)
    for step in range(2):
        model(batch(step))
        sender.send(step, {"loss": 0.5})
    sender.close()
    first, second = records.rows()
    told = records.facts(first)
    assert_facts(told[:, list(rows)], expected(model, batch(0)))
    assert np.isnan(np.delete(told, rows, axis=1)).all()
    assert (second.facts, first.loss, second.loss) == (b"", 0.5, 0.5)
    reader.close()
    probe.close()

"""The simulated node is plausible: power follows activity, heat follows power with a lag, counters only grow."""

from __future__ import annotations

import pytest

from agents.drills import DRILLS
from agents.node.sources.simulated import SimulatedSource
from agents.readings import GPU_INDEX, GPU_METRICS, NIC_METRICS, NodeSample


def value(sample: NodeSample, gpu: int, metric: str) -> int:
    return sample.gpus[gpu][GPU_INDEX[metric]]


def run(source: SimulatedSource, begin: int, seconds: int) -> list[NodeSample]:
    return [source.sample(float(at), float(at)) for at in range(begin, begin + seconds)]


def test_a_rank_that_steps_makes_the_node_work_and_one_that_stops_lets_it_idle() -> None:
    source = SimulatedSource("n", 0.0)
    idle = run(source, 1, 60)[-1]
    source.follow(2.5)
    busy = run(source, 61, 120)[-1]
    source.follow(0.0)
    stopped = run(source, 181, 15)[-1]
    assert value(idle, 0, "power_w") < 200 < 600 < value(busy, 0, "power_w")
    assert value(stopped, 0, "power_w") < 200
    assert value(busy, 0, "gfx_activity_percent") > 85 > 5 > value(stopped, 0, "gfx_activity_percent")


def test_heat_lags_behind_power() -> None:
    source = SimulatedSource("n", 0.0)
    run(source, 1, 120)
    source.follow(2.5)
    samples = run(source, 121, 120)
    power = [value(sample, 0, "power_w") for sample in samples]
    heat = [value(sample, 0, "temperature_hotspot_c") for sample in samples]
    assert power[8] > 0.9 * power[-1]
    assert heat[8] - heat[0] < 0.6 * (heat[-1] - heat[0])
    assert 55 < heat[-1] < 95


def test_counters_only_grow_and_gauges_stay_in_range() -> None:
    source = SimulatedSource("n", 0.0)
    source.follow(2.0)
    samples = run(source, 1, 300)
    for at, metric in enumerate(GPU_METRICS):
        series = [sample.gpus[5][at] for sample in samples]
        if metric.kind == "counter":
            assert series == sorted(series), metric.name
        if metric.unit == "%":
            assert 0 <= min(series) <= max(series) <= 100
    for at, metric in enumerate(NIC_METRICS):
        series = [sample.nics[5][at] for sample in samples]
        if metric.kind == "counter":
            assert series == sorted(series), metric.name


def test_the_same_name_is_the_same_node_and_another_differs() -> None:
    def trace(name: str) -> list[int]:
        source = SimulatedSource(name, 0.0)
        source.follow(1.0)
        return [value(sample, 0, "power_w") for sample in run(source, 1, 50)]

    assert trace("a") == trace("a") != trace("b")


def test_it_says_that_it_is_simulated() -> None:
    source = SimulatedSource("n", 0.0)
    facts = source.facts()
    assert source.simulated and facts.simulated and "simulated" in facts.gpu_model
    assert len(facts.gpus) == len(facts.nics) == 8


def test_a_drill_touches_one_device_only() -> None:
    for drill in DRILLS:
        source = SimulatedSource("n", 0.0)
        before = source.sample(1.0, 1.0)
        assert source.apply_drill(drill, 3) == ""
        after = source.sample(2.0, 2.0)
        names = ["present", "xgmi_links_up", *[m.name for m in GPU_METRICS if m.name.startswith("ecc")]]
        for gpu in set(range(8)) - {3}:
            assert [value(before, gpu, n) for n in names] == [value(after, gpu, n) for n in names], (drill, gpu)


@pytest.mark.parametrize(("kind", "gpu"), [("earthquake", 0), ("gpu-lost", 8), ("gpu-lost", -1)])
def test_an_impossible_drill_is_refused_in_words(kind: str, gpu: int) -> None:
    assert "there" in SimulatedSource("n", 0.0).apply_drill(kind, gpu)

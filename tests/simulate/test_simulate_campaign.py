"""Many months summed up, the search over them, and both as a person asks for them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import ettr as bench
from controlplane.runs.causes import Costs
from controlplane.simulate import campaign
from controlplane.simulate.campaign import interval_95, scenarios, setup
from controlplane.simulate.search import search
from tests.cli.trimtab_process import trimtab

COSTS = Costs()


def test_the_interval_of_the_mean_is_students() -> None:
    values = [99.0, 99.2, 99.4, 99.1, 99.3, 98.9, 99.5, 99.2, 99.0, 99.4]
    low, high = interval_95(values)
    # t(0.975, 9) = 2.262
    half = 2.262 * statistics.stdev(values) / len(values) ** 0.5
    assert (low, high) == pytest.approx((99.2 - half, 99.2 + half), abs=0.005)


def test_lost_gpu_hours_by_cause_and_by_phase_sum_to_the_total() -> None:
    found = campaign.run(scenarios(COSTS)[0], 4_096, range(5), 10.0)
    assert sum(found.lost_by_cause_gpu_h.values()) == pytest.approx(found.lost_gpu_h, rel=1e-6)
    assert sum(found.lost_by_phase_gpu_h.values()) == pytest.approx(found.lost_gpu_h, rel=1e-6)
    assert found.lost_gpu_h == pytest.approx((1 - found.ettr_percent / 100) * 4_096 * 240)
    assert found.low_percent < found.ettr_percent < found.high_percent
    assert list(found.lost_by_cause_gpu_h.values()) == sorted(found.lost_by_cause_gpu_h.values(), reverse=True)


def test_the_scenarios_take_their_interval_from_the_advice() -> None:
    plain, load, blocking, human = (setup(one, 1_024) for one in scenarios(COSTS))
    assert plain.interval == load.interval == human.interval == 421
    assert blocking.interval == pytest.approx(421 * 2**0.5, abs=2)
    assert load.costs.load_s == 2 * plain.costs.load_s and human.mode == "advise"
    assert plain.spares == 3


def test_conditions_that_are_worse_give_less() -> None:
    plain, load, blocking, human = (campaign.run(one, 8_192, range(4), 10.0).ettr_percent for one in scenarios(COSTS))
    assert plain > load and plain > blocking and plain > human


def test_the_search_keeps_the_try_that_lost_least_and_tells_the_doubt() -> None:
    told: list[str] = []
    found = search(2_048, COSTS, range(3), 5.0, told.append)
    assert found.best == found.tried[0]
    assert found.best.lost_gpu_h == min(one.lost_gpu_h for one in found.tried)
    assert len({(one.interval_steps, one.spares) for one in found.tried}) == len(found.tried) == len(told)
    assert found.best.more_gpu_h == 0.0 and all(one.more_gpu_h >= 0 for one in found.tried)


# --- as a person asks ---


def test_a_simulation_is_printed_with_its_inputs_and_needs_no_server(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"source": "a bench", "detect_s": 1.5, "gangs": {"128": {"place_s": 4.0}}}))
    asked = ("--gpus", "1024", "--seeds", "2", "--days", "3", "--measured", str(file))
    done = trimtab("simulate", "ettr", *asked, "--only", "as it is", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (row,) = told["results"]
    assert (row["gpus"], row["seeds"], row["interval_steps"], row["goal_percent"]) == (1_024, 2, 421, 99.3)
    inputs = row["inputs"]
    assert (inputs["detect_s"], inputs["place_s"], inputs["source"]) == (1.5, 4.0, "a bench")
    assert (inputs["load_s"], inputs["blocking_s"], inputs["repair_s"]) == (180.0, 2.0, 86_400.0)
    assert sum(one["stops"] for one in told["mix"]) == 419
    assert "months" in done.stderr, "progress is no data"


def test_text_says_where_the_time_went() -> None:
    done = trimtab("simulate", "ettr", "--gpus", "1024", "--seeds", "2", "--days", "3")
    assert done.returncode == 0, done.stderr
    for part in ("blocking_s = 2", "a human on call", "LOST TO", "in all", "≥ 99.3", "by phase"):
        assert part in done.stdout


def test_the_search_is_printed_beside_young_and_daly() -> None:
    done = trimtab("simulate", "advise", "--gpus", "512", "--seeds", "2", "--days", "2")
    assert done.returncode == 0, done.stderr
    assert "Young, Daly" in done.stdout and "closed form" in done.stdout and "MORE THAN THE BEST" in done.stdout


@pytest.mark.parametrize("text", ["not json", "[]", '{"detect": 1}', '{"gangs": {"many": {}}}', '{"gangs": 3}'])
def test_a_file_of_other_times_is_refused_with_its_reason(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    done = trimtab("simulate", "ettr", "--seeds", "2", "--measured", str(file))
    assert done.returncode == 2 and "bench.json" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    done = trimtab("simulate", "ettr", "--seeds", "2", "--only", "luck")
    assert done.returncode == 2 and "double blocking" in done.stderr


def test_a_line_of_the_bench_has_its_target_and_its_peer() -> None:
    lines = bench.size(1_024, COSTS, range(2), 2.0)
    assert [line["target"] for line in lines] == [99.3, None, None, None]
    assert {line["peer"] for line in lines} == {"a human on call"}
    assert lines[0]["value"] <= lines[0]["mean"] and lines[0]["better"] == "higher"
    json.dumps(lines)

"""The chart specifications: what is drawn, what is left open, and that no text can become a template."""

import json
from typing import Any

import pytest

from dashboards import moments
from dashboards.axes import series_points, value_scale
from dashboards.figures import (
    PHASE_ROLES,
    ROLE_TOKENS,
    Trace,
    counter_option,
    merge_phases,
    phase_role,
    time_window,
    timeline_option,
)

TOKENS = (
    "bg",
    "raised",
    "rule",
    "strong_rule",
    "text",
    "muted",
    "faint",
    "ok",
    "ok_text",
    "off",
    "warn",
    "fault",
    "fault_text",
    "training",
)
PALETTE = {name: f"#{number:06x}" for number, name in enumerate((*TOKENS, "load", "hang"), start=1)}
START = 1_790_000_000.0


def attempt(no: int, begin: float, end: float | None) -> dict[str, Any]:
    return {
        "no": no,
        "phases": [
            {"phase": "pending", "from_s": begin, "to_s": begin + 2},
            {"phase": "load", "from_s": begin + 2, "to_s": begin + 5},
            {"phase": "train", "from_s": begin + 5, "to_s": end},
        ],
    }


def steps(no: int, first: int, count: int, begin: float) -> dict[str, Any]:
    numbers = list(range(first, first + count))
    return {
        "no": no,
        "step": numbers,
        "at_s": [begin + 0.5 * index for index in range(count)],
        "loss": [5.0 - 0.01 * number for number in numbers],
        "tokens_per_s": [4000.0 + number for number in numbers],
    }


def trace(**changes: Any) -> Trace:
    fields: dict[str, Any] = {
        "attempts": [attempt(1, START, START + 60), attempt(2, START + 64, None)],
        "steps": [steps(1, 1, 100, START + 6), steps(2, 81, 60, START + 70)],
        "checkpoints": [
            {"state_at_s": START + 20, "step": 28, "state": "validated"},
            {"state_at_s": START + 50, "step": 88, "state": "tainted"},
            {"state_at_s": None, "step": 96, "state": "writing"},
        ],
        "faults": [{"at_s": START + 56, "label": "HBM, sim-node-02 GPU 3"}],
        "now_s": START + 110,
    }
    return Trace(**{**fields, **changes})


def option(**changes: Any) -> dict[str, Any]:
    value = trace(**changes)
    return timeline_option(value, PALETTE, time_window(value.attempts, value.now_s))


def test_the_timeline_has_three_grids_on_one_wall_clock_axis() -> None:
    spec = option()
    assert len(spec["grid"]) == len(spec["xAxis"]) == len(spec["yAxis"]) == 3
    assert {(axis["min"], axis["max"]) for axis in spec["xAxis"]} == {
        (spec["xAxis"][0]["min"], spec["xAxis"][0]["max"])
    }
    assert spec["axisPointer"]["link"] == [{"xAxisIndex": "all"}]
    assert [axis["axisLabel"]["show"] for axis in spec["xAxis"]] == [False, False, True]


def test_the_option_is_plain_json_without_functions() -> None:
    text = json.dumps(option(), allow_nan=False)
    assert "function" not in text
    assert "=>" not in text


def test_each_attempt_is_its_own_line_so_a_restart_is_never_bridged() -> None:
    losses = [series for series in option()["series"] if series.get("name", "").startswith("loss")]
    assert [series["name"] for series in losses] == ["loss, attempt 1", "loss, attempt 2"]
    assert all(series["connectNulls"] is False for series in losses)
    last_step_of_the_first = losses[0]["data"][-1][2]
    first_step_of_the_second = losses[1]["data"][0][2]
    assert first_step_of_the_second < last_step_of_the_first, "redone steps show as a step back"


def test_a_silence_inside_an_attempt_breaks_its_line() -> None:
    at_s = [0.0, 1.0, 2.0, 3.0, 30.0, 31.0]
    points = series_points(at_s, [1.0] * 6, [1, 2, 3, 4, 5, 6])
    assert [point[0] for point in points if point[1] is None] == [16_500.0]
    assert len(points) == 7


@pytest.mark.parametrize("hole", [None, float("nan"), float("inf")])
def test_an_unknown_value_is_a_hole_and_never_zero(hole: float | None) -> None:
    points = series_points([0.0, 1.0, 2.0], [3.0, hole, 2.0], [1, 2, 3])
    assert [point[1] for point in points] == [3.0, None, 2.0]


def test_even_points_stay_as_they_are() -> None:
    assert series_points([0.0, 1.0, 2.0], [3.0, 2.5, 2.0], [1, 2, 3]) == [
        [0.0, 3.0, 1],
        [1000.0, 2.5, 2],
        [2000.0, 2.0, 3],
    ]
    assert series_points([], [], []) == []
    assert series_points([5.0], [1.0], [9]) == [[5000.0, 1.0, 9]]


def test_the_phase_band_names_each_attempt_once_in_its_longest_phase() -> None:
    band = option()["series"][0]["markArea"]["data"]
    named = [start for start, _ in band if "name" in start]
    assert [area["name"] for area in named] == ["attempt 1", "attempt 2"]
    assert {area["itemStyle"]["color"] for area in named} == {PALETTE["training"]}
    assert band[-1][1]["xAxis"] == (START + 110) * 1000, "the open phase ends now"


def test_fault_lines_cross_all_three_grids_and_the_label_stands_on_the_emptier_side() -> None:
    spec = option()
    lines = [series for series in spec["series"] if series.get("markLine", {}).get("data")]
    assert sorted(series["xAxisIndex"] for series in lines) == [0, 1, 2]
    assert {series["markLine"]["data"][0]["xAxis"] for series in lines} == {(START + 56) * 1000}
    labels = [
        item for series in spec["series"] if series["type"] == "scatter" for item in series["data"] if "name" in item
    ]
    assert [(item["name"], item["label"]["position"]) for item in labels] == [("× HBM, sim-node-02 GPU 3", "right")]
    late = option(faults=[{"at_s": START + 108, "label": "late"}])["series"][2]["data"][0]
    assert (late["name"], late["label"]["position"]) == ("late ×", "left")


def test_checkpoint_ticks_are_coloured_by_state_and_an_unwritten_one_has_none() -> None:
    ticks = next(series for series in option()["series"] if series.get("name") == "checkpoint")
    assert [(item["value"][0], item["itemStyle"]["color"]) for item in ticks["data"]] == [
        ((START + 20) * 1000, PALETTE["muted"]),
        ((START + 50) * 1000, PALETTE["fault"]),
    ]


def test_a_hostile_label_stays_data_and_never_becomes_the_template() -> None:
    hostile = "{a|x}<img src=x onerror=alert(1)>{b}"
    labels = option(faults=[{"at_s": START + 10, "label": hostile}])["series"][2]
    assert labels["label"]["formatter"] == "{b}"
    assert labels["data"][0]["name"] == f"× {hostile}"
    assert "rich" not in json.dumps(labels)


def test_throughput_is_per_gpu_when_the_run_knows_its_gpus() -> None:
    whole, shared = option(), option(gpus=16)
    assert whole["title"][1]["text"].startswith("throughput, tok/s")
    assert shared["title"][1]["text"].startswith("throughput, tok/s/GPU")
    first = [
        next(s for s in spec["series"] if s.get("name", "").startswith("tok/s"))["data"][0][1]
        for spec in (whole, shared)
    ]
    assert first[0] == pytest.approx(16 * first[1])


def test_large_throughput_is_written_in_thousands() -> None:
    rows = [{**steps(1, 1, 4, START), "tokens_per_s": [26_000.0] * 4}]
    spec = option(steps=rows)
    assert spec["title"][1]["text"].startswith("throughput, k tok/s")
    assert next(s for s in spec["series"] if s.get("name", "").startswith("k tok/s"))["data"][0][1] == 26.0


def test_a_run_without_any_step_still_has_axes() -> None:
    spec = option(attempts=[], steps=[], checkpoints=[], faults=[])
    assert (spec["yAxis"][1]["min"], spec["yAxis"][1]["max"]) == (0.0, 1.0)
    assert spec["xAxis"][0]["min"] < spec["xAxis"][0]["max"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 2.1, 2.2], (2.0, 2.2, 0.05)),
        ([0.4, 5.0], (0.0, 6.0, 2.0)),
        ([3.0, None, float("nan")], (2.8, 3.2, 0.1)),
        ([0.0, 0.0], (0.0, 1.0, 0.5)),
        ([], (0.0, 1.0, 0.5)),
    ],
)
def test_value_scales_end_on_round_numbers(values: list[float | None], expected: tuple[float, float, float]) -> None:
    scale = value_scale(values)

    assert (scale.low, scale.high, scale.interval) == pytest.approx(expected)


def test_time_window_by_choice() -> None:
    attempts = [attempt(1, START, START + 9000), attempt(2, START + 9010, None)]
    now = START + 9500
    assert time_window(attempts, now)[0] == pytest.approx(START, abs=50)
    assert time_window(attempts, now, "attempt")[0] == pytest.approx(START + 9010, abs=5)
    assert time_window(attempts, now, "hour")[0] == pytest.approx(now - 3600, abs=20)
    assert time_window([], now) == (now - 60.0, now)


def test_neighbouring_phases_of_one_role_are_one_bar() -> None:
    phases = [
        {"phase": "train", "from_s": 0.0, "to_s": 10.0},
        {"phase": "checkpoint", "from_s": 10.0, "to_s": 11.0},
        {"phase": "train", "from_s": 11.0, "to_s": 20.0},
        {"phase": "suspect", "from_s": 20.0, "to_s": None},
    ]
    assert merge_phases(phases, 25.0) == [("train", 0.0, 20.0), ("hang", 20.0, 25.0)]


def test_every_phase_has_a_role_and_every_role_a_token() -> None:
    assert set(PHASE_ROLES.values()) == set(ROLE_TOKENS)
    assert set(ROLE_TOKENS.values()) <= set(PALETTE)
    assert phase_role("never heard of") == "queue"


def test_a_counter_is_a_step_line_with_marks_at_the_fault_and_at_the_return() -> None:
    marks = [
        {"at_s": 5.0, "label": "16:37:40", "level": "fault"},
        {"at_s": 9.0, "label": "trains again", "level": "ok"},
    ]
    spec = counter_option([float(t) for t in range(11)], [0.0] * 5 + [1893.0] * 6, marks, PALETTE)
    line, labels = spec["series"]
    assert line["step"] == "end"
    assert [item["lineStyle"]["color"] for item in line["markLine"]["data"]] == [PALETTE["fault"], PALETTE["ok"]]
    assert [item["name"] for item in labels["data"]] == ["× 16:37:40", "trains again ●"]
    assert spec["grid"][0]["top"] == 24, "one row of labels is enough"
    assert spec["yAxis"][0]["max"] >= 1893


@pytest.mark.parametrize("fault_s", [1.0, 200.0, 470.0, 560.0, 585.0])
def test_a_return_seconds_after_a_fault_is_not_printed_over_it(fault_s: float) -> None:
    marks = [
        {"at_s": fault_s, "label": "16:37:40", "level": "fault"},
        {"at_s": fault_s + 12, "label": "trains again", "level": "ok"},
    ]
    labels = moments.labels(marks, (0.0, 600.0), 1.0, PALETTE, moments.COUNTER_CHAR, rows=2)
    assert [label["name"].strip("×● ") for label in labels] == ["16:37:40", "trains again"]
    spans = []
    for label in labels:
        at, wide = label["value"][0] / 600_000, moments.COUNTER_CHAR * len(label["name"])
        low = at if label["label"]["position"] == "right" else at - wide
        spans.append((label["label"]["offset"][1], low, low + wide))
    (row, low, high), (other, begin, end) = spans
    assert row != other or high <= begin or end <= low
    assert min(low, begin) > -0.05 and max(high, end) < 1.05


def test_a_label_without_room_is_left_out_and_its_line_stays() -> None:
    faults = [{"at_s": START + 50 + second, "label": "a rather long label of a fault"} for second in range(4)]
    series = option(faults=faults)["series"]
    assert len(series[2]["data"]) == 2 and len(series[0]["markLine"]["data"]) == 4


def test_what_a_person_did_is_no_fault() -> None:
    series = option(faults=[{"at_s": START + 20, "label": "restarted by ada", "level": "quiet"}])["series"]
    (label,) = series[2]["data"]
    assert (label["name"], label["label"]["color"]) == ("restarted by ada", PALETTE["muted"])
    assert series[0]["markLine"]["data"][0]["lineStyle"]["color"] == PALETTE["off"]


def test_the_axis_of_the_loss_keeps_off_the_title_below_it() -> None:
    spec = option()
    _, loss, rate = spec["grid"]
    assert loss["top"] + loss["height"] + 8 <= spec["title"][1]["top"] <= rate["top"] - 20

"""The parts of Now, Fleet and Experts without a page: rows, sentences, bars of what was lost, facts of a bias."""

from typing import Any

import pytest
from fake_fleet import HOSTILE, Fleet
from hypothesis import given
from hypothesis import strategies as some

from dashboards import figures_now, markup, tokens
from dashboards.views import experts, experts_controller, fleet, fleet_node, now_rows


def span(begin: float, end: float, hours: float, cause: str = "queue") -> dict[str, Any]:
    return {"from_s": begin, "to_s": end, "gpu_h": hours, "cause": cause}


@given(
    some.lists(
        some.tuples(
            some.floats(0, 90_000), some.floats(0, 5_000), some.floats(0, 100), some.sampled_from(["queue", "restart"])
        ),
        min_size=1,
        max_size=20,
    )
)
def test_bars_lose_no_hour_and_are_not_too_many(spans: list[tuple[float, float, float, str]]) -> None:
    rows = [span(1e9 + begin, 1e9 + begin + length, hours, cause) for begin, length, hours, cause in spans]
    bars = figures_now.bars_of(rows)
    told = sum(sum(values) for values in bars.hours.values())
    assert told == pytest.approx(sum(row["gpu_h"] for row in rows), rel=1e-6, abs=1e-6)
    assert 1 <= bars.count <= figures_now.MOST_BARS + 1
    assert {len(values) for values in bars.hours.values()} == {bars.count}


def test_a_span_is_counted_where_it_was() -> None:
    bars = figures_now.bars_of([span(0, 60, 6), span(30, 30, 1, "restart"), span(97, 98, 0.5)])
    assert bars.width_s == 2.0
    assert bars.hours["queue"][0] == pytest.approx(0.2)
    assert bars.hours["restart"][15] == 1
    assert figures_now.span_words(bars) == "00:00:00 to 00:01:40 UTC, 1 m 40 s, one bar = 2 s"


def test_the_chart_of_what_was_lost_paints_each_cause_by_what_it_is() -> None:
    palette = tokens.palette("dark")
    option = figures_now.lost_option(
        figures_now.bars_of([span(0, 1, 1), span(0, 1, 1, "start, load, steps run twice")]), palette
    )
    assert [row["itemStyle"]["color"] for row in option["series"]] == [palette["off"], palette["load"]]
    assert figures_now.role("never heard of") == "off"
    assert option["series"][0]["data"] == [1, 0] and option["yAxis"]["name"] == "GPU-h"


def test_what_was_lost_is_a_share_of_the_fleet_and_named_after_its_incident() -> None:
    causes = ("start, load, steps run twice", "out of service")
    rows = [span(900 * slot, 900 * slot + 900, 1.0, cause) for slot in range(96) for cause in causes]
    rows += [{**span(9_000, 9_900, 60.0), "incident": 398}, {**span(9_900, 10_800, 30.0), "incident": 398}]
    rows += [{**span(9_000, 9_900, 50.0), "incident": 7}, {**span(18_000, 18_900, 0.5), "incident": 12}]
    bars = figures_now.bars_of(rows)
    assert list(bars.hours) == ["queue", "out of service", "start, load, steps run twice"]
    assert bars.names == {10: "INC-0398"}, "the costlier of two in one bar, and none for a low bar"
    option = figures_now.lost_option(bars, tokens.palette("light"), gpus=1024)
    assert option["series"][1]["data"][0] == pytest.approx(100 * 1 / (1024 * 0.25), abs=1e-4)
    top = option["series"][-1]["data"][10]
    assert top["label"]["formatter"] == "INC-0398" and top["value"] == option["series"][-1]["data"][11]
    assert "name" not in option["yAxis"] and option["yAxis"]["axisLabel"]["formatter"] == "{value} %"
    assert figures_now.span_words(bars, 1024).endswith("share of 1,024 GPUs, one bar = 15 m")
    assert figures_now.lost_words([span(0, 1, 1450)], {"gpu_h": 24_576}) == "1,450 of 24,576 GPU-hours, 5.9 %"
    assert figures_now.lost_words([span(0, 1, 2.5)], {}) == "2.50 GPU-hours"


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ({"link": {"kind": "incident", "id": 7}}, ("Open INC-0007", "incident", {"number": "7"})),
        ({"incident": "INC-0412"}, ("Open INC-0412", "incident", {"number": "412"})),
        ({"link": {"kind": "layer", "id": "a/b/31"}}, ("Open layer 31", "experts", {"run": "a/b", "layer": "31"})),
        ({"link": {"kind": "run", "id": "r1"}}, ("Open the job", "job", {"run": "r1"})),
        ({"link": {"kind": "node", "id": "n1"}}, ("Open n1", "fleet", {"node": "n1"})),
        ({}, ("", "", {})),
    ],
)
def test_a_need_opens_what_it_is_about(need: dict[str, Any], expected: tuple[str, str, dict[str, str]]) -> None:
    assert now_rows.target(need) == expected


@pytest.mark.parametrize(
    ("rate", "words"), [(None, "–"), (412.0, "412 tok/s"), (26_395.0, "26.4 k tok/s"), (23_654_400.0, "23.7 M tok/s")]
)
def test_a_rate_keeps_its_size(rate: float | None, words: str) -> None:
    assert now_rows.rate_words(rate) == words


def test_a_run_of_which_nothing_is_known_shows_dashes_and_no_zero() -> None:
    text = now_rows.running_table([{"id": "r", "status": "queued"}], 0.0)
    assert text.count("–") >= 5 and "0.0 %" not in text


def test_the_legend_leaves_out_what_is_not_there() -> None:
    text = now_rows.legend({"idle": 24, "fault": 1})
    assert "training 0" in text and "idle 24" in text and "fault 1" in text and "warning" not in text
    assert "training –" in now_rows.legend({})


def test_the_fleets_sentence_says_who_is_out_who_is_silent_and_else_that_all_is_well() -> None:
    rows = Fleet(128).rows()
    lead, rest, level = fleet.sentence_of(rows)
    assert (lead, level) == ("1 node out: sim-node-017.", "fault")
    assert "sim-node-044 is silent" in rest
    healthy = [row for row in rows if fleet.node_level(row) in ("training", "idle")]
    assert fleet.sentence_of(healthy) == (f"All {len(healthy)} nodes are healthy.", "", "ok")
    assert fleet.sentence_of([])[0] == "No node yet."


def test_a_node_without_a_word_is_silent_and_never_healthy() -> None:
    assert fleet.node_level({"name": "n", "gpus": [], "findings": []}) == "nodata"


def test_what_is_not_healthy_stands_worst_first_with_its_gpu() -> None:
    found = fleet.unhealthy(Fleet(128).rows())
    assert [(row["node"], row["gpu"]) for row in found] == [
        ("sim-node-017", 3),
        ("sim-node-009", 4),
        ("sim-node-044", None),
    ]


@pytest.mark.parametrize(
    ("finding", "gpu"),
    [({"gpu": 5}, 5), ({"entity": "gpu3"}, 3), ({"entity": "n/gpu12"}, 12), ({"entity": "nic2"}, None), ({}, None)],
)
def test_a_finding_names_its_gpu(finding: dict[str, Any], gpu: int | None) -> None:
    assert fleet_node.gpu_of(finding) == gpu


def test_a_node_table_shows_unknown_as_a_dash() -> None:
    text = fleet_node.gpu_table({"gpus": [{"index": 0, "state": "nodata"}]})
    assert text.count("–") == 5 and ">0<" in text


def test_the_runs_that_the_page_opens() -> None:
    runs = [
        {"id": "c", "status": "succeeded"},
        {"id": "b", "name": "zaya", "status": "active"},
        {"id": "a", "name": "x"},
    ]
    for named, of, expected in ((None, runs, "b"), ("a", runs, "a"), ("zaya", runs, "b"), (None, runs[:1], "c")):
        found = experts.chosen_run(of, named)
        assert found is not None and found["id"] == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"sentence": {"lead": "A.", "rest": "B.", "level": "warn"}}, ("A.", "B.", "warn")),
        ({"sentence": "Layer 1 leans. More."}, ("Layer 1 leans.", "More.", "ok")),
        ({}, ("", "", "ok")),
    ],
)
def test_a_summarys_sentence_in_either_form(told: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert experts.sentence_of(told) == expected


def test_a_layers_bias_is_compared_with_the_median_and_nothing_is_guessed() -> None:
    rows = [{"layer": layer, "bias_spread": 0.1, "same_direction": 0.5, "sign_flips": 0.4} for layer in range(5)]
    rows[3] |= {"bias_spread": 0.6, "same_direction": 0.95, "sign_flips": 0.7}
    facts = experts_controller.facts_of({"controller": rows})
    text = experts_controller.sentence(facts, 3)
    assert "<b>6.0 times</b> the median layer" in text and "95 %" in text
    assert "70 % went the other way than the one before." in text and "swings" not in text, (
        "the alarm names it, or none"
    )
    assert "<b>It swings</b>" in experts_controller.sentence(facts, 0, swings=True)
    assert "about as far as" in experts_controller.sentence(facts, 0)
    assert experts_controller.facts_of({}) == {}
    assert "after a window of 64 steps" in experts_controller.sentence({}, 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"kind": "sign", "sign_gain": 0.001, "sign_r2": 0.97}, "u = 0.001, R² 0.97; the sign is correct."),
        ({"kind": "pid", "ki": 0.0048, "r2": 0.941}, "summed error, with Ki = 0.0048, R² 0.94."),
        (
            {"kind": "pid", "inverted_by": "sign_gain", "sign_gain": -0.02, "sign_r2": 0.8},
            "error (u = −0.02, R² 0.80).",
        ),
        ({"kind": "pid", "inverted_by": "ki", "ki": -3, "r2": 1, "sign_gain": -0.01}, "error (Ki = −3, R² 1.00)."),
        ({"kind": "pid", "inverted_by": None, "ki": -3, "r2": 1}, "below zero, which no alarm calls inverted here."),
        ({"kind": "sign", "sign_gain": -0.01, "sign_r2": 0.9}, "below zero, which no alarm calls inverted here."),
        ({"kind": "unknown", "r2": 0.1}, "No simple controller explains half of its movement."),
        ({"kind": "sign"}, "gain not known"),
        ({}, ""),
    ],
)
def test_the_controller_that_explains_a_layers_bias_is_named(row: dict[str, Any], told: str) -> None:
    summary = {"controller": [{"layer": 0, "kind": "sign"}, {"layer": 1, **row}]}
    assert told in experts_controller.identified(summary, 1)
    assert experts_controller.identified(summary, 7) == ""
    assert experts_controller.identified({"controller": [{"layer": 0, "kind": "unknown", "r2": None}]}, 0) == ""


@pytest.mark.parametrize("level", ["ok", "warn", "warning", "fault", "critical", "nodata", "off", None, "<b>", 3])
def test_every_block_escapes_what_it_is_given(level: Any) -> None:
    row = {"label": HOSTILE, "value": HOSTILE, "unit": HOSTILE, "context": HOSTILE, "level": level}
    blocks = (
        markup.glyph(level, HOSTILE),
        markup.chip(HOSTILE, level, HOSTILE),
        markup.link(HOSTILE, "fleet", {HOSTILE: HOSTILE}),
        markup.sentence(HOSTILE, HOSTILE, level),
        markup.title(HOSTILE, HOSTILE, HOSTILE, (str(level), HOSTILE, HOSTILE), HOSTILE),
        markup.tiles([row]),
        markup.section(HOSTILE, HOSTILE, HOSTILE),
        markup.badges(HOSTILE, stale=True, simulated=True),
        markup.empty(HOSTILE, HOSTILE, HOSTILE),
        markup.problem(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        now_rows.need({"lead": HOSTILE, "rest": HOSTILE, "owner": HOSTILE, "level": level}),
        now_rows.section_with_link(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        fleet_node.reason({"state_reason": HOSTILE, "findings": []}),
        fleet_node.facts({"facts": {"gpu_model": HOSTILE}, "source": HOSTILE, "run": HOSTILE}),
        fleet_node.happened([{"at_s": 1.0, "sentence": HOSTILE, "level": level}]),
    )
    for block in blocks:
        assert "<img" not in block and "<b>{" not in block


def test_every_token_is_a_pair_of_colours_and_reaches_the_page() -> None:
    text = tokens.css("dark")
    assert text.endswith("body { color-scheme: dark; }\n"), "dialogs and toasts follow the body"
    for name, (light, dark) in tokens.TOKENS.items():
        assert f"--tt-{name.replace('_', '-')}: light-dark({light}, {dark});" in text
    assert tokens.palette("dark")["bg"] == "#0F1317" and tokens.palette("anything")["bg"] == "#FCFCFB"

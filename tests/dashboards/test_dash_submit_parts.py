"""The Submit page's reasoning: what the review says, and how a field's text becomes a value."""

import re
from typing import Any

import pytest
import samples_runs as samples

from dashboards.views import advice, submit_form, submit_review


def test_checks_stand_with_what_hinders_first() -> None:
    problems = [{"path": "resources.nodes", "message": "must be ≥ 1"}]
    markup = submit_review.check_block(samples.VALIDATION["checks"], problems)
    assert markup.index("resources.nodes") < markup.index("the text is small") < markup.index("2 of 4 healthy")
    assert submit_review.verdict(samples.VALIDATION["checks"], problems) == "1 to change, 1 passed, 1 to look at"


def test_the_sentence_ends_with_how_much_there_is_to_look_at() -> None:
    assert "1 thing to look at." in submit_review.sentence_block(samples.VALIDATION)
    wrong = {**samples.VALIDATION, "problems": [{"path": "a", "message": "b"}, {"path": "c", "message": "d"}]}
    assert "1 thing" not in submit_review.sentence_block(wrong), "the server's sentence says it already"
    failed = {**samples.VALIDATION, "checks": [{"level": "error", "name": "nodes", "sentence": "4 exist"}]}
    assert "1 thing to change." in submit_review.sentence_block(failed)
    assert "cannot say" in submit_review.sentence_block({"sentence": ""})


def test_when_how_long_and_how_much_stand_out() -> None:
    sentence = "2 nodes would start at once, run about 3 m 05 s, and use 0.23 GPU-hours."
    markup = submit_review.sentence_block({"sentence": sentence}).replace("\u00a0", " ")
    for part in ("<b>at once</b>", "<b>3 m 05 s</b>", "<b>0.23 GPU-hours</b>"):
        assert part in markup


def test_a_candidate_that_is_left_out_says_why() -> None:
    markup = submit_review.candidate_block(samples.VALIDATION["candidates"])
    assert markup.count("tt-chip tt-ok") == 2
    assert "sim-node-02: cordoned: uncorrectable HBM errors." in markup


def test_capacity_shows_who_holds_nodes_and_says_when_an_end_is_not_known() -> None:
    rows = [samples.run_row(), samples.run_row(name="stuck", eta=None), samples.run_row(name="waits", nodes=[])]
    markup = submit_review.capacity_block(rows, "mine", 2, [{"node": "a", "ok": False}] * 4)
    assert "2 nodes, ends in 16 s" in markup
    assert "2 nodes, end not known" in markup
    assert "waits" not in markup
    assert "tt-this" in markup


FOUR = [{"node": f"n{index}", "ok": True} for index in range(4)]


def bar(markup: str) -> tuple[float, float, str]:
    """(left, width, words) of the new run's bar."""
    found = re.search(r'<div class="tt-this"><i style="left:([\d.]+)%;width:([\d.]+)%"></i><span>(.*?)</span>', markup)
    assert found
    return float(found[1]), float(found[2]), found[3]


def test_the_new_run_is_as_long_as_the_sentence_says() -> None:
    markup = submit_review.capacity_block([], "mine", 2, FOUR, 70.0)
    assert bar(markup) == (0.0, 80.0, "2 nodes, 1 m 10 s")
    assert "in 1 m 28 s" in markup, "the axis is as long as what it shows"
    assert bar(submit_review.capacity_block([], "mine", 2, FOUR)) == (0.0, 100.0, "2 nodes, length not known")


def test_the_new_run_begins_when_its_nodes_are_free_and_not_before() -> None:
    busy = [{"node": "n0", "ok": True}, *({"node": f"n{index}", "ok": False} for index in (1, 2, 3))]
    holds = samples.run_row(nodes=["n1", "n2", "n3"], eta={"low_s": 80.0, "high_s": 100.0})
    left, width, _ = bar(submit_review.capacity_block([holds], "mine", 2, busy, 100.0))
    assert (left, width) == (40.0, 40.0)
    stuck = samples.run_row(nodes=["n1", "n2", "n3"], eta=None)
    assert bar(submit_review.capacity_block([stuck], "mine", 2, busy, 100.0))[1:] == (
        0.0, "2 nodes, its start is not known",
    )  # fmt: skip
    assert bar(submit_review.capacity_block([], "mine", 9, FOUR, 70.0))[1:] == (0.0, "9 nodes: only 4 exist")
    assert bar(submit_review.capacity_block([], "mine", 2, []))[1:] == (0.0, "2 nodes, its start is not known")


def test_each_step_leads_to_its_place() -> None:
    steps = submit_review.step_bar(
        {"template": False, "model and data": False, "resources, faults": True, "review": False}
    )
    assert re.findall(r'href="#(\w+)"', steps) == list(submit_review.ANCHORS)


def test_the_cost_of_a_failure_is_counted_in_steps_until_hours_are_known() -> None:
    markup = submit_review.failure_block(samples.SPEC, samples.VALIDATION)
    for part in ("8 steps", "up to 8 steps", "8 by itself", "not known before a first run"):
        assert part in markup
    assert "790 GPU-hours" in submit_review.failure_block(samples.SPEC, {"gpu_hours": 790.0})
    assert "not known" in submit_review.failure_block({"spec": {}}, {})


def test_the_advice_stands_in_the_cost_of_a_failure_with_its_inputs() -> None:
    markup = submit_review.failure_block(samples.SPEC, samples.VALIDATION).replace("\u00a0", " ")
    for part in (
        "<span>loses least</span><b>each 421 steps, 14 m 02 s</b>",
        "<span>by Young and Daly</span><b>each 14 m 04 s</b>",
        "88.4 % as it is set, 98.6 % with that",
        "<span>spare nodes</span><b>2 lose least</b>",
        "<span>stops expected</span><b>1.8</b>",
        "62.6 GPU-hours",
        "1,024 GPUs (spec); a stop each 50,677 GPU-hours (Llama 3); a step takes 2.0 s (measured)",
    ):
        assert part in markup
    assert advice.faint(samples.ADVICE) == "a stop each 2 d 1 h on 1,024 GPUs, expected"


def test_without_an_advice_or_a_steps_time_nothing_is_made_up() -> None:
    assert advice.faint(None) == "at most one checkpoint interval"
    assert "loses least" not in submit_review.failure_block(samples.SPEC, {"advice": None})
    unknown = {
        **samples.ADVICE,
        "interval_steps": None,
        "stops_expected": None,
        "lost_a_stop_gpu_h": None,
        "set": {"interval_steps": 8, "interval_s": None, "ettr_percent": None},
        "inputs": [{"name": "a step takes", "value": None, "unit": "s", "source": "unknown"}],
    }
    markup = advice.block(unknown)
    assert "each 14" in markup and "useful time" not in markup and "stops expected" not in markup
    assert "a step takes – (unknown)" in markup
    assert "no GPUs" in advice.block(None)
    assert "none lose least" in advice.block({**unknown, "spares": 0})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0.5", -0.5),
        ("−1.0", -1.0),
        ("30", 30),
        ("30.0", 30.0),
        ("1e3", 1000.0),
        ("abc", "abc"),
        ("nan", "nan"),
        ("", ""),
    ],
)
def test_a_numbers_text_becomes_a_number_or_stays_for_the_server_to_refuse(text: str, value: Any) -> None:
    read = submit_form.as_number(text)
    assert read == value
    assert type(read) is type(value)


def test_each_field_has_one_place_in_the_form() -> None:
    paths = [path for part in submit_form.PARTS for path in part.paths]
    assert len(paths) == len(set(paths))
    parts = {part.anchor for _, several in submit_form.STEPS for part in several}
    assert parts == {part.anchor for part in submit_form.PARTS}


def test_hostile_text_stays_text() -> None:
    hostile = samples.HOSTILE
    blocks = [
        submit_review.check_block(
            [{"level": hostile, "name": hostile, "sentence": hostile}], [{"path": hostile, "message": hostile}]
        ),
        submit_review.sentence_block({"sentence": hostile}),
        submit_review.candidate_block([{"node": hostile, "ok": False, "reason": hostile}]),
        submit_review.capacity_block([samples.run_row(name=hostile)], hostile, 1, FOUR),
        submit_review.step_bar({hostile: True}),
        advice.block(
            {**samples.ADVICE, "sentence": hostile, "inputs": [{"name": hostile, "unit": hostile, "source": hostile}]}
        ),
    ]
    for block in blocks:
        assert "<img" not in block
        assert "&lt;img" in block
